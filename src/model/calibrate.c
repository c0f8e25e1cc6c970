/* Owns the passes that collect H of every matrix of a stage, and the order of the rounding (calibrate.h). */
#include "model/calibrate.h"

#include "model/gptq.h"
#include "model/kv.h"
#include "model/loop.h"

#include <stdlib.h>
#include <string.h>

#define MATRICES 4                            /* of a layer: qkv, o, gate_up, down */
#define TEXTS_MAX (CALIBRATE_ROWS / KV_BLOCK) /* of a pass: each has blocks of its own */

/* Added to H's diagonal, as a share of its mean. 0.001 to 1 were tried: within 8 % of each other. */
static const double damping = 0.01;

static struct weight *matrix(struct layer *l, int i) {
    struct weight *all[MATRICES] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    return all[i];
}

/* ---- H of a stage ----------------------------------------------------------------------------------------------- */

struct collector {
    struct model *model;
    struct kv_pool pool;
    struct kv_sequence kv[TEXTS_MAX];
    struct loop_workspace workspace;
    struct pass plain, pass; /* the pass as it is recorded, and with the sums for H */
    int32_t first, end;      /* layers of the stage */
    real *h[MATRICES];       /* [end - first][k, k] */
};

static int collector_init(struct collector *c, struct model *model, looplm_error *err) {
    const struct model_config *config = &model->config;
    *c = (struct collector){.model = model};
    struct kv_geometry geometry = {KV_F32, config->layers, config->kv_heads, config->head_dim};
    int status = kv_pool_init(&c->pool, model->backend, geometry, (int64_t)TEXTS_MAX * config->loops, err);
    for (int i = 0; !status && i < TEXTS_MAX; i++)
        status = kv_sequence_init(&c->kv[i], &c->pool, KV_POLICY_LAST_EXITED, config->loops, CALIBRATE_ROWS, err);
    return status ? status : loop_workspace_init(&c->workspace, model, CALIBRATE_ROWS, err);
}

static void collector_free(struct collector *c) {
    for (int i = 0; i < TEXTS_MAX; i++)
        if (c->kv[i].pool) kv_sequence_free(&c->kv[i]);
    kv_pool_free(&c->pool);
    if (c->workspace.memory) loop_workspace_free(&c->workspace);
    pass_free(&c->plain);
    pass_free(&c->pass);
}

/* The H that a product's inputs go to, or NULL. */
static real *sum_of(const struct collector *c, const struct weight *w) {
    for (int32_t l = c->first; l < c->end; l++)
        for (int i = 0; i < MATRICES; i++)
            if (w == matrix(&c->model->layers[l], i))
                return c->h[i] + (size_t)(l - c->first) * (size_t)w->k * (size_t)w->k;
    return NULL;
}

/* Adds to each H the inputs of its product, before the product. */
static void add_sums(struct collector *c) {
    pass_clear(&c->pass);
    for (int32_t i = 0; i < c->plain.count; i++) {
        const struct op_matmul *product = &c->plain.ops[i].matmul;
        real *h = c->plain.ops[i].kind == OP_MATMUL ? sum_of(c, product->weight) : NULL;
        if (h)
            pass_add(&c->pass, (struct op){.kind = OP_MATMUL_DW,
                                           .matmul_dw = {.dy = product->x,
                                                         .lddy = product->ldx,
                                                         .x = product->x,
                                                         .ldx = product->ldx,
                                                         .dweight = h,
                                                         .rows = product->rows,
                                                         .n = product->weight->k,
                                                         .k = product->weight->k}});
        pass_add(&c->pass, c->plain.ops[i]);
    }
}

/* All loops of a few texts. */
static void run_texts(struct collector *c, const struct piece *texts, int32_t count) {
    struct model *m = c->model;
    struct loop_buffers *b = &c->workspace.buffers;
    struct run runs[TEXTS_MAX];
    int32_t ids[CALIBRATE_ROWS], rows = 0;
    for (int32_t i = 0; i < count; i++) {
        memcpy(ids + rows, texts[i].ids, (size_t)texts[i].n * sizeof *ids);
        runs[i] = (struct run){.row = rows, .count = texts[i].n};
        rows += texts[i].n;
        CHECK_EQ(kv_reserve(&c->kv[i], texts[i].n), true);
    }
    for (int32_t r = 0; r < m->config.loops; r++) {
        pass_clear(&c->plain);
        if (r == 0) pass_add(&c->plain, (struct op){.kind = OP_EMBED, .embed = {&m->embed, ids, b->layers->x, rows}});
        for (int32_t i = 0; i < count; i++) {
            runs[i].loop = r;
            runs[i].blocks = kv_table(&c->kv[i], r);
            kv_enter(&c->kv[i], r, 0, texts[i].n);
        }
        loop_record(&c->plain, m, &c->pool.geometry, runs, count, 0, b);
        add_sums(c);
        m->backend->execute(m->backend, &c->pass);
        memcpy(b->layers->x, b->h, (size_t)rows * (size_t)m->config.hidden * sizeof(real)); /* the next loop's input */
    }
    for (int32_t i = 0; i < count; i++) kv_release(&c->kv[i]);
}

static void run_all(struct collector *c, const struct calibrate_options *o, int64_t *done, int64_t total) {
    const struct pieces *text = o->text;
    for (int32_t i = 0; i < text->count;) {
        int32_t count = 0, blocks = 0;
        for (; i + count < text->count; count++) {
            blocks += (text->items[i + count].n + KV_BLOCK - 1) / KV_BLOCK;
            if (blocks > TEXTS_MAX) break;
        }
        CHECK_EQ(count > 0, true);
        run_texts(c, text->items + i, count);
        for (int32_t j = i; j < i + count; j++) *done += text->items[j].n;
        i += count;
        if (o->progress) o->progress(o->progress_context, *done, total);
    }
}

/* ---- rounding --------------------------------------------------------------------------------------------------- */

/* w's rows, unpacked: to a product they are what the rows of an embedding are to ids. */
static real *unpack(struct backend *backend, const struct weight *w, looplm_error *err) {
    real *rows = malloc((size_t)w->n * (size_t)w->k * sizeof *rows);
    int32_t *ids = malloc((size_t)w->n * sizeof *ids);
    struct pass pass = {0};
    if (!rows || !ids) {
        free(rows);
        free(ids);
        error_set(err, LOOPLM_MEMORY, "no memory to round a matrix of %d x %d", w->n, w->k);
        return NULL;
    }
    for (int32_t i = 0; i < w->n; i++) ids[i] = i;
    pass_add(&pass, (struct op){.kind = OP_EMBED, .embed = {w, ids, rows, w->n}});
    backend->execute(backend, &pass);
    pass_free(&pass);
    free(ids);
    return rows;
}

static int round_matrix(struct gptq *gptq, struct weight *from, const struct weight *to, real *h, looplm_error *err) {
    int status = gptq_factor(gptq, h, from->k, damping, err);
    if (status) return status;
    real *rows = unpack(gptq->backend, from, err);
    if (!rows) return LOOPLM_MEMORY;
    status = gptq_round(gptq, h, rows, to, err);
    free(rows);
    *from = *to;
    return status;
}

static int round_stage(struct collector *c, struct model *rounded, struct gptq *gptq, looplm_error *err) {
    int status = 0;
    for (int32_t l = c->first; !status && l < c->end; l++)
        for (int i = 0; !status && i < MATRICES; i++) {
            struct weight *from = matrix(&c->model->layers[l], i);
            size_t size = (size_t)from->k * (size_t)from->k;
            real *h = c->h[i] + (size_t)(l - c->first) * size;
            status = round_matrix(gptq, from, matrix(&rounded->layers[l], i), h, err);
        }
    return status;
}

static int take_sums(struct collector *c, looplm_error *err) {
    for (int i = 0; i < MATRICES; i++) {
        size_t k = (size_t)matrix(&c->model->layers[0], i)->k;
        c->h[i] = calloc((size_t)(c->end - c->first) * k * k, sizeof(real));
        if (!c->h[i])
            return error_set(err, LOOPLM_MEMORY, "no memory for the calibration of %d layers", c->end - c->first);
    }
    return LOOPLM_OK;
}

static void give_sums(struct collector *c) {
    for (int i = 0; i < MATRICES; i++) {
        free(c->h[i]);
        c->h[i] = NULL;
    }
}

/* Layers whose H fit into the memory, one at least. */
static int32_t layers_at_once(struct model *m, size_t memory) {
    size_t bytes = 0;
    for (int i = 0; i < MATRICES; i++) {
        size_t k = (size_t)matrix(&m->layers[0], i)->k;
        bytes += k * k * sizeof(real);
    }
    size_t layers = memory / bytes;
    if (layers < 1) return 1;
    return layers < (size_t)m->config.layers ? (int32_t)layers : m->config.layers;
}

int calibrate(struct model *original, struct model *rounded, const struct calibrate_options *o, looplm_error *err) {
    struct collector c;
    struct gptq gptq = {0};
    int32_t layers = original->config.layers, at_once = layers_at_once(original, o->memory);
    int64_t done = 0, total = o->text->ids * ((layers + at_once - 1) / at_once);
    CHECK_EQ(original->weight_type, WEIGHT_F32);
    int status = collector_init(&c, original, err);
    if (!status) status = gptq_init(&gptq, original->backend, err);
    for (c.first = 0; !status && c.first < layers; c.first = c.end) {
        c.end = layers - c.first < at_once ? layers : c.first + at_once;
        status = take_sums(&c, err);
        if (!status) run_all(&c, o, &done, total);
        if (!status) status = round_stage(&c, rounded, &gptq, err);
        give_sums(&c);
    }
    if (gptq.team) gptq_free(&gptq);
    collector_free(&c);
    return status;
}
