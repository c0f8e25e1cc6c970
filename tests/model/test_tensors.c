/* The tensor table against the published names, shapes and counts, and the layout that fused matrices rely on. */
#include "base/file.h"
#include "base/json.h"
#include "model/tensors.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

static struct model_config small_config(enum model_family family) {
    struct model_config c = {
        .layers = 3, .hidden = 32, .ffn = 48, .vocab = 67, .heads = 4, .kv_heads = 2, .head_dim = 16};
    model_config_set_family(&c, family);
    return c;
}

static void table_of(struct tensor_table *table, const struct model_config *c) {
    looplm_error err;
    assert_int_equal(tensor_table_init(table, c, &err), LOOPLM_OK);
}

static void assert_published(const char *name, int64_t parameters, int32_t count) {
    char *directory = support_fixture(name), *path = file_join(directory, "tensors.json");
    struct model_config c;
    struct tensor_table table;
    json_t *root, *shape;
    looplm_error err;
    if (model_config_read(&c, directory, &err) || json_read(path, 1 << 20, &root, &err)) fail_msg("%s", err.message);
    table_of(&table, &c);
    assert_int_equal(table.parameters, parameters);
    assert_int_equal(table.count, count);
    const json_t *published = json_object_get(root, "tensors");
    assert_int_equal(json_object_size(published), count);
    const char *tensor;
    json_object_foreach((json_t *)(uintptr_t)published, tensor, shape) {
        const struct tensor_spec *spec = tensor_find_name(&table, tensor);
        if (!spec) fail_msg("%s is published, and not in the table", tensor);
        assert_int_equal(spec->dims, json_array_size(shape));
        assert_int_equal(spec->dims == 2 ? spec->rows : spec->cols, json_integer_value(json_array_get(shape, 0)));
        if (spec->dims == 2) assert_int_equal(spec->cols, json_integer_value(json_array_get(shape, 1)));
        assert_ptr_equal(spec, tensor_find(&table, spec->role, spec->layer));
    }
    tensor_table_free(&table);
    json_decref(root);
    free(path);
    free(directory);
}

static void test_published(void **state) {
    (void)state;
    assert_published("ouro-1.4b", 1434652673, 269);
    assert_published("ouro-2.6b", 2667974657, 533);
}

static void test_layout(void **state) {
    (void)state;
    for (int family = FAMILY_OURO; family <= FAMILY_QWEN3; family++) {
        struct model_config c = small_config((enum model_family)family);
        struct tensor_table table;
        table_of(&table, &c);
        int64_t end = 0, parameters = 0;
        for (int32_t i = 0; i < table.count; i++) {
            const struct tensor_spec *spec = &table.specs[i];
            int64_t n = spec->rows * spec->cols;
            assert_int_equal(spec->offset, (end + 15) / 16 * 16);
            end = spec->offset + n;
            parameters += n;
        }
        assert_int_equal(table.elements, (end + 15) / 16 * 16);
        assert_int_equal(table.parameters, parameters);
        for (int32_t layer = 0; layer < c.layers; layer++) {
            const struct tensor_spec *q = tensor_find(&table, TENSOR_Q, layer),
                                     *k = tensor_find(&table, TENSOR_K, layer),
                                     *v = tensor_find(&table, TENSOR_V, layer),
                                     *gate = tensor_find(&table, TENSOR_GATE, layer),
                                     *up = tensor_find(&table, TENSOR_UP, layer);
            assert_int_equal(k->offset, q->offset + 4 * 16 * 32);
            assert_int_equal(v->offset, k->offset + 2 * 16 * 32);
            assert_int_equal(up->offset, gate->offset + 48 * 32);
        }
        tensor_table_free(&table);
    }
}

static void test_families(void **state) {
    (void)state;
    struct model_config c = small_config(FAMILY_QWEN3);
    struct tensor_table table;
    table_of(&table, &c);
    assert_string_equal(tensor_find(&table, TENSOR_Q_NORM, 2)->name, "model.layers.2.self_attn.q_norm.weight");
    assert_int_equal(tensor_find(&table, TENSOR_K_NORM, 0)->cols, 16);
    assert_null(tensor_find(&table, TENSOR_INPUT_NORM_2, 0));
    assert_null(tensor_find(&table, TENSOR_EXIT_WEIGHT, -1));
    assert_int_equal(table.count, 3 * 11 + 3);
    tensor_table_free(&table);

    c = small_config(FAMILY_LLAMA);
    c.tied = true;
    table_of(&table, &c);
    assert_null(tensor_find(&table, TENSOR_Q_NORM, 0));
    assert_null(tensor_find(&table, TENSOR_HEAD, -1));
    assert_int_equal(table.count, 3 * 9 + 2);
    tensor_table_free(&table);

    c = small_config(FAMILY_OURO);
    table_of(&table, &c);
    assert_int_equal(table.count, 3 * 11 + 5);
    assert_null(tensor_find(&table, TENSOR_Q, 3));
    assert_null(tensor_find(&table, TENSOR_Q, -1));
    assert_null(tensor_find_name(&table, "model.layers.3.self_attn.q_proj.weight"));
    tensor_table_free(&table);
}

static void test_decay(void **state) {
    (void)state;
    struct model_config c = small_config(FAMILY_OURO);
    struct tensor_table table;
    table_of(&table, &c);
    assert_true(tensor_find(&table, TENSOR_EMBED, -1)->decayed);
    assert_true(tensor_find(&table, TENSOR_DOWN, 1)->decayed);
    assert_false(tensor_find(&table, TENSOR_INPUT_NORM_2, 1)->decayed);
    assert_false(tensor_find(&table, TENSOR_EXIT_WEIGHT, -1)->decayed);
    assert_false(tensor_find(&table, TENSOR_EXIT_BIAS, -1)->decayed);
    tensor_table_free(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_published), cmocka_unit_test(test_layout),
                                       cmocka_unit_test(test_families), cmocka_unit_test(test_decay)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
