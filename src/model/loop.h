/* The loop: one pass of the shared stack over any set of rows, at any mix of loops. Read this file first.
 *
 * A row is one token at one loop: {sequence, position, loop} with its hidden state. At loop 0 the state is the token's
 * embedding; after a pass it is the normed output of the stack, which the exit gate and the head read, and which itself
 * enters the next loop. Prefill, decode, scoring, training and replay are choices of rows; this is the only forward.
 */
#ifndef MODEL_LOOP_H
#define MODEL_LOOP_H

#include "model/block.h"

/* Records the whole pass over the rows of `n_runs` runs: rope table, L blocks, the final norm inside the loop and the
 * exit gate. The first `mute_runs` runs are of rows whose state nobody reads after this loop, such as a prompt's at its
 * last: the last layer only takes their keys and values, and their rows of x_last, h, logit and lambda hold nothing.
 *   buffers  one per layer when `per_layer` (training), else one shared set (inference)
 *   rope     [B, K] to be filled
 *   x_last   [B, D] the stream after the last layer (may be buffers[0].x in inference); norm_rstd [B] or NULL
 *   h        [B, D] out: the normed hidden state (may alias x_last)
 *   logit, lambda  [B] of the exit gate; either may be NULL, both are skipped for a model without a gate
 *   owed     planes that the rows read first
 * The rows' input is expected in buffers[0].x (loop_record_embed puts embeddings there). */
struct loop_buffers {
    struct layer_buffers *layers;
    bool per_layer;
    real *rope, *x_last, *norm_rstd, *h, *logit, *lambda;
    struct owed_planes owed;
};
void loop_record(struct pass *pass, const struct model *model, const struct kv_geometry *kv, const struct run *runs,
                 int32_t n_runs, int32_t mute_runs, const struct loop_buffers *b);

/* logits[rows, V] = head(h). */
void loop_record_head(struct pass *pass, const struct model *model, const real *h, int32_t rows, real *logits);

/* One shared set of inference buffers for at most rows_max rows, with its loop_buffers ready; freed by
 * loop_workspace_free. */
struct loop_workspace {
    int32_t rows_max;
    struct layer_buffers shared;
    struct loop_buffers buffers;
    struct backend *backend;
    void *memory;
    size_t size;
};
int loop_workspace_init(struct loop_workspace *w, const struct model *model, int32_t rows_max, looplm_error *err);
void loop_workspace_free(struct loop_workspace *w);

#endif
