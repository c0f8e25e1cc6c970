/* Owns the division of a step's units among threads. What a unit computes is unit.c's.
 *
 * A step's units are cut into blocks of 2^level consecutive ones. In a round each worker takes a block; their sums are
 * then added in order, like the digits of a binary counter (held), so that few gradients are alive at once. A block is
 * an aligned subtree of the gradient tree, and the counter is the tree's upper part. The last block may have fewer
 * units: what its own tree gives then is what the one tree would have made of them.
 *
 * A sum lies where its worker made it until the next round, which needs the room: then it moves to a spare buffer's
 * place, by an exchange.
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
/* From here on (64 MiB) gradients are so large that blocks have two units at most, lest their own trees take too much
 * memory; below, they are as large as can be, since workers wait for each other after each. */
#define LARGE_GRADIENT ((int64_t)16 << 20)

struct crew {
    struct model view; /* the model on this worker's own backend; borrows everything else */
    struct backend *backend;
    struct unit_workspace *unit;
    struct gradient_tree tree; /* of one block */
    uint8_t *depths;           /* [positions_max] */
};

/* The sum of some blocks; the crew in whose tree it lies, or -1 for a spare buffer. */
struct held {
    real *sum; /* NULL: none */
    int owner;
};

/* What the team does in one run. */
struct job {
    enum { JOB_GRADIENT, JOB_EVALUATE } kind;
    int64_t n, block; /* units; the first worker's block */
    int32_t loops;
    const struct objective *objective;
};

struct workers {
    struct model *model; /* borrowed */
    struct backward_weights weights;
    struct team *team;
    int count, level;
    struct crew *crews;                        /* [count] */
    struct held held[GRADIENT_LEVELS_MAX + 1]; /* sums of 2^i blocks */
    real *spares[GRADIENT_LEVELS_MAX + 1];     /* [n_spares] of which free_spares are free, the first ones */
    int32_t n_spares, free_spares;
    int64_t batch, elements;
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
static int choose_level(int64_t batch, int workers, int64_t elements) {
    int level = 0;
    for (int next = 1; (int64_t)1 << next <= batch && (next == 1 || elements < LARGE_GRADIENT); next++) {
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

/* Sums that are held between rounds: the ones among the digits of the number of blocks so far. */
static int32_t spares_needed(int64_t blocks, int workers) {
    int32_t most = 0;
    for (int64_t done = workers; done < blocks; done += workers) {
        const int32_t ones = __builtin_popcountll((unsigned long long)done);
        if (ones > most) most = ones;
    }
    return most;
}

static int open_spares(struct workers *w, looplm_error *err) {
    struct backend *backend = w->model->backend;
    if (w->count == 1) return 0;
    const int32_t wanted = spares_needed(blocks_at(w->batch, w->level), w->count);
    for (; w->n_spares < wanted; w->n_spares++) {
        w->spares[w->n_spares] = backend->alloc(backend, (size_t)w->elements * sizeof(real));
        if (!w->spares[w->n_spares])
            return error_set(err, LOOPLM_MEMORY,
                             "training: no memory for %d gradients; use train.workers 1 or a smaller batch", wanted);
    }
    w->free_spares = w->n_spares;
    return 0;
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
    w->level = choose_level(w->batch, w->count, w->elements);
    w->crews = calloc((size_t)w->count, sizeof *w->crews);
    int status = w->crews ? backward_weights_init(&w->weights, model, err)
                          : error_set(err, LOOPLM_MEMORY, "training: the workers could not be had");
    for (int i = 0; i < w->count && !status; i++) status = open_crew(w, &w->crews[i], options, err);
    if (!status) status = open_slots(w, err);
    if (!status) status = open_spares(w, err);
    if (!status) status = team_open(&w->team, w->count, err);
    if (status) {
        workers_close(w);
        return status;
    }
    workers_pack(w, params);
    *out = w;
    return 0;
}

/* A sum that is no longer needed. */
static void release(struct workers *w, struct held *held) {
    if (held->sum && held->owner < 0) w->spares[w->free_spares++] = held->sum;
    held->sum = NULL;
}

static void release_held(struct workers *w) {
    for (int i = 0; i <= GRADIENT_LEVELS_MAX; i++) release(w, &w->held[i]);
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
    release_held(w);
    for (int32_t i = 0; i < w->n_spares; i++)
        w->model->backend->release(w->model->backend, w->spares[i], (size_t)w->elements * sizeof(real));
    pass_free(&w->pass);
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
    const int64_t size = (int64_t)1 << w->level, first = (w->job.block + worker) * size;
    if (first >= w->job.n) return;
    memset(c->depths, w->job.loops, (size_t)w->positions_max);
    run_block(w, c, first, first + size < w->job.n ? first + size : w->job.n);
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

/* earlier += later. */
static void add(struct workers *w, struct held *earlier, struct held *later) {
    real *sum = earlier->sum;
    pass_add(&w->pass, (struct op){.kind = OP_ADD, .add = {sum, later->sum, sum, w->elements}});
    w->model->backend->execute(w->model->backend, &w->pass);
    pass_clear(&w->pass);
    release(w, later);
}

/* Counts one more block. */
static void hold(struct workers *w, struct held sum) {
    int i = 0;
    for (; w->held[i].sum; i++) {
        add(w, &w->held[i], &sum);
        sum = w->held[i];
        w->held[i].sum = NULL;
    }
    w->held[i] = sum;
}

/* Before the crews work again. */
static void move_to_spares(struct workers *w) {
    for (int i = 0; i <= GRADIENT_LEVELS_MAX; i++) {
        struct held *held = &w->held[i];
        if (!held->sum || held->owner < 0) continue;
        CHECK_LT(0, w->free_spares);
        gradient_tree_exchange(&w->crews[held->owner].tree, held->sum, w->spares[--w->free_spares]);
        held->owner = -1;
    }
}

/* The sum of all blocks: the lower digits are later ones. */
static const real *held_sum(struct workers *w) {
    int last = -1;
    for (int i = 0; i <= GRADIENT_LEVELS_MAX; i++) {
        if (!w->held[i].sum) continue;
        if (last >= 0) add(w, &w->held[i], &w->held[last]);
        last = i;
    }
    CHECK_LE(0, last);
    return w->held[last].sum;
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
    const int64_t blocks = blocks_at(n, w->level);
    release_held(w);
    for (; w->job.block < blocks; w->job.block += w->count) {
        move_to_spares(w);
        team_run(w->team, run_job, w);
        for (int i = 0; i < w->count && w->job.block + i < blocks; i++)
            hold(w, (struct held){gradient_tree_finish(&w->crews[i].tree), i});
    }
    return held_sum(w);
}

void workers_evaluate(struct workers *w, int64_t n, const struct objective *objective) {
    CHECK_LE(n, w->batch);
    w->job = (struct job){.kind = JOB_EVALUATE, .n = n, .loops = w->model->config.loops, .objective = objective};
    team_run(w->team, run_job, w);
}
