/* looplm compare: what it measures on models/tiny in every type, what its JSON promises, and what it refuses. */
#include "cli/program.h"

#define TINY LOOPLM_SOURCE_DIR "/models/tiny"
#define COMPARE "$P compare " TINY " "

static double at_loop(const json_t *json, size_t file, size_t loop, const char *key) {
    const json_t *loops = json_object_get(json_array_get(json_object_get(json, "files"), file), "loops");
    assert_int_equal(json_array_size(loops), 4);
    const json_t *value = json_object_get(json_array_get(loops, loop), key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static double at_exit(const json_t *json, const char *key) {
    const json_t *exit = json_object_get(json_array_get(json_object_get(json, "files"), 0), "exit");
    assert_true(json_is_number(json_object_get(exit, key)));
    return json_number_value(json_object_get(exit, key));
}

static json_t *compare(const char *directory, const char *weights) {
    char *command;
    assert_true(asprintf(&command, COMPARE TINY " $T --weights %s -n 200 --json book.txt", weights) > 0);
    json_t *json = program_json(directory, command);
    assert_string_equal(json_string_value(json_object_get(json, "weights")), weights);
    free(command);
    return json;
}

static void test_types(void **state) {
    static const char *const types[] = {"f32", "bf16", "q8", "q4"};
    double last = -1, bits = 33;
    for (int i = 0; i < 4; i++) {
        json_t *json = compare(*state, types[i]);
        double most = 0, mean = json_number_value(json_object_get(json, "bits_per_weight"));
        for (size_t r = 0; r < 4; r++) {
            double kl = at_loop(json, 0, r, "kl");
            if (kl > most) most = kl;
            if (i == 0) assert_true(kl == 0 && at_loop(json, 0, r, "top1") == 1 && at_loop(json, 0, r, "hidden") == 0);
            assert_true(at_loop(json, 0, r, "top1") > 0.7);
        }
        if (i == 0) assert_true(at_exit(json, "agree") == 1 && at_exit(json, "mean_depth") > 1);
        if (i == 1) assert_true(most < 1e-3);
        assert_true(most > last && mean < bits);
        last = most;
        bits = mean;
        json_decref(json);
    }
    assert_true(last < 0.2);
}

static void test_files(void **state) {
    free(support_write_file(*state, "sums.jsonl",
                            "{\"prompt\": \"1+2=\", \"answer\": \" 3\"}\n{\"text\": \"one two\"}\n"));
    json_t *json = program_json(*state, COMPARE TINY " $T --weights q4 --q 0.9 --json sums.jsonl book.txt");
    const json_t *files = json_object_get(json, "files");
    assert_int_equal(json_array_size(files), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(files, 0), "file")), "sums.jsonl");
    assert_true(at_exit(json, "q") == 0.9);
    assert_true(at_loop(json, 1, 3, "loss") > 0 && at_loop(json, 1, 3, "reference_loss") > 0);
    json_decref(json);
    assert_program(*state, COMPARE TINY " $T --weights q8 -n 50 book.txt", 0, "as q8: 8.5", "49 predictions",
                   "same top-1", "q=0.4: ", "% leave at the same loop; mean depth ", NULL);
    /* A packed model is judged as it is. */
    assert_program(
        *state,
        "$P quantize " TINY " packed $T --weights q4 && " COMPARE "packed $T -n 50 --json book.txt >a && " COMPARE TINY
        " $T --weights q4 -n 50 --json book.txt >b && grep -v '\"model\"' a >c; grep -v '\"model\"' b | cmp - c",
        0, NULL);
    assert_program(*state, COMPARE TINY " $T -n 50 --kv-type q8 book.txt", 0, "as bf16: 16", NULL);
}

static double only(const char *directory, const char *classes) {
    char *command;
    assert_true(asprintf(&command, COMPARE TINY " $T --weights q4 --only %s -n 200 --json book.txt", classes) > 0);
    json_t *json = program_json(directory, command);
    assert_string_equal(json_string_value(json_object_get(json, "only")), classes);
    double kl = at_loop(json, 0, 3, "kl");
    json_decref(json);
    free(command);
    return kl;
}

static void test_only(void **state) {
    double v = only(*state, "v"), attention = only(*state, "q,k,v,o"), stack = only(*state, "q,k,v,o,gate,up,down");
    assert_true(v > 0 && attention > v && stack > attention);
    assert_program(*state, COMPARE TINY " $T --weights q4 --only v,w book.txt", 2, "'w' is no class of tensors", NULL);
    assert_program(*state, COMPARE TINY " $T --weights q4 --only '' book.txt", 2, "no class", NULL);
    assert_program(*state, COMPARE TINY " $T --weights bf16 --only v book.txt", 2, "--weights q8 or q4", NULL);
    assert_program(*state,
                   "rm -rf packed && $P quantize " TINY " packed $T --weights f32 && " COMPARE
                   "packed $T --weights q4 --only v book.txt",
                   2, "give the original", NULL);
    assert_program(*state,
                   "rm -rf packed && $P quantize " TINY " packed $T --weights q4 && " COMPARE
                   "packed $T --weights q4 --only v book.txt",
                   2, "original", NULL);
}

static void test_refusals(void **state) {
    free(support_write_file(*state, "empty.txt", ""));
    assert_program(*state, COMPARE TINY " $T empty.txt", 1, "empty.txt: found no text", NULL);
    assert_program(*state, COMPARE TINY " $T nowhere.txt", 1, "nowhere.txt", NULL);
    assert_program(*state, COMPARE TINY " $T", 2, "FILE", NULL);
    assert_program(*state, COMPARE "$M $T book.txt", 1, "the models differ", "2048", "300", NULL);
    assert_program(*state, COMPARE TINY " $T --weights q5 book.txt", 2, "q5", NULL);
    assert_program(*state, COMPARE "nowhere $T book.txt", 1, "nowhere", NULL);
    assert_program(*state,
                   "rm -rf packed && $P quantize " TINY " packed $T && " COMPARE "packed $T --weights q8 book.txt", 2,
                   "packed as q4", NULL);
    assert_program(*state, "$P compare $G/ouro-mha-r4 $G/ouro-mha-r4 $T book.txt", 2, "tokenizer", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_types), cmocka_unit_test(test_files),
                                       cmocka_unit_test(test_only), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
