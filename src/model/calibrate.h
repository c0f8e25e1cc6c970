/* Rounding a model's stack for the inputs that its matrices see: GPTQ (gptq.h) for a looped model.
 *
 * A matrix of the stack is used at every loop, so its H sums over the inputs at all loops. Where the memory for every H
 * is too little, layers are rounded in stages, first to last: each stage runs the text through the model as it is by
 * then, its earlier layers rounded already. */
#ifndef MODEL_CALIBRATE_H
#define MODEL_CALIBRATE_H

#include "model/model.h"
#include "text/pieces.h"

#define CALIBRATE_ROWS 512 /* of a pass: no piece is longer */
#define CALIBRATE_MEMORY ((size_t)3 << 30)

struct calibrate_options {
    const struct pieces *text;
    size_t memory; /* for all H; what one layer needs is taken in any case */
    void (*progress)(void *context, int64_t done, int64_t total); /* tokens; may be NULL */
    void *progress_context;
};

/* `original`: the model as f32, so that the result is the same in every kernel table; `rounded`: the same model as q4,
 * whose stack is rounded anew. The original's matrices are replaced by the rounded ones as they come: it must be closed
 * first. Bits do not depend on the number of threads. */
int calibrate(struct model *original, struct model *rounded, const struct calibrate_options *options,
              looplm_error *err);

#endif
