/* Running a model on problems, and what exit rules make of it: accuracy and depth by level.
 *
 * Each problem is a sequence of its own: the prompt is fed, and the answer is generated greedily for as long as it is
 * right. The depth of a problem is the mean number of loops of the rows that predicted its answer; for an answer of one
 * token that is the row of the prompt's last token. A sequence ends with its answer, so the loops that prompt tokens
 * would run for the cache of later tokens are not run. */
#ifndef LAB_SCORE_H
#define LAB_SCORE_H

#include "engine/api.h"
#include "lab/lab.h"
#include "model/exit.h"
#include "model/kv.h"

#define LAB_PARALLEL_MAX 256
#define LAB_RUNS_MAX 128
#define LAB_TESTED_MAX (1 << 20) /* problems of one score */
#define LAB_Q_FIRST 0.30         /* of the sweep of Q-exit */
#define LAB_Q_LAST 0.95
#define LAB_Q_STEP 0.05
#define LAB_ACCURACY_LOST_MAX 0.01 /* what the best rule may cost: one point */

/* What became of one problem. */
struct lab_outcome {
    int32_t id;                        /* the token predicted first */
    bool right;                        /* all tokens of the answer were */
    double loops;                      /* the depth */
    float exit_probs[MODEL_LOOPS_MAX]; /* p of each loop of the first prediction's row, as far as it ran */
};

struct lab_ask {
    struct exit_rule rule;
    int32_t parallel;     /* sequences at once; at most LAB_PARALLEL_MAX */
    bool adaptive_prompt; /* prompt tokens may leave early too */
    enum kv_policy kv;
    enum kv_type kv_type;
};

struct lab_cost {
    double seconds;
    int64_t tokens;    /* prompt and answer */
    int64_t rows;      /* a row is one token at one loop */
    size_t answer_max; /* tokens of the longest answer */
};

/* Asks the model n problems; outcomes[n] is filled in their order. The model needs a tokenizer. */
int lab_answer(looplm_model *model, const struct lab_ask *ask, const struct lab_problem *problems, int32_t n,
               struct lab_outcome *outcomes, struct lab_cost *cost, looplm_error *err);

/* ---- many rules over one set of problems ------------------------------------------------------------------------ */

struct lab_score_options {
    int32_t problems; /* of each level */
    int32_t context;  /* solved problems before each */
    int32_t parallel;
    uint64_t seed;
    bool adaptive_prompt; /* for the rules asked for */
    enum kv_policy kv;
    enum kv_type kv_type;
    const struct exit_rule *rules; /* asked for, beside each number of loops, full depth and the sweep of q */
    int n_rules;
};

/* One rule's result. */
struct lab_run {
    struct exit_rule rule;
    char name[64]; /* the rule's text */
    bool measured; /* else worked out from the runs of each number of loops; cost is then 0 */
    bool adaptive_prompt;
    struct lab_cost cost;
    double accuracy, loops, saved; /* means over problems; saved: share of the full run's loops */
    double accuracy_at[LAB_LEVELS_MAX + 1], loops_at[LAB_LEVELS_MAX + 1];
    int64_t exits[MODEL_LOOPS_MAX + 1]; /* problems by their depth, rounded */
    double rank_levels;   /* Spearman's correlation of a level's mean depth with the level; NaN when it is constant */
    double rank_problems; /* of each problem's depth with its level */
};

struct lab_score {
    const struct lab_task *task; /* borrowed */
    int32_t problems, loops;     /* of each level; of the model */
    struct lab_problem *tested;  /* [n_tested] owned, level by level */
    int32_t n_tested;
    char **contexts;                   /* [n_tested] owned; their items may be NULL */
    struct lab_outcome *full_outcomes; /* [n_tested] owned: of the full run */
    struct lab_outcome *best_outcomes; /* [n_tested] owned: of the best rule; NULL without one */
    struct lab_run *runs;              /* owned: loops=1.., full, the sweep, the rules asked for */
    int n_runs, full, best;            /* best: most loops saved for at most LAB_ACCURACY_LOST_MAX; -1 for none */
};

/* Draws the problems (held out where the level has any), runs every rule. Free the score in any case. */
int lab_score(struct lab_score *score, looplm_model *model, const struct lab_task *task,
              const struct lab_score_options *options, looplm_error *err);
void lab_score_free(struct lab_score *score);

#endif
