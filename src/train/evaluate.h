/* The loss of a model on held-out text, per loop. */
#ifndef TRAIN_EVALUATE_H
#define TRAIN_EVALUATE_H

#include "train/corpus.h"
#include "train/workers.h"

/* Sums over the first `sequences_max` pieces of the corpus, `batch` (the workers') at a time. The forward pass is the
 * one of training. */
void evaluate_corpus(struct workers *workers, int64_t batch, const struct corpus *corpus,
                     const struct objective *objective, int64_t sequences_max, struct unit_result *sums);

#endif
