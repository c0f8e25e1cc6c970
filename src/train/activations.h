/* What the forward pass of a unit leaves for backward, and where it lies. */
#ifndef TRAIN_ACTIVATIONS_H
#define TRAIN_ACTIVATIONS_H

#include "train/backward.h"
#include "train/carve.h"

/* The activations of one loop. */
struct activations {
    struct layer_buffers *layers; /* [L] */
    real *rope, *x_last, *norm_rstd;
    real *input; /* [n, D] of loop 0, or gathered */
};

/* Sets of activations: one per loop, or one that all loops use (recompute). A buffer of a layer holds the rows of all
 * sets: its first element is `first`, and activations_place cuts it up. */
struct activation_store {
    const struct model *model; /* borrowed */
    int32_t n_sets, positions_max;
    struct activations *sets;    /* [n_sets] */
    real *normed;                /* [n, D] a normed input, until its product has read it */
    struct layer_buffers *first; /* [L] */
};

int activations_init(struct activation_store *store, const struct model *model, int32_t n_sets, int32_t positions_max,
                     looplm_error *err);
void activations_free(struct activation_store *store);
/* Walked twice, with the workspace's carve. */
void activations_bind(struct activation_store *store, struct carve *carve);
/* For a unit that runs `used` loops: with one set per loop the deepest loop's rows come first, `stride` rows before
 * those of the loop before it. With stride = the rows of every loop they lie together, as one matrix. */
void activations_place(struct activation_store *store, int32_t used, int32_t stride);

#endif
