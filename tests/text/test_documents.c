/* Documents from files of every kind, and what happens when a file is damaged. */
#include "base/error.h"
#include "support/support.h"
#include "text/documents.h"
#include "text/reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads all documents of a file as text; returns how many, and the last one's text. */
static int read_texts(const char *path, char *last, size_t *last_size) {
    struct documents *d;
    struct document document;
    looplm_error err = {0};
    bool more;
    int n = 0, status;
    if (documents_open(&d, path, DOCUMENTS_TEXT, &err)) fail_msg("%s", err.message);
    while ((status = documents_next(d, &document, &more, &err)) == 0 && more) {
        memcpy(last, document.text, document.size);
        *last_size = document.size;
        n++;
    }
    if (status) fail_msg("%s", err.message);
    documents_close(d);
    return n;
}

static void pack(const char *directory, const char *command) {
    char *line, *output;
    assert_true(asprintf(&line, "cd '%s' && %s", directory, command) > 0);
    assert_int_equal(support_shell(line, &output), 0);
    free(line);
    free(output);
}

static void test_kinds(void **state) {
    (void)state;
    static const char *const names[] = {"a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"};
    char *directory = support_make_directory(), last[64];
    size_t size;
    free(support_write_file(directory, "a.txt", "one\ntwo\n"));
    free(
        support_write_file(directory, "a.jsonl",
                           "{\"text\": \"one\"}\n\n{\"text\": \"t\\u0000o\", \"n\": 1}\r\n  \n{\"text\": \"end\\n\"}"));
    pack(directory, "gzip -k a.txt a.jsonl");
    for (int i = 0; i < 4; i++) {
        char *path;
        assert_true(asprintf(&path, "%s/%s", directory, names[i]) > 0);
        assert_int_equal(read_texts(path, last, &size), i < 2 ? 1 : 3);
        assert_int_equal(size, i < 2 ? 8 : 4);
        assert_memory_equal(last, i < 2 ? "one\ntwo\n" : "end\n", size);
        free(path);
    }
    assert_true(reader_path_is("x/a.jsonl.zst", ".jsonl"));
    assert_true(reader_path_is("A.JSONL", ".jsonl"));
    assert_false(reader_path_is("a.jsonl.txt", ".jsonl"));
    support_remove_directory(directory);
}

/* .zst, two frames one after the other, when the zstd program is there to make them. */
static void test_zstandard(void **state) {
    (void)state;
    char *directory = support_make_directory(), *path, last[64], *output;
    size_t size;
    if (support_shell("command -v zstd", &output)) {
        print_message("skipped: the zstd program was not found\n");
        free(output);
        support_remove_directory(directory);
        skip();
    }
    free(output);
    free(support_write_file(directory, "a", "first "));
    free(support_write_file(directory, "b", "second"));
    pack(directory, "zstd -q a b && cat a.zst b.zst > c.txt.zst && head -c 20 c.txt.zst > cut.txt.zst");
    assert_true(asprintf(&path, "%s/c.txt.zst", directory) > 0);
    assert_int_equal(read_texts(path, last, &size), 1);
    assert_int_equal(size, 12);
    assert_memory_equal(last, "first second", 12);
    free(path);
    assert_true(asprintf(&path, "%s/cut.txt.zst", directory) > 0);
    char *data;
    looplm_error err = {0};
    assert_int_equal(reader_read_all(path, 1 << 16, &data, &size, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "cut.txt.zst", "Zstandard", NULL);
    free(path);
    support_remove_directory(directory);
}

static void test_truncated_gzip(void **state) {
    (void)state;
    char *directory = support_make_directory(), *path, *data;
    size_t size;
    looplm_error err = {0};
    pack(directory, "seq 1 10000 | gzip > a.gz && head -c 1000 a.gz > cut.gz");
    assert_true(asprintf(&path, "%s/cut.gz", directory) > 0);
    assert_int_equal(reader_read_all(path, 1 << 20, &data, &size, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "cut.gz", "gzip", NULL);
    free(path);
    assert_true(asprintf(&path, "%s/a.gz", directory) > 0);
    assert_int_equal(reader_read_all(path, 1000, &data, &size, &err), LOOPLM_LIMIT);
    assert_int_equal(reader_read_all("/nonexistent/a.gz", 1000, &data, &size, &err), LOOPLM_IO);
    free(path);
    support_remove_directory(directory);
}

static void assert_line_error(const char *content, const char *part) {
    char *directory = support_make_directory(), *path = support_write_file(directory, "bad.jsonl", content);
    struct documents *d;
    struct document document;
    looplm_error err = {0};
    bool more = true;
    int status = documents_open(&d, path, DOCUMENTS_TEXT, &err);
    while (status == 0 && more) status = documents_next(d, &document, &more, &err);
    assert_int_equal(status, LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "bad.jsonl", "line 2", part, NULL);
    documents_close(d);
    free(path);
    support_remove_directory(directory);
}

static void test_bad_lines(void **state) {
    (void)state;
    assert_line_error("{\"text\": \"a\"}\n{\"text\": \"b\"\n", "not JSON");
    assert_line_error("{\"text\": \"a\"}\n[1]\n", "expected an object");
    assert_line_error("{\"text\": \"a\"}\n{\"content\": \"b\"}\n", "\"text\" is nothing");
    assert_line_error("{\"text\": \"a\"}\n{\"text\": 3}\n", "\"text\" is an integer");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_zstandard),
        cmocka_unit_test(test_truncated_gzip),
        cmocka_unit_test(test_bad_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
