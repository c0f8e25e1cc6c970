/* Owns the division of a step's units among threads. What a unit computes is unit.c's.
 *
 * A step's units are cut into blocks of 2^level consecutive ones; worker w takes blocks w, w + W, ... A block is an
 * aligned subtree of the gradient tree; the sums of the blocks are its upper part, which is added in place, neighbours
 * first. The last block may have fewer units: what its own tree gives then is what the one tree would have made of
 * them.
 *
 * Invariants: while the team runs, a worker writes its own workspace, its own blocks' sums and its own slots' results
 * alone; the model's packed weights are only read.
 */
#include "train/workers.h"

#include "base/team.h"
#include "model/model.h"
#include "tensor/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_WASTE_MAX 1.15 /* the longest worker may have so much more than its even share */

struct crew {
    struct model view; /* the model on this worker's own backend; borrows everything else */
    struct backend *backend;
    struct unit_workspace *unit;
    struct gradient_tree tree; /* of one block */
    uint8_t *depths;           /* [positions_max] */
};

/* What the team does in one run. */
struct job {
    enum { JOB_GRADIENT, JOB_EVALUATE } kind;
    int64_t n;
    int32_t loops;
    const struct objective *objective;
};

struct workers {
    struct model *model; /* borrowed */
    struct backward_weights weights;
    struct team *team;
    int count, level;
    struct crew *crews; /* [count] */
    real **sums;        /* [blocks] of the step: borrowed from `spares` or from a crew's tree */
    real **spares;      /* [n_spares] one for every block but the last of each worker */
    int64_t blocks, n_spares, batch, elements;
    struct pass pass;
    int32_t positions_max;
    struct unit_slot *slots; /* [batch] */
    int32_t *ids;            /* [3 batch positions_max], of all slots */
    struct job job;
};

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int64_t blocks_at(int64_t batch, int level) {
    return (batch + ((int64_t)1 << level) - 1) >> level;
}

/* The largest blocks that still divide the batch evenly enough. */
static int choose_level(int64_t batch, int workers) {
    int level = 0;
    for (int next = 1; (int64_t)1 << next <= batch; next++) {
        int64_t rounds = (blocks_at(batch, next) + workers - 1) / workers;
        if ((double)(rounds << next) * workers <= BLOCK_WASTE_MAX * (double)batch) level = next;
    }
    return level;
}

static int choose_count(const struct workers_options *options, const struct model *model, int64_t elements) {
    int count = options->workers;
    if (count == 0) count = elements <= WORKERS_AUTO_ELEMENTS ? model->backend->threads : 1;
    return count < options->batch ? count : (int)options->batch;
}

/* With one worker the model's own backend serves, with all its threads. */
static int open_crew(struct workers *w, struct crew *c, const struct workers_options *options, looplm_error *err) {
    int threads = w->model->backend->threads / w->count;
    int status = 0;
    c->view = *w->model;
    if (w->count > 1) {
        status = cpu_open(&c->backend, threads > 0 ? threads : 1, options->kernels, err);
        if (status) return status;
        c->view.backend = c->backend;
    }
    struct unit_options unit = options->unit;
    unit.weights = &w->weights;
    status = unit_open(&c->unit, &c->view, &unit, err);
    int64_t units = w->count > 1 ? (int64_t)1 << w->level : options->batch;
    if (!status) status = gradient_tree_init(&c->tree, c->view.backend, w->elements, units, err);
    if (status) return status;
    c->depths = malloc((size_t)options->unit.positions_max);
    return c->depths ? 0 : error_set(err, LOOPLM_MEMORY, "training: the buffers of a worker could not be had");
}

static int open_slots(struct workers *w, looplm_error *err) {
    size_t n = (size_t)w->positions_max;
    w->slots = calloc((size_t)w->batch, sizeof *w->slots);
    w->ids = calloc((size_t)w->batch, 3 * n * sizeof *w->ids);
    if (!w->slots || !w->ids)
        return error_set(err, LOOPLM_MEMORY, "training: no memory for the ids of %lld sequences; use a smaller batch",
                         (long long)w->batch);
    for (int64_t i = 0; i < w->batch; i++) {
        w->slots[i].ids = w->ids + (size_t)i * 3 * n;
        w->slots[i].targets = w->slots[i].ids + n;
        w->slots[i].starts = w->slots[i].targets + n;
        w->slots[i].n_documents = 1;
        w->slots[i].weight = 1;
    }
    return 0;
}

static int open_blocks(struct workers *w, looplm_error *err) {
    struct backend *backend = w->model->backend;
    if (w->count == 1) return 0;
    w->blocks = blocks_at(w->batch, w->level);
    w->sums = calloc((size_t)w->blocks, sizeof *w->sums);
    w->spares = calloc((size_t)w->blocks, sizeof *w->spares);
    bool ok = w->sums && w->spares;
    while (ok && w->n_spares + w->count < w->blocks)
        ok = (w->spares[w->n_spares++] = backend->alloc(backend, (size_t)w->elements * sizeof(real))) != NULL;
    return ok ? 0
              : error_set(err, LOOPLM_MEMORY,
                          "training: no memory for the gradients of %lld blocks; use train.workers 1",
                          (long long)w->blocks);
}

int workers_open(struct workers **out, struct model *model, const struct params *params,
                 const struct workers_options *options, looplm_error *err) {
    struct workers *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, LOOPLM_MEMORY, "training: the workers could not be had");
    *w = (struct workers){.model = model,
                          .count = choose_count(options, model, params->table.elements),
                          .batch = options->batch,
                          .elements = params->table.elements,
                          .positions_max = options->unit.positions_max};
    w->level = choose_level(w->batch, w->count);
    w->crews = calloc((size_t)w->count, sizeof *w->crews);
    int status = w->crews ? backward_weights_init(&w->weights, model, err)
                          : error_set(err, LOOPLM_MEMORY, "training: the workers could not be had");
    for (int i = 0; i < w->count && !status; i++) status = open_crew(w, &w->crews[i], options, err);
    if (!status) status = open_slots(w, err);
    if (!status) status = open_blocks(w, err);
    if (!status) status = team_open(&w->team, w->count, err);
    if (status) {
        workers_close(w);
        return status;
    }
    workers_pack(w, params);
    *out = w;
    return 0;
}

void workers_close(struct workers *w) {
    if (!w) return;
    team_close(w->team);
    for (int i = 0; w->crews && i < w->count; i++) {
        struct crew *c = &w->crews[i];
        gradient_tree_free(&c->tree);
        unit_close(c->unit);
        if (c->backend) c->backend->close(c->backend);
        free(c->depths);
    }
    if (w->weights.model) backward_weights_free(&w->weights);
    for (int64_t i = 0; i < w->n_spares; i++)
        if (w->spares[i])
            w->model->backend->release(w->model->backend, w->spares[i], (size_t)w->elements * sizeof(real));
    pass_free(&w->pass);
    free(w->sums);
    free(w->spares);
    free(w->crews);
    free(w->slots);
    free(w->ids);
    free(w);
}

int workers_count(const struct workers *w) {
    return w->count;
}

size_t workers_memory(const struct workers *w) {
    size_t buffers = (size_t)w->n_spares, size = w->weights.memory_size;
    for (int i = 0; i < w->count; i++) {
        size += unit_memory(w->crews[i].unit);
        buffers += (size_t)w->crews[i].tree.n_buffers;
    }
    return size + buffers * (size_t)w->elements * sizeof(real);
}

struct unit_slot *workers_slot(struct workers *w, int64_t i) {
    CHECK_LE(0, i);
    CHECK_LT(i, w->batch);
    return &w->slots[i];
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static struct unit_input input_of(const struct workers *w, const struct crew *c, const struct unit_slot *slot) {
    bool all = w->job.loops == w->model->config.loops;
    return (struct unit_input){.ids = slot->ids,
                               .targets = slot->targets,
                               .depths = all ? NULL : c->depths,
                               .n = slot->n,
                               .starts = slot->starts,
                               .n_documents = slot->n_documents,
                               .weight = slot->weight};
}

/* Pushes the gradients of slots [first, last), a block. */
static void run_block(struct workers *w, struct crew *c, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        struct unit_slot *slot = &w->slots[i];
        struct unit_input input = input_of(w, c, slot);
        real *before, *own = gradient_tree_begin_unit(&c->tree, &before);
        unit_gradient_sum(c->unit, &input, w->job.objective, own, before, &slot->result);
        gradient_tree_push(&c->tree);
    }
}

static void run_blocks(struct workers *w, struct crew *c, int worker) {
    int64_t size = (int64_t)1 << w->level;
    memset(c->depths, w->job.loops, (size_t)w->positions_max);
    for (int64_t block = worker; block * size < w->job.n; block += w->count) {
        int64_t last = (block + 1) * size < w->job.n ? (block + 1) * size : w->job.n;
        run_block(w, c, block * size, last);
        /* The sum of the worker's last block may stay where it is until the next step. */
        bool more = (block + w->count) * size < w->job.n;
        w->sums[block] = more ? gradient_tree_take(&c->tree, w->spares[block]) : gradient_tree_finish(&c->tree);
        if (more) w->spares[block] = w->sums[block];
    }
}

static void run_evaluations(struct workers *w, struct crew *c, int worker) {
    for (int64_t i = worker; i < w->job.n; i += w->count) {
        struct unit_slot *slot = &w->slots[i];
        struct unit_input input = input_of(w, c, slot);
        unit_evaluate(c->unit, &input, w->job.objective, &slot->result, NULL, NULL);
    }
}

static void run_job(void *context, int worker, int count) {
    struct workers *w = context;
    struct crew *c = &w->crews[worker];
    (void)count;
    switch (w->job.kind) {
    case JOB_GRADIENT:
        run_blocks(w, c, worker);
        break;
    case JOB_EVALUATE:
        run_evaluations(w, c, worker);
        break;
    }
}

void workers_pack(struct workers *w, const struct params *params) {
    backward_weights_pack(&w->weights, params);
}

const real *workers_gradient(struct workers *w, int64_t n, int32_t loops, const struct objective *objective) {
    CHECK_LT(0, n);
    CHECK_LE(n, w->batch);
    w->job = (struct job){.kind = JOB_GRADIENT, .n = n, .loops = loops, .objective = objective};
    if (w->count == 1) {
        memset(w->crews[0].depths, loops, (size_t)w->positions_max);
        run_block(w, &w->crews[0], 0, n);
        return gradient_tree_finish(&w->crews[0].tree);
    }
    team_run(w->team, run_job, w);
    int64_t blocks = blocks_at(n, w->level);
    for (int64_t stride = 1; stride < blocks; stride *= 2)
        for (int64_t i = 0; i + stride < blocks; i += 2 * stride) {
            real *sum = w->sums[i];
            pass_add(&w->pass, (struct op){.kind = OP_ADD, .add = {sum, w->sums[i + stride], sum, w->elements}});
        }
    w->model->backend->execute(w->model->backend, &w->pass);
    pass_clear(&w->pass);
    return w->sums[0];
}

void workers_evaluate(struct workers *w, int64_t n, const struct objective *objective) {
    CHECK_LE(n, w->batch);
    w->job = (struct job){.kind = JOB_EVALUATE, .n = n, .loops = w->model->config.loops, .objective = objective};
    team_run(w->team, run_job, w);
}
