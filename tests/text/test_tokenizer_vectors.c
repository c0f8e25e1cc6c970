/* The tokenizer against vectors made by others: ids of public tokenizers, whole files, and decoding back. */
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "support/support.h"
#include "text/reader.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_fixture(const char *name) {
    looplm_error err = {0};
    struct tokenizer *tokenizer = NULL;
    char *path = support_fixture(name);
    if (tokenizer_open(&tokenizer, path, &err)) fail_msg("%s", err.message);
    free(path);
    return tokenizer;
}

static void assert_ids(const struct tokenizer *t, const char *text, size_t size, const json_t *expected) {
    looplm_error err = {0};
    int32_t *ids;
    size_t n;
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n, &err), 0);
    bool same = n == json_array_size(expected);
    for (size_t i = 0; same && i < n; i++) same = ids[i] == json_integer_value(json_array_get(expected, i));
    if (!same) fail_msg("ids differ for \"%s\" (%zu found, %zu expected)", text, n, json_array_size(expected));
    free(ids);
}

static void assert_decodes(const struct tokenizer *t, const json_t *ids, const char *text, size_t size) {
    looplm_error err = {0};
    size_t n = json_array_size(ids), found;
    int32_t *plain = calloc(n + 1, sizeof *plain);
    char *decoded;
    for (size_t i = 0; i < n; i++) plain[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    assert_int_equal(tokenizer_decode(t, plain, n, false, &decoded, &found, &err), 0);
    assert_int_equal(found, size);
    assert_memory_equal(decoded, text, size);
    free(decoded);
    free(plain);
}

/* Every line {"text", "ids"} of a fixture; returns how many. */
static int run_vectors(const char *tokenizer_name, const char *vectors) {
    struct tokenizer *t = open_fixture(tokenizer_name); /* skips first where it is absent: nothing is held yet */
    char *path = support_fixture(vectors);
    FILE *lines = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    int n = 0;
    for (ssize_t size; (size = getline(&line, &room, lines)) > 0; n++) {
        json_t *record = json_loadb(line, (size_t)size, JSON_ALLOW_NUL, NULL);
        assert_non_null(record);
        const json_t *text = json_object_get(record, "text"), *ids = json_object_get(record, "ids");
        assert_ids(t, json_string_value(text), json_string_length(text), ids);
        assert_decodes(t, ids, json_string_value(text), json_string_length(text));
        json_decref(record);
    }
    free(line);
    fclose(lines);
    tokenizer_close(t);
    free(path);
    return n;
}

static void test_ouro(void **state) {
    (void)state;
    assert_int_equal(run_vectors("ouro-1.4b", "tokenizer_vectors/ouro_public.jsonl"), 115);
}

static void test_gpt2(void **state) {
    (void)state;
    assert_true(run_vectors("gpt2", "tokenizer_vectors/llamacpp_gpt-2.jsonl") > 40);
    assert_true(run_vectors("gpt2", "tokenizer_vectors/gpt2_transformersjs.jsonl") > 40);
}

static void test_qwen2(void **state) {
    (void)state;
    assert_true(run_vectors("qwen2", "tokenizer_vectors/llamacpp_qwen2.jsonl") > 40);
    assert_true(run_vectors("qwen2", "tokenizer_vectors/qwen2_transformersjs.jsonl") > 20);
}

/* Their vocabularies are not among the fixtures; whoever has them puts vocab.json and merges.txt there. */
static void test_starcoder(void **state) {
    (void)state;
    assert_true(run_vectors("starcoder", "tokenizer_vectors/llamacpp_starcoder.jsonl") > 40);
}

static void test_refact(void **state) {
    (void)state;
    assert_true(run_vectors("refact", "tokenizer_vectors/llamacpp_refact.jsonl") > 40);
}

/* The whole of a file, by the hash of its ids as 32-bit little-endian integers. */
static void assert_whole_file(const struct tokenizer *t, const json_t *record) {
    looplm_error err = {0};
    char name[256], *path, *text, *decoded, hash[65];
    size_t size, n, decoded_size;
    int32_t *ids;
    const char *file = json_string_value(json_object_get(record, "file"));
    bool packed = strstr(file, "wikitext") != NULL; /* stored as .gz */
    snprintf(name, sizeof name, "%s%s", file, packed ? ".gz" : "");
    path = support_fixture(name);
    assert_int_equal(reader_read_all(path, (size_t)1 << 30, &text, &size, &err), 0);
    assert_int_equal(size, json_integer_value(json_object_get(record, "bytes")));
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n, &err), 0);
    assert_int_equal(n, json_integer_value(json_object_get(record, "n_ids")));
    sha256_hex(ids, n * sizeof *ids, hash);
    assert_string_equal(hash, json_string_value(json_object_get(record, "ids_u32le_sha256")));
    assert_int_equal(tokenizer_decode(t, ids, n, false, &decoded, &decoded_size, &err), 0);
    assert_int_equal(decoded_size, size);
    assert_memory_equal(decoded, text, size);
    free(decoded);
    free(ids);
    free(text);
    free(path);
}

static void test_whole_files(void **state) {
    (void)state;
    char *path = support_fixture("tokenizer_vectors/ouro_wholefile_public.json");
    struct tokenizer *t = open_fixture("ouro-1.4b");
    json_t *records;
    looplm_error err = {0};
    assert_int_equal(json_read(path, 1 << 20, &records, &err), 0);
    for (size_t i = 0; i < json_array_size(records); i++) assert_whole_file(t, json_array_get(records, i));
    assert_int_equal(json_array_size(records), 2);
    json_decref(records);
    tokenizer_close(t);
    free(path);
}

/* tokenizer.json, and vocab.json + merges.txt of the same tokenizer, give the same ids. */
static void test_legacy_files_agree(void **state) {
    (void)state;
    looplm_error err = {0};
    char *fixture = support_fixture("ouro-1.4b"), *directory = support_make_directory(), *command, *output, *text;
    struct tokenizer *a = open_fixture("ouro-1.4b"), *b;
    assert_true(
        asprintf(&command, "cd '%s' && cp vocab.json merges.txt tokenizer_config.json '%s'", fixture, directory) > 0);
    assert_int_equal(support_shell(command, &output), 0);
    assert_int_equal(tokenizer_open(&b, directory, &err), 0);
    char *path = support_fixture("corpora/tinystories-sample-4k.txt");
    size_t size, n_a, n_b;
    int32_t *ids_a, *ids_b;
    assert_int_equal(file_read(path, 1 << 20, &text, &size, &err), 0);
    assert_int_equal(tokenizer_size(a), tokenizer_size(b));
    assert_int_equal(tokenizer_encode(a, text, size, true, &ids_a, &n_a, &err), 0);
    assert_int_equal(tokenizer_encode(b, text, size, true, &ids_b, &n_b, &err), 0);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(ids_a, ids_b, n_a * sizeof *ids_a);
    static const char chat[] = "7 of <|im_start|>it<think> 42";
    free(ids_b);
    assert_int_equal(tokenizer_encode(b, chat, strlen(chat), true, &ids_b, &n_b, &err), 0);
    assert_int_equal(ids_b[3], 1);
    assert_int_equal(ids_b[5], 3);
    free(ids_a);
    free(ids_b);
    free(text);
    free(path);
    free(command);
    free(output);
    free(fixture);
    support_remove_directory(directory);
    tokenizer_close(a);
    tokenizer_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ouro),
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_whole_files),
        cmocka_unit_test(test_legacy_files_agree),
        cmocka_unit_test(test_starcoder),
        cmocka_unit_test(test_refact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
