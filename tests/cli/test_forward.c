/* `looplm forward` and `looplm inspect` as programs: what they write, and what they refuse. */
#include "cli/program.h"

#include "model/safetensors.h"

static void assert_tensor(const struct safetensors *st, const char *name, const char *shape) {
    const struct safetensors_entry *entry = safetensors_find(st, name);
    char text[SAFETENSORS_SHAPE_TEXT];
    if (!entry) fail_msg("the tensor %s is missing", name);
    assert_string_equal(entry->dtype, "F32");
    assert_string_equal(safetensors_shape_text(entry->dims, entry->shape, text), shape);
}

static void open_written(struct safetensors *st, const char *directory) {
    char *path;
    looplm_error err;
    assert_true(asprintf(&path, "%s/f.st", directory) > 0);
    if (safetensors_open(st, path, &err)) fail_msg("%s", err.message);
    free(path);
}

static void test_tensors(void **state) {
    struct safetensors st;
    assert_program(*state, "$P forward $G/ouro-mha-r4 $T --ids 1,2,3 --out f.st && ls f.st*", 0, "f.st\n", NULL);
    open_written(&st, *state);
    assert_int_equal(st.n_entries, 4);
    assert_tensor(&st, "logits", "[4, 3, 67]");
    assert_tensor(&st, "hidden", "[4, 3, 32]");
    assert_tensor(&st, "gate", "[4, 3]");
    assert_tensor(&st, "exit", "[4, 3]");
    const float *p = safetensors_data(&st, safetensors_find(&st, "exit"));
    for (int i = 0; i < 3; i++) {
        float sum = p[i] + p[3 + i] + p[6 + i] + p[9 + i];
        assert_true(sum > 0.9999f && sum < 1.0001f);
    }
    safetensors_close(&st);
    /* More loops than the model was made for, and fewer. */
    assert_program(*state, "$P forward $G/ouro-mha-r4 $T --ids 1,2,3 --loops 6 -o f.st", 0, NULL);
    open_written(&st, *state);
    assert_tensor(&st, "logits", "[6, 3, 67]");
    safetensors_close(&st);
    assert_program(*state, "$P forward $G/ouro-mha-r4 $T --ids 1,2,3 --loops 1 -o f.st", 0, NULL);
    open_written(&st, *state);
    assert_tensor(&st, "gate", "[1, 3]");
    safetensors_close(&st);
    /* A dense model has no gate. */
    assert_program(*state, "$P forward $G/llama-gqa $T --ids 0 -o f.st", 0, NULL);
    open_written(&st, *state);
    assert_int_equal(st.n_entries, 2);
    safetensors_close(&st);
}

static void test_forward_refuses(void **state) {
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids 67 -o n.st", 2, "id 67", "expected 0 to 66", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids 1,-1 -o n.st", 2, "'-1' is not a token id", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids 1,,2 -o n.st", 2, "1,2,3", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids 1,2, -o n.st", 2, "comma at the end", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids '' -o n.st", 2, "no ids were given", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids 99999999999 -o n.st", 2, "is not a token id", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 $T --ids $(seq -s , 300 | sed 's/[0-9][0-9]*/1/g') -o n.st", 1,
                   "300 ids exceed the model's 256 positions", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 --ids 1", 2, "--out is missing", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 --ids 1 -o n.st --loops 65", 2, "from 0 to 64", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 --ids 1 -o n.st --weights bf17", 2, "did you mean 'bf16'?", NULL);
    assert_program(*state, "$P forward $G/ouro-r1 --ids 1 -o n.st --kernels foo", 2, "'foo'", "scalar", NULL);
    assert_program(*state, "ls n.st*", 2, NULL);
}

static void test_inspect(void **state) {
    json_t *json = program_json(*state, "$P inspect $M --json --tensors");
    assert_int_equal(json_integer_value(json_object_get(json, "vocab")), 300);
    assert_int_equal(json_integer_value(json_object_get(json, "loops")), 4);
    assert_string_equal(json_string_value(json_object_get(json, "tokenizer")), "tokenizer.json");
    assert_int_equal(json_integer_value(json_object_get(json, "tensor_count")),
                     json_array_size(json_object_get(json, "tensors")));
    json_decref(json);
    assert_program(*state, "$P inspect $M", 0, "layers x loops     2 x 4", "exit ", "KV per token", NULL);
    assert_program(*state, "$P inspect $G/llama-gqa", 0, "no gate: every token runs every loop", NULL);
    assert_program(*state, "$P inspect $G/ouro-f16-sharded", 0, "in 3 files", NULL);
    assert_program(*state, "$P inspect $M --tensors | grep -c model.layers", 0, "22\n", NULL);
}

static void test_inspect_published(void **state) {
    char *path = support_fixture("ouro-1.4b"), command[512];
    snprintf(command, sizeof command, "$P inspect '%s'", path);
    assert_program(*state, command, 0, "1434652673", "768 KiB in bf16", "24 x 4", "weights            none here", NULL);
    snprintf(command, sizeof command, "$P inspect '%s' --json", path);
    json_t *json = program_json(*state, command);
    assert_int_equal(json_integer_value(json_object_get(json, "parameters")), 1434652673);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "kv_bytes_per_token"), "bf16")),
                     768 * 1024);
    json_decref(json);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_forward_refuses),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_inspect_published),
    };
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
