/* A training step allocates nothing once it has run: every call of the allocator in this program is counted. */
#include "support/support.h"

#include "tensor/cpu/cpu.h"
#include "train/workers.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define POSITIONS 64
#define BATCH 5

static atomic_long allocations;

#if defined(__GLIBC__) && !defined(LOOPLM_SANITIZED)
#define COUNTED 1
/* The names behind glibc's own; ours below take the place of malloc and its kin in the whole program. */
extern void *__libc_malloc(size_t size);              /* NOLINT */
extern void *__libc_calloc(size_t n, size_t size);    /* NOLINT */
extern void *__libc_realloc(void *old, size_t size);  /* NOLINT */
extern void *__libc_memalign(size_t align, size_t n); /* NOLINT */

void *malloc(size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t align, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_memalign(align, size);
}
#else
#define COUNTED 0
#endif

struct training {
    struct backend *backend;
    struct params params;
    struct model *model;
    struct workers *workers;
    struct optimizer optimizer;
};

static void must(int status, const looplm_error *err) {
    if (status) fail_msg("%s", err->message);
}

static void training_open(struct training *t, enum weight_type type, int workers, bool recompute) {
    struct model_config config = {.family = FAMILY_OURO,
                                  .layers = 2,
                                  .hidden = 32,
                                  .ffn = 48,
                                  .vocab = 67,
                                  .heads = 2,
                                  .kv_heads = 2,
                                  .head_dim = 16,
                                  .loops = 3,
                                  .max_positions = 256,
                                  .rope_theta = 1e4,
                                  .norm_eps = 1e-6,
                                  .initializer_range = 0.1,
                                  .branch_norms = true,
                                  .exit_gate = true,
                                  .exit_threshold = 1};
    struct workers_options options = {.workers = workers,
                                      .batch = BATCH,
                                      .unit = {.positions_max = POSITIONS, .documents_max = 4, .recompute = recompute}};
    struct optimizer_options adam = {0.9, 0.95, 1e-8, 0.1, 1.0, false};
    looplm_error err;
    must(cpu_open(&t->backend, 2, NULL, &err), &err);
    must(params_init(&t->params, &config, 1, 0, &err), &err);
    must(model_alloc(&t->model, &config, t->backend, type, &err), &err);
    model_pack(t->model, &t->params);
    must(workers_open(&t->workers, t->model, &t->params, &options, &err), &err);
    must(optimizer_init(&t->optimizer, &t->params, t->backend, &adam, &err), &err);
}

/* `n` sequences of this length, the first of two documents; all positions run `loops` loops. */
static void training_step(struct training *t, int n, int length, int loops) {
    struct objective objective = {.kind = OBJECTIVE_STAGE1, .beta = 0.1};
    for (int i = 0; i < n; i++) {
        struct unit_slot *slot = workers_slot(t->workers, i);
        slot->n = length;
        slot->n_documents = i ? 1 : 2;
        slot->starts[0] = 0;
        slot->starts[1] = length / 2;
        for (int j = 0; j < length; j++) slot->ids[j] = slot->targets[j] = (i * 31 + j * 7) % 67;
    }
    const real *gradient = workers_gradient(t->workers, n, loops, &objective);
    assert_true(optimizer_step(&t->optimizer, gradient, n * length, 1e-3, NULL));
    model_pack(t->model, &t->params);
    workers_pack(t->workers, &t->params);
}

static void training_close(struct training *t) {
    optimizer_free(&t->optimizer);
    workers_close(t->workers);
    model_close(t->model);
    params_free(&t->params);
    t->backend->close(t->backend);
}

static void check(enum weight_type type, int workers, bool recompute) {
    struct training t = {0};
    training_open(&t, type, workers, recompute);
    training_step(&t, BATCH, POSITIONS, 3); /* recorded passes take their size */
    long before = atomic_load(&allocations);
    assert_true(before > 0);
    training_step(&t, BATCH, POSITIONS, 3);
    training_step(&t, BATCH, POSITIONS - 5, 3);
    training_step(&t, 3, POSITIONS, 2);
    long after = atomic_load(&allocations);
    if (after != before)
        fail_msg("%ld allocations in three steps, weights %d, %d workers, recompute %d", after - before, (int)type,
                 workers, recompute);
    training_close(&t);
}

static void test_step_allocates_nothing(void **state) {
    (void)state;
    if (!COUNTED) skip();
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int workers = 1; workers <= 2; workers++)
            for (int recompute = 0; recompute < 2; recompute++) check((enum weight_type)type, workers, recompute);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_step_allocates_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
