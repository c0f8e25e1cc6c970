/* The backward pass of one loop, recorded as ops: it mirrors model/loop.c and model/block.c line by line. */
#ifndef TRAIN_BACKWARD_H
#define TRAIN_BACKWARD_H

#include "model/loop.h"
#include "model/params.h"

/* The matrices of a layer packed for dx = dy W. */
struct backward_layer {
    struct weight qkv, o, gate_up, down;
};

/* The transposed packings of a model. They may be shared by all who go backward through it. */
struct backward_weights {
    const struct model *model;     /* borrowed */
    struct backward_layer *layers; /* [L] */
    struct weight head;            /* for dh = dlogits W_head */
    void *memory;
    size_t memory_size;
    struct pass pass; /* of backward_weights_pack, kept so that it allocates nothing */
};
int backward_weights_init(struct backward_weights *w, const struct model *model, looplm_error *err);
void backward_weights_free(struct backward_weights *w);
/* Remakes them from the masters. */
void backward_weights_pack(struct backward_weights *w, const struct params *params);

/* Where a unit's gradients go. With DW_ACCUMULATE all are added to `sum`, laid out as the parameters. Else each matrix
 * of a layer has its gradient from a single product (its loops are joined), which replaces the one in `sum` or is added
 * to it, and the others, the rest, are added to `sum`, or to `rest` where that is given (backward.rest_at). */
struct gradient_target {
    real *sum, *rest;
    enum dw_mode mode;
};

/* Scratch for the gradients of one loop over at most positions_max rows. */
struct backward {
    const struct model *model;              /* borrowed */
    const struct backward_weights *weights; /* borrowed */
    struct tensor_table table;              /* where each gradient lies */
    int64_t *rest_at;                       /* [table.count] where in `rest`; -1: not among them */
    int64_t rest_elements;
    int32_t positions_max;
    real *dx;                /* [B, D] by the stream; after backward_record by the loop's input */
    real *dnormed;           /* [B, D] by a branch's normed input */
    real *dact;              /* [B, F] */
    real *datt, *dq;         /* [B, H K] each */
    real *dqkv;              /* [B, (H + 2G) K] with q/k norms; without them the forward's qkv is overwritten */
    real *dk, *dv;           /* [S, G K] by position, at the loop's plane */
    real *carry_k, *carry_v; /* [L, S, G K]: what deeper loops owe to the loop where a position left */
    void *memory;
    size_t memory_size;
};

int backward_init(struct backward *b, const struct model *model, const struct backward_weights *weights,
                  int32_t positions_max, looplm_error *err);
void backward_free(struct backward *b);
/* The gradient of a tensor. A tied head's is the embedding's. */
real *backward_gradient(const struct backward *b, const struct gradient_target *target, enum tensor_role role,
                        int32_t layer);
/* Records that the rest of `target` begins at zero, and, when the unit is done, that it is added to the sum. */
void backward_record_rest_zero(struct pass *pass, const struct backward *b, const struct gradient_target *target);
void backward_record_rest_add(struct pass *pass, const struct backward *b, const struct gradient_target *target);

/* A document of the unit: indices [start, start + positions), and its runs in the loop at hand. */
struct backward_document {
    int32_t start, positions, first_run, n_runs;
};

/* One loop over the unit's documents, as forward left it. S is the sum of their positions. */
struct backward_loop {
    /* One per layer; qkv, gate_up, and o and down where they are normed, become their gradients. Of normed inputs (n1,
     * n2) the first layer's n1 is read. */
    const struct loop_buffers *buffers;
    struct kv_geometry kv;
    const struct run *runs;
    const struct backward_document *documents;
    int32_t n_documents, rows, positions;
    const real *dh; /* [B, D] by the normed hidden state that the loop leaves */
    /* Forced depths under last-exited, [S] each of 1 or 0, or NULL where no position qualifies: `lent` marks positions
     * that left before this loop, whose plane here is a copy; `lends` those that left right after it, whose plane
     * deeper loops read. */
    const real *lent, *lends;
    /* How many deeper loops lie right before this one in every buffer, deepest first, with as many rows each. Their
     * gradients of weights were left out, and one product over all the rows takes them now. -1: leave this loop's out.
     */
    int32_t joined;
};
/* Whether loops of so many rows may be joined: nobody overwrites the gradients that the
 * product needs, and the rows of a loop fill the groups that matrix instructions take at once, so that no bit changes.
 */
bool backward_can_join(const struct model *model, int32_t rows);

/* Zeroes what deeper loops owe, before the deepest loop's backward. */
void backward_record_begin(struct pass *pass, const struct backward *b, int32_t positions);
/* Final norm, layers L-1 .. 0: adds to the gradients of weights and leaves the gradient of the loop's input in b->dx.
 */
void backward_record(struct pass *pass, const struct backward *b, const struct backward_loop *loop,
                     const struct gradient_target *target);

#endif
