/* Master parameters: fresh values depend on seed and name alone; what is saved is loaded with the same bits; stored
 * types are converted. */
#include "base/file.h"
#include "model/params.h"
#include "model/safetensors.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct model_config small_config(enum model_family family, int32_t layers) {
    struct model_config c = {.layers = layers,
                             .hidden = 32,
                             .ffn = 48,
                             .vocab = 67,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 16,
                             .max_positions = 64,
                             .rope_theta = 1e4,
                             .norm_eps = 1e-6,
                             .initializer_range = 0.05,
                             .bos_id = -1,
                             .pad_id = -1};
    model_config_set_family(&c, family);
    return c;
}

static void init(struct params *p, enum model_family family, int32_t layers, uint64_t seed) {
    struct model_config c = small_config(family, layers);
    looplm_error err;
    if (params_init(p, &c, seed, -1.5, &err)) fail_msg("%s", err.message);
}

static void test_init(void **state) {
    (void)state;
    struct params p;
    init(&p, FAMILY_OURO, 3, 7);
    double sum = 0, squares = 0;
    const real *embed = params_at(&p, TENSOR_EMBED, -1);
    for (int i = 0; i < 67 * 32; i++) {
        sum += embed[i];
        squares += embed[i] * embed[i];
    }
    /* 2144 values: the mean within 5 and the deviation within 10 standard errors. */
    assert_true(fabs(sum / 2144) < 5 * 0.05 / sqrt(2144));
    assert_true(fabs(sqrt(squares / 2144) / 0.05 - 1) < 10 / sqrt(2 * 2144));
    assert_true(params_at(&p, TENSOR_NORM, -1)[31] == 1 && params_at(&p, TENSOR_POST_NORM_2, 2)[0] == 1);
    assert_true(params_at(&p, TENSOR_EXIT_BIAS, -1)[0] == (real)-1.5);
    for (int i = 0; i < 32; i++) assert_true(params_at(&p, TENSOR_EXIT_WEIGHT, -1)[i] == 0);
    assert_null(params_at(&p, TENSOR_Q_NORM, 0));
    params_free(&p);
}

static void test_init_depends_on_seed_and_name(void **state) {
    (void)state;
    struct params a, b, other;
    init(&a, FAMILY_OURO, 2, 7);
    init(&b, FAMILY_LLAMA, 5, 7);
    init(&other, FAMILY_OURO, 2, 8);
    size_t size = 32 * 48 * sizeof(real);
    assert_memory_equal(params_at(&a, TENSOR_DOWN, 1), params_at(&b, TENSOR_DOWN, 1), size);
    assert_memory_not_equal(params_at(&a, TENSOR_DOWN, 0), params_at(&a, TENSOR_DOWN, 1), size);
    assert_memory_not_equal(params_at(&a, TENSOR_DOWN, 0), params_at(&other, TENSOR_DOWN, 0), size);
    params_free(&a);
    params_free(&b);
    params_free(&other);
}

static void test_init_needs_a_deviation(void **state) {
    (void)state;
    struct model_config c = small_config(FAMILY_OURO, 1);
    c.initializer_range = 0;
    struct params p;
    looplm_error err;
    assert_int_equal(params_init(&p, &c, 1, 0, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "initializer_range", NULL);
    params_free(&p);
}

static void test_save_and_load(void **state) {
    (void)state;
    for (int family = FAMILY_OURO; family <= FAMILY_QWEN3; family++) {
        char *directory = support_make_directory(), *nested = file_join(directory, "a/b");
        struct params p, q;
        looplm_error err;
        init(&p, (enum model_family)family, 2, 3);
        p.data[5] = (real)-0.0;
        p.data[6] = (real)1e-42; /* denormal */
        if (params_save(&p, nested, DTYPE_F32, &err) || params_load(&q, nested, &err)) fail_msg("%s", err.message);
        assert_int_equal(q.config.family, family);
        assert_int_equal(q.table.elements, p.table.elements);
        assert_memory_equal(p.data, q.data, (size_t)p.table.elements * sizeof(real));
        params_free(&p);
        params_free(&q);
        free(nested);
        support_remove_directory(directory);
    }
}

static void test_save_bf16(void **state) {
    (void)state;
    char *directory = support_make_directory();
    struct params p, q, r;
    looplm_error err;
    init(&p, FAMILY_OURO, 2, 3);
    /* Ties go to the even neighbour: 1 + 2^-8 down to 1, 1 + 3 2^-8 up to 1 + 2^-6. */
    p.data[0] = (real)(1 + 0x1p-8);
    p.data[1] = (real)(1 + 3 * 0x1p-8);
    p.data[2] = (real)(1 + 0x1p-8 + 0x1p-20);
    if (params_save(&p, directory, DTYPE_BF16, &err) || params_load(&q, directory, &err)) fail_msg("%s", err.message);
    assert_true(q.data[0] == 1 && q.data[1] == (real)(1 + 0x1p-6) && q.data[2] == (real)(1 + 0x1p-7));
    for (int64_t i = 0; i < p.table.elements; i++) assert_true(fabs(p.data[i] - q.data[i]) <= fabs(p.data[i]) * 0x1p-8);
    if (params_save(&q, directory, DTYPE_BF16, &err) || params_load(&r, directory, &err)) fail_msg("%s", err.message);
    assert_memory_equal(q.data, r.data, (size_t)q.table.elements * sizeof(real));
    assert_int_equal(params_save(&p, directory, DTYPE_F16, &err), LOOPLM_UNSUPPORTED);
    params_free(&p);
    params_free(&q);
    params_free(&r);
    support_remove_directory(directory);
}

/* A sharded f16 model: every value, converted the slow way here. */
static void test_load_f16_shards(void **state) {
    (void)state;
    char *directory = support_source_path("tests/golden/ouro-f16-sharded");
    struct params p;
    struct safetensors st;
    looplm_error err;
    if (params_load(&p, directory, &err) || safetensors_open(&st, directory, &err)) fail_msg("%s", err.message);
    assert_int_equal(st.n_files, 3);
    for (int32_t i = 0; i < p.table.count; i++) {
        const struct tensor_spec *spec = &p.table.specs[i];
        const struct safetensors_entry *entry = safetensors_find(&st, spec->name);
        assert_non_null(entry);
        for (int64_t j = 0; j < spec->rows * spec->cols; j++) {
            uint16_t bits;
            memcpy(&bits, (const char *)safetensors_data(&st, entry) + 2 * j, 2);
            int exponent = bits >> 10 & 31;
            double value = exponent ? ldexp(1024 + (bits & 1023), exponent - 25) : ldexp(bits & 1023, -24);
            assert_true(p.data[spec->offset + j] == (real)(bits & 0x8000 ? -value : value));
        }
    }
    safetensors_close(&st);
    params_free(&p);
    free(directory);
}

static void test_load_refuses_nan(void **state) {
    (void)state;
    char *directory = support_make_directory();
    struct params p, q;
    looplm_error err;
    init(&p, FAMILY_OURO, 2, 3);
    params_at(&p, TENSOR_UP, 1)[100] = (real)NAN;
    assert_int_equal(params_save(&p, directory, DTYPE_BF16, &err), LOOPLM_OK);
    assert_int_equal(params_load(&q, directory, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "model.safetensors", "model.layers.1.mlp.up_proj.weight",
                         "element 100 is NaN", NULL);
    params_free(&p);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_init_depends_on_seed_and_name),
        cmocka_unit_test(test_init_needs_a_deviation),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_save_bf16),
        cmocka_unit_test(test_load_f16_shards),
        cmocka_unit_test(test_load_refuses_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
