/* A gradient unit: the loss of one sequence and its gradient with respect to every parameter.
 *
 * The forward pass is model/loop.c's over the whole sequence, one pass per loop, keeping what backward needs; keys and
 * values live in KV blocks as in inference, in bf16 with bf16 weights (the gradient passes through the rounding as if
 * it were not there). backward.c mirrors model/loop.c and model/block.c; objective.c turns cross-entropies and exit
 * probabilities into losses and their gradients. Sums are over the unit's valid tokens, undivided: the trainer divides
 * by the step's global count, so that accumulation and ranks change no bit.
 */
#ifndef TRAIN_UNIT_H
#define TRAIN_UNIT_H

#include "model/kv.h"
#include "model/loop.h"
#include "model/params.h"
#include "train/backward.h"
#include "train/objective.h"

/* One sequence, or several packed ones. targets[i] is the id that position i should predict, or -1 where nothing is
 * asked of it. depths (NULL: all R) are forced exits under last-exited: position i runs depths[i] loops, and its loss
 * is over those alone. */
struct unit_input {
    const int32_t *ids, *targets;
    const uint8_t *depths;
    int32_t n;
    /* Documents packed into the unit: document i begins at index starts[i] (starts[0] is 0) and is a sequence of its
     * own, from position 0, which sees nothing of the others. n_documents 0 (starts NULL): one. */
    const int32_t *starts;
    int32_t n_documents;
    double weight; /* of the unit's gradient; 0 means 1. The result's sums are not weighted. */
};

struct unit_result {
    double loss;                     /* sum over valid tokens */
    double ce[MODEL_LOOPS_MAX];      /* sum of cross-entropy of each loop, over valid tokens that ran it */
    double correct[MODEL_LOOPS_MAX]; /* valid tokens whose largest logit (lowest id on ties) is the target, per loop */
    double exit[MODEL_LOOPS_MAX];    /* sum of exit probabilities p of each loop */
    int64_t tokens[MODEL_LOOPS_MAX]; /* valid tokens that ran each loop */
    double entropy;                  /* sum of H(p) */
    int64_t valid;
};

struct unit_options {
    int32_t positions_max;                  /* longest sequence, or all packed documents together */
    int32_t documents_max;                  /* most documents of a unit; 0 means 1 */
    const struct backward_weights *weights; /* transposed packings that somebody keeps current; NULL: its own */
    bool recompute; /* keep only each loop's input and compute a loop's activations again in backward: about 1/R of the
                       memory, a third more work */
};

struct unit_workspace;
/* model: its packed weights must be current (model_pack); it must outlive the workspace. */
int unit_open(struct unit_workspace **ws, struct model *model, const struct unit_options *options, looplm_error *err);
void unit_close(struct unit_workspace *ws);
/* The workspace's own transposed packings; to be remade after every optimizer step. */
void unit_pack(struct unit_workspace *ws, const struct params *params);
/* Adds the unit's gradient to `gradient` (flat, laid out as params->data). In stage II only the exit gate's part is
 * touched. */
void unit_gradient(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                   real *gradient, struct unit_result *result);
/* Writes the unit's gradient to `own`, whatever that holds; or, with `before`, the sum of the unit before (or of
 * several), adds the gradient to that: own is then scratch that may stay untouched. The bits are those of a gradient
 * from zero, added in the end. */
void unit_gradient_sum(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                       real *own, real *before, struct unit_result *result);
/* The forward pass alone: the same numbers, bit for bit. ce_out (may be NULL): [R, n] per token, exit_out likewise. */
void unit_evaluate(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                   struct unit_result *result, real *ce_out, real *exit_out);
/* Bytes that the workspace holds. */
size_t unit_memory(const struct unit_workspace *ws);

#endif
