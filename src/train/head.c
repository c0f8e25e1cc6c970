/* Owns the passage from hidden states to cross-entropies and back. Which rows have a target, and what weight each row's
 * loss has, is decided by unit.c.
 *
 * Invariant: chunks follow the order of rows, and every sum over rows continues from chunk to chunk, so the chunk size
 * changes no bit.
 */
#include "train/head.h"

void head_bind(struct head *head, const struct model *model, struct carve *carve) {
    head->model = model;
    head->ld = (model->config.vocab + LANES - 1) / LANES * LANES;
    head->logits = carve_take(carve, HEAD_ROWS * head->ld, sizeof(real));
    head->x = carve_take(carve, (int64_t)HEAD_ROWS * model->config.hidden, sizeof(real));
    head->dx = carve_take(carve, (int64_t)HEAD_ROWS * model->config.hidden, sizeof(real));
}

void head_rows_bind(struct head_rows *rows, int32_t n_max, struct carve *carve) {
    rows->row = carve_take(carve, n_max, sizeof(int32_t));
    rows->target = carve_take(carve, n_max, sizeof(int32_t));
    rows->weight = carve_take(carve, n_max, sizeof(real));
    rows->ce = carve_take(carve, n_max, sizeof(real));
    rows->lse = carve_take(carve, n_max, sizeof(real));
    rows->max = carve_take(carve, n_max, sizeof(real));
    rows->correct = carve_take(carve, n_max, sizeof(real));
}

/* Rows first .. first+count-1 of the list. */
struct chunk {
    int32_t first, count;
    bool together; /* they are neighbours in h: no copy is needed */
    const real *x; /* [count, D] */
};

static struct chunk record_chunk(struct pass *pass, const struct head *head, const struct head_rows *rows,
                                 int32_t first, const real *h) {
    const struct model_config *c = &head->model->config;
    struct chunk chunk = {.first = first, .count = rows->count - first < HEAD_ROWS ? rows->count - first : HEAD_ROWS};
    const int32_t *row = rows->row + first, *target = rows->target + first;
    chunk.together = row[chunk.count - 1] - row[0] == chunk.count - 1;
    chunk.x = chunk.together ? h + (int64_t)row[0] * c->hidden : head->x;
    if (!chunk.together)
        pass_add(pass,
                 (struct op){.kind = OP_GATHER,
                             .rows = {.src = h, .dst = head->x, .index = row, .rows = chunk.count, .dim = c->hidden}});
    pass_add(pass, (struct op){.kind = OP_MATMUL,
                               .matmul = {.x = chunk.x,
                                          .ldx = c->hidden,
                                          .weight = &head->model->head,
                                          .y = head->logits,
                                          .ldy = head->ld,
                                          .rows = chunk.count}});
    pass_add(pass, (struct op){.kind = OP_CROSS_ENTROPY,
                               .cross_entropy = {.logits = head->logits,
                                                 .ld = head->ld,
                                                 .targets = target,
                                                 .ce = rows->ce + first,
                                                 .lse = rows->lse + first,
                                                 .max = rows->max + first,
                                                 .rows = chunk.count,
                                                 .vocab = c->vocab}});
    pass_add(pass, (struct op){.kind = OP_CORRECT,
                               .correct = {.logits = head->logits,
                                           .ld = head->ld,
                                           .targets = target,
                                           .max = rows->max + first,
                                           .correct = rows->correct + first,
                                           .rows = chunk.count}});
    return chunk;
}

void head_record(struct pass *pass, const struct head *head, const struct head_rows *rows, const real *h) {
    for (int32_t first = 0; first < rows->count; first += HEAD_ROWS) record_chunk(pass, head, rows, first, h);
}

void head_record_gradient(struct pass *pass, const struct head *head, const struct head_rows *rows, const real *h,
                          const struct backward *b, real *dh, const struct gradient_target *target) {
    const struct model_config *c = &head->model->config;
    real *dweight = backward_gradient(b, target, TENSOR_HEAD, -1);
    for (int32_t first = 0; first < rows->count; first += HEAD_ROWS) {
        struct chunk chunk = record_chunk(pass, head, rows, first, h);
        const int32_t *row = rows->row + first;
        real *dx = chunk.together ? dh + (int64_t)row[0] * c->hidden : head->dx;
        pass_add(pass, (struct op){.kind = OP_CROSS_ENTROPY_GRAD,
                                   .cross_entropy_grad = {.logits = head->logits,
                                                          .ld = head->ld,
                                                          .targets = rows->target + first,
                                                          .lse = rows->lse + first,
                                                          .weight = rows->weight + first,
                                                          .rows = chunk.count,
                                                          .vocab = c->vocab}});
        pass_add(pass, (struct op){.kind = OP_MATMUL,
                                   .matmul = {.x = head->logits,
                                              .ldx = head->ld,
                                              .weight = &b->weights->head,
                                              .y = dx,
                                              .ldy = c->hidden,
                                              .rows = chunk.count}});
        if (!chunk.together)
            pass_add(pass,
                     (struct op){.kind = OP_SCATTER,
                                 .rows = {.src = dx, .dst = dh, .index = row, .rows = chunk.count, .dim = c->hidden}});
        pass_add(pass, (struct op){.kind = OP_MATMUL_DW,
                                   .matmul_dw = {.type = head->model->weight_type,
                                                 .dy = head->logits,
                                                 .lddy = head->ld,
                                                 .x = chunk.x,
                                                 .ldx = c->hidden,
                                                 .dweight = dweight,
                                                 .rows = chunk.count,
                                                 .n = c->vocab,
                                                 .k = c->hidden}});
    }
}
