/* real: the type of activations, gradients and master parameters. It is float; the library is also built with
 * double (LOOPLM_REAL_DOUBLE, naive kernels only), so that central differences can check every gradient. */
#ifndef TENSOR_REAL_H
#define TENSOR_REAL_H

#ifdef LOOPLM_REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif

#endif
