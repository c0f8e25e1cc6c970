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

static void add_qkv(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
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
                                       .heads = c->heads,
                                       .lends = rows->owed.lends,
                                       .n_lends = rows->owed.n,
                                       .lend_s = rows->owed.seconds}});
}

static void add_attention(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
                          const struct rows *rows, const struct layer_buffers *b) {
    const struct model_config *c = &model->config;
    pass_add(pass, (struct op){.kind = OP_ATTENTION,
                               .attention = {.q = b->q,
                                             .ldq = b->ldq,
                                             .out = b->att,
                                             .ldout = (int64_t)c->heads * c->head_dim,
                                             .lse = b->lse,
                                             .runs = rows->runs + rows->mute_runs,
                                             .n_runs = rows->n_runs - rows->mute_runs,
                                             .kv = *kv,
                                             .layer = index,
                                             .heads = c->heads,
                                             .scale = model_attention_scale(model)}});
}

/* The buffers of what follows attention from row `row` on. */
static struct layer_buffers buffers_from(const struct layer_buffers *b, const struct model_config *c, int32_t row) {
    struct layer_buffers from = *b;
    const struct {
        real **buffer;
        int64_t width;
    } table[] = {
        {&from.x, c->hidden},  {&from.att, (int64_t)c->heads * c->head_dim},
        {&from.o, c->hidden},  {&from.r2, 1},
        {&from.x2, c->hidden}, {&from.n2, c->hidden},
        {&from.r3, 1},         {&from.gate_up, 2 * (int64_t)c->ffn},
        {&from.act, c->ffn},   {&from.down, c->hidden},
        {&from.r4, 1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (*table[i].buffer) *table[i].buffer += row * table[i].width;
    return from;
}

void block_record(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
                  const struct rows *rows, const struct layer_buffers *b, real *x_out) {
    const struct layer *layer = &model->layers[index];
    add_norm(pass, model, b->x, layer->input_norm, b->n1, b->r1, rows->count);
    add_product(pass, &layer->qkv, b->n1, b->qkv, rows->count);
    add_qkv(pass, model, kv, index, rows, b);

    const int32_t n = rows->count - rows->mute;
    if (n == 0) return;
    const struct layer_buffers h = buffers_from(b, &model->config, rows->mute);
    add_attention(pass, model, kv, index, rows, b);
    add_product(pass, &layer->o, h.att, h.o, n);
    add_branch(pass, model, h.x, h.o, layer->input_norm_2, h.x2, h.r2, n);

    add_norm(pass, model, h.x2, layer->post_norm, h.n2, h.r3, n);
    add_product(pass, &layer->gate_up, h.n2, h.gate_up, n);
    pass_add(pass, (struct op){.kind = OP_SILU_MUL, .silu_mul = {h.gate_up, h.act, n, model->config.ffn}});
    add_product(pass, &layer->down, h.act, h.down, n);
    x_out += (int64_t)rows->mute * model->config.hidden;
    add_branch(pass, model, h.x2, h.down, layer->post_norm_2, x_out, h.r4, n);
}
