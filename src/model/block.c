/* One layer of the shared stack (block.h). */
#include "model/block.h"

static void add_product(struct pass *pass, const struct weight *weight, const real *x, real *y, int32_t rows) {
    pass_add(pass, (struct op){
                       .kind = OP_MATMUL,
                       .matmul = {.x = x, .ldx = weight->k, .weight = weight, .y = y, .ldy = weight->n, .rows = rows}});
}

static void add_norm(struct pass *pass, const struct model *model, const real *x, const real *weight, real *out,
                     real *rstd, int32_t rows) {
    pass_add(pass, (struct op){.kind = OP_RMSNORM,
                               .rmsnorm = {.x = x,
                                           .weight = weight,
                                           .out = out,
                                           .rstd = rstd,
                                           .rows = rows,
                                           .dim = model->config.hidden,
                                           .eps = (real)model->config.norm_eps}});
}

/* out = residual + norm(branch), or residual + branch in a family without branch norms. */
static void add_branch(struct pass *pass, const struct model *model, const real *residual, const real *branch,
                       const real *weight, real *out, real *rstd, int32_t rows) {
    const struct model_config *c = &model->config;
    if (!weight) {
        pass_add(pass, (struct op){.kind = OP_ADD, .add = {residual, branch, out, (int64_t)rows * c->hidden}});
        return;
    }
    pass_add(pass, (struct op){.kind = OP_RMSNORM,
                               .rmsnorm = {.x = branch,
                                           .weight = weight,
                                           .residual = residual,
                                           .out = out,
                                           .rstd = rstd,
                                           .rows = rows,
                                           .dim = c->hidden,
                                           .eps = (real)c->norm_eps}});
}

static void add_attention(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
                          const struct rows *rows, const struct layer_buffers *b) {
    const struct model_config *c = &model->config;
    const struct layer *layer = &model->layers[index];
    int64_t ldqkv = (int64_t)(c->heads + 2 * c->kv_heads) * c->head_dim;
    pass_add(pass, (struct op){.kind = OP_QKV,
                               .qkv = {.qkv = b->qkv,
                                       .ldqkv = ldqkv,
                                       .q = b->q,
                                       .ldq = b->ldq,
                                       .rope = rows->rope,
                                       .q_norm = layer->q_norm,
                                       .k_norm = layer->k_norm,
                                       .eps = (real)c->norm_eps,
                                       .rstd = b->qk_rstd,
                                       .runs = rows->runs,
                                       .n_runs = rows->n_runs,
                                       .kv = *kv,
                                       .layer = index,
                                       .heads = c->heads}});
    pass_add(pass, (struct op){.kind = OP_ATTENTION,
                               .attention = {.q = b->q,
                                             .ldq = b->ldq,
                                             .out = b->att,
                                             .ldout = (int64_t)c->heads * c->head_dim,
                                             .lse = b->lse,
                                             .runs = rows->runs,
                                             .n_runs = rows->n_runs,
                                             .kv = *kv,
                                             .layer = index,
                                             .heads = c->heads,
                                             .scale = model_attention_scale(model)}});
}

void block_record(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
                  const struct rows *rows, const struct layer_buffers *b, real *x_out) {
    const struct layer *layer = &model->layers[index];
    int32_t n = rows->count;

    add_norm(pass, model, b->x, layer->input_norm, b->n1, b->r1, n);
    add_product(pass, &layer->qkv, b->n1, b->qkv, n);
    add_attention(pass, model, kv, index, rows, b);
    add_product(pass, &layer->o, b->att, b->o, n);
    add_branch(pass, model, b->x, b->o, layer->input_norm_2, b->x2, b->r2, n);

    add_norm(pass, model, b->x2, layer->post_norm, b->n2, b->r3, n);
    add_product(pass, &layer->gate_up, b->n2, b->gate_up, n);
    pass_add(pass, (struct op){.kind = OP_SILU_MUL, .silu_mul = {b->gate_up, b->act, n, model->config.ffn}});
    add_product(pass, &layer->down, b->act, b->down, n);
    add_branch(pass, model, b->x2, b->down, layer->post_norm_2, x_out, b->r4, n);
}
