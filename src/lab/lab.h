/* What the experiments with generated problems share: a problem, a task that draws them, the split into training and
 * held-out ones, documents for training, and rank correlation. score.h runs a model on them.
 *
 * A task has levels: the number of operations of an expression, the hops of a question. Whether a problem is held out
 * is a function of its text alone, so files made with different seeds never leak into each other's test. */
#ifndef LAB_LAB_H
#define LAB_LAB_H

#include "base/error.h"
#include "base/random.h"

#include <stdbool.h>

#define LAB_PROMPT_MAX 1024 /* bytes of a problem, its final NUL included */
#define LAB_ANSWER_MAX 32
#define LAB_LEVELS_MAX 64 /* the highest level of any task */
#define LAB_WEIGHT_MAX 1000000
#define LAB_HELD_OUT_SHARE 16 /* one problem in so many is for tests */
#define LAB_TRIES_MAX 100000  /* draws for one problem of the wanted side of the split */
#define LAB_PROBLEMS_MAX 4096 /* of one document */

struct lab_problem {
    int32_t level;
    char prompt[LAB_PROMPT_MAX]; /* "#1 +12 =" */
    char answer[LAB_ANSWER_MAX]; /* "3": what follows the prompt at once */
    const char *context;         /* solved problems before the prompt; borrowed, NULL for none */
};

/* The caller's storage; `world` is borrowed. */
struct lab_task {
    const char *name, *axis; /* "mano", "operations": what its levels count */
    const void *world;
    int32_t level_min, level_max;
    int32_t held_out_from;               /* lower levels have too few problems to hold any out */
    int32_t weights[LAB_LEVELS_MAX + 1]; /* how often documents hold each level */
    /* Draws a problem of a level; fills all but the context. */
    void (*draw)(const void *world, struct random *random, int32_t level, struct lab_problem *problem);
};

/* Equal weights, or "1,1,2" for level_min and those after it (NULL: equal). */
int lab_task_weights(struct lab_task *task, const char *text, const char *option, looplm_error *err);

bool lab_is_held_out(const struct lab_task *task, const struct lab_problem *problem);
/* A level of the task, by the weights; held_out: among those that hold problems out. */
int32_t lab_draw_level(const struct lab_task *task, struct random *random, bool held_out);
/* A problem of the wanted side of the split (of any side where the level has none); LOOPLM_LIMIT where none is found.
 */
int lab_draw(const struct lab_task *task, struct random *random, int32_t level, bool held_out,
             struct lab_problem *problem, looplm_error *err);

/* Text documents hold one problem a line, with its answer. Answer documents are {"prompt", "answer"}: training then
 * asks for the answer alone, and problems before the last one stand in the prompt. */
enum lab_form { LAB_FORM_TEXT, LAB_FORM_ANSWER };
struct lab_documents {
    int64_t documents;
    int32_t problems; /* of each document */
    enum lab_form form;
    bool held_out;
    uint64_t seed;
};
/* Writes a .jsonl; document i depends on the task, the seed and i alone. */
int lab_generate(const struct lab_task *task, const struct lab_documents *options, const char *path, looplm_error *err);

/* Spearman's rank correlation (ties take their mean rank); NaN when either side is constant or n < 2. */
int lab_spearman(const double *x, const double *y, size_t n, double *correlation, looplm_error *err);

#endif
