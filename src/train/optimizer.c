/* Owns the update of the master parameters and the order in which gradients of units are added. Learning rate schedules
 * and checkpoints are the trainer's.
 *
 * Invariants: the squared norm is summed in double, blocks of SUM_SQUARES_BLOCK elements in order of the tensor table;
 * a step with a norm that is not finite changes nothing; the tree's result depends on the pushed gradients and their
 * number alone.
 */
#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>

static bool is_trained(const struct optimizer *o, const struct tensor_spec *spec) {
    return !o->options.gate_only || spec->role == TENSOR_EXIT_WEIGHT || spec->role == TENSOR_EXIT_BIAS;
}

static int64_t elements_of(const struct tensor_spec *spec) {
    return spec->rows * spec->cols;
}

static int64_t blocks_of(const struct tensor_spec *spec) {
    return (elements_of(spec) + SUM_SQUARES_BLOCK - 1) / SUM_SQUARES_BLOCK;
}

int optimizer_init(struct optimizer *o, struct params *params, struct backend *backend,
                   const struct optimizer_options *options, looplm_error *err) {
    *o = (struct optimizer){.options = *options, .params = params, .backend = backend};
    const struct tensor_table *table = &params->table;
    for (int32_t i = 0; i < table->count; i++)
        if (is_trained(o, &table->specs[i])) o->n_partials += blocks_of(&table->specs[i]);
    if (!o->n_partials)
        return error_set(err, LOOPLM_MISMATCH, "the model has no exit gate to train; use a model that has one");
    size_t size = (size_t)table->elements * sizeof(real);
    o->m = backend->alloc(backend, size);
    o->v = backend->alloc(backend, size);
    o->partials = backend->alloc(backend, (size_t)o->n_partials * sizeof(double));
    if (o->m && o->v && o->partials) return 0;
    optimizer_free(o);
    return error_set(err, LOOPLM_MEMORY, "optimizer: %.1f MiB could not be had", 2 * (double)size / 1048576.0);
}

void optimizer_free(struct optimizer *o) {
    if (!o->params) return;
    struct backend *backend = o->backend;
    size_t size = (size_t)o->params->table.elements * sizeof(real);
    if (o->m) backend->release(backend, o->m, size);
    if (o->v) backend->release(backend, o->v, size);
    if (o->partials) backend->release(backend, o->partials, (size_t)o->n_partials * sizeof(double));
    pass_free(&o->pass);
    *o = (struct optimizer){0};
}

static double gradient_norm(struct optimizer *o, const real *gradient) {
    const struct tensor_table *table = &o->params->table;
    double *partial = o->partials, sum = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        if (!is_trained(o, spec)) continue;
        pass_add(&o->pass, (struct op){.kind = OP_SUM_SQUARES,
                                       .sum_squares = {gradient + spec->offset, partial, elements_of(spec)}});
        partial += blocks_of(spec);
    }
    o->backend->execute(o->backend, &o->pass);
    pass_clear(&o->pass);
    for (int64_t i = 0; i < o->n_partials; i++) sum += o->partials[i];
    return sqrt(sum);
}

bool optimizer_step(struct optimizer *o, const real *gradient, double divisor, double lr, double *norm_out) {
    const struct optimizer_options *options = &o->options;
    const struct tensor_table *table = &o->params->table;
    double norm = gradient_norm(o, gradient) / divisor;
    if (norm_out) *norm_out = norm;
    if (!isfinite(norm)) return false;
    double clip = options->clip > 0 && norm > options->clip ? options->clip / norm : 1;
    o->step++;
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        if (!is_trained(o, spec)) continue;
        int64_t at = spec->offset;
        pass_add(&o->pass, (struct op){.kind = OP_ADAMW,
                                       .adamw = {.param = o->params->data + at,
                                                 .m = o->m + at,
                                                 .v = o->v + at,
                                                 .grad = gradient + at,
                                                 .n = elements_of(spec),
                                                 .lr = (real)lr,
                                                 .beta1 = (real)options->beta1,
                                                 .beta2 = (real)options->beta2,
                                                 .eps = (real)options->eps,
                                                 .decay = spec->decayed ? (real)options->weight_decay : 0,
                                                 .correction1 = (real)(1 - pow(options->beta1, (double)o->step)),
                                                 .correction2 = (real)(1 - pow(options->beta2, (double)o->step)),
                                                 .grad_scale = (real)(clip / divisor)}});
    }
    o->backend->execute(o->backend, &o->pass);
    pass_clear(&o->pass);
    return true;
}

/* ---- the tree: a binary counter whose digit at level k is a buffer with the sum of 2^k units ----------------------
 */

int gradient_tree_init(struct gradient_tree *tree, struct backend *backend, int64_t elements, int64_t units_max,
                       looplm_error *err) {
    CHECK_LT(0, units_max);
    *tree = (struct gradient_tree){
        .backend = backend, .elements = elements, .units_max = units_max, .current = -1, .before = -1};
    int32_t wanted = 1; /* floor(log2(units_max)) + 1 */
    while (units_max >> wanted) wanted++;
    CHECK_LE(wanted, GRADIENT_LEVELS_MAX);
    for (int32_t i = 0; i < wanted; i++) {
        tree->level[i] = -1;
        tree->buffers[i] = backend->alloc(backend, (size_t)elements * sizeof(real));
        if (!tree->buffers[i]) {
            gradient_tree_free(tree);
            return error_set(err, LOOPLM_MEMORY,
                             "gradients: %d buffers of %.1f MiB could not be had; use a smaller batch", wanted,
                             (double)elements * sizeof(real) / 1048576.0);
        }
        tree->n_buffers++;
    }
    return 0;
}

void gradient_tree_free(struct gradient_tree *tree) {
    for (int32_t i = 0; i < tree->n_buffers; i++)
        tree->backend->release(tree->backend, tree->buffers[i], (size_t)tree->elements * sizeof(real));
    pass_free(&tree->pass);
    *tree = (struct gradient_tree){.current = -1, .before = -1};
}

static void run_one(struct gradient_tree *tree, struct op op) {
    pass_add(&tree->pass, op);
    tree->backend->execute(tree->backend, &tree->pass);
    pass_clear(&tree->pass);
}

/* The buffer that holds a subtree of that level, or -1 (for level -1: a free one). */
static int32_t find_level(const struct gradient_tree *tree, int32_t level) {
    for (int32_t i = 0; i < tree->n_buffers; i++)
        if (tree->level[i] == level) return i;
    return -1;
}

real *gradient_tree_begin_unit(struct gradient_tree *tree, real **before) {
    if (tree->count == 0)
        for (int32_t i = 0; i < tree->n_buffers; i++) tree->level[i] = -1;
    CHECK_EQ(tree->current, -1);
    CHECK_LT(tree->count, tree->units_max);
    tree->current = find_level(tree, -1);
    CHECK_LE(0, tree->current);
    tree->before = find_level(tree, 0);
    *before = tree->before < 0 ? NULL : tree->buffers[tree->before];
    return tree->buffers[tree->current];
}

real *gradient_tree_begin(struct gradient_tree *tree) {
    real *before, *buffer = gradient_tree_begin_unit(tree, &before);
    tree->before = -1;
    run_one(tree, (struct op){.kind = OP_ZERO, .zero = {buffer, (size_t)tree->elements * sizeof(real)}});
    return buffer;
}

/* earlier += later: the sum is kept in the buffer of the earlier units. */
static void merge(struct gradient_tree *tree, int32_t earlier, int32_t later) {
    real *a = tree->buffers[earlier];
    run_one(tree, (struct op){.kind = OP_ADD, .add = {a, tree->buffers[later], a, tree->elements}});
    tree->level[later] = -1;
}

void gradient_tree_push(struct gradient_tree *tree) {
    if (tree->before < 0) {
        gradient_tree_push_level(tree, 0);
        return;
    }
    /* Both units are in the buffer of the first: a pair that is pushed at once. */
    tree->level[tree->before] = -1;
    tree->current = tree->before;
    tree->before = -1;
    tree->count--;
    gradient_tree_push_level(tree, 1);
}

void gradient_tree_push_level(struct gradient_tree *tree, int32_t level) {
    int32_t buffer = tree->current;
    int64_t units = (int64_t)1 << level;
    CHECK_LE(0, buffer);
    CHECK_EQ(tree->count % units, 0);
    tree->current = -1;
    tree->count += units;
    CHECK_LE(tree->count, tree->units_max);
    for (int32_t other; (other = find_level(tree, level)) >= 0; level++) {
        merge(tree, other, buffer);
        buffer = other;
    }
    tree->level[buffer] = level;
}

real *gradient_tree_finish(struct gradient_tree *tree) {
    CHECK_LT(0, tree->count);
    int32_t sum = -1;
    for (int32_t level = 0; level <= GRADIENT_LEVELS_MAX; level++) {
        int32_t buffer = find_level(tree, level);
        if (buffer < 0) continue;
        if (sum >= 0) merge(tree, buffer, sum);
        sum = buffer;
    }
    tree->count = 0;
    return tree->buffers[sum];
}

void gradient_tree_exchange(struct gradient_tree *tree, const real *taken, real *given) {
    CHECK_EQ(tree->count, 0);
    for (int32_t i = 0; i < tree->n_buffers; i++)
        if (tree->buffers[i] == taken) {
            tree->buffers[i] = given;
            return;
        }
    CHECK_EQ(taken == NULL, true); /* not one of them */
}
