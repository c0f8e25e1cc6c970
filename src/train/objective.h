/* Objectives over one sequence: stage I (entropy-regularised, SPEC 3) and stage II (the gate alone, SPEC 4). Pure
 * arithmetic in double on [R, n] arrays, no model.
 *
 * Everything is computed from the gate's logits z, never from a rounded lambda: ln lambda = -softplus(-z) and
 * ln(1 - lambda) = -softplus(z) stay finite where lambda is 0 or 1 in float.
 */
#ifndef TRAIN_OBJECTIVE_H
#define TRAIN_OBJECTIVE_H

#include "model/config.h"
#include "tensor/real.h"

#define OBJECTIVE_KIND_MAP(X) X(STAGE1, "stage1") X(STAGE2, "stage2")
#define OBJECTIVE_PRIOR_MAP(X) X(UNIFORM, "uniform") X(GEOMETRIC, "geometric")
enum objective_kind {
#define X(code, name) OBJECTIVE_##code,
    OBJECTIVE_KIND_MAP(X)
#undef X
};
enum objective_prior {
#define X(code, name) PRIOR_##code,
    OBJECTIVE_PRIOR_MAP(X)
#undef X
};

struct objective {
    enum objective_kind kind;
    enum objective_prior prior;
    double beta;       /* weight of the entropy (uniform), or of KL(p || prior) (geometric) */
    double prior_exit; /* lambda of the truncated geometric prior, inside (0, 1) */
    double k, gamma;   /* stage II: slope and threshold of the continuation target */
};

/* One sequence of n positions; [R, n] arrays are by loop, then position. A position uses its own loops alone: elements
 * beyond its depth are not read, and written as 0. */
struct objective_input {
    int32_t loops, n;
    const int32_t *targets; /* [n]; a negative one makes the token invalid: it adds nothing */
    const uint8_t *depths;  /* [n] loops of each position, or NULL: all R */
    const real *logit;      /* [R, n] of the gate; NULL without a gate: all of p is at the token's last loop */
    const real *ce;         /* [R, n] */
};

struct objective_sums {
    double loss, entropy;         /* over valid tokens, undivided */
    double exit[MODEL_LOOPS_MAX]; /* p of each loop */
};

/* The exit distribution of every position, valid or not: p [R, n]. Neither the cross-entropies nor the targets are
 * read. */
void objective_exit(const struct objective_input *input, real *p);

/* The sums over valid tokens, and dlogit [R, n] (may be NULL): the derivative of the summed loss by the gate's logits.
 * The derivative by the cross-entropy of loop r is p of that loop in stage I, and is not taken in stage II. */
void objective_loss(const struct objective *objective, const struct objective_input *input, real *dlogit,
                    struct objective_sums *sums);

#endif
