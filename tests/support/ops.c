#include "support/ops.h"

#include "support/support.h"
#include "tensor/convert.h"
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BACKENDS_MAX 32

static struct kept {
    struct backend *backend;
    const char *table;
    int threads;
} kept[BACKENDS_MAX];

const char *ops_table(int i) {
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++) {
        if ((*t)->supported() && i-- == 0) return (*t)->name;
    }
    return NULL;
}

static struct backend *ops_backend(const char *table, int threads) {
    int i = 0;
    for (; i < BACKENDS_MAX && kept[i].backend; i++) {
        if (kept[i].threads == threads && strcmp(kept[i].table, table) == 0) return kept[i].backend;
    }
    assert_true(i < BACKENDS_MAX);
    looplm_error err = {0};
    if (cpu_open(&kept[i].backend, threads, table, &err)) fail_msg("%s", err.message);
    kept[i].table = kept[i].backend->table;
    kept[i].threads = threads;
    return kept[i].backend;
}

void ops_run(const char *table, int threads, const struct op *ops, int n_ops) {
    struct backend *backend = ops_backend(table, threads);
    struct pass pass = {0};
    for (int i = 0; i < n_ops; i++) pass_add(&pass, ops[i]);
    backend->execute(backend, &pass);
    pass_free(&pass);
}

int ops_close_all(void **state) {
    (void)state;
    for (int i = 0; i < BACKENDS_MAX && kept[i].backend; i++) {
        kept[i].backend->close(kept[i].backend);
        kept[i].backend = NULL;
    }
    return 0;
}

static uint64_t next(uint64_t *seed) { /* splitmix64 */
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t ops_random_below(uint64_t *seed, uint32_t limit) {
    return (uint32_t)((next(seed) >> 32) * limit >> 32);
}

real ops_random(uint64_t *seed, real scale) {
    /* The sum of four uniform numbers in -1/2 .. 1/2 has variance 1/3. */
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)(next(seed) >> 11) * 0x1p-53 - 0.5;
    return (real)(sum * sqrt(3.0)) * scale;
}

void ops_fill(uint64_t *seed, real *data, size_t n, real scale) {
    for (size_t i = 0; i < n; i++) data[i] = ops_random(seed, scale);
}

void *ops_alloc(size_t size) {
    size_t rounded = (size + 127) / 64 * 64;
    void *memory = aligned_alloc(64, rounded);
    assert_non_null(memory);
    return memset(memory, 0, rounded);
}

real *ops_reals(uint64_t *seed, size_t n, real scale) {
    real *data = ops_alloc(n * sizeof *data);
    ops_fill(seed, data, n, scale);
    return data;
}

real *ops_copy(const real *data, size_t n) {
    return memcpy(ops_alloc(n * sizeof *data), data, n * sizeof *data);
}

struct weight ops_weight(uint64_t *seed, enum weight_type type, int n, int k, real scale, real **source) {
    real *values = ops_reals(seed, (size_t)n * (size_t)k, scale);
    struct weight weight = {type, n, k, ops_alloc(weight_size(type, n, k))};
    struct op op = {.kind = OP_PACK, .pack = {&weight, 0, n, values, DTYPE_REAL}};
    ops_run("scalar", 1, &op, 1);
    if (type == WEIGHT_BF16) {
        for (size_t i = 0; i < (size_t)n * (size_t)k; i++) values[i] = bf16_round(values[i]);
    }
    if (source) {
        *source = values;
    } else {
        free(values);
    }
    return weight;
}

void ops_assert_equal(const char *what, const char *table, const real *got, const real *want, size_t n) {
    if (n == 0 || memcmp(got, want, n * sizeof *got) == 0) return;
    for (size_t i = 0; i < n; i++) {
        bool both_nan = got[i] != got[i] && want[i] != want[i];
        if (!both_nan && memcmp(got + i, want + i, sizeof *got) != 0) {
            fail_msg("%s: table %s, element %zu of %zu: %.9g (%a), expected %.9g (%a)", what, table, i, n,
                     (double)got[i], (double)got[i], (double)want[i], (double)want[i]);
        }
    }
}

void ops_assert_close(const char *what, const char *table, const real *got, const double *want, size_t n,
                      const double *tolerance) {
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - want[i]) <= tolerance[i])) {
            fail_msg("%s: table %s, element %zu of %zu: %.9g, expected %.9g within %.3g", what, table, i, n,
                     (double)got[i], want[i], tolerance[i]);
        }
    }
}
