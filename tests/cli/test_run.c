/* `looplm run` as a program: what it prints and where, its JSON, its options, sessions. */
#include "cli/program.h"

static const char *text_of(const json_t *json) {
    return json_string_value(json_object_get(json, "text"));
}

static const json_t *token(const json_t *json, size_t i) {
    return json_array_get(json_object_get(json, "tokens"), i);
}

static void assert_same_text(const char *directory, const char *command, const char *expected) {
    json_t *json = program_json(directory, command);
    if (strcmp(text_of(json), expected)) fail_msg("%s: found '%s', expected '%s'", command, text_of(json), expected);
    json_decref(json);
}

static void check_token(const json_t *t, json_int_t loops_max) {
    json_int_t loops = json_integer_value(json_object_get(t, "loops"));
    assert_int_equal(json_object_size(t), 5);
    assert_in_range(json_integer_value(json_object_get(t, "id")), 0, 299);
    assert_true(json_is_string(json_object_get(t, "text")));
    assert_true(json_real_value(json_object_get(t, "logprob")) <= 0);
    assert_in_range(loops, 1, loops_max);
    const json_t *probs = json_object_get(t, "exit_probs");
    assert_int_equal(json_array_size(probs), loops);
    double sum = 0;
    for (size_t i = 0; i < json_array_size(probs); i++) sum += json_real_value(json_array_get(probs, i));
    assert_true(sum > 0 && sum < 1.0001);
    if (loops == loops_max) assert_true(sum > 0.9999);
}

static void test_json(void **state) {
    static const char *const timing[] = {"load_s", "prefill_s", "decode_s", "prefill_tokens_per_s",
                                         "decode_tokens_per_s"};
    json_t *json = program_json(*state, "$P run $M $T -p 'the cat' -n 20 --temperature 0 --exit q=0.6 --json");
    assert_int_equal(json_object_size(json), 6);
    assert_string_equal(json_string_value(json_object_get(json, "finish_reason")), "length");
    assert_int_equal(json_integer_value(json_object_get(json, "prompt_tokens")), 3);
    assert_int_equal(json_array_size(json_object_get(json, "tokens")), 20);
    char joined[1024] = "";
    double loops = 0;
    for (size_t i = 0; i < 20; i++) {
        check_token(token(json, i), 4);
        loops += (double)json_integer_value(json_object_get(token(json, i), "loops"));
        strcat(joined, json_string_value(json_object_get(token(json, i), "text")));
    }
    assert_string_equal(joined, text_of(json));
    assert_true(strncmp(joined, " sat on the mat", 15) == 0);
    double mean = json_real_value(json_object_get(json, "mean_loops"));
    assert_true(mean > loops / 20 - 1e-6 && mean < loops / 20 + 1e-6 && mean > 1 && mean < 4);
    for (size_t i = 0; i < sizeof timing / sizeof *timing; i++)
        assert_true(json_real_value(json_object_get(json_object_get(json, "timing"), timing[i])) >= 0);
    json_decref(json);
}

static void test_text_and_talk(void **state) {
    assert_program(*state, "$P run $M $T -p 'the cat' -n 7 --temperature 0 2>talk.txt; test -s talk.txt", 0,
                   " sat on the mat", NULL);
    assert_program(*state, "cat talk.txt", 0, "7 tokens (prompt 3 in ", " tokens/s, mean depth 4.00 of 4\n",
                   "4 loops     7  ####", NULL);
    assert_program(*state, "printf 'the cat' | $P run $M $T -p - -n 7 --temperature 0 2>/dev/null", 0,
                   " sat on the mat", NULL);
    assert_program(*state, "$P run $M $T -p 'the cat' -n 6 --temperature 0 --json 2>&1 >/dev/null | wc -c", 0, "0\n",
                   NULL);
    /* NUL bytes and bytes that are not UTF-8 are text too. */
    assert_program(*state, "printf 'a\\0b\\377c' | $P run $M $T -p - -n 2 --json", 0, "\"prompt_tokens\": 7", NULL);
}

static void test_stop_texts(void **state) {
    char command[256], *text;
    json_t *json = program_json(*state, "$P run $M $T -p 'the cat' -n 12 --temperature 0 --json");
    text = strdup(text_of(json));
    /* Two characters that stand on both sides of a token's end: " s" + "at". */
    size_t cut = strlen(json_string_value(json_object_get(token(json, 0), "text")));
    json_decref(json);
    assert_in_range(cut, 1, strlen(text) - 2);
    snprintf(command, sizeof command, "$P run $M $T -p 'the cat' -n 12 --temperature 0 --json --stop '%.2s'",
             text + cut - 1);
    json = program_json(*state, command);
    assert_string_equal(json_string_value(json_object_get(json, "finish_reason")), "stop");
    assert_int_equal(strlen(text_of(json)), cut - 1);
    json_decref(json);
    /* What is streamed ends there too; a text that only begins like a stop text is shown in the end. */
    snprintf(command, sizeof command,
             "$P run $M $T -p 'the cat' -n 12 --temperature 0 --stop mat 2>/dev/null | cat -E");
    assert_program(*state, command, 0, " sat on the ", NULL);
    assert_program(*state, "$P run $M $T -p 'the cat' -n 12 --temperature 0 --stop mat 2>/dev/null | grep -c mat", 1,
                   "0\n", NULL);
    snprintf(command, sizeof command,
             "$P run $M $T -p 'the cat' -n 12 --temperature 0 --json --stop '%s#' --stop '###'", text);
    assert_same_text(*state, command, text);
    free(text);
}

/* The id that greedy decoding gives first becomes the end of text. */
static void test_stop_ids(void **state) {
    json_t *json = program_json(*state, "$P run $M $T -p 'the cat' -n 6 --temperature 0 --json");
    json_int_t id = json_integer_value(json_object_get(token(json, 4), "id"));
    json_decref(json);
    char command[512];
    snprintf(command, sizeof command,
             "rm -rf stops && cp -r $M stops && printf '{\"eos_token_id\": [%lld]}' > stops/generation_config.json && "
             "$P run stops $T -p 'the cat' -n 50 --temperature 0 --json",
             (long long)id);
    json = program_json(*state, command);
    assert_string_equal(json_string_value(json_object_get(json, "finish_reason")), "stop");
    assert_int_equal(json_array_size(json_object_get(json, "tokens")), 5);
    json_decref(json);
}

static void test_seed(void **state) {
#define SAMPLED "$P run $M $T -p 'the cat' -n 30 --temperature 3 --json --seed "
    json_t *first = program_json(*state, SAMPLED "3"), *other = program_json(*state, SAMPLED "4");
    assert_same_text(*state, SAMPLED "3", text_of(first));
    assert_same_text(*state, "$P run $M --threads 2 -p 'the cat' -n 30 --temperature 3 --json --seed 3",
                     text_of(first));
    assert_string_not_equal(text_of(first), text_of(other));
    json_decref(first);
    json_decref(other);
    /* Filters, and a temperature so low that the division overflows: greedy. */
    json_t *greedy = program_json(*state, "$P run $M $T -p 'the cat' -n 8 --temperature 0 --json");
    assert_same_text(*state, "$P run $M $T -p 'the cat' -n 8 --temperature 5 --top-k 1 --json", text_of(greedy));
    assert_same_text(*state, "$P run $M $T -p 'the cat' -n 8 --temperature 5 --min-p 1 --json", text_of(greedy));
    assert_same_text(*state, "$P run $M $T -p 'the cat' -n 8 --temperature 5 --top-p 1e-9 --json", text_of(greedy));
    assert_same_text(*state, "timeout 60 $P run $M $T -p 'the cat' -n 8 --temperature 1e-44 --top-k 5 --json",
                     text_of(greedy));
    json_decref(greedy);
}

static double mean_loops(const char *directory, const char *rule) {
    char command[256];
    snprintf(command, sizeof command, "$P run $M $T -p 'the cat' -n 20 --temperature 0 --json %s", rule);
    json_t *json = program_json(directory, command);
    double mean = json_real_value(json_object_get(json, "mean_loops"));
    json_decref(json);
    return mean;
}

static void test_exit_rules(void **state) {
    assert_true(mean_loops(*state, "") == 4);
    assert_true(mean_loops(*state, "--exit full") == 4);
    assert_true(mean_loops(*state, "--exit loops=2") == 2);
    assert_true(mean_loops(*state, "--exit loops=6") == 6);
    assert_true(mean_loops(*state, "--exit q=0") == 1);
    assert_true(mean_loops(*state, "--exit q=0,min=3") == 3);
    assert_true(mean_loops(*state, "--exit q=1") == 4);
    assert_true(mean_loops(*state, "--exit q=1,max=2") == 2);
    assert_true(mean_loops(*state, "--exit conf=0") == 1);
    assert_true(mean_loops(*state, "--exit diff=1000") == 2);
    assert_true(mean_loops(*state, "--exit mix") == 4);
    double between = mean_loops(*state, "--exit q=0.6");
    assert_true(between > 1 && between < 4);
    assert_true(mean_loops(*state, "--exit q=0.6 --kv full") < 4);
    assert_program(*state, "$P run $M $T -p x --exit foo", 2, "exit rule: 'foo' is unknown; give full, loops=N", NULL);
    assert_program(*state, "$P run $M $T -p x --exit q=nan", 2, "q=nan", NULL);
    assert_program(*state, "$P run $M $T -p x --exit loops=65", 2, "1 to 64", NULL);
    assert_program(*state, "$P run $M $T -p x --exit q=0.5,max=5", 2, "max=5 is beyond the model's 4 loops", NULL);
    assert_program(*state, "$P run $M $T -p x --kv ful", 2, "did you mean 'full'?", NULL);
    assert_program(*state, "$P run $M $T -p x --kv full --adaptive-prompt", 1, "last-exited", NULL);
}

static void test_show_depth(void **state) {
    /* No terminal: a small digit after each token. */
    assert_program(*state, "$P run $M $T -p 'the cat' -n 4 --temperature 0 --show-depth --exit loops=3 2>/dev/null", 0,
                   " s\xE2\x82\x83"
                   "at\xE2\x82\x83 o\xE2\x82\x83",
                   NULL);
    if (program_run(*state, "script --version >/dev/null 2>&1", NULL)) {
        printf("skipped: script(1) not found, so no terminal can be had\n");
        skip();
    }
    assert_program(*state,
                   "script -qec \"$P run $M $T -p 'the cat' -n 4 --temperature 0 --show-depth --exit loops=4\" "
                   "/dev/null </dev/null | cat -v",
                   0, "^[[38;5;196m s^[[0m", NULL);
    /* Without the option no escape, terminal or not. */
    assert_program(*state, "script -qec \"$P run $M $T -p 'the cat' -n 4\" /dev/null </dev/null | grep -c '\\['", 1,
                   "0\n", NULL);
}

/* Two halves in two processes are the whole, whatever the exit rule and policy. */
static void test_sessions(void **state) {
    static const char *const ways[] = {"", "--exit q=0.6", "--exit q=0.6 --kv full", "--exit mix",
                                       "--seed 7 --temperature 2"};
    char command[256];
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        snprintf(command, sizeof command, "$P run $M $T -p 'the cat' -n 24 --json %s", ways[i]);
        json_t *whole = program_json(*state, command);
        snprintf(command, sizeof command, "rm -f s && $P run $M $T -p 'the cat' -n 11 --json --save s %s", ways[i]);
        json_t *half = program_json(*state, command);
        json_t *rest = program_json(*state, "$P run $M $T -n 13 --json --resume s");
        char joined[1024];
        snprintf(joined, sizeof joined, "%s%s", text_of(half), text_of(rest));
        if (!strstr(text_of(half), "\xEF\xBF\xBD")) assert_string_equal(joined, text_of(whole));
        for (size_t t = 0; t < 13; t++) assert_true(json_equal(token(rest, t), token(whole, 11 + t)));
        json_decref(whole);
        json_decref(half);
        json_decref(rest);
    }
    /* A further turn. */
    assert_program(*state, "$P run $M $T -p ' a quick' -n 6 --resume s --save s2 --json", 0, "\"tokens\"", NULL);
}

static void test_bad_sessions(void **state) {
    assert_program(*state, "$P run $M $T -p 'the cat' -n 4 --save s 2>/dev/null", 0, NULL);
    assert_program(*state, "$P run $M $T --resume s --seed 3", 2, "--seed cannot change a session", NULL);
    assert_program(*state, "$P run $M $T --resume absent", 1, "absent: cannot open", NULL);
    assert_program(*state, "$P run $M $T --resume .", 1, ".: it is a directory", NULL);
    assert_program(*state, "$P run $M $T --resume text.txt", 1, "text.txt: ", NULL);
    assert_program(*state, "$P run $M $T --resume $M/model.safetensors", 1, "is not a saved session", NULL);
    assert_program(*state, "head -c 3000 s > cut; $P run $M $T --resume cut", 1, "cut: ", "truncated", NULL);
    assert_program(*state, "LC_ALL=C sed s/looplm-session-2/looplm-session-1/ s > old; $P run $M $T --resume old", 1,
                   "'looplm-session-1' is unknown", "reads looplm-session-2", NULL);
    assert_program(*state, "$P run $M $T --weights f32 --resume s", 1, "another model, or other weight types", NULL);
    /* Bytes turned one at a time over the head of the file: an error or a text, never a crash. */
    assert_program(*state,
                   "set -e; for i in 3 9 15 40 77 120 181 233 290 340 410 477 520 600 700 900; do cp s bad; "
                   "printf '\\377' | dd of=bad bs=1 seek=$i conv=notrunc 2>/dev/null; "
                   "r=0; $P run $M $T -n 2 --resume bad >/dev/null 2>talk.txt || r=$?; test $r -le 1 || exit 9; done",
                   0, NULL);
}

static void test_lengths(void **state) {
    assert_program(*state, "$P run $M $T -p 'the cat sat' --context 4", 1, "exceed its length of 4", "--context", NULL);
    assert_program(*state, "$P run $M $T -p x --context 257", 2, "257", "256 positions", NULL);
    assert_program(*state, "head -c 4000 /dev/zero | tr '\\0' 'q' | $P run $M $T -p -", 1, "length of 256", NULL);
    assert_program(*state, "$P run $M $T -p x -n 99999999", 2, "--tokens", "from 1 to 1048576", NULL);
    assert_program(*state, "$P run $M $T -p x -n 0", 2, "--tokens", NULL);
    /* A model that nothing stops runs until the context is full. */
    assert_program(*state,
                   "cp -r $M endless && sed 's/\"eos_token_id\": 0/\"eos_token_id\": null/' $M/config.json > "
                   "endless/config.json && echo '{}' > endless/generation_config.json",
                   0, NULL);
    json_t *json = program_json(*state, "$P run endless $T -p 'the cat' -n 1048576 --json");
    assert_int_equal(json_array_size(json_object_get(json, "tokens")), 253);
    json_decref(json);
    json = program_json(*state, "$P run $M $T -p 'the cat' --context 9 --json");
    assert_string_equal(json_string_value(json_object_get(json, "finish_reason")), "length");
    assert_int_equal(json_array_size(json_object_get(json, "tokens")), 6);
    json_decref(json);
}

static void test_wrong_use(void **state) {
    assert_program(*state, "$P run", 2, "MODEL is missing", NULL);
    assert_program(*state, "$P run $M", 2, "no prompt", "-p TEXT", NULL);
    assert_program(*state, "$P run $M $T -p ''", 2, "the prompt is empty", NULL);
    assert_program(*state, ": | $P run $M $T -p -", 2, "the prompt is empty", NULL);
    assert_program(*state, "$P run $M -p x --temprature 1", 2, "--temprature", "did you mean '--temperature'?", NULL);
    assert_program(*state, "$P run $M -p x --temperature hot", 2, "'hot'", "from 0 to 100", NULL);
    assert_program(*state, "$P run $M -p x y", 2, "'y'", NULL);
    assert_program(*state, "$P run $M -p", 2, "--prompt", "expected a value", NULL);
    assert_program(*state, "$P run $M -p x --json=1", 2, "takes no value", NULL);
    assert_program(*state, "$P run $M -p x --json --show-depth", 2, "--show-depth", NULL);
    assert_program(*state, "$P run $M -p x --stop ''", 2, "--stop", NULL);
    assert_program(*state, "$P run $M -p x --stop \"$(printf '\\342')\"", 2, "UTF-8", NULL);
    assert_program(*state, "$P run absent -p x", 1, "absent/config.json: cannot open", NULL);
    assert_program(*state, "$P run text.txt -p x", 1, "text.txt: it is a file, and the directory", NULL);
    assert_program(*state, "$P run $G/ouro-mha-r4 -p x", 2, "ouro-mha-r4", "no tokenizer.json", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),       cmocka_unit_test(test_text_and_talk), cmocka_unit_test(test_stop_texts),
        cmocka_unit_test(test_stop_ids),   cmocka_unit_test(test_seed),          cmocka_unit_test(test_exit_rules),
        cmocka_unit_test(test_show_depth), cmocka_unit_test(test_sessions),      cmocka_unit_test(test_bad_sessions),
        cmocka_unit_test(test_lengths),    cmocka_unit_test(test_wrong_use),
    };
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
