/* looplm quantize: what it writes is a model to every command, with the same output; and nothing of worth is
 * overwritten. */
#include "cli/program.h"

static void test_same_output(void **state) {
    static const char *const types[] = {"f32", "bf16", "q8", "q4"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char *command;
        assert_true(asprintf(&command,
                             "rm -rf packed && $P quantize $M packed --weights %s $T && cmp $M/tokenizer.json "
                             "packed/tokenizer.json && $P forward $M $T --weights %s --ids 5,6,7,8 -o a.st && $P "
                             "forward packed $T --ids 5,6,7,8 -o b.st && cmp a.st b.st && $P run $M $T --weights %s "
                             "-p 'the cat' -n 20 >a.txt && $P run packed $T -p 'the cat' -n 20 >b.txt && cmp a.txt "
                             "b.txt && $P inspect packed",
                             types[i], types[i], types[i]) > 0);
        char as[32];
        snprintf(as, sizeof as, "packed as %s", types[i]);
        assert_program(*state, command, 0, "writing packed: ", as, NULL);
        free(command);
    }
    assert_program(*state, "$P inspect packed --tensors", 0, "model.layers.0.self_attn.qkv_proj.weight.q4",
                   "model.embed_tokens.weight.q8", "model.norm.weight", NULL);
    json_t *json = program_json(*state, "$P inspect packed --json");
    assert_string_equal(json_string_value(json_object_get(json_object_get(json, "weights"), "packed")), "q4");
    json_decref(json);
    assert_program(*state, "$P bench packed $T --prefill 4 --rows 1 --context 4 --slices 3", 0, "decode", NULL);
    assert_program(*state, "$P quantize $M packed --weights q8 $T && $P inspect packed && ls packed", 0, "packed as q8",
                   "generation_config.json", NULL);
    assert_program(*state, "ls packed/*.tmp*", 2, NULL);
}

static double divergence(const char *directory, const char *model) {
    char *command;
    assert_true(asprintf(&command, "$P compare $M %s $T --json book.txt", model) > 0);
    json_t *json = program_json(directory, command);
    json_t *file = json_array_get(json_object_get(json, "files"), 0);
    double kl = json_number_value(json_object_get(json_array_get(json_object_get(file, "loops"), 3), "kl"));
    json_decref(json);
    free(command);
    return kl;
}

static void test_calibrate(void **state) {
    assert_program(*state,
                   "rm -rf near a b && $P quantize $M near $T && for n in 1 3; do $P quantize $M q$n --calibrate "
                   "book.txt --threads $n || exit 3; done && cmp q1/model.safetensors q3/model.safetensors && $P "
                   "inspect q1 && ls q1",
                   0, "packed as q4", "tokenizer.json", NULL);
    assert_program(*state, "cmp -s near/model.safetensors q1/model.safetensors", 1, NULL);
    double near = divergence(*state, "near"), calibrated = divergence(*state, "q1");
    if (!(calibrated < 0.8 * near)) fail_msg("divergence %g, to the nearest %g", calibrated, near);
    /* Two files are two texts, and fewer tokens are others. */
    assert_program(*state,
                   "$P quantize $M q2 $T --calibrate book.txt --calibrate text.txt && cmp -s q1/model.safetensors "
                   "q2/model.safetensors",
                   1, NULL);
    assert_program(*state,
                   "$P quantize $M q2 $T --calibrate book.txt --calibrate-tokens 300 && cmp -s q1/model.safetensors "
                   "q2/model.safetensors",
                   1, NULL);
}

static void test_calibrate_refusals(void **state) {
    static const char *const types[] = {"f32", "bf16", "q8"};
    for (int i = 0; i < 3; i++) {
        char *command;
        assert_true(asprintf(&command, "$P quantize $M other $T --weights %s --calibrate book.txt", types[i]) > 0);
        assert_program(*state, command, 2, "expected --weights q4", types[i], NULL);
        free(command);
    }
    free(support_write_file(*state, "empty.txt", ""));
    assert_program(*state, "$P quantize $M other $T --calibrate empty.txt", 1, "empty.txt: found no text", NULL);
    assert_program(*state, "$P quantize $M other $T --calibrate book.txt --calibrate nowhere.txt", 1, "nowhere.txt",
                   NULL);
    assert_program(*state, "$P quantize $M other $T --calibrate text.txt --calibrate-tokens 40", 1, "found 40 tokens",
                   "at least 256", NULL);
    assert_program(*state, "$P quantize $G/ouro-gqa-tied-r3 other $T --calibrate book.txt", 1, "tokenizer.json", NULL);
    assert_program(*state, "ls other", 2, NULL); /* nothing was written */
}

static void test_refusals(void **state) {
    assert_program(*state, "rm -rf packed && $P quantize $M packed $T", 0, NULL);
    assert_program(*state, "$P run packed $T --weights bf16 -p x -n 1", 2, "packed as q4", "quantise the original",
                   NULL);
    assert_program(*state, "$P quantize packed other --weights q8 $T", 2, "packed already, as q4",
                   "quantise the original", NULL);
    assert_program(*state, "$P quantize $M $M/. $T", 2, "it is the model itself", NULL);
    assert_program(*state, "cp -r $M copy && $P quantize $M copy $T", 2, "copy", "would be lost", NULL);
    assert_program(*state, "rm copy/config.json && $P quantize $M copy $T", 2, "copy", "would be lost", NULL);
    /* What a killed run left is done again. */
    assert_program(*state, "rm packed/config.json && $P quantize $M packed $T && $P inspect packed", 0, "packed as q4",
                   NULL);
    assert_program(*state, "$P quantize nowhere packed $T", 1, "nowhere", NULL);
    assert_program(*state, "$P quantize $M book.txt/x $T", 1, "book.txt", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_output), cmocka_unit_test(test_calibrate),
                                       cmocka_unit_test(test_calibrate_refusals), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
