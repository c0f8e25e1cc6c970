/* Pieces of texts: what is asked of each kind of file, how long documents are cut, where reading ends, and files that
 * hold nothing. */
#include "support/support.h"
#include "text/pieces.h"
#include "text/tokenizer_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* One id for each byte. */
static struct tokenizer *byte_tokenizer(void) {
    json_t *vocab = json_object();
    int id = 0;
    for (uint32_t c = 0; c < 512; c++) {
        char name[5] = {0};
        if (byte_level_byte(c) < 0) continue;
        utf8_write(c, name);
        json_object_set_new(vocab, name, json_integer(id++));
    }
    json_t *file = json_pack("{s:[], s:n, s:{s:s, s:b}, s:{s:s}, s:{s:s, s:o, s:[]}}", "added_tokens", "normalizer",
                             "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "decoder", "type",
                             "ByteLevel", "model", "type", "BPE", "vocab", vocab, "merges");
    char *text = json_dumps(file, 0);
    struct tokenizer *tokenizer;
    looplm_error err = {0};
    if (tokenizer_open_json(&tokenizer, text, strlen(text), "bytes.json", &err)) fail_msg("%s", err.message);
    json_decref(file);
    free(text);
    return tokenizer;
}

struct file {
    char *directory;
    struct tokenizer *tokenizer;
    struct pieces pieces;
    looplm_error err;
};

static int setup(void **state) {
    struct file *f = calloc(1, sizeof *f);
    f->directory = support_make_directory();
    f->tokenizer = byte_tokenizer();
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct file *f = *state;
    pieces_free(&f->pieces);
    tokenizer_close(f->tokenizer);
    support_remove_directory(f->directory);
    free(f);
    return 0;
}

static int read_file(struct file *f, const char *name, const char *text, int32_t sequence, int64_t ids_max) {
    char *path = support_write_file(f->directory, name, text);
    struct pieces_options options = {.tokenizer = f->tokenizer, .sequence = sequence, .ids_max = ids_max};
    int status = pieces_read(&f->pieces, path, &options, &f->err);
    free(path);
    return status;
}

static void assert_piece(const struct file *f, int32_t i, int32_t n, int32_t from) {
    assert_in_range(i, 0, f->pieces.count - 1);
    assert_int_equal(f->pieces.items[i].n, n);
    assert_int_equal(f->pieces.items[i].from, from);
}

static void test_text(void **state) {
    struct file *f = *state;
    assert_int_equal(read_file(f, "a.txt", "abcdefghij", 4, 100), 0);
    assert_int_equal(f->pieces.count, 3);
    for (int i = 0; i < 3; i++) assert_piece(f, i, i < 2 ? 4 : 2, 0);
    assert_int_equal(f->pieces.ids, 10);
    assert_int_equal(f->pieces.asked, 7);
    assert_int_equal(f->pieces.items[1].ids[0], f->pieces.items[0].ids[0] + 4);
    /* A second file is added; one id that is left over is not a piece; two are. */
    assert_int_equal(read_file(f, "b.txt", "abcde", 4, 100), 0);
    assert_int_equal(f->pieces.count, 4);
    assert_int_equal(read_file(f, "c.txt", "abcdefgh", 4, 6), 0);
    assert_int_equal(f->pieces.count, 6);
    assert_piece(f, 5, 2, 0);
}

static void test_lines(void **state) {
    struct file *f = *state;
    const char *lines = "{\"text\": \"abc\"}\n"
                        "{\"prompt\": \"12+34=\", \"answer\": \"46\"}\n"
                        "{\"text\": \"a\"}\n"
                        "{\"prompt\": \"this one is too long\", \"answer\": \"x\"}\n"
                        "{\"prompt\": \"\", \"answer\": \"x\"}\n"
                        "{\"prompt\": \"no more\", \"answer\": \"\"}\n";
    assert_int_equal(read_file(f, "a.jsonl", lines, 8, 100), 0);
    assert_int_equal(f->pieces.count, 2);
    assert_piece(f, 0, 3, 0);
    assert_piece(f, 1, 8, 5);
    assert_int_equal(f->pieces.asked, 4); /* two, and the answer's two */
    /* The answer is whole or is not read. */
    assert_int_equal(read_file(f, "b.jsonl", lines, 8, 10), 0);
    assert_int_equal(f->pieces.count, 3);
}

static void test_nothing(void **state) {
    struct file *f = *state;
    static const char *const texts[] = {"", "a"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(read_file(f, "a.txt", texts[i], 4, 100), LOOPLM_FORMAT);
        assert_non_null(strstr(f->err.message, "a.txt: found no text of two tokens or more"));
    }
    assert_int_equal(read_file(f, "a.jsonl", "\n", 4, 100), LOOPLM_FORMAT);
    assert_int_equal(read_file(f, "b.jsonl", "{\"messages\": []}\n", 4, 100), LOOPLM_FORMAT);
    assert_non_null(strstr(f->err.message, "expected objects with \"text\""));
    assert_int_equal(read_file(f, "c.jsonl", "{\"prompt\": \"ab\", \"answer\": 3}\n", 4, 100), LOOPLM_FORMAT);
    assert_int_equal(f->pieces.count, 0);
    struct pieces_options options = {.tokenizer = f->tokenizer, .sequence = 4, .ids_max = 10};
    assert_int_not_equal(pieces_read(&f->pieces, "/nowhere/a.txt", &options, &f->err), 0);
    assert_non_null(strstr(f->err.message, "/nowhere/a.txt"));
}

/* A text is cut between characters before it is tokenised, and long ones are not tokenised whole. */
static void test_long(void **state) {
    struct file *f = *state;
    enum { LETTERS = 3000 };
    char *text = malloc(2 * LETTERS + 1);
    for (int i = 0; i < LETTERS; i++) memcpy(text + 2 * i, "\xC3\xA9", 2);
    text[2 * LETTERS] = 0;
    memmove(text + 1, text, 2 * LETTERS);
    text[0] = 'a'; /* 16 bytes for each id are an odd place */
    text[2 * LETTERS] = 0;
    assert_int_equal(read_file(f, "a.txt", text, 64, 100), 0);
    assert_int_equal(f->pieces.ids, 100);
    assert_int_equal(f->pieces.count, 2);
    free(text);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {CASE(test_text), CASE(test_lines), CASE(test_nothing), CASE(test_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
