/* The tokenizer by itself, on small files made here: added tokens and their flags, decoding, invalid bytes, long words,
 * and files that are wrong. */
#include "base/json.h"
#include "support/support.h"
#include "text/tokenizer.h"
#include "text/tokenizer_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Bytes 0..255 as ids 0..255 in the order of their characters, then "th" 256, "the" 257, "Ġt" 258, "aa" 259, "aaaa"
 * 260. */
static json_t *small_file(void) {
    json_t *vocab = json_object(),
           *merges = json_pack("[s, [s, s], s, s, s]", "t h", "th", "e", "\xC4\xA0 t", "a a", "aa aa");
    int id = 0;
    for (uint32_t c = 0; c < 512; c++) {
        char text[5] = {0};
        if (byte_level_byte(c) < 0) continue;
        utf8_write(c, text);
        json_object_set_new(vocab, text, json_integer(id++));
    }
    static const char *const more[] = {"th", "the", "\xC4\xA0t", "aa", "aaaa"};
    for (int i = 0; i < 5; i++) json_object_set_new(vocab, more[i], json_integer(id++));
    return json_pack("{s:[], s:n, s:{s:s, s:b}, s:{s:s}, s:{s:s, s:o, s:o}}", "added_tokens", "normalizer",
                     "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "decoder", "type", "ByteLevel",
                     "model", "type", "BPE", "vocab", vocab, "merges", merges);
}

/* Appends an added token whose flags are named in a string: s special, w single_word, l lstrip, r rstrip, n normalized.
 */
static void add_token(json_t *file, int id, const char *text, const char *flags) {
    json_array_append_new(json_object_get(file, "added_tokens"),
                          json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", text, "special",
                                    strchr(flags, 's') != NULL, "single_word", strchr(flags, 'w') != NULL, "lstrip",
                                    strchr(flags, 'l') != NULL, "rstrip", strchr(flags, 'r') != NULL, "normalized",
                                    strchr(flags, 'n') != NULL));
}

/* Opens and consumes the file. */
static int open_file(struct tokenizer **t, json_t *file, looplm_error *err) {
    char *text = json_dumps(file, 0);
    json_decref(file);
    int status = tokenizer_open_json(t, text, strlen(text), "small.json", err);
    free(text);
    return status;
}

static struct tokenizer *open_good(json_t *file) {
    struct tokenizer *t;
    looplm_error err = {0};
    if (open_file(&t, file, &err)) fail_msg("%s", err.message);
    return t;
}

/* The ids' texts joined by '|'. */
static void assert_tokens(const struct tokenizer *t, const char *text, size_t size, bool special,
                          const char *expected) {
    looplm_error err = {0};
    char joined[512] = "";
    int32_t *ids;
    size_t n, length;
    assert_int_equal(tokenizer_encode(t, text, size, special, &ids, &n, &err), 0);
    for (size_t i = 0; i < n; i++) {
        if (i) strcat(joined, "|");
        strcat(joined, tokenizer_text(t, ids[i], &length));
    }
    assert_string_equal(joined, expected);
    free(ids);
}

static void test_merges(void **state) {
    (void)state;
    struct tokenizer *t = open_good(small_file());
    assert_int_equal(tokenizer_size(t), 261);
    assert_int_equal(tokenizer_id(t, "the"), 257);
    assert_int_equal(tokenizer_id(t, "nothing"), -1);
    assert_tokens(t, "the", 3, true, "the");
    /* "t h" has the lower rank, so "Ġ t" never sees its t. */
    assert_tokens(t, " the t", 6, true, "\xC4\xA0|the|\xC4\xA0t");
    assert_tokens(t, "aaaaa", 5, true, "aaaa|a");
    assert_tokens(t, "", 0, true, "");
    assert_tokens(t, "a\0b", 3, true, "a|\xC4\x80|b");
    tokenizer_close(t);
}

static void test_added_tokens(void **state) {
    (void)state;
    json_t *file = small_file();
    add_token(file, 261, "<s>", "s");
    add_token(file, 262, "<s>>", "s");
    add_token(file, 263, "<strip>", "slr");
    add_token(file, 264, "word", "w");
    add_token(file, 265, "plain", "");
    struct tokenizer *t = open_good(file);
    assert_tokens(t, "a<s>b", 5, true, "a|<s>|b");
    assert_tokens(t, "a<s>>b", 6, true, "a|<s>>|b");
    assert_tokens(t, "a<s>b", 5, false, "a|<|s|>|b");
    assert_tokens(t, "a \n<strip> \tb", 13, true, "a|<strip>|b");
    assert_tokens(t, "  <strip><strip>  ", 18, true, "<strip>|<strip>");
    assert_tokens(t, "word sword word_", 16, true, "word|\xC4\xA0|s|w|o|r|d|\xC4\xA0|w|o|r|d|_");
    assert_tokens(t, "aplaina", 7, false, "a|plain|a");
    assert_true(tokenizer_is_special(t, 261));
    assert_false(tokenizer_is_special(t, 265));
    assert_false(tokenizer_is_special(t, -1));
    tokenizer_close(t);
}

/* A normalized token is looked for after NFC, another one before it. */
static void test_normalized_tokens(void **state) {
    (void)state;
    json_t *file = small_file();
    json_object_set_new(file, "normalizer", json_pack("{s:s}", "type", "NFC"));
    add_token(file, 261, "A\xCC\x8A", "n");
    struct tokenizer *t;
    looplm_error err = {0};
    int status = open_file(&t, file, &err);
    if (status == LOOPLM_UNSUPPORTED) {
        support_assert_error(&err, LOOPLM_UNSUPPORTED, "utf8proc", NULL);
        print_message("skipped: built without utf8proc\n");
        skip();
    }
    assert_int_equal(status, 0);
    assert_tokens(t, "\xC3\x85", 2, true, "A\xCC\x8A");
    assert_tokens(t, "A\xCC\x8A", 3, true, "A\xCC\x8A");
    assert_tokens(t, "e\xCC\x81", 3, true, "\xC3\x83|\xC2\xA9");
    /* U+11A7 after a Hangul syllable is no trailing consonant: 6 bytes stay 6. */
    looplm_error none = {0};
    int32_t *ids;
    size_t n;
    assert_int_equal(tokenizer_encode(t, "\xEB\x90\x98\xE1\x86\xA7", 6, true, &ids, &n, &none), 0);
    assert_int_equal(n, 6);
    free(ids);
    tokenizer_close(t);
}

static void test_invalid_bytes_become_replacement(void **state) {
    (void)state;
    struct tokenizer *t = open_good(small_file());
    /* As Python: b"a\xff\xe2\x82b\xed\xa0\x80\xf0\x9f\x98".decode(errors="replace") has 1 + 1 + 3 + 1 replacements. */
    static const char bad[] = "a\xFF\xE2\x82"
                              "b\xED\xA0\x80\xF0\x9F\x98";
    static const char good[] = "a\xEF\xBF\xBD\xEF\xBF\xBD"
                               "b\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    looplm_error err = {0};
    int32_t *a, *b;
    size_t n_a, n_b;
    assert_int_equal(tokenizer_encode(t, bad, sizeof bad - 1, true, &a, &n_a, &err), 0);
    assert_int_equal(tokenizer_encode(t, good, sizeof good - 1, true, &b, &n_b, &err), 0);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a * sizeof *a);
    free(a);
    free(b);
    tokenizer_close(t);
}

/* Every way to push the bytes: only whole characters come out, and all of it is what decoding at once gives. */
static void assert_stream(const struct tokenizer *t, const int32_t *ids, size_t n) {
    looplm_error err = {0};
    struct detokenizer d;
    char *all, joined[1024];
    const char *part;
    size_t size, part_size, used = 0;
    assert_int_equal(tokenizer_decode(t, ids, n, false, &all, &size, &err), 0);
    assert_int_equal(detokenizer_init(&d, t, false, &err), 0);
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            detokenizer_push(&d, ids[i], &part, &part_size);
        else
            detokenizer_flush(&d, &part, &part_size);
        assert_true(utf8_valid(part, part_size));
        memcpy(joined + used, part, part_size);
        used += part_size;
    }
    assert_int_equal(used, size);
    assert_memory_equal(joined, all, size);
    detokenizer_free(&d);
    free(all);
}

static void test_streaming_decode(void **state) {
    (void)state;
    struct tokenizer *t = open_good(small_file());
    int32_t byte_id[256], ids[64];
    uint64_t seed = 7;
    for (int b = 0; b < 256; b++) byte_id[b] = t->bpe.byte_id[b];
    static const unsigned char samples[][6] = {
        {0xF0, 0x9F, 0xA6, 0x99, 'a'}, {0xE2, 0x82, 'a'}, {0xE2, 0x82}, {0xFF, 0xF0, 0x90}, {0xC3, 0xC3, 0xA9}};
    for (size_t s = 0; s < sizeof samples / sizeof *samples; s++) {
        size_t n = strlen((const char *)samples[s]);
        for (size_t i = 0; i < n; i++) ids[i] = byte_id[samples[s][i]];
        assert_stream(t, ids, n);
    }
    for (int round = 0; round < 2000; round++) {
        for (int i = 0; i < 60; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            /* Mostly bytes that start or go on with a character. */
            ids[i] = seed >> 63 ? byte_id[0x80 + (seed >> 40) % 0x80] : byte_id[0xC0 + (seed >> 40) % 0x40];
        }
        assert_stream(t, ids, 60);
    }
    tokenizer_close(t);
}

static void test_decode_errors_and_special(void **state) {
    (void)state;
    json_t *file = small_file();
    add_token(file, 265, "<s>", "s"); /* 261..264 are a gap */
    struct tokenizer *t = open_good(file);
    looplm_error err = {0};
    char *text;
    size_t size;
    const int32_t ids[] = {257, 262, 265, 257}, beyond[] = {266}, negative[] = {-1};
    assert_int_equal(tokenizer_decode(t, ids, 4, false, &text, &size, &err), 0);
    assert_string_equal(text, "the<s>the");
    free(text);
    assert_int_equal(tokenizer_decode(t, ids, 4, true, &text, &size, &err), 0);
    assert_string_equal(text, "thethe");
    free(text);
    assert_int_equal(tokenizer_decode(t, beyond, 1, false, &text, &size, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "266", "0..265", NULL);
    assert_int_equal(tokenizer_decode(t, negative, 1, false, &text, &size, &err), LOOPLM_FORMAT);
    assert_int_equal(tokenizer_check_vocabulary(t, 266, &err), 0);
    assert_int_equal(tokenizer_check_vocabulary(t, 300, &err), 0);
    assert_int_equal(tokenizer_check_vocabulary(t, 265, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, "265", "vocab_size", NULL);
    tokenizer_close(t);
}

/* Bytes without a token are dropped, and what stood around them merges across the gap, as in the reference. */
static void test_bytes_without_token(void **state) {
    (void)state;
    json_t *file = small_file(), *vocab = json_object_get(json_object_get(file, "model"), "vocab");
    json_object_del(vocab, "\xC4\x84");                                                     /* byte 04 */
    json_object_set_new(json_object_get(file, "pre_tokenizer"), "use_regex", json_false()); /* the text is one word */
    struct tokenizer *t = open_good(file);
    assert_tokens(t,
                  "a\x04\x04"
                  "a",
                  4, true, "aa");
    tokenizer_close(t);
}

/* Scanning and the heap give the same ids; a megabyte without a space takes no quadratic time. */
static void test_long_words(void **state) {
    (void)state;
    struct tokenizer *t = open_good(small_file());
    looplm_error err = {0};
    uint64_t seed = 3;
    struct id_list a = {0}, b = {0};
    struct bpe_memory memory = {0};
    for (int round = 0; round < 2000; round++) {
        char word[BPE_SHORT_SYMBOLS];
        size_t size = 1 + (size_t)round % sizeof word;
        for (size_t i = 0; i < size; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            word[i] = "aaathe "[(seed >> 40) % 7];
        }
        a.n = b.n = 0;
        assert_int_equal(bpe_encode_word(&t->bpe, &memory, word, size, BPE_SHORT_SYMBOLS, &a, &err), 0);
        assert_int_equal(bpe_encode_word(&t->bpe, &memory, word, size, 0, &b, &err), 0);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    }
    free(a.ids);
    free(b.ids);
    bpe_memory_free(&memory);
    size_t size = 1 << 20, n;
    char *text = malloc(size);
    int32_t *ids;
    memset(text, 'a', size);
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n, &err), 0);
    assert_int_equal(n, size / 4);
    free(ids);
    free(text);
    tokenizer_close(t);
}

static void *encode_many(void *context) {
    const struct tokenizer *t = context;
    for (int i = 0; i < 200; i++) assert_tokens(t, "the the theaaaa", 15, true, "the|\xC4\xA0|the|\xC4\xA0|the|aaaa");
    return NULL;
}

static void test_threads_share_a_tokenizer(void **state) {
    (void)state;
    struct tokenizer *t = open_good(small_file());
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_many, t), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    tokenizer_close(t);
}

static void assert_refused(json_t *file, looplm_status status, const char *part) {
    struct tokenizer *t;
    looplm_error err = {0};
    assert_int_equal(open_file(&t, file, &err), status);
    assert_null(t);
    support_assert_error(&err, status, part, NULL);
}

static json_t *model_of(json_t *file) {
    return json_object_get(file, "model");
}

static void test_refused_files(void **state) {
    (void)state;
    json_t *file = small_file();
    json_object_set_new(json_object_get(model_of(file), "vocab"), "new", json_integer(3));
    assert_refused(file, LOOPLM_FORMAT, "two tokens have id 3");
    file = small_file();
    json_object_set_new(json_object_get(model_of(file), "vocab"), "new", json_integer(1 << 30));
    assert_refused(file, LOOPLM_FORMAT, "outside 0..");
    file = small_file();
    json_object_set_new(json_object_get(model_of(file), "vocab"), "new", json_string("x"));
    assert_refused(file, LOOPLM_FORMAT, "expected an integer");
    file = small_file();
    json_array_append_new(json_object_get(model_of(file), "merges"), json_string("x y"));
    assert_refused(file, LOOPLM_FORMAT, "\"xy\", which is not in the vocabulary");
    file = small_file();
    json_array_append_new(json_object_get(model_of(file), "merges"), json_pack("[s, s]", "", "the"));
    assert_refused(file, LOOPLM_FORMAT, "merge 5");
    file = small_file();
    json_array_append_new(json_object_get(model_of(file), "merges"), json_integer(3));
    assert_refused(file, LOOPLM_FORMAT, "merge 5 is an integer");
    file = small_file();
    add_token(file, 300, "the", "s");
    assert_refused(file, LOOPLM_FORMAT, "has id 300, but 257");
    file = small_file();
    add_token(file, 257, "other", "s");
    assert_refused(file, LOOPLM_FORMAT, "two tokens have id 257");
    file = small_file();
    json_object_set_new(model_of(file), "type", json_string("Unigram"));
    assert_refused(file, LOOPLM_UNSUPPORTED, "Unigram");
    file = small_file();
    json_object_set_new(file, "pre_tokenizer", json_pack("{s:s}", "type", "Metaspace"));
    assert_refused(file, LOOPLM_UNSUPPORTED, "Metaspace");
    file = small_file();
    json_object_set_new(file, "normalizer", json_pack("{s:s}", "type", "Lowercase"));
    assert_refused(file, LOOPLM_UNSUPPORTED, "Lowercase");
    file = small_file();
    json_object_set_new(file, "post_processor", json_pack("{s:s}", "type", "TemplateProcessing"));
    assert_refused(file, LOOPLM_UNSUPPORTED, "TemplateProcessing");
    file = small_file();
    json_object_del(model_of(file), "merges");
    assert_refused(file, LOOPLM_FORMAT, "merges");
    assert_refused(json_pack("[i]", 1), LOOPLM_FORMAT, "found an array");
}

/* A file cut anywhere is an error, never a crash. */
static void test_truncated_file(void **state) {
    (void)state;
    json_t *file = small_file();
    char *text = json_dumps(file, 0);
    size_t size = strlen(text);
    json_decref(file);
    for (size_t cut = 0; cut < size; cut += 7) {
        struct tokenizer *t;
        looplm_error err = {0};
        assert_int_not_equal(tokenizer_open_json(&t, text, cut, "cut.json", &err), 0);
        assert_null(t);
        support_assert_error(&err, LOOPLM_FORMAT, "cut.json", NULL);
    }
    free(text);
}

/* Merges that make each other's parts in a circle cannot loop: every merge makes the word shorter. */
static void test_circular_merges(void **state) {
    (void)state;
    json_t *file = small_file(), *merges = json_object_get(model_of(file), "merges"),
           *vocab = json_object_get(model_of(file), "vocab");
    json_object_set_new(vocab, "aaa", json_integer(261));
    json_array_append_new(merges, json_string("aa a"));
    json_array_append_new(merges, json_string("a aa"));
    json_array_append_new(merges, json_string("a a")); /* again: the later rank counts */
    struct tokenizer *t = open_good(file);
    assert_tokens(t, "aaa", 3, true, "aaa");
    assert_tokens(t, "aaaaa", 5, true, "aaa|aa");
    tokenizer_close(t);
}

static void test_missing(void **state) {
    (void)state;
    struct tokenizer *t;
    looplm_error err = {0};
    char *directory = support_make_directory();
    assert_int_equal(tokenizer_open(&t, directory, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, directory, "tokenizer.json", "merges.txt", NULL);
    assert_int_not_equal(tokenizer_open(&t, "/nonexistent/tokenizer.json", &err), 0);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_normalized_tokens),
        cmocka_unit_test(test_invalid_bytes_become_replacement),
        cmocka_unit_test(test_streaming_decode),
        cmocka_unit_test(test_decode_errors_and_special),
        cmocka_unit_test(test_bytes_without_token),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_threads_share_a_tokenizer),
        cmocka_unit_test(test_refused_files),
        cmocka_unit_test(test_truncated_file),
        cmocka_unit_test(test_circular_merges),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
