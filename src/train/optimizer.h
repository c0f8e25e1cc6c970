/* AdamW over the flat parameter buffer, and the tree in which the gradients of a step's units add up. */
#ifndef TRAIN_OPTIMIZER_H
#define TRAIN_OPTIMIZER_H

#include "model/params.h"

struct optimizer_options {
    double beta1, beta2, eps;
    double weight_decay; /* decoupled, on the tensors that the table marks */
    double clip;         /* of the global gradient norm; 0: off */
    bool gate_only;      /* stage II: only the exit gate moves, and the norm is over its gradient */
};

/* m, v and step are the state that a checkpoint keeps. */
struct optimizer {
    struct optimizer_options options;
    struct params *params;   /* borrowed */
    struct backend *backend; /* borrowed */
    real *m, *v;             /* [table.elements], laid out as the parameters */
    int64_t step;            /* updates done; a skipped step is none */
    double *partials;        /* of the gradient norm */
    int64_t n_partials;
    struct pass pass;
};

/* A model without an exit gate cannot have gate_only: LOOPLM_MISMATCH. */
int optimizer_init(struct optimizer *o, struct params *params, struct backend *backend,
                   const struct optimizer_options *options, looplm_error *err);
void optimizer_free(struct optimizer *o);
/* One update with gradient / divisor (the step's count of valid tokens). *norm (may be NULL) is the global norm of
 * that, before clipping. False when the norm is not finite: nothing changes then. The model must be packed again
 * afterwards. */
bool optimizer_step(struct optimizer *o, const real *gradient, double divisor, double lr, double *norm);

/* Gradients of units add in a binary tree by global index: ((0+1)+(2+3))+((4+5)+6). A step may push its units in any
 * grouping, and a rank that owns an aligned subtree pushes its sum; the result has the same bits. */
#define GRADIENT_LEVELS_MAX 40

struct gradient_tree {
    struct backend *backend; /* borrowed */
    int64_t elements, units_max, count;
    int32_t n_buffers;
    real *buffers[GRADIENT_LEVELS_MAX + 1];
    int32_t level[GRADIENT_LEVELS_MAX + 1]; /* the subtree that each buffer holds: 2^level units; -1: free */
    int32_t current;                        /* buffer handed out by begin, or -1 */
    int32_t before;                         /* buffer of the unit before that begin_unit handed out with it, or -1 */
    struct pass pass;
};

/* A tree of at most units_max units: log2(units_max) + 1 buffers of `elements` reals. */
int gradient_tree_init(struct gradient_tree *tree, struct backend *backend, int64_t elements, int64_t units_max,
                       looplm_error *err);
void gradient_tree_free(struct gradient_tree *tree);
/* A zeroed buffer for the next unit's gradient; push puts it into the tree. */
real *gradient_tree_begin(struct gradient_tree *tree);
/* The same, not zeroed. Where *before is not NULL it is the sum that this unit's gradient is added to in the tree: the
 * caller adds it, and the buffer is scratch. */
real *gradient_tree_begin_unit(struct gradient_tree *tree, real **before);
void gradient_tree_push(struct gradient_tree *tree);
/* The same for a finished subtree of 2^level units; their number so far must be a multiple of it. */
void gradient_tree_push_level(struct gradient_tree *tree, int32_t level);
/* The sum of all that were pushed, valid until the next begin, which starts a new tree. At least one unit must have
 * been pushed. */
real *gradient_tree_finish(struct gradient_tree *tree);
/* Between trees: the caller takes one of the tree's buffers, for good, and gives another of `elements` reals for it. */
void gradient_tree_exchange(struct gradient_tree *tree, const real *taken, real *given);

#endif
