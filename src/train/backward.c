/* Owns the chain rule of one loop: final norm and blocks in reverse, the transposed packings that it multiplies with,
 * and the debt of keys and values across loops. What feeds it (head, gate, next loop) and what takes the gradient of
 * its input belongs to unit.c.
 *
 * Invariants: gradients of weights only ever accumulate, in the order rows, layers, loops; gradients of activations
 * overwrite, but for the residual stream dx, to which every branch adds. Under last-exited, position p that left at
 * loop e has one plane of its own per loop before e, and plane e-1 stands in for the deeper ones: their dk, dv are
 * collected in carry[layer][p] and join when the backward pass reaches loop e-1.
 */
#include "train/backward.h"

#include "train/carve.h"

#include <stdlib.h>

#define JOINED_ROWS 32 /* rows that a matrix instruction adds at once: those of a loop must fill them */

/* ---- the transposed packings ------------------------------------------------------------------------------------ */

static void bind_weight(struct carve *carve, struct weight *w, enum weight_type type, int64_t n, int64_t k) {
    *w = (struct weight){.type = type, .n = (int32_t)n, .k = (int32_t)k};
    w->data = carve_take(carve, (int64_t)weight_size(type, n, k), 1);
}

/* Walked twice: with base NULL it measures. */
static size_t bind_weights(struct backward_weights *w, unsigned char *base) {
    const struct model_config *c = &w->model->config;
    enum weight_type type = w->model->weight_type;
    struct carve carve = {.base = base};
    int64_t d = c->hidden, f = c->ffn, heads = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    for (int32_t l = 0; l < c->layers; l++) {
        bind_weight(&carve, &w->layers[l].qkv, type, d, heads + 2 * kv);
        bind_weight(&carve, &w->layers[l].o, type, heads, d);
        bind_weight(&carve, &w->layers[l].gate_up, type, d, 2 * f);
        bind_weight(&carve, &w->layers[l].down, type, f, d);
    }
    bind_weight(&carve, &w->head, type, d, c->vocab);
    return carve.used;
}

int backward_weights_init(struct backward_weights *w, const struct model *model, looplm_error *err) {
    *w = (struct backward_weights){.model = model};
    w->layers = calloc((size_t)model->config.layers, sizeof *w->layers);
    if (w->layers) {
        w->memory_size = bind_weights(w, NULL);
        w->memory = model->backend->alloc(model->backend, w->memory_size);
    }
    if (!w->memory) {
        int status = error_set(err, LOOPLM_MEMORY, "backward pass: %.1f MiB for transposed weights could not be had",
                               (double)w->memory_size / 1048576.0);
        backward_weights_free(w);
        return status;
    }
    bind_weights(w, w->memory);
    return 0;
}

void backward_weights_free(struct backward_weights *w) {
    if (w->memory) w->model->backend->release(w->model->backend, w->memory, w->memory_size);
    free(w->layers);
    pass_free(&w->pass);
    *w = (struct backward_weights){0};
}

static void pack_one(struct pass *pass, struct weight *weight, const real *source) {
    pass_add(pass, (struct op){.kind = OP_PACK_TRANSPOSED, .pack_transposed = {.weight = weight, .source = source}});
}

void backward_weights_pack(struct backward_weights *w, const struct params *params) {
    for (int32_t l = 0; l < w->model->config.layers; l++) {
        /* q, k, v and gate, up lie side by side in the flat buffer: each group is one matrix. */
        pack_one(&w->pass, &w->layers[l].qkv, params_at(params, TENSOR_Q, l));
        pack_one(&w->pass, &w->layers[l].o, params_at(params, TENSOR_O, l));
        pack_one(&w->pass, &w->layers[l].gate_up, params_at(params, TENSOR_GATE, l));
        pack_one(&w->pass, &w->layers[l].down, params_at(params, TENSOR_DOWN, l));
    }
    pack_one(&w->pass, &w->head, params_at(params, w->model->config.tied ? TENSOR_EMBED : TENSOR_HEAD, -1));
    w->model->backend->execute(w->model->backend, &w->pass);
    pass_clear(&w->pass);
}

/* ---- scratch ---------------------------------------------------------------------------------------------------- */

/* Walked twice: with base NULL it measures. */
static size_t bind_buffers(struct backward *b, unsigned char *base) {
    const struct model_config *c = &b->model->config;
    struct carve carve = {.base = base};
    int64_t d = c->hidden, f = c->ffn, heads = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    int64_t n = b->positions_max;
    b->dx = carve_take(&carve, n * d, sizeof(real));
    b->dnormed = carve_take(&carve, n * d, sizeof(real));
    b->dact = carve_take(&carve, n * f, sizeof(real));
    b->datt = carve_take(&carve, n * heads, sizeof(real));
    b->dq = carve_take(&carve, n * heads, sizeof(real));
    b->dqkv = c->qk_norm ? carve_take(&carve, n * (heads + 2 * kv), sizeof(real)) : NULL;
    b->dk = carve_take(&carve, n * kv, sizeof(real));
    b->dv = carve_take(&carve, n * kv, sizeof(real));
    /* Reserved, and touched only when depths are forced. */
    b->carry_k = carve_take(&carve, c->layers * n * kv, sizeof(real));
    b->carry_v = carve_take(&carve, c->layers * n * kv, sizeof(real));
    return carve.used;
}

/* A matrix of a layer; all others are the rest. */
static bool is_product(const struct tensor_spec *spec) {
    return spec->layer >= 0 && tensor_is_matrix(spec);
}

static int init_rest(struct backward *b, looplm_error *err) {
    b->rest_at = calloc((size_t)b->table.count, sizeof *b->rest_at);
    if (!b->rest_at) return error_set(err, LOOPLM_MEMORY, "backward pass: its tables could not be had");
    for (int32_t i = 0; i < b->table.count; i++) {
        const struct tensor_spec *spec = &b->table.specs[i];
        b->rest_at[i] = is_product(spec) ? -1 : b->rest_elements;
        if (!is_product(spec)) b->rest_elements += (spec->rows * spec->cols + LANES - 1) / LANES * LANES;
    }
    return 0;
}

int backward_init(struct backward *b, const struct model *model, const struct backward_weights *weights,
                  int32_t positions_max, looplm_error *err) {
    *b = (struct backward){.model = model, .weights = weights, .positions_max = positions_max};
    int status = tensor_table_init(&b->table, &model->config, err);
    if (!status) status = init_rest(b, err);
    if (status) {
        backward_free(b);
        return status;
    }
    b->memory_size = bind_buffers(b, NULL);
    b->memory = model->backend->alloc(model->backend, b->memory_size);
    if (!b->memory) {
        status = error_set(err, LOOPLM_MEMORY, "backward pass: %.1f MiB could not be had; use shorter sequences",
                           (double)b->memory_size / 1048576.0);
        backward_free(b);
        return status;
    }
    bind_buffers(b, b->memory);
    return 0;
}

void backward_free(struct backward *b) {
    if (b->memory) b->model->backend->release(b->model->backend, b->memory, b->memory_size);
    tensor_table_free(&b->table);
    free(b->rest_at);
    *b = (struct backward){0};
}

static real *gradient_at(const struct backward *b, const struct gradient_target *target, int64_t i) {
    return target->rest && b->rest_at[i] >= 0 ? target->rest + b->rest_at[i] : target->sum + b->table.specs[i].offset;
}

real *backward_gradient(const struct backward *b, const struct gradient_target *target, enum tensor_role role,
                        int32_t layer) {
    if (role == TENSOR_HEAD && b->model->config.tied) role = TENSOR_EMBED;
    const struct tensor_spec *spec = tensor_find(&b->table, role, layer);
    return spec ? gradient_at(b, target, spec - b->table.specs) : NULL;
}

void backward_record_rest_zero(struct pass *pass, const struct backward *b, const struct gradient_target *target) {
    for (int32_t i = 0; i < b->table.count; i++) {
        const struct tensor_spec *spec = &b->table.specs[i];
        if (b->rest_at[i] < 0) continue;
        size_t size = (size_t)(spec->rows * spec->cols) * sizeof(real);
        pass_add(pass, (struct op){.kind = OP_ZERO, .zero = {gradient_at(b, target, i), size}});
    }
}

void backward_record_rest_add(struct pass *pass, const struct backward *b, const struct gradient_target *target) {
    for (int32_t i = 0; i < b->table.count; i++) {
        const struct tensor_spec *spec = &b->table.specs[i];
        if (b->rest_at[i] < 0) continue;
        real *sum = target->sum + spec->offset;
        pass_add(pass,
                 (struct op){.kind = OP_ADD, .add = {sum, gradient_at(b, target, i), sum, spec->rows * spec->cols}});
    }
}

/* What the functions below share while one layer is recorded. */
struct recorder {
    struct pass *pass;
    const struct backward *b;
    const struct backward_loop *loop;
    const struct gradient_target *target;
    int32_t layer;
};

static real *gradient_of(const struct recorder *r, enum tensor_role role) {
    return backward_gradient(r->b, r->target, role, r->layer);
}

/* The input of a product: x, or x normed (op_matmul_dw). */
struct product_input {
    const real *x, *rstd, *norm;
};

/* dx = dy W, and dW += dy^T x, for all loops that are joined here; weight is the transposed packing [inputs, outputs].
 */
static void add_product_grad(const struct recorder *r, const struct weight *weight, const real *dy,
                             struct product_input x, real *dx, real *dweight) {
    int32_t inputs = weight->n, outputs = weight->k, rows = r->loop->rows, joined = r->loop->joined;
    pass_add(r->pass,
             (struct op){.kind = OP_MATMUL,
                         .matmul = {.x = dy, .ldx = outputs, .weight = weight, .y = dx, .ldy = inputs, .rows = rows}});
    if (joined < 0) return;
    const int64_t before = (int64_t)joined * rows;
    pass_add(r->pass, (struct op){.kind = OP_MATMUL_DW,
                                  .matmul_dw = {.type = weight->type,
                                                .dy = dy - before * outputs,
                                                .lddy = outputs,
                                                .x = x.x - before * inputs,
                                                .ldx = inputs,
                                                .dweight = dweight,
                                                .rows = (joined + 1) * rows,
                                                .n = outputs,
                                                .k = inputs,
                                                .mode = r->target->mode,
                                                .rstd = x.rstd ? x.rstd - before : NULL,
                                                .norm = x.norm}});
}

static void add_norm_grad(const struct recorder *r, const real *x, const real *weight, const real *rstd, const real *dy,
                          real *dx, real *dweight, bool accumulate) {
    pass_add(r->pass, (struct op){.kind = OP_RMSNORM_GRAD,
                                  .rmsnorm_grad = {.x = x,
                                                   .weight = weight,
                                                   .rstd = rstd,
                                                   .dy = dy,
                                                   .dx = dx,
                                                   .dweight = dweight,
                                                   .rows = r->loop->rows,
                                                   .dim = r->b->model->config.hidden,
                                                   .accumulate = accumulate}});
}

/* The gradient by a branch before its norm, in its place; dx itself in a family without branch norms. */
static const real *add_branch_grad(const struct recorder *r, real *branch, const real *weight, const real *rstd,
                                   enum tensor_role role) {
    if (!weight) return r->b->dx;
    add_norm_grad(r, branch, weight, rstd, r->b->dx, NULL, gradient_of(r, role), false);
    add_norm_grad(r, branch, weight, rstd, r->b->dx, branch, NULL, false);
    return branch;
}

/* y[p] += mask[p] x[p] over positions. */
static void add_masked(const struct recorder *r, const real *mask, const real *x, real *y) {
    int64_t dim = (int64_t)r->b->model->config.kv_heads * r->b->model->config.head_dim;
    pass_add(r->pass, (struct op){.kind = OP_ROW_AXPY,
                                  .row_axpy = {.x = x, .scale = mask, .y = y, .rows = r->loop->positions, .dim = dim}});
}

/* Moves dk, dv of planes that were lent to the loop that made them. */
static void add_carry(const struct recorder *r) {
    const struct backward *b = r->b;
    int64_t at = (int64_t)r->layer * b->positions_max * b->model->config.kv_heads * b->model->config.head_dim;
    if (r->loop->lent) {
        add_masked(r, r->loop->lent, b->dk, b->carry_k + at);
        add_masked(r, r->loop->lent, b->dv, b->carry_v + at);
    }
    if (r->loop->lends) {
        add_masked(r, r->loop->lends, b->carry_k + at, b->dk);
        add_masked(r, r->loop->lends, b->carry_v + at, b->dv);
    }
}

/* dq by row, dk and dv by index: a document at a time, each with its own keys. */
static void add_scores_grad(const struct recorder *r, const struct layer_buffers *f,
                            const struct backward_document *d) {
    const struct backward *b = r->b;
    const struct model_config *c = &b->model->config;
    int64_t heads = (int64_t)c->heads * c->head_dim, at = (int64_t)d->start * c->kv_heads * c->head_dim;
    pass_add(r->pass, (struct op){.kind = OP_ATTENTION_GRAD,
                                  .attention_grad = {.q = f->q,
                                                     .ldq = f->ldq,
                                                     .out = f->att,
                                                     .dout = b->datt,
                                                     .ldout = heads,
                                                     .lse = f->lse,
                                                     .dq = b->dq,
                                                     .lddq = heads,
                                                     .dk = b->dk + at,
                                                     .dv = b->dv + at,
                                                     .runs = r->loop->runs + d->first_run,
                                                     .n_runs = d->n_runs,
                                                     .kv = r->loop->kv,
                                                     .layer = r->layer,
                                                     .heads = c->heads,
                                                     .positions = d->positions,
                                                     .scale = model_attention_scale(b->model),
                                                     .round = b->model->weight_type == WEIGHT_BF16}});
}

/* Without norms nobody reads qkv any more. */
static real *dqkv_of(const struct recorder *r, const struct layer_buffers *f) {
    return r->b->dqkv ? r->b->dqkv : f->qkv;
}

static void add_qkv_grad(const struct recorder *r, const struct layer_buffers *f, const struct backward_document *d) {
    const struct backward *b = r->b;
    const struct model_config *c = &b->model->config;
    const struct layer *layer = &b->model->layers[r->layer];
    int64_t at = (int64_t)d->start * c->kv_heads * c->head_dim;
    pass_add(r->pass, (struct op){.kind = OP_QKV_GRAD,
                                  .qkv_grad = {.qkv = f->qkv,
                                               .ldqkv = b->weights->layers[r->layer].qkv.k,
                                               .rstd = f->qk_rstd,
                                               .rope = r->loop->buffers->rope,
                                               .q_norm = layer->q_norm,
                                               .k_norm = layer->k_norm,
                                               .dq = b->dq,
                                               .lddq = (int64_t)c->heads * c->head_dim,
                                               .dk = b->dk + at,
                                               .dv = b->dv + at,
                                               .dqkv = dqkv_of(r, f),
                                               .dq_norm = gradient_of(r, TENSOR_Q_NORM),
                                               .dk_norm = gradient_of(r, TENSOR_K_NORM),
                                               .runs = r->loop->runs + d->first_run,
                                               .n_runs = d->n_runs,
                                               .heads = c->heads,
                                               .kv_heads = c->kv_heads,
                                               .head_dim = c->head_dim}});
}

/* From b->datt to dqkv. */
static void add_attention_grad(const struct recorder *r, const struct layer_buffers *f) {
    const struct backward_loop *loop = r->loop;
    for (int32_t i = 0; i < loop->n_documents; i++) add_scores_grad(r, f, &loop->documents[i]);
    add_carry(r);
    for (int32_t i = 0; i < loop->n_documents; i++)
        if (loop->documents[i].n_runs) add_qkv_grad(r, f, &loop->documents[i]);
}

/* Mirrors block_record from its last line to its first. */
static void add_block_grad(const struct recorder *r) {
    const struct backward *b = r->b;
    const struct layer *layer = &b->model->layers[r->layer];
    const struct backward_layer *w = &b->weights->layers[r->layer];
    const struct layer_buffers *f = &r->loop->buffers->layers[r->layer];
    int32_t n = r->loop->rows;

    const real *dbranch = add_branch_grad(r, f->down, layer->post_norm_2, f->r4, TENSOR_POST_NORM_2);
    add_product_grad(r, &w->down, dbranch, (struct product_input){.x = f->act}, b->dact, gradient_of(r, TENSOR_DOWN));
    pass_add(r->pass, (struct op){.kind = OP_SILU_MUL_GRAD,
                                  .silu_mul_grad = {f->gate_up, b->dact, f->gate_up, n, b->model->config.ffn}});
    add_product_grad(r, &w->gate_up, f->gate_up, (struct product_input){f->x2, f->r3, layer->post_norm}, b->dnormed,
                     gradient_of(r, TENSOR_GATE));
    add_norm_grad(r, f->x2, layer->post_norm, f->r3, b->dnormed, b->dx, gradient_of(r, TENSOR_POST_NORM), true);

    dbranch = add_branch_grad(r, f->o, layer->input_norm_2, f->r2, TENSOR_INPUT_NORM_2);
    add_product_grad(r, &w->o, dbranch, (struct product_input){.x = f->att}, b->datt, gradient_of(r, TENSOR_O));
    add_attention_grad(r, f);
    const struct product_input first = {.x = f->n1}, normed = {f->x, f->r1, layer->input_norm};
    add_product_grad(r, &w->qkv, dqkv_of(r, f), r->layer ? normed : first, b->dnormed, gradient_of(r, TENSOR_Q));
    add_norm_grad(r, f->x, layer->input_norm, f->r1, b->dnormed, b->dx, gradient_of(r, TENSOR_INPUT_NORM), true);
}

bool backward_can_join(const struct model *model, int32_t rows) {
    return model->config.branch_norms && !model->config.qk_norm && rows % JOINED_ROWS == 0;
}

void backward_record_begin(struct pass *pass, const struct backward *b, int32_t positions) {
    const struct model_config *c = &b->model->config;
    int64_t width = (int64_t)c->kv_heads * c->head_dim, layer = b->positions_max * width;
    for (int32_t l = 0; l < c->layers; l++) {
        size_t size = (size_t)(positions * width) * sizeof(real);
        pass_add(pass, (struct op){.kind = OP_ZERO, .zero = {b->carry_k + l * layer, size}});
        pass_add(pass, (struct op){.kind = OP_ZERO, .zero = {b->carry_v + l * layer, size}});
    }
}

void backward_record(struct pass *pass, const struct backward *b, const struct backward_loop *loop,
                     const struct gradient_target *target) {
    struct recorder r = {.pass = pass, .b = b, .loop = loop, .target = target, .layer = -1};
    add_norm_grad(&r, loop->buffers->x_last, b->model->norm, loop->buffers->norm_rstd, loop->dh, b->dx,
                  gradient_of(&r, TENSOR_NORM), false);
    for (r.layer = b->model->config.layers - 1; r.layer >= 0; r.layer--) add_block_grad(&r);
}
