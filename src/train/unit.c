/* Owns a gradient unit: which rows run at each loop, the order of the passes, the passage of numbers between model and
 * objective, and the memory of it all. One loop's backward is backward.c's, the head's chunks are head.c's, the loss
 * itself is objective.c's.
 *
 * Three passes a unit: forward through every loop; the head (its gradient is weighted by p, which needs every loop's
 * gate); backward. The host computes p before the head and the gate's gradient after it.
 *
 * Invariants:
 *   1. nothing is allocated between unit_open and unit_close, but for the growth of the recorded pass;
 *   2. rows of a loop are in order of index; the rows of loop r+1 are among those of loop r. An index counts the unit's
 * tokens; a position counts from the start of the token's own document;
 *   3. with recompute the activations of one loop live in one set of buffers, and are made again from the loop's input
 * and the KV planes, which then receive the bits that they hold already: every result has the same bits either way.
 */
#include "train/unit.h"

#include "model/exit.h"
#include "train/activations.h"
#include "train/head.h"

#include <stdlib.h>
#include <string.h>

/* One loop of the unit. */
struct unit_loop {
    int32_t rows, n_runs;
    bool same; /* its rows are those of the loop before */
    struct run *runs;
    struct backward_document *documents; /* [n_documents] */
    int32_t *index, *source;             /* [rows] index; row in the loop before */
    real *h, *dh;                        /* [rows, D] */
    real *logit, *dlogit;                /* [rows] of the gate */
    real *lambda;                        /* [rows] */
    real *lent, *lends;                  /* [n] marks by index (backward.h) */
    bool any_lent, any_lends;
    struct head_rows head;
    struct loop_buffers buffers;
};

struct unit_workspace {
    struct model *model; /* borrowed */
    struct unit_options options;
    struct unit_loop *loops;             /* [R] */
    struct activation_store activations; /* one set with recompute, else R */
    struct kv_pool pool;
    struct kv_sequence *kv; /* [documents_max] */
    struct kv_lend *lends;  /* [n R] */
    struct head head;
    struct backward_weights own_weights; /* unless they are shared */
    struct backward backward;
    struct pass pass;
    real *logit, *ce, *p, *dlogit; /* [R, n] by index, for the objective */
    int32_t used;                  /* loops that the current unit runs */
    bool joined;                   /* their activations lie together (backward.h) */
    real *rest;                    /* gradients that are not of a layer's matrices (backward.h) */
    void *memory;
    size_t memory_size;
};

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static void bind_loop(struct carve *carve, struct unit_loop *loop, const struct model_config *c, int32_t n,
                      int32_t documents) {
    loop->documents = carve_take(carve, documents, sizeof *loop->documents);
    loop->runs = carve_take(carve, n, sizeof *loop->runs);
    loop->index = carve_take(carve, n, sizeof(int32_t));
    loop->source = carve_take(carve, n, sizeof(int32_t));
    loop->h = carve_take(carve, (int64_t)n * c->hidden, sizeof(real));
    loop->dh = carve_take(carve, (int64_t)n * c->hidden, sizeof(real));
    loop->logit = carve_take(carve, n, sizeof(real));
    loop->dlogit = carve_take(carve, n, sizeof(real));
    loop->lambda = carve_take(carve, n, sizeof(real));
    loop->lent = carve_take(carve, n, sizeof(real));
    loop->lends = carve_take(carve, n, sizeof(real));
    head_rows_bind(&loop->head, n, carve);
}

/* Walked twice: with base NULL it measures. */
static size_t bind_buffers(struct unit_workspace *ws, unsigned char *base) {
    const struct model_config *c = &ws->model->config;
    struct carve carve = {.base = base};
    int32_t n = ws->options.positions_max;
    int64_t by_position = (int64_t)c->loops * n;
    activations_bind(&ws->activations, &carve);
    for (int32_t r = 0; r < c->loops; r++) bind_loop(&carve, &ws->loops[r], c, n, ws->options.documents_max);
    head_bind(&ws->head, ws->model, &carve);
    ws->lends = carve_take(&carve, by_position, sizeof *ws->lends);
    ws->logit = carve_take(&carve, by_position, sizeof(real));
    ws->ce = carve_take(&carve, by_position, sizeof(real));
    ws->p = carve_take(&carve, by_position, sizeof(real));
    ws->dlogit = carve_take(&carve, by_position, sizeof(real));
    return carve.used;
}

/* The arrays whose length is known before any buffer's. */
static int open_arrays(struct unit_workspace *ws, looplm_error *err) {
    int32_t loops = ws->model->config.loops, sets = ws->options.recompute ? 1 : loops;
    ws->loops = calloc((size_t)loops, sizeof *ws->loops);
    if (!ws->loops) return error_set(err, LOOPLM_MEMORY, "training: the tables of a sequence could not be had");
    return activations_init(&ws->activations, ws->model, sets, ws->options.positions_max, err);
}

static int open_memory(struct unit_workspace *ws, looplm_error *err) {
    struct backend *backend = ws->model->backend;
    ws->memory_size = bind_buffers(ws, NULL);
    ws->memory = backend->alloc(backend, ws->memory_size);
    if (ws->memory) {
        bind_buffers(ws, ws->memory);
        return 0;
    }
    return error_set(
        err, LOOPLM_MEMORY,
        "training: activations of a sequence of %d positions need %.1f MiB, which could not be had; use shorter "
        "sequences or recompute",
        ws->options.positions_max, (double)ws->memory_size / 1048576.0);
}

/* Blocks for all positions, and one more a document whose last block is not full. */
static int open_kv(struct unit_workspace *ws, looplm_error *err) {
    const struct model_config *c = &ws->model->config;
    int32_t n = ws->options.positions_max, documents = ws->options.documents_max;
    /* The type that inference takes by default with these weights, so that a rollout meets the same bits here. */
    enum kv_type type = ws->model->weight_type == WEIGHT_F32 ? KV_F32 : KV_BF16;
    struct kv_geometry geometry = {type, c->layers, c->kv_heads, c->head_dim};
    int64_t blocks = (int64_t)c->loops * ((n + KV_BLOCK - 1) / KV_BLOCK + documents);
    int status = kv_pool_init(&ws->pool, ws->model->backend, geometry, blocks, err);
    if (status) return status;
    ws->kv = calloc((size_t)documents, sizeof *ws->kv);
    if (!ws->kv)
        return error_set(err, LOOPLM_MEMORY, "training: the tables of %d documents could not be had", documents);
    for (int32_t i = 0; i < documents && !status; i++)
        status = kv_sequence_init(&ws->kv[i], &ws->pool, KV_POLICY_LAST_EXITED, c->loops, n, err);
    return status;
}

static size_t rest_size(const struct unit_workspace *ws) {
    return (size_t)ws->backward.rest_elements * sizeof(real);
}

static int open_backward(struct unit_workspace *ws, looplm_error *err) {
    const struct backward_weights *weights = ws->options.weights ? ws->options.weights : &ws->own_weights;
    int status = ws->options.weights ? 0 : backward_weights_init(&ws->own_weights, ws->model, err);
    if (!status) status = backward_init(&ws->backward, ws->model, weights, ws->options.positions_max, err);
    if (status) return status;
    struct backend *backend = ws->model->backend;
    ws->rest = backend->alloc(backend, rest_size(ws));
    return ws->rest ? 0
                    : error_set(err, LOOPLM_MEMORY, "training: %.1f MiB of gradients could not be had",
                                (double)rest_size(ws) / 1048576.0);
}

int unit_open(struct unit_workspace **out, struct model *model, const struct unit_options *options, looplm_error *err) {
    CHECK_LT(0, options->positions_max);
    struct unit_workspace *ws = calloc(1, sizeof *ws);
    if (!ws) return error_set(err, LOOPLM_MEMORY, "training: the workspace could not be had");
    ws->model = model;
    ws->options = *options;
    if (ws->options.documents_max < 1) ws->options.documents_max = 1;
    if (ws->options.documents_max > options->positions_max) ws->options.documents_max = options->positions_max;
    int status = open_arrays(ws, err);
    if (!status) status = open_memory(ws, err);
    if (!status) status = open_backward(ws, err);
    if (!status) status = open_kv(ws, err);
    if (status) {
        unit_close(ws);
        return status;
    }
    *out = ws;
    return 0;
}

void unit_close(struct unit_workspace *ws) {
    if (!ws) return;
    struct backend *backend = ws->model->backend;
    for (int32_t i = 0; ws->kv && i < ws->options.documents_max; i++)
        if (ws->kv[i].pool) kv_sequence_free(&ws->kv[i]);
    free(ws->kv);
    if (ws->pool.backend) kv_pool_free(&ws->pool);
    if (ws->rest) backend->release(backend, ws->rest, rest_size(ws));
    if (ws->backward.model) backward_free(&ws->backward);
    if (ws->own_weights.model) backward_weights_free(&ws->own_weights);
    if (ws->memory) backend->release(backend, ws->memory, ws->memory_size);
    activations_free(&ws->activations);
    free(ws->loops);
    pass_free(&ws->pass);
    free(ws);
}

size_t unit_memory(const struct unit_workspace *ws) {
    return ws->memory_size + ws->own_weights.memory_size + ws->backward.memory_size + rest_size(ws) +
           ws->pool.block_size * (size_t)ws->pool.n_blocks;
}

void unit_pack(struct unit_workspace *ws, const struct params *params) {
    CHECK_EQ(ws->options.weights == NULL, true);
    backward_weights_pack(&ws->own_weights, params);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static int32_t depth_of(const struct unit_workspace *ws, const struct unit_input *input, int32_t i) {
    return input->depths ? input->depths[i] : ws->model->config.loops;
}

static double weight_of(const struct unit_input *input) {
    return input->weight > 0 ? input->weight : 1;
}
static int32_t document_count(const struct unit_input *input) {
    return input->n_documents ? input->n_documents : 1;
}
static int32_t document_start(const struct unit_input *input, int32_t d) {
    return input->n_documents ? input->starts[d] : 0;
}
static int32_t document_end(const struct unit_input *input, int32_t d) {
    return d + 1 < input->n_documents ? input->starts[d + 1] : input->n;
}

/* Adds index i of a document to the loop: its row, its run, its place in the head's list. `source` is its row in the
 * loop before. */
static void add_row(struct unit_workspace *ws, struct unit_loop *loop, const struct unit_input *input, int32_t r,
                    int32_t d, int32_t i, int32_t source) {
    struct backward_document *document = &loop->documents[d];
    int32_t row = loop->rows++, position = i - document->start;
    loop->index[row] = i;
    loop->source[row] = source;
    struct run *last = document->n_runs ? &loop->runs[loop->n_runs - 1] : NULL;
    if (last && last->first + last->count == position) {
        last->count++;
    } else {
        document->n_runs++;
        loop->runs[loop->n_runs++] =
            (struct run){.row = row, .count = 1, .first = position, .loop = r, .blocks = kv_table(&ws->kv[d], r)};
    }
    if (input->targets[i] >= 0) {
        loop->head.row[loop->head.count] = row;
        loop->head.target[loop->head.count++] = input->targets[i];
    }
}

/* The rows of one document at loop r; returns the rows that it had in the loop before. */
static int32_t plan_document(struct unit_workspace *ws, const struct unit_input *input, int32_t r, int32_t d,
                             int32_t source) {
    int32_t loops = ws->model->config.loops, start = document_start(input, d), end = document_end(input, d);
    struct unit_loop *loop = &ws->loops[r];
    loop->documents[d] =
        (struct backward_document){.start = start, .positions = end - start, .first_run = loop->n_runs};
    for (int32_t i = start; i < end; i++) {
        int32_t depth = depth_of(ws, input, i);
        CHECK_LE(1, depth);
        CHECK_LE(depth, loops);
        loop->lent[i] = depth <= r;
        loop->lends[i] = depth == r + 1 && r + 1 < loops;
        loop->any_lent |= depth <= r;
        loop->any_lends |= depth == r + 1 && r + 1 < loops;
        if (depth > r) add_row(ws, loop, input, r, d, i, source);
        if (depth >= r) source++; /* depth > r-1: it had a row there */
    }
    return source;
}

/* Decides whether all loops' activations lie together, and where. */
static void place(struct unit_workspace *ws) {
    int32_t rows = ws->loops[0].rows;
    ws->joined = ws->activations.n_sets > 1 && backward_can_join(ws->model, rows);
    for (int32_t r = 1; r < ws->used; r++) ws->joined &= ws->loops[r].same;
    activations_place(&ws->activations, ws->used, ws->joined ? rows : ws->options.positions_max);
}

/* Lays out the rows of every loop; ws->used is the deepest loop that has any. */
static void plan(struct unit_workspace *ws, const struct unit_input *input) {
    int32_t loops = ws->model->config.loops, documents = document_count(input);
    CHECK_LE(input->n, ws->options.positions_max);
    CHECK_LE(documents, ws->options.documents_max);
    ws->used = 0;
    for (int32_t r = 0; r < loops; r++) {
        struct unit_loop *loop = &ws->loops[r];
        loop->rows = loop->n_runs = loop->head.count = 0;
        loop->any_lent = loop->any_lends = false;
        int32_t source = 0; /* rows of the loop before that were passed */
        for (int32_t d = 0; d < documents; d++) source = plan_document(ws, input, r, d, source);
        loop->same = r > 0 && loop->rows == ws->loops[r - 1].rows;
        if (loop->rows) ws->used = r + 1;
    }
    place(ws);
}

/* Each document's sequence begins again, with blocks for its positions: first those that shrink, then those that grow.
 */
static void restart_documents(struct unit_workspace *ws, const struct unit_input *input) {
    int32_t documents = document_count(input);
    for (int32_t d = 0; d < ws->options.documents_max; d++) {
        kv_restart(&ws->kv[d]);
        kv_shrink(&ws->kv[d], d < documents ? document_end(input, d) - document_start(input, d) : 0);
    }
    for (int32_t d = 0; d < documents; d++) {
        CHECK_LE(document_start(input, d), document_end(input, d));
        CHECK_EQ(kv_reserve(&ws->kv[d], document_end(input, d) - document_start(input, d)), true);
    }
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Records one loop on a set of activations: its input, then the stack. */
static void record_loop(struct unit_workspace *ws, const struct unit_input *input, int32_t r, struct activations *a) {
    const struct model_config *c = &ws->model->config;
    struct unit_loop *loop = &ws->loops[r];
    a->layers[0].x = loop->same ? ws->loops[r - 1].h : a->input;
    if (r == 0) {
        pass_add(
            &ws->pass,
            (struct op){.kind = OP_EMBED,
                        .embed = {.table = &ws->model->embed, .ids = input->ids, .out = a->input, .rows = loop->rows}});
    } else if (!loop->same) {
        pass_add(&ws->pass, (struct op){.kind = OP_GATHER,
                                        .rows = {.src = ws->loops[r - 1].h,
                                                 .dst = a->input,
                                                 .index = loop->source,
                                                 .rows = loop->rows,
                                                 .dim = c->hidden}});
    }
    loop->buffers = (struct loop_buffers){.layers = a->layers,
                                          .per_layer = true,
                                          .rope = a->rope,
                                          .x_last = a->x_last,
                                          .norm_rstd = a->norm_rstd,
                                          .h = loop->h,
                                          .logit = loop->logit,
                                          .lambda = loop->lambda};
    loop_record(&ws->pass, ws->model, &ws->pool.geometry, loop->runs, loop->n_runs, 0, &loop->buffers);
}

/* After loop r: positions that leave there lend their planes to the deeper loops. Returns the lends used so far. */
static int32_t record_leave(struct unit_workspace *ws, const struct unit_input *input, int32_t r, int32_t used) {
    const struct unit_loop *loop = &ws->loops[r];
    int32_t first = used;
    for (int32_t i = 0, d = 0; i < loop->rows; i++) {
        int32_t index = loop->index[i];
        while (index >= document_end(input, d)) d++;
        if (depth_of(ws, input, index) == r + 1)
            used += kv_leave(&ws->kv[d], index - document_start(input, d), r + 1, ws->lends + used);
    }
    if (used > first)
        pass_add(
            &ws->pass,
            (struct op){.kind = OP_KV_LEND,
                        .kv_lend = {.lends = ws->lends + first, .n_lends = used - first, .kv = ws->pool.geometry}});
    return used;
}

static void run_pass(struct unit_workspace *ws) {
    ws->model->backend->execute(ws->model->backend, &ws->pass);
    pass_clear(&ws->pass);
}

/* Where loop r's activations live; a pass that nobody goes back through uses one set for all. */
static struct activations *activations_of(struct unit_workspace *ws, int32_t r, bool keep) {
    return &ws->activations.sets[keep && ws->activations.n_sets > 1 ? r : 0];
}

static void forward(struct unit_workspace *ws, const struct unit_input *input, bool keep) {
    int32_t lends = 0;
    restart_documents(ws, input);
    for (int32_t r = 0; r < ws->used; r++) {
        const struct unit_loop *loop = &ws->loops[r];
        for (int32_t d = 0; d < document_count(input); d++)
            for (int32_t i = 0; i < loop->documents[d].n_runs; i++) {
                const struct run *run = &loop->runs[loop->documents[d].first_run + i];
                kv_enter(&ws->kv[d], r, run->first, run->count);
            }
        record_loop(ws, input, r, activations_of(ws, r, keep));
        lends = record_leave(ws, input, r, lends);
    }
    run_pass(ws);
}

/* ---- between model and objective -------------------------------------------------------------------------------- */

static struct objective_input objective_view(const struct unit_workspace *ws, const struct unit_input *input) {
    return (struct objective_input){.loops = ws->model->config.loops,
                                    .n = input->n,
                                    .targets = input->targets,
                                    .depths = input->depths,
                                    .logit = ws->model->exit_weight ? ws->logit : NULL,
                                    .ce = ws->ce};
}

/* Gate logits by index, then p, then the head's weights. */
static void exit_distribution(struct unit_workspace *ws, const struct unit_input *input) {
    struct objective_input view = objective_view(ws, input);
    for (int32_t r = 0; view.logit && r < ws->used; r++) {
        const struct unit_loop *loop = &ws->loops[r];
        for (int32_t i = 0; i < loop->rows; i++) ws->logit[(int64_t)r * input->n + loop->index[i]] = loop->logit[i];
    }
    objective_exit(&view, ws->p);
    for (int32_t r = 0; r < ws->used; r++) {
        struct unit_loop *loop = &ws->loops[r];
        for (int32_t i = 0; i < loop->head.count; i++)
            loop->head.weight[i] =
                (real)weight_of(input) * ws->p[(int64_t)r * input->n + loop->index[loop->head.row[i]]];
    }
}

/* Cross-entropies by index, and the sums of each loop. */
static void collect(struct unit_workspace *ws, const struct unit_input *input, struct unit_result *result) {
    memset(result, 0, sizeof *result);
    memset(ws->ce, 0, sizeof *ws->ce * (size_t)ws->model->config.loops * (size_t)input->n);
    for (int32_t p = 0; p < input->n; p++) result->valid += input->targets[p] >= 0;
    for (int32_t r = 0; r < ws->used; r++) {
        const struct unit_loop *loop = &ws->loops[r];
        for (int32_t i = 0; i < loop->head.count; i++) {
            ws->ce[(int64_t)r * input->n + loop->index[loop->head.row[i]]] = loop->head.ce[i];
            result->ce[r] += (double)loop->head.ce[i];
            result->correct[r] += (double)loop->head.correct[i];
        }
        result->tokens[r] = loop->head.count;
    }
}

/* The loss, and with `gradient` the gate's gradient row by row. */
static void apply_objective(struct unit_workspace *ws, const struct unit_input *input,
                            const struct objective *objective, bool gradient, struct unit_result *result) {
    struct objective_input view = objective_view(ws, input);
    struct objective_sums sums;
    objective_loss(objective, &view, gradient ? ws->dlogit : NULL, &sums);
    result->loss = sums.loss;
    result->entropy = sums.entropy;
    memcpy(result->exit, sums.exit, sizeof result->exit);
    for (int32_t r = 0; gradient && r < ws->used; r++) {
        struct unit_loop *loop = &ws->loops[r];
        for (int32_t i = 0; i < loop->rows; i++)
            loop->dlogit[i] = (real)weight_of(input) * ws->dlogit[(int64_t)r * input->n + loop->index[i]];
    }
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void record_gate_grad(struct unit_workspace *ws, struct unit_loop *loop, real *dh,
                             const struct gradient_target *target) {
    if (!ws->model->exit_weight) return;
    pass_add(&ws->pass,
             (struct op){.kind = OP_GATE_GRAD,
                         .gate_grad = {.h = loop->h,
                                       .weight = ws->model->exit_weight,
                                       .dlogit = loop->dlogit,
                                       .dh = dh,
                                       .dweight = backward_gradient(&ws->backward, target, TENSOR_EXIT_WEIGHT, -1),
                                       .dbias = backward_gradient(&ws->backward, target, TENSOR_EXIT_BIAS, -1),
                                       .rows = loop->rows,
                                       .dim = ws->model->config.hidden}});
}

/* Hands the gradient of loop r's input to the loop before, or to the embedding. */
static void record_input_grad(struct unit_workspace *ws, const struct unit_input *input, int32_t r,
                              const struct gradient_target *target) {
    const struct model_config *c = &ws->model->config;
    const struct unit_loop *loop = &ws->loops[r];
    const real *dx = ws->backward.dx;
    if (r == 0) {
        pass_add(&ws->pass,
                 (struct op){.kind = OP_EMBED_GRAD,
                             .embed_grad = {.ids = input->ids,
                                            .dout = dx,
                                            .dtable = backward_gradient(&ws->backward, target, TENSOR_EMBED, -1),
                                            .rows = loop->rows,
                                            .dim = c->hidden}});
    } else if (loop->same) {
        real *dh = ws->loops[r - 1].dh;
        pass_add(&ws->pass, (struct op){.kind = OP_ADD, .add = {dh, dx, dh, (int64_t)loop->rows * c->hidden}});
    } else {
        pass_add(&ws->pass, (struct op){.kind = OP_SCATTER,
                                        .rows = {.src = dx,
                                                 .dst = ws->loops[r - 1].dh,
                                                 .index = loop->source,
                                                 .rows = loop->rows,
                                                 .dim = c->hidden,
                                                 .accumulate = true}});
    }
}

static void record_backward(struct unit_workspace *ws, const struct unit_input *input, int32_t r,
                            const struct gradient_target *target) {
    struct unit_loop *loop = &ws->loops[r];
    /* The deepest loop's activations are still there. */
    bool again = ws->activations.n_sets == 1;
    if (again && r + 1 < ws->used) record_loop(ws, input, r, &ws->activations.sets[0]);
    record_gate_grad(ws, loop, loop->dh, target);
    struct backward_loop here = {.buffers = &loop->buffers,
                                 .joined = !ws->joined ? 0
                                           : r         ? -1
                                                       : ws->used - 1,
                                 .kv = ws->pool.geometry,
                                 .runs = loop->runs,
                                 .documents = loop->documents,
                                 .n_documents = document_count(input),
                                 .rows = loop->rows,
                                 .positions = input->n,
                                 .dh = loop->dh,
                                 .lent = loop->any_lent ? loop->lent : NULL,
                                 .lends = loop->any_lends ? loop->lends : NULL};
    backward_record(&ws->pass, &ws->backward, &here, target);
    record_input_grad(ws, input, r, target);
}

static void backward_all(struct unit_workspace *ws, const struct unit_input *input,
                         const struct gradient_target *target) {
    bool lends = false;
    for (int32_t r = 0; r < ws->used; r++) lends |= ws->loops[r].any_lends;
    if (lends) backward_record_begin(&ws->pass, &ws->backward, input->n);
    for (int32_t r = ws->used - 1; r >= 0; r--) record_backward(ws, input, r, target);
    run_pass(ws);
}

/* ---- the two calls ---------------------------------------------------------------------------------------------- */

static void run_head(struct unit_workspace *ws, const struct gradient_target *target) {
    for (int32_t r = 0; r < ws->used; r++) {
        struct unit_loop *loop = &ws->loops[r];
        if (!target) {
            head_record(&ws->pass, &ws->head, &loop->head, loop->h);
            continue;
        }
        size_t size = (size_t)loop->rows * (size_t)ws->model->config.hidden * sizeof(real);
        pass_add(&ws->pass, (struct op){.kind = OP_ZERO, .zero = {loop->dh, size}});
        head_record_gradient(&ws->pass, &ws->head, &loop->head, loop->h, &ws->backward, loop->dh, target);
    }
    run_pass(ws);
}

/* The unit's gradient to the target, rows planned already. */
static void gradient_to(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                        const struct gradient_target *target, struct unit_result *result) {
    bool stage1 = objective->kind == OBJECTIVE_STAGE1;
    forward(ws, input, stage1);
    exit_distribution(ws, input);
    run_head(ws, stage1 ? target : NULL);
    collect(ws, input, result);
    apply_objective(ws, input, objective, true, result);
    if (stage1) {
        backward_all(ws, input, target);
        return;
    }
    for (int32_t r = 0; r < ws->used; r++) record_gate_grad(ws, &ws->loops[r], NULL, target);
    run_pass(ws);
}

void unit_gradient(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                   real *gradient, struct unit_result *result) {
    struct gradient_target target = {.sum = gradient, .mode = DW_ACCUMULATE};
    plan(ws, input);
    gradient_to(ws, input, objective, &target, result);
}

/* Whether every matrix of a layer gets its gradient from one product. */
static bool single_products(const struct unit_workspace *ws, const struct objective *objective) {
    return objective->kind == OBJECTIVE_STAGE1 && ws->joined && ws->used * ws->loops[0].rows > 0 &&
           ws->used * ws->loops[0].rows <= DW_ADD_ROWS;
}

static void add_elements(struct unit_workspace *ws, real *sum, const real *more) {
    pass_add(&ws->pass, (struct op){.kind = OP_ADD, .add = {sum, more, sum, ws->backward.table.elements}});
    run_pass(ws);
}

void unit_gradient_sum(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                       real *own, real *before, struct unit_result *result) {
    struct gradient_target target = {.sum = own};
    plan(ws, input);
    if (single_products(ws, objective)) {
        target = (struct gradient_target){
            .sum = before ? before : own, .rest = before ? ws->rest : NULL, .mode = before ? DW_ADD : DW_SET};
        backward_record_rest_zero(&ws->pass, &ws->backward, &target);
    } else {
        size_t size = (size_t)ws->backward.table.elements * sizeof(real);
        pass_add(&ws->pass, (struct op){.kind = OP_ZERO, .zero = {own, size}});
    }
    gradient_to(ws, input, objective, &target, result);
    if (!before) return;
    if (target.mode != DW_ADD) {
        add_elements(ws, before, own);
        return;
    }
    backward_record_rest_add(&ws->pass, &ws->backward, &target);
    run_pass(ws);
}

/* p as generation computes it, in fp32 and in the SPEC's order, so that a recorded token meets the same bits here. */
static void recorded_exit(const struct unit_workspace *ws, const struct unit_input *input, real *out) {
    memset(out, 0, sizeof *out * (size_t)ws->model->config.loops * (size_t)input->n);
    for (int32_t r = 0; r < ws->used && ws->model->exit_weight; r++) {
        const struct unit_loop *loop = &ws->loops[r];
        for (int32_t i = 0; i < loop->rows; i++) out[(int64_t)r * input->n + loop->index[i]] = loop->lambda[i];
    }
    for (int32_t i = 0; i < input->n; i++) {
        struct exit_state state = exit_begin();
        int32_t depth = depth_of(ws, input, i);
        for (int32_t r = 0; r < depth; r++) {
            real *p = &out[(int64_t)r * input->n + i];
            *p = (real)exit_advance(&state, (float)*p, r + 1 == depth);
        }
    }
}

void unit_evaluate(struct unit_workspace *ws, const struct unit_input *input, const struct objective *objective,
                   struct unit_result *result, real *ce_out, real *exit_out) {
    size_t size = (size_t)ws->model->config.loops * (size_t)input->n * sizeof(real);
    plan(ws, input);
    forward(ws, input, false);
    exit_distribution(ws, input);
    run_head(ws, NULL);
    collect(ws, input, result);
    apply_objective(ws, input, objective, false, result);
    if (ce_out) memcpy(ce_out, ws->ce, size);
    if (exit_out) recorded_exit(ws, input, exit_out);
}
