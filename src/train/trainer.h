/* The trainer: a recipe becomes a model. One run directory holds all of it:
 *
 *     RUN/recipe.yaml, options.json   the recipe's text, and every value in force
 *     RUN/log.jsonl                   the run log
 *     RUN/checkpoint-*, latest        checkpoint.h
 *     RUN/cache                       tokenised sources
 *     RUN/model                       the result, a complete model directory
 *     RUN/lock                        held while a trainer works here
 */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "train/recipe.h"

struct trainer_options {
    const char *recipe; /* path */
    char *const *sets;  /* "key=value" */
    int n_sets;
    enum objective_kind stage;
    bool quiet;                  /* no progress line */
    bool (*stop)(void *context); /* asked between steps; true ends the run with a checkpoint; may be NULL */
    void *stop_context;
};

struct trainer_outcome {
    int64_t step, steps;
    bool stopped; /* on request, before the last step */
    char *run;    /* the run directory; the caller frees it */
};

/* Runs the recipe to its end, from its newest checkpoint when there is one. A finished run only writes its model again.
 */
int trainer_run(const struct trainer_options *options, struct trainer_outcome *outcome, looplm_error *err);

#endif
