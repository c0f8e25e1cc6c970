/* looplm bench: what its JSON promises, on models/tiny, and what it refuses. */
#include "cli/program.h"

#define BENCH "$P bench " LOOPLM_SOURCE_DIR "/models/tiny --threads 1 "

static double number(const json_t *object, const char *key, const char *part) {
    const json_t *value = json_object_get(object, key);
    if (part) value = json_object_get(value, part);
    if (!json_is_number(value)) fail_msg("no number %s %s: %s", key, part ? part : "", json_dumps(object, 0));
    return json_number_value(value);
}

static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    if (!value) fail_msg("no text %s: %s", key, json_dumps(object, 0));
    return value;
}

static void assert_spread(const json_t *object, const char *key) {
    assert_true(number(object, key, "low") >= 0);
    assert_true(number(object, key, "low") <= number(object, key, "median"));
    assert_true(number(object, key, "median") <= number(object, key, "high"));
}

static void assert_common(const json_t *object) {
    assert_spread(object, "pass_s");
    assert_spread(object, "head_s");
    assert_spread(object, "share");
    assert_true(number(object, "share", "median") > 0);
    assert_true(number(object, "tokens_per_s", NULL) > 0);
    assert_true(number(object, "probe_gb_per_s", NULL) > 0);
    const char *limit = text(object, "limit");
    assert_true(!strcmp(limit, "bandwidth") || strstr(limit, " peak"));
}

/* Bytes and operations of a pass, back from what the median pass did a second; slices are odd, so this is exact but for
 * the six digits that are printed. */
static double bytes_of(const json_t *object) {
    return 1e9 * number(object, "gb_per_s", NULL) * number(object, "pass_s", "median");
}
static double operations_of(const json_t *object) {
    return 1e9 * number(object, "gop_per_s", NULL) * number(object, "pass_s", "median");
}
static void assert_close(double found, double expected) {
    if (found < 0.9999 * expected || found > 1.0001 * expected) fail_msg("found %g, expected %g", found, expected);
}

/* Probes take as long as they read and count; slowed down that is minutes for what is the same code. */
static void skip_when_slow(void) {
    if (THIN(2) > 1) skip();
}

static void test_decode(void **state) {
    skip_when_slow();
    json_t *json = program_json(*state, BENCH "--json --prefill 0 --rows 1,2 --context 64,1088 --loops 1 --slices 3 "
                                              "--kv-type f32,bf16 --weights bf16");
    json_t *results = json_object_get(json, "results"), *object;
    assert_int_equal(json_array_size(results), 2 * 2 * 2);
    size_t i;
    json_array_foreach(results, i, object) {
        assert_string_equal(text(object, "kind"), "decode");
        assert_string_equal(text(object, "weights"), "bf16");
        assert_string_equal(text(object, "kv_type"), i / 4 ? "bf16" : "f32");
        assert_int_equal(number(object, "context", NULL), i / 2 % 2 ? 1088 : 64);
        assert_int_equal(number(object, "rows", NULL), 1 + i % 2);
        assert_int_equal(number(object, "slices", NULL), 3);
        assert_common(object);
    }
    /* Keys and values are counted: 1024 positions more, of two types, of two rows;
     * operations are those of the rows. */
    json_t *f32 = json_array_get(results, 0), *f32_long = json_array_get(results, 2), *two = json_array_get(results, 1),
           *two_long = json_array_get(results, 3), *bf16 = json_array_get(results, 4),
           *bf16_long = json_array_get(results, 6);
    double kv = bytes_of(f32_long) - bytes_of(f32);
    assert_true(kv > 1024);
    assert_close(bytes_of(two_long) - bytes_of(two), 2 * kv);
    assert_close(bytes_of(bf16_long) - bytes_of(bf16), kv / 2);
    assert_close(operations_of(two), 2 * operations_of(f32));
    assert_close(bytes_of(two) - bytes_of(f32), kv / 16); /* 64 positions of the second row */
    json_decref(json);
}

static void test_prefill(void **state) {
    skip_when_slow();
    json_t *json = program_json(*state, BENCH "--json --prefill 16,600 --rows 0 --loops 1 --slices 3 --weights f32,q8");
    json_t *results = json_object_get(json, "results"), *object;
    assert_int_equal(json_array_size(results), 4);
    size_t i;
    json_array_foreach(results, i, object) {
        assert_string_equal(text(object, "kind"), "prefill");
        assert_string_equal(text(object, "weights"), i / 2 ? "q8" : "f32");
        assert_int_equal(number(object, "tokens", NULL), i % 2 ? 600 : 16);
        assert_int_equal(number(object, "slices", NULL), i % 2 ? 4 : 3); /* whole prompts, of one and of two passes */
        assert_common(object);
    }
    assert_close(operations_of(json_array_get(results, 0)), operations_of(json_array_get(results, 2)));
    json_decref(json);
}

#define TOO_MUCH "--prefill 0 --rows 64 --context 1048576 --loops 64 --kv-type f32" /* some 10 TiB */

static void test_left_out(void **state) {
    skip_when_slow();
    json_t *json = program_json(*state, BENCH TOO_MUCH " --json");
    json_t *object = json_array_get(json_object_get(json, "results"), 0);
    assert_non_null(strstr(text(object, "left_out"), "GiB"));
    json_decref(json);
    assert_program(*state, BENCH TOO_MUCH, 0, "decode 64 rows, context 1048576, kv f32: left out", NULL);
    assert_program(*state, BENCH "--prefill 8 --rows 1 --context 8 --slices 1", 0, "prefill     8 tokens",
                   "decode  1 rows, context     8, ", " % of the ", "tokens/s", NULL);
}

/* The model's own loops, and fewer: as many passes a token. */
static void test_loops(void **state) {
    json_t *json = program_json(*state, BENCH "--json --prefill 0 --rows 1 --context 8 --loops 0,2 --slices 2");
    json_t *results = json_object_get(json, "results");
    assert_int_equal(number(json_array_get(results, 0), "loops", NULL), 4);
    assert_int_equal(number(json_array_get(results, 0), "slices", NULL), 8);
    assert_int_equal(number(json_array_get(results, 1), "loops", NULL), 2);
    assert_int_equal(number(json_array_get(results, 1), "slices", NULL), 4);
    json_decref(json);
}

/* Tokens add up over the loops they left at, passes and rows over the passes of each number of rows. */
static void assert_sums(const json_t *way) {
    double tokens = 0, passes = 0, rows = 0;
    size_t i;
    json_t *each;
    json_array_foreach(json_object_get(way, "tokens_by_loops"), i, each) tokens += (double)json_integer_value(each);
    json_array_foreach(json_object_get(way, "passes_by_rows"), i, each) {
        passes += number(each, "passes", NULL);
        rows += number(each, "passes", NULL) * number(each, "rows", NULL);
    }
    assert_true(tokens == number(way, "tokens", NULL) && tokens > 0);
    assert_true(passes == number(way, "passes", NULL) && passes > 0);
    assert_true(rows == number(way, "rows", NULL)); /* no pass of these few streams has more than are counted apart */
    assert_true(number(way, "kv_blocks_most", NULL) <= number(way, "kv_blocks", NULL));
    json_array_foreach(json_object_get(way, "requests"), i, each) {
        assert_true(number(each, "rows", NULL) >= number(each, "passes", NULL) && number(each, "passes", NULL) > 0);
        assert_true(number(each, "queue_s", NULL) + number(each, "compute_s", NULL) <= number(each, "total_s", NULL));
        assert_true(number(each, "kv_blocks_most", NULL) > 0 && json_object_get(each, "proposals"));
    }
    assert_true(i > 0);
}

static void test_engine(void **state) {
    json_t *json =
        program_json(*state, BENCH "--engine --streams 3 --requests 6 --tokens 12 --mean-depth 2.5 --slices 1 --json");
    json_t *result = json_array_get(json_object_get(json, "results"), 0);
    json_t *plain = json_object_get(result, "plain"), *other = json_object_get(result, "other");
    assert_string_equal(text(result, "kind"), "refill");
    assert_sums(plain);
    assert_sums(other);
    size_t loops = json_array_size(json_object_get(plain, "tokens_by_loops"));
    assert_true((double)json_integer_value(json_array_get(json_object_get(plain, "tokens_by_loops"), loops - 1)) ==
                number(plain, "tokens", NULL));
    assert_true(number(plain, "lends", NULL) == 0 && number(other, "lends", NULL) > 0);
    json_decref(json);
}

/* Speculation gives the ids of plain decoding; where every proposal is right most tokens take a pass, where none is,
 * four.
 */
static void test_wavefront(void **state) {
    for (int right = 0; right < 2; right++) {
        char command[512];
        snprintf(command, sizeof command, BENCH "--engine --streams 1 --tokens 64 --acceptance %d --slices 2 --json",
                 right);
        json_t *json = program_json(*state, command);
        json_t *result = json_array_get(json_object_get(json, "results"), 0), *each;
        json_t *plain = json_object_get(result, "plain"), *other = json_object_get(result, "other");
        assert_string_equal(text(result, "kind"), "wavefront");
        assert_int_equal(number(result, "different_ids", NULL), 0);
        assert_sums(plain);
        assert_sums(other);
        assert_true(number(plain, "passes", NULL) == 4 * number(plain, "tokens", NULL));
        assert_true(number(other, "tokens", NULL) == number(plain, "tokens", NULL));
        assert_true(number(result, "bound", NULL) > (right ? 1 : 0) && number(result, "share_of_bound", NULL) > 0);
        size_t i;
        json_array_foreach(json_object_get(other, "proposals"), i, each) {
            assert_true(number(each, "right", NULL) == (right ? number(each, "verified", NULL) : 0));
            assert_int_equal(number(each, "loop", NULL), i + 1);
        }
        json_decref(json);
    }
}

/* Where every token runs all loops, recorded depths change no pass and no row. */
static void test_full_depth(void **state) {
    json_t *json = program_json(*state, BENCH "--engine --streams 3 --requests 6 --tokens 12 --slices 2 --json");
    json_t *result = json_array_get(json_object_get(json, "results"), 0);
    json_t *plain = json_object_get(result, "plain"), *other = json_object_get(result, "other");
    static const char *const same[] = {"tokens", "passes", "rows", "head_reads", "head_rows", "lends"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        assert_true(number(plain, same[i], NULL) == number(other, same[i], NULL));
    assert_true(number(result, "mean_depth", NULL) == 4);
    assert_int_equal(number(result, "different_ids", NULL), 0);
    json_decref(json);
}

static void test_refusals(void **state) {
    assert_program(*state, "$P bench", 2, "no model", NULL);
    assert_program(*state, "$P bench nowhere", 1, "nowhere", NULL);
    assert_program(*state, BENCH "--rows 65", 2, "--rows 65", "0 to 64", NULL);
    assert_program(*state, BENCH "--rows 1,,2", 2, "--rows 1,,2", NULL);
    assert_program(*state, BENCH "--rows 1,", 2, "--rows 1,", NULL);
    assert_program(*state, BENCH "--context ''", 2, "--context", "empty", NULL);
    assert_program(*state, BENCH "--loops 65", 2, "--loops 65", NULL);
    assert_program(*state, BENCH "--prefill x", 2, "--prefill x", NULL);
    assert_program(*state, BENCH "--kv-type bf17 --prefill 0 --rows 1", 2, "'bf17'", "bf16", NULL);
    assert_program(*state, BENCH "--weights q5", 2, "q5", "q4", NULL);
    assert_program(*state, BENCH "--streams 4", 2, "--streams is for --engine", NULL);
    assert_program(*state, BENCH "--engine --rows 2", 2, "--rows has no meaning with --engine", NULL);
}

static int setup(void **state) {
    *state = support_make_directory();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode),     cmocka_unit_test(test_prefill),
                                       cmocka_unit_test(test_left_out),   cmocka_unit_test(test_loops),
                                       cmocka_unit_test(test_engine),     cmocka_unit_test(test_wavefront),
                                       cmocka_unit_test(test_full_depth), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, setup, program_teardown);
}
