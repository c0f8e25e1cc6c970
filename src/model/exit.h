/* Exit rules: after which loop a token leaves. SPEC section 1. Loops are counted from 1 here, as users see them. */
#ifndef MODEL_EXIT_H
#define MODEL_EXIT_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define EXIT_RULE_MAP(X) X(FULL, "full") X(LOOPS, "loops") X(Q, "q") X(DIFF, "diff") X(CONF, "conf") X(MIX, "mix")
enum exit_kind {
#define X(code, name) EXIT_##code,
    EXIT_RULE_MAP(X)
#undef X
};

struct exit_rule {
    enum exit_kind kind;
    float threshold;  /* q, E or P */
    int32_t loops;    /* of loops=N: it makes an N-loop model, prompt and all */
    int32_t min, max; /* bounds of the depth; max is then the last step. 0: 1 and R */
};

/* Parses "full", "loops=N", "q=Q", "diff=E", "conf=P", "mix", each with ",min=A,max=B"; says what is wrong with
 * anything else. */
int exit_rule_parse(struct exit_rule *rule, const char *text, looplm_error *err);
/* "q=0.5,min=2": the canonical text, into out (at least 64 bytes). */
void exit_rule_format(const struct exit_rule *rule, char *out, size_t size);
/* Checks the rule against a model with R loops (loops > R is allowed for loops=N up to MODEL_LOOPS_MAX, other bounds
 * are not) and gives the number of planes that its sequences need. */
int exit_rule_resolve(struct exit_rule *rule, int32_t model_loops, bool has_gate, int32_t *planes, looplm_error *err);

/* The running exit distribution of one token, fp32, in the order of the SPEC: p = lambda S; CDF += p; S *= 1 - lambda;
 * the last step takes what is left and CDF = 1. */
struct exit_state {
    float survival, cdf;
    int32_t step; /* loops run so far */
};
static inline struct exit_state exit_begin(void) {
    return (struct exit_state){1.0f, 0.0f, 0};
}
/* Advances by one loop and returns p of that loop. `last`: this is the last step. */
float exit_advance(struct exit_state *state, float lambda, bool last);
/* What the rules look at, after loop state->step. */
struct exit_evidence {
    float distance;
    float confidence;
};
/* Whether the token leaves now; last is the resolved maximum. q >= 1 means always the last step. */
bool exit_decide(const struct exit_rule *rule, const struct exit_state *state, const struct exit_evidence *evidence,
                 int32_t last);

#endif
