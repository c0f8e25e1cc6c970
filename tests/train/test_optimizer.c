/* AdamW against a plain computation in double, the gradient norm, what is skipped, and the tree of gradients in every
 * grouping. */
#include "tiny.h"

static const struct optimizer_options options = {0.9, 0.95, 1e-8, 0.1, 1.0, false};

static void fill(struct params *params, struct backend **backend, const struct model_config *config) {
    looplm_error err = {0};
    if (cpu_open(backend, 2, NULL, &err)) fail_msg("%s", err.message);
    if (params_alloc(params, config, &err)) fail_msg("%s", err.message);
    tiny_fill(params, 1);
}

static void fill_gradient(const struct params *params, real *gradient, uint64_t seed) {
    struct random random = {seed, 0};
    for (int32_t i = 0; i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        for (int64_t j = 0; j < spec->rows * spec->cols; j++) gradient[spec->offset + j] = random_normal(&random);
    }
}

static void test_adamw(void **state) {
    (void)state;
    struct model_config config = tiny_config(2);
    struct params params;
    struct backend *backend;
    struct optimizer o;
    fill(&params, &backend, &config);
    assert_int_equal(optimizer_init(&o, &params, backend, &options, NULL), 0);
    size_t n = (size_t)params.table.elements;
    real *gradient = calloc(n, sizeof(real));
    double *p = calloc(n, sizeof *p), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v);
    for (size_t i = 0; i < n; i++) p[i] = (double)params.data[i];
    for (int step = 1; step <= 5; step++) {
        double norm, want = 0, divisor = step == 3 ? 1e6 : 7; /* step 3 is not clipped */
        fill_gradient(&params, gradient, (uint64_t)step);
        for (size_t i = 0; i < n; i++) want += (double)gradient[i] / divisor * ((double)gradient[i] / divisor);
        want = sqrt(want);
        double lr = 1e-2 / step, clip = want > 1 ? 1 / want : 1;
        assert_true(optimizer_step(&o, gradient, divisor, lr, &norm));
        assert_true(fabs(norm - want) < 1e-9 * want);
        for (int32_t s = 0; s < params.table.count; s++) {
            const struct tensor_spec *spec = &params.table.specs[s];
            for (int64_t j = 0; j < spec->rows * spec->cols; j++) {
                size_t i = (size_t)(spec->offset + j);
                double g = (double)gradient[i] / divisor * clip;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                double update = m[i] / (1 - pow(0.9, step)) / (sqrt(v[i] / (1 - pow(0.95, step))) + 1e-8);
                p[i] -= lr * (update + (spec->decayed ? 0.1 * p[i] : 0));
                if (fabs(p[i] - (double)params.data[i]) > 1e-5)
                    fail_msg("%s[%d]: %g, expected %g", spec->name, (int)j, (double)params.data[i], p[i]);
            }
        }
    }
    assert_int_equal(o.step, 5);
    free(gradient), free(p), free(m), free(v);
    optimizer_free(&o);
    params_free(&params);
    backend->close(backend);
}

static void test_not_finite_changes_nothing(void **state) {
    (void)state;
    struct model_config config = tiny_config(2);
    struct params params;
    struct backend *backend;
    struct optimizer o;
    fill(&params, &backend, &config);
    assert_int_equal(optimizer_init(&o, &params, backend, &options, NULL), 0);
    size_t size = (size_t)params.table.elements * sizeof(real);
    real *gradient = calloc(1, size), *before = malloc(size);
    memcpy(before, params.data, size);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        double norm = 0;
        fill_gradient(&params, gradient, 9);
        gradient[params.table.specs[4].offset + 5] = bad[i];
        assert_false(optimizer_step(&o, gradient, 3, 1e-2, &norm));
        assert_false(isfinite(norm));
    }
    assert_int_equal(o.step, 0);
    assert_memory_equal(before, params.data, size);
    free(gradient), free(before);
    optimizer_free(&o);
    params_free(&params);
    backend->close(backend);
}

static void test_gate_only(void **state) {
    (void)state;
    struct model_config config = tiny_config(2);
    struct params params;
    struct backend *backend;
    struct optimizer o;
    struct optimizer_options gate = options;
    gate.gate_only = true;
    fill(&params, &backend, &config);
    assert_int_equal(optimizer_init(&o, &params, backend, &gate, NULL), 0);
    size_t size = (size_t)params.table.elements * sizeof(real);
    real *gradient = calloc(1, size), *before = malloc(size);
    memcpy(before, params.data, size);
    fill_gradient(&params, gradient, 9);
    double norm, want = 0;
    assert_true(optimizer_step(&o, gradient, 1, 1e-2, &norm));
    for (int32_t s = 0; s < params.table.count; s++) {
        const struct tensor_spec *spec = &params.table.specs[s];
        bool is_gate = spec->role == TENSOR_EXIT_WEIGHT || spec->role == TENSOR_EXIT_BIAS;
        for (int64_t j = 0; j < spec->rows * spec->cols; j++) {
            int64_t i = spec->offset + j;
            assert_true(is_gate == (before[i] != params.data[i]));
            if (is_gate) want += (double)gradient[i] * (double)gradient[i];
        }
    }
    assert_true(fabs(norm - sqrt(want)) < 1e-9 * norm);
    optimizer_free(&o);
    params_free(&params);
    config.exit_gate = false;
    config.loops = 1;
    looplm_error err = {0};
    assert_int_equal(params_alloc(&params, &config, NULL), 0);
    assert_int_equal(optimizer_init(&o, &params, backend, &gate, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, "exit gate", NULL);
    params_free(&params);
    free(gradient), free(before);
    backend->close(backend);
}

#define ELEMENTS 1000

static void unit(int64_t index, float *out) {
    struct random random = {(uint64_t)index + 1, 0};
    for (int i = 0; i < ELEMENTS; i++) out[i] = random_normal(&random) * (float)(1 + index % 3);
}

/* The tree by its definition. */
static void add_range(int64_t first, int64_t n, float *out) {
    if (n == 1) {
        unit(first, out);
        return;
    }
    int64_t half = 1;
    while (2 * half < n) half *= 2;
    float *right = malloc(ELEMENTS * sizeof *right);
    add_range(first, half, out);
    add_range(first + half, n - half, right);
    for (int i = 0; i < ELEMENTS; i++) out[i] += right[i];
    free(right);
}

static void test_tree(void **state) {
    (void)state;
    struct backend *backend;
    assert_int_equal(cpu_open(&backend, 2, NULL, NULL), 0);
    float want[ELEMENTS];
    for (int64_t n = 1; n <= 21; n++) {
        struct gradient_tree tree;
        assert_int_equal(gradient_tree_init(&tree, backend, ELEMENTS, n, NULL), 0);
        assert_int_equal(tree.n_buffers, 1 + (int)log2((double)n));
        add_range(0, n, want);
        for (int again = 0; again < 2; again++) {
            for (int64_t i = 0; i < n; i++) {
                unit(i, gradient_tree_begin(&tree));
                gradient_tree_push(&tree);
            }
            assert_memory_equal(gradient_tree_finish(&tree), want, sizeof want);
        }
        /* Callers that add to the unit before themselves. */
        for (int64_t i = 0; i < n; i++) {
            real *before, *own = gradient_tree_begin_unit(&tree, &before);
            unit(i, own);
            for (int j = 0; before && j < ELEMENTS; j++) before[j] += own[j];
            gradient_tree_push(&tree);
        }
        assert_memory_equal(gradient_tree_finish(&tree), want, sizeof want);
        /* Ranks that own aligned subtrees of 2^level units. */
        for (int level = 1; level < 4 && n >> level; level++) {
            int64_t size = 1 << level, i = 0;
            for (; i + size <= n; i += size) {
                add_range(i, size, gradient_tree_begin(&tree));
                gradient_tree_push_level(&tree, level);
            }
            for (; i < n; i++) {
                unit(i, gradient_tree_begin(&tree));
                gradient_tree_push(&tree);
            }
            assert_memory_equal(gradient_tree_finish(&tree), want, sizeof want);
        }
        gradient_tree_free(&tree);
    }
    backend->close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_not_finite_changes_nothing),
        cmocka_unit_test(test_gate_only),
        cmocka_unit_test(test_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
