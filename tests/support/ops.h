/* Shared by the tests of kernels: runs ops on any table and number of threads, random data, and comparisons that say
 * which op, table and element differ. Works in the double build too, which has the scalar table alone. */
#ifndef TESTS_SUPPORT_OPS_H
#define TESTS_SUPPORT_OPS_H

#include "tensor/backend.h"

#include <stddef.h>

/* The names of the tables that this processor supports, "scalar" first; NULL after the last. */
const char *ops_table(int i);

/* Executes the ops as one pass. Backends are opened once and kept; ops_close_all (a group teardown) ends them. */
void ops_run(const char *table, int threads, const struct op *ops, int n_ops);
int ops_close_all(void **state);

/* Numbers from a seed that the caller keeps: uniform in 0 .. limit-1, and about normal with standard deviation scale.
 */
uint32_t ops_random_below(uint64_t *seed, uint32_t limit);
real ops_random(uint64_t *seed, real scale);
void ops_fill(uint64_t *seed, real *data, size_t n, real scale);

/* Fresh 64-byte aligned zeroed memory, ended by free(); ops_reals fills n reals with random ones. */
void *ops_alloc(size_t size);
real *ops_reals(uint64_t *seed, size_t n, real scale);
real *ops_copy(const real *data, size_t n);

/* A packed weight of random values (standard deviation scale), made by the scalar table; `source` (may be NULL)
 * receives the row-major [n, k] values that it holds, after rounding to the type; caller frees both. */
struct weight ops_weight(uint64_t *seed, enum weight_type type, int n, int k, real scale, real **source);

/* Both fail the test with `what`, the table, the index and both values. Equal means the same bits (any NaN equals any).
 */
void ops_assert_equal(const char *what, const char *table, const real *got, const real *want, size_t n);
void ops_assert_close(const char *what, const char *table, const real *got, const double *want, size_t n,
                      const double *tolerance);

#endif
