/* Owns the two training objectives as functions of gate logits and cross-entropies, token by token. The model, the
 * head and the chain rule below the gate's logit belong to unit.c and backward.c.
 *
 * Invariants: p of a token sums to 1 over its own loops; nothing here is NaN for finite inputs, however large the
 * logits; sums walk positions in order, so the result depends on the sequence alone.
 */
#include "train/objective.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

/* One token's exit distribution over its own loops. */
struct token {
    int32_t loops;
    double log_p[MODEL_LOOPS_MAX], p[MODEL_LOOPS_MAX];
    double lambda[MODEL_LOOPS_MAX], stay[MODEL_LOOPS_MAX]; /* lambda and 1 - lambda, each to full precision */
};

static double softplus(double x) {
    return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}

static double sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

static int32_t token_loops(const struct objective_input *input, int32_t i) {
    int32_t loops = input->depths ? input->depths[i] : input->loops;
    CHECK_LE(1, loops);
    CHECK_LE(loops, input->loops);
    return loops;
}

/* p_r = lambda_r S, S *= 1 - lambda_r, the last loop takes what is left (SPEC 1), through logarithms. */
static void token_init(struct token *token, const struct objective_input *input, int32_t i) {
    token->loops = token_loops(input, i);
    double log_left = 0; /* ln S */
    for (int32_t r = 0; r < token->loops - 1; r++) {
        double z = input->logit ? (double)input->logit[(int64_t)r * input->n + i] : -INFINITY;
        token->lambda[r] = sigmoid(z);
        token->stay[r] = sigmoid(-z);
        token->log_p[r] = log_left - softplus(-z);
        token->p[r] = exp(token->log_p[r]);
        log_left -= softplus(z);
    }
    token->log_p[token->loops - 1] = log_left;
    token->p[token->loops - 1] = exp(log_left);
}

void objective_exit(const struct objective_input *input, real *p) {
    struct token token;
    memset(p, 0, sizeof *p * (size_t)input->loops * (size_t)input->n);
    for (int32_t i = 0; i < input->n; i++) {
        token_init(&token, input, i);
        for (int32_t r = 0; r < token.loops; r++) p[(int64_t)r * input->n + i] = (real)token.p[r];
    }
}

/* ln of the prior of loop r: geometric over the token's own loops, cut off and normalised. The uniform prior is a
 * constant beta ln R away from the entropy, and left out as in the paper's loss. */
static double log_prior(const struct objective *objective, int32_t loops, int32_t r) {
    if (objective->prior == PRIOR_UNIFORM) return 0;
    double log_stay = log1p(-objective->prior_exit);
    return log(objective->prior_exit) + r * log_stay - log(-expm1(loops * log_stay));
}

/* x ln x and its kin have the limit 0. */
static double weighted(double p, double value) {
    return p > 0 ? p * value : 0;
}

/* L = sum_r p_r (CE_r + beta (ln p_r - ln prior_r)). By ln p_r its derivative is g_r = p_r (CE_r + beta (ln p_r - ln
 * prior_r) + beta), where the last beta drops out by the z of a normalised p. ln p_j holds ln lambda_j, whose
 * derivative by z_j is 1 - lambda_j; each later one holds ln(1 - lambda_j), with -lambda_j. */
static double token_stage1(const struct objective *objective, const struct objective_input *input, int32_t i,
                           const struct token *token, real *dlogit) {
    double loss = 0, g[MODEL_LOOPS_MAX], later = 0;
    for (int32_t r = 0; r < token->loops; r++) {
        double ce = (double)input->ce[(int64_t)r * input->n + i];
        double prior = log_prior(objective, token->loops, r);
        g[r] = weighted(token->p[r], ce + objective->beta * (token->log_p[r] - prior));
        loss += g[r];
    }
    if (!dlogit || !input->logit) return loss;
    for (int32_t r = token->loops - 1; r >= 0; r--) {
        if (r < token->loops - 1) {
            dlogit[(int64_t)r * input->n + i] = (real)(token->stay[r] * g[r] - token->lambda[r] * later);
        }
        later += g[r];
    }
    return loss;
}

/* The sum over loops 2..d of w softplus(z) + (1 - w) softplus(-z), over R. Its derivative by z is lambda - (1 - w). */
static double token_stage2(const struct objective *objective, const struct objective_input *input, int32_t i,
                           int32_t loops, real *dlogit) {
    double loss = 0, share = 1.0 / input->loops;
    for (int32_t r = 1; r < loops && input->logit; r++) {
        int64_t at = (int64_t)r * input->n + i;
        double gain = fmax(0.0, (double)input->ce[at - input->n] - (double)input->ce[at]);
        double x = objective->k * (gain - objective->gamma), w = sigmoid(x), z = (double)input->logit[at];
        loss += share * (w * softplus(z) + sigmoid(-x) * softplus(-z));
        if (dlogit) dlogit[at] = (real)(share * (sigmoid(z) - sigmoid(-x)));
    }
    return loss;
}

void objective_loss(const struct objective *objective, const struct objective_input *input, real *dlogit,
                    struct objective_sums *sums) {
    struct token token;
    memset(sums, 0, sizeof *sums);
    if (dlogit) memset(dlogit, 0, sizeof *dlogit * (size_t)input->loops * (size_t)input->n);
    for (int32_t i = 0; i < input->n; i++) {
        if (input->targets[i] < 0) continue;
        token_init(&token, input, i);
        for (int32_t r = 0; r < token.loops; r++) {
            sums->exit[r] += token.p[r];
            sums->entropy -= weighted(token.p[r], token.log_p[r]);
        }
        sums->loss += objective->kind == OBJECTIVE_STAGE1 ? token_stage1(objective, input, i, &token, dlogit)
                                                          : token_stage2(objective, input, i, token.loops, dlogit);
    }
}
