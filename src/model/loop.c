/* The loop (loop.h): the shared stack once over any rows. */
#include "model/loop.h"

#include <string.h>

void loop_record(struct pass *pass, const struct model *model, const struct kv_geometry *kv, const struct run *runs,
                 int32_t n_runs, int32_t mute_runs, const struct loop_buffers *b) {
    const struct model_config *c = &model->config;
    struct rows r = {.runs = runs, .n_runs = n_runs, .rope = b->rope, .owed = b->owed};
    int32_t mute = 0;
    for (int32_t i = 0; i < n_runs; i++) {
        r.count += runs[i].count;
        if (i < mute_runs) mute += runs[i].count;
    }
    pass_add(pass, (struct op){.kind = OP_ROPE_TABLE,
                               .rope_table = {.runs = runs,
                                              .n_runs = n_runs,
                                              .inverse_frequency = model->inverse_frequency,
                                              .head_dim = c->head_dim,
                                              .table = b->rope}});
    for (int32_t l = 0; l < c->layers; l++) {
        const struct layer_buffers *here = b->per_layer ? &b->layers[l] : b->layers;
        if (l + 1 == c->layers) {
            r.mute = mute;
            r.mute_runs = mute_runs;
        }
        real *out = l + 1 == c->layers ? b->x_last : b->per_layer ? b->layers[l + 1].x : b->layers->x;
        block_record(pass, model, kv, l, &r, here, out);
    }
    const int32_t rows = r.count - mute;
    if (rows == 0) return;
    const int64_t first = (int64_t)mute * c->hidden;
    /* The final norm is inside the loop: what it leaves is read by the head and the gate, and enters the next loop. */
    pass_add(pass, (struct op){.kind = OP_RMSNORM,
                               .rmsnorm = {.x = b->x_last + first,
                                           .weight = model->norm,
                                           .out = b->h + first,
                                           .rstd = b->norm_rstd ? b->norm_rstd + mute : NULL,
                                           .rows = rows,
                                           .dim = c->hidden,
                                           .eps = (real)c->norm_eps}});
    if (model->exit_weight && (b->logit || b->lambda))
        pass_add(pass, (struct op){.kind = OP_GATE,
                                   .gate = {.h = b->h + first,
                                            .weight = model->exit_weight,
                                            .bias = model->exit_bias,
                                            .logit = b->logit ? b->logit + mute : NULL,
                                            .lambda = b->lambda ? b->lambda + mute : NULL,
                                            .rows = rows,
                                            .dim = c->hidden}});
}

void loop_record_head(struct pass *pass, const struct model *model, const real *h, int32_t rows, real *logits) {
    pass_add(pass, (struct op){.kind = OP_MATMUL,
                               .matmul = {.x = h,
                                          .ldx = model->head.k,
                                          .weight = &model->head,
                                          .y = logits,
                                          .ldy = model->head.n,
                                          .rows = rows}});
}

/* Walks the shared buffers twice: first to measure (base NULL), then to bind. Returns the bytes used. */
static size_t workspace_bind(struct loop_workspace *w, const struct model_config *c, unsigned char *base) {
    size_t used = 0, rows = (size_t)w->rows_max;
    size_t heads = (size_t)(c->heads + 2 * c->kv_heads) * (size_t)c->head_dim;
    struct layer_buffers *s = &w->shared;
    struct loop_buffers *b = &w->buffers;
    const struct {
        real **buffer;
        size_t width;
    } table[] = {
        {&s->x, (size_t)c->hidden},
        {&s->n1, (size_t)c->hidden},
        {&s->qkv, heads},
        {&s->att, (size_t)c->heads * (size_t)c->head_dim},
        {&s->o, (size_t)c->hidden},
        {&s->gate_up, 2 * (size_t)c->ffn},
        {&s->act, (size_t)c->ffn},
        {&b->rope, (size_t)c->head_dim},
        {&b->h, (size_t)c->hidden},
        {&b->logit, 1},
        {&b->lambda, 1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (base) *table[i].buffer = (real *)(void *)(base + used);
        used += (rows * table[i].width * sizeof(real) + 63) / 64 * 64;
    }
    return used;
}

int loop_workspace_init(struct loop_workspace *w, const struct model *model, int32_t rows_max, looplm_error *err) {
    const struct model_config *c = &model->config;
    *w = (struct loop_workspace){.rows_max = rows_max, .backend = model->backend};
    w->size = workspace_bind(w, c, NULL);
    w->memory = w->backend->alloc(w->backend, w->size);
    if (!w->memory)
        return error_set(err, LOOPLM_MEMORY, "activations of %d rows need %.1f MiB, which could not be had", rows_max,
                         (double)w->size / 1048576.0);
    workspace_bind(w, c, w->memory);
    struct layer_buffers *s = &w->shared;
    s->x2 = s->x; /* the residual stream is updated in place */
    s->q = s->qkv;
    s->ldq = (int64_t)(c->heads + 2 * c->kv_heads) * c->head_dim;
    s->n2 = s->n1;
    s->down = s->o;
    w->buffers.layers = s;
    w->buffers.x_last = s->x;
    return 0;
}

void loop_workspace_free(struct loop_workspace *w) {
    if (w->memory) w->backend->release(w->backend, w->memory, w->size);
    *w = (struct loop_workspace){0};
}
