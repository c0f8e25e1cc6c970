/* Rounding a matrix to 4 bits so that its products change least on given inputs, not its elements (GPTQ: Frantar et al.
 * 2022).
 *
 * With H = sum of x x^T over the inputs x, the outputs of a row w that was rounded to v differ by (w - v)^T H (w - v).
 * H = M D M^T, with M upper triangular and ones on its diagonal, makes that a sum over the inner elements in order:
 *     sum_l D[l] (t[l] - v[l])^2,    t[l] = w[l] + sum_{i<l} (w[i] - v[i]) M[i][l].
 * So each element in turn is rounded from where the errors before it have moved its target. These are GPTQ's steps
 * without the inverse of H. */
#ifndef MODEL_GPTQ_H
#define MODEL_GPTQ_H

#include "tensor/backend.h"

struct gptq {
    struct backend *backend; /* borrowed */
    struct team *team;       /* as many threads as the backend has */
    struct pass pass;
};
int gptq_init(struct gptq *gptq, struct backend *backend, looplm_error *err);
void gptq_free(struct gptq *gptq);

/* In place: row-major H [k, k], k a multiple of the groups' 32, becomes D on its diagonal and M above it. `damping`
 * times the mean of the diagonal is added to the diagonal first. LOOPLM_FORMAT when H is not positive all the same:
 * inputs that hold NaN or infinity, or nothing but zeros. */
int gptq_factor(struct gptq *gptq, real *h, int64_t k, double damping, looplm_error *err);
/* Rounds rows [weight->n, weight->k], row-major, into the q4 weight. Bits do not depend on the number of threads. */
int gptq_round(struct gptq *gptq, const real *factor, const real *rows, const struct weight *weight, looplm_error *err);

#endif
