/* Arrays of numbers as files store them, to and from reals. Sources may be unaligned. */
#ifndef MODEL_VALUES_H
#define MODEL_VALUES_H

#include "tensor/backend.h"

void values_to_real(enum dtype dtype, const void *source, int64_t n, real *out);
/* To DTYPE_F32 or DTYPE_BF16, to nearest even. */
void values_from_real(const real *source, int64_t n, enum dtype dtype, void *out);
/* The first element that is NaN or infinite, or -1. */
int64_t values_find_nonfinite(enum dtype dtype, const void *source, int64_t n);
/* "F32", "BF16", ... as safetensors names it. */
const char *values_dtype_name(enum dtype dtype);

#endif
