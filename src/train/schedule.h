/* What changes over a run by plan: the learning rate, the weight of the entropy, the number of loops. Pure functions of
 * the step (counted from 0) and the recipe. */
#ifndef TRAIN_SCHEDULE_H
#define TRAIN_SCHEDULE_H

#include "train/recipe.h"

/* Linear warm-up, then: constant; cosine down to final_lr at the last step; or, for wsd, constant and then a line down
 * to final_lr over the last `decay` of the run. */
double schedule_lr(const struct recipe_options *options, int64_t step);
/* From objective.beta to objective.beta_final in a line over the run. */
double schedule_beta(const struct recipe_options *options, int64_t step);
/* From loops_from to `loops` in equal stairs over the first loops_warmup of the run. */
int32_t schedule_loops(const struct recipe_options *options, int32_t loops, int64_t step);

#endif
