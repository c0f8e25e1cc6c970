/* The loss head in chunks of rows: logits, cross-entropy and, when asked, their gradient at once, so that [rows, V]
 * never exists for more than HEAD_ROWS rows. */
#ifndef TRAIN_HEAD_H
#define TRAIN_HEAD_H

#include "train/backward.h"
#include "train/carve.h"

#define HEAD_ROWS 256 /* rows of a chunk; their number changes no bit */

/* The rows of one loop that have a target, in order, and what the head says of them; all arrays [n_max]. */
struct head_rows {
    int32_t count;
    int32_t *row, *target; /* row of the loop; id to predict */
    real *weight;          /* of the gradient: p of the loop */
    real *ce, *lse, *max, *correct;
};

/* Chunk buffers, shared by all loops. */
struct head {
    const struct model *model; /* borrowed */
    int64_t ld;                /* of logits: V rounded up to LANES */
    real *logits;              /* [HEAD_ROWS, ld] */
    real *x, *dx;              /* [HEAD_ROWS, D] for rows that do not lie together */
};

/* Walked twice, with the workspace's carve. */
void head_bind(struct head *head, const struct model *model, struct carve *carve);
void head_rows_bind(struct head_rows *rows, int32_t n_max, struct carve *carve);

/* From h [B, D]: ce, lse, max, correct of the rows. */
void head_record(struct pass *pass, const struct head *head, const struct head_rows *rows, const real *h);
/* The same, and dh [B, D] of the rows that have a target (others are left alone), and the gradient of the head's
 * weight. */
void head_record_gradient(struct pass *pass, const struct head *head, const struct head_rows *rows, const real *h,
                          const struct backward *b, real *dh, const struct gradient_target *target);

#endif
