/* Identities of a gradient unit, bit for bit: gradient = evaluation, 1 = 2 = 3 threads, every kernel table, recompute
 * on = off, forced depths of R = none, a longer workspace, and what masks and depths must mean. */
#include "tiny.h"

#include "support/ops.h"

#define POSITIONS 75 /* more than a KV block */

struct variant {
    const char *name;
    int32_t loops;
    bool tied, dense;
    int32_t mask_every;
    bool depths;
};
static const struct variant variants[] = {
    {"full depth", 3, false, false, 0, false},   {"one loop", 1, false, false, 0, false},
    {"tied, masked", 2, true, false, 3, false},  {"dense block", 2, false, true, 0, false},
    {"forced depths", 4, false, false, 0, true}, {"forced depths, masked, tied", 3, true, false, 4, true},
};
#define VARIANTS (sizeof variants / sizeof *variants)

static struct model_config variant_config(const struct variant *v) {
    struct model_config config = tiny_config(v->loops);
    config.hidden = 32;
    config.ffn = 48;
    config.vocab = 67;
    config.heads = 4;
    config.kv_heads = 2;
    config.tied = v->tied;
    config.branch_norms = !v->dense;
    config.qk_norm = v->dense;
    return config;
}

struct setting {
    float soften; /* matrices times this; 0: as they are */
    enum weight_type type;
    const char *table;
    int threads;
    bool recompute;
    int32_t positions;
};

/* The gradient (fresh) and result of one variant under one setting. */
static real *run(const struct variant *v, const struct setting *s, const struct objective *objective,
                 struct unit_result *result, size_t *size) {
    struct model_config config = variant_config(v);
    struct tiny_text text;
    struct tiny t;
    struct params params;
    looplm_error err;
    if (params_alloc(&params, &config, &err)) fail_msg("%s", err.message);
    tiny_fill(&params, 21);
    for (int32_t i = 0; s->soften > 0 && i < params.table.count; i++) {
        const struct tensor_spec *spec = &params.table.specs[i];
        for (int64_t j = 0; spec->dims == 2 && j < spec->rows * spec->cols; j++)
            params.data[spec->offset + j] *= s->soften;
    }
    tiny_open_as(&t, s->type, params, s->table, s->threads, s->positions, s->recompute);
    tiny_text(&text, 22, POSITIONS, &config, v->mask_every, v->depths);
    tiny_gradient(&t, &text.input, objective);
    *result = tiny_gradient(&t, &text.input, objective); /* a used workspace must do as a fresh one */
    *size = tiny_size(&t);
    real *gradient = t.gradient;
    t.gradient = NULL;
    tiny_close(&t);
    return gradient;
}

/* Both stages under every setting against the first. */
static void check_same(const struct variant *v, const struct setting *settings, int n) {
    for (int stage = 1; stage <= 2; stage++) {
        struct objective objective = stage == 1 ? tiny_stage1(PRIOR_UNIFORM) : tiny_stage2();
        struct unit_result want, got;
        size_t size;
        real *first = run(v, &settings[0], &objective, &want, &size);
        assert_true(want.loss > 0 || v->loops == 1);
        for (int i = 1; i < n; i++) {
            const struct setting *s = &settings[i];
            real *gradient = run(v, s, &objective, &got, &size);
            if (memcmp(first, gradient, size) || memcmp(&want, &got, sizeof got))
                fail_msg("%s, stage %d: other bits with table %s, %d threads, recompute %d, room for %d", v->name,
                         stage, s->table, s->threads, s->recompute, s->positions);
            free(gradient);
        }
        free(first);
    }
}

#define SETTINGS_MAX 16

static void test_tables_threads_and_memory_change_no_bit(void **state) {
    (void)state;
    struct setting settings[SETTINGS_MAX] = {{0, WEIGHT_F32, "scalar", 1, false, POSITIONS}};
    int n = 1;
    for (int i = 0; ops_table(i); i++) {
        assert_true(n + 4 <= SETTINGS_MAX);
        settings[n++] = (struct setting){0, WEIGHT_F32, ops_table(i), 2, false, POSITIONS};
        if (ops_table(i + 1)) continue;
        settings[n++] = (struct setting){0, WEIGHT_F32, ops_table(i), 1, true, POSITIONS};
        settings[n++] = (struct setting){0, WEIGHT_F32, ops_table(i), 3, true, 200};
    }
    for (size_t v = 0; v < VARIANTS; v++) check_same(&variants[v], settings, n);
}

/* In bf16 a table has bits of its own, whatever the threads and the memory. */
static void test_bf16_threads_and_memory_change_no_bit(void **state) {
    (void)state;
    for (int i = 0; ops_table(i); i++) {
        struct setting settings[] = {{0, WEIGHT_BF16, ops_table(i), 1, false, POSITIONS},
                                     {0, WEIGHT_BF16, ops_table(i), 2, true, POSITIONS},
                                     {0, WEIGHT_BF16, ops_table(i), 3, false, 200}};
        for (size_t v = 0; v < VARIANTS; v++) check_same(&variants[v], settings, 3);
    }
}

/* The gradient in bf16 is that in f32 but for rounding (2^-9 an input), on matrices that do not amplify it as those of
 * the other tests do. Measured on every table: 0.011 to 0.015 of the norm, 2e-4 of the loss. */
static void test_bf16_gradient_is_near(void **state) {
    (void)state;
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct setting f32 = {0.2f, WEIGHT_F32, NULL, 1, false, POSITIONS},
                   bf16 = {0.2f, WEIGHT_BF16, NULL, 1, false, POSITIONS};
    for (size_t v = 0; v < VARIANTS; v++) {
        struct unit_result a, b;
        size_t size;
        real *exact = run(&variants[v], &f32, &objective, &a, &size);
        real *rounded = run(&variants[v], &bf16, &objective, &b, &size);
        double difference = 0, norm = 0;
        for (size_t i = 0; i < size / sizeof(real); i++) {
            difference += pow((double)rounded[i] - exact[i], 2);
            norm += pow((double)exact[i], 2);
        }
        if (!(difference > 0 && sqrt(difference / norm) < 0.03) || fabs(a.loss - b.loss) > 1e-3 * a.loss)
            fail_msg("%s: gradient off by %g of its norm, loss %g and %g", variants[v].name, sqrt(difference / norm),
                     a.loss, b.loss);
        free(exact);
        free(rounded);
    }
}

/* With recompute every loop adds to the gradients of the weights by itself; without, 64 rows a loop are enough for one
 * product over all loops. */
static void test_joined_loops_change_no_bit(void **state) {
    (void)state;
    enum { ROWS = 64 };
    struct model_config config = variant_config(&variants[0]);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    assert_int_equal(config.loops, 3);
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int i = 0; ops_table(i); i++)
            for (int used = 1; used <= config.loops; used++) {
                struct tiny_text text;
                struct unit_result result[2];
                struct tiny t[2];
                for (int recompute = 0; recompute < 2; recompute++) {
                    struct params params;
                    looplm_error err;
                    if (params_alloc(&params, &config, &err)) fail_msg("%s", err.message);
                    tiny_fill(&params, 33);
                    tiny_open_as(&t[recompute], (enum weight_type)type, params, ops_table(i), 2, POSITIONS, recompute);
                    tiny_text(&text, 34, ROWS, &config, 0, false);
                    memset(text.depths, used, ROWS);
                    text.input.depths = text.depths;
                    assert_true(backward_can_join(t[recompute].model, ROWS));
                    result[recompute] = tiny_gradient(&t[recompute], &text.input, &objective);
                }
                assert_memory_equal(&result[0], &result[1], sizeof result[0]);
                assert_memory_equal(t[0].gradient, t[1].gradient, tiny_size(&t[0]));
                tiny_close(&t[0]);
                tiny_close(&t[1]);
            }
}

/* Between tensors lies anything. */
static void assert_tensors_equal(const struct tensor_table *table, const char *kernels, const real *got,
                                 const real *want) {
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        ops_assert_equal(spec->name, kernels, got + spec->offset, want + spec->offset,
                         (size_t)(spec->rows * spec->cols));
    }
}

/* The gradient that replaces what is in a buffer, and the one that is added to the unit before, with one product for
 * all loops of a weight and without. */
static void test_sum_changes_no_bit(void **state) {
    (void)state;
    struct model_config config = variant_config(&variants[0]);
    struct objective stage1 = tiny_stage1(PRIOR_UNIFORM), stage2 = tiny_stage2();
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int i = 0; ops_table(i); i++)
            for (int kind = 0; kind < 3; kind++) { /* joined; not joined; the gate alone */
                struct tiny t;
                struct tiny_text text;
                struct unit_result result;
                struct params params;
                looplm_error err;
                if (params_alloc(&params, &config, &err)) fail_msg("%s", err.message);
                tiny_fill(&params, 35);
                tiny_open_as(&t, (enum weight_type)type, params, ops_table(i), 2, POSITIONS, false);
                tiny_text(&text, 36, kind == 1 ? 63 : 64, &config, 0, false);
                const struct objective *objective = kind == 2 ? &stage2 : &stage1;
                tiny_gradient(&t, &text.input, objective);
                const size_t n = tiny_size(&t) / sizeof(real);
                uint64_t seed = 37;
                real *own = ops_reals(&seed, n, 1), *before = ops_reals(&seed, n, 1), *want = ops_copy(before, n);
                for (size_t j = 0; j < n; j++) want[j] += t.gradient[j];
                unit_gradient_sum(t.ws, &text.input, objective, own, NULL, &result);
                assert_tensors_equal(&t.params.table, ops_table(i), own, t.gradient);
                unit_gradient_sum(t.ws, &text.input, objective, own, before, &result);
                assert_tensors_equal(&t.params.table, ops_table(i), before, want);
                free(own), free(before), free(want);
                tiny_close(&t);
            }
}

static void test_evaluation_has_the_same_numbers(void **state) {
    (void)state;
    for (size_t v = 0; v < VARIANTS; v++) {
        struct model_config config = variant_config(&variants[v]);
        struct objective objective = tiny_stage1(PRIOR_GEOMETRIC);
        struct tiny_text text;
        struct tiny t;
        tiny_open(&t, &config, 23, NULL, 2, POSITIONS, false);
        tiny_text(&text, 24, POSITIONS, &config, variants[v].mask_every, variants[v].depths);
        struct unit_result trained = tiny_gradient(&t, &text.input, &objective), seen;
        real ce[4 * POSITIONS], exit[4 * POSITIONS];
        unit_evaluate(t.ws, &text.input, &objective, &seen, ce, exit);
        assert_memory_equal(&trained, &seen, sizeof seen);
        for (int32_t i = 0; i < POSITIONS; i++) { /* invariant 4: p sums to 1, and to nothing beyond the depth */
            double sum = 0;
            for (int32_t r = 0; r < config.loops; r++) sum += (double)exit[r * POSITIONS + i];
            assert_true(fabs(sum - 1) < 1e-6);
        }
        for (int32_t r = 0; r < config.loops; r++) {
            double sum = 0;
            int64_t tokens = 0;
            for (int32_t i = 0; i < POSITIONS; i++) {
                sum += (double)ce[r * POSITIONS + i];
                tokens += text.targets[i] >= 0 && (!variants[v].depths || text.depths[i] > r);
            }
            assert_true(fabs(sum - seen.ce[r]) < 1e-9 * (1 + sum));
            assert_int_equal(seen.tokens[r], tokens);
            assert_true(seen.correct[r] <= (double)tokens);
        }
        tiny_close(&t);
    }
}

static void test_forced_full_depth_is_no_depths(void **state) {
    (void)state;
    struct model_config config = variant_config(&variants[0]);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct tiny_text text;
    struct tiny t;
    tiny_open(&t, &config, 25, NULL, 2, POSITIONS, false);
    tiny_text(&text, 26, POSITIONS, &config, 0, false);
    struct unit_result without = tiny_gradient(&t, &text.input, &objective);
    real *gradient = malloc(tiny_size(&t));
    memcpy(gradient, t.gradient, tiny_size(&t));
    memset(text.depths, config.loops, POSITIONS);
    text.input.depths = text.depths;
    struct unit_result with = tiny_gradient(&t, &text.input, &objective);
    assert_memory_equal(&without, &with, sizeof with);
    assert_memory_equal(gradient, t.gradient, tiny_size(&t));
    free(gradient);
    tiny_close(&t);
}

/* Forced depths of 1 everywhere are the one-loop model. */
static void test_forced_one_loop(void **state) {
    (void)state;
    struct model_config config = variant_config(&variants[0]), one = config;
    one.loops = 1;
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct tiny_text text;
    struct tiny deep, shallow;
    tiny_open(&deep, &config, 27, NULL, 1, POSITIONS, false);
    tiny_open(&shallow, &one, 27, NULL, 1, POSITIONS, false);
    tiny_text(&text, 28, POSITIONS, &config, 0, false);
    struct unit_result want = tiny_gradient(&shallow, &text.input, &objective);
    memset(text.depths, 1, POSITIONS);
    text.input.depths = text.depths;
    struct unit_result got = tiny_gradient(&deep, &text.input, &objective);
    assert_memory_equal(&got, &want, sizeof got);
    assert_memory_equal(deep.gradient, shallow.gradient, tiny_size(&deep));
    tiny_close(&deep);
    tiny_close(&shallow);
}

/* What comes after a position changes neither its loss nor its exit probabilities. */
static void test_causality(void **state) {
    (void)state;
    struct model_config config = variant_config(&variants[4]);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct tiny_text text;
    struct tiny t;
    struct unit_result result;
    real ce[2][4 * POSITIONS], exit[2][4 * POSITIONS];
    tiny_open(&t, &config, 29, NULL, 2, POSITIONS, false);
    tiny_text(&text, 30, POSITIONS, &config, 0, true);
    unit_evaluate(t.ws, &text.input, &objective, &result, ce[0], exit[0]);
    const int32_t cut = 41;
    for (int32_t i = cut + 1; i < POSITIONS; i++) text.ids[i] = 0;
    unit_evaluate(t.ws, &text.input, &objective, &result, ce[1], exit[1]);
    for (int32_t r = 0; r < config.loops; r++) {
        assert_memory_equal(&ce[0][r * POSITIONS], &ce[1][r * POSITIONS], (size_t)cut * sizeof(real));
        assert_memory_equal(&exit[0][r * POSITIONS], &exit[1][r * POSITIONS], (size_t)cut * sizeof(real));
    }
    tiny_close(&t);
}

static void test_nothing_to_predict(void **state) {
    (void)state;
    struct model_config config = tiny_config(3);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct tiny_text text;
    struct tiny t;
    tiny_open(&t, &config, 31, NULL, 2, POSITIONS, true);
    for (int32_t n = 0; n <= 1; n++) { /* a single position has no target either */
        tiny_text(&text, 32, n, &config, 0, false);
        struct unit_result result = tiny_gradient(&t, &text.input, &objective);
        assert_true(result.loss == 0 && result.valid == 0);
        for (int64_t i = 0; i < t.params.table.elements; i++) assert_true(t.gradient[i] == 0);
    }
    tiny_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_threads_and_memory_change_no_bit),
        cmocka_unit_test(test_bf16_threads_and_memory_change_no_bit),
        cmocka_unit_test(test_bf16_gradient_is_near),
        cmocka_unit_test(test_joined_loops_change_no_bit),
        cmocka_unit_test(test_sum_changes_no_bit),
        cmocka_unit_test(test_evaluation_has_the_same_numbers),
        cmocka_unit_test(test_forced_full_depth_is_no_depths),
        cmocka_unit_test(test_forced_one_loop),
        cmocka_unit_test(test_causality),
        cmocka_unit_test(test_nothing_to_predict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
