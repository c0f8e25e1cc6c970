/* Indexed datasets: what is written is read back, byte for byte as the format says, and damage is found. */
#include "base/file.h"
#include "support/support.h"
#include "text/indexed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 34

static char *prefix_in(const char *directory) {
    char *prefix;
    assert_true(asprintf(&prefix, "%s/data", directory) > 0);
    return prefix;
}

static void write_three(const char *prefix, int64_t vocab_size) {
    static const int32_t a[] = {1, 2, 3}, c[] = {65499 % 5000, 0};
    struct indexed_writer *w;
    looplm_error err = {0};
    assert_int_equal(indexed_writer_open(&w, prefix, vocab_size, &err), 0);
    assert_int_equal(indexed_writer_add(w, a, 3, &err), 0);
    assert_int_equal(indexed_writer_add(w, NULL, 0, &err), 0);
    assert_int_equal(indexed_writer_add(w, c, 2, &err), 0);
    assert_int_equal(indexed_writer_commit(w, &err), 0);
}

static void assert_round_trip(int64_t vocab_size, enum indexed_type type) {
    char *directory = support_make_directory(), *prefix = prefix_in(directory);
    struct indexed *x;
    looplm_error err = {0};
    size_t n;
    int32_t ids[2];
    write_three(prefix, vocab_size);
    assert_int_equal(indexed_open(&x, prefix, &err), 0);
    assert_int_equal(indexed_type(x), type);
    assert_int_equal(indexed_documents(x), 3);
    assert_int_equal(indexed_tokens(x), 5);
    indexed_document(x, 0, &n);
    assert_int_equal(n, 3);
    indexed_read(x, 0, 1, 2, ids);
    assert_int_equal(ids[0], 2);
    assert_int_equal(ids[1], 3);
    assert_null(indexed_document(x, 1, &n));
    assert_int_equal(n, 0);
    indexed_read(x, 2, 0, 2, ids);
    assert_int_equal(ids[0], 65499 % 5000);
    assert_int_equal(indexed_check_ids(x, 5000, &err), 0);
    assert_int_equal(indexed_check_ids(x, 400, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, ".bin", "499", "document 2", NULL);
    indexed_close(x);
    free(prefix);
    support_remove_directory(directory);
}

static void test_round_trip(void **state) {
    (void)state;
    assert_round_trip(65499, INDEXED_UINT16);
    assert_round_trip(65500, INDEXED_INT32);
}

/* The bytes of the index, spelled out from the format's description. */
static void test_bytes(void **state) {
    (void)state;
    static const unsigned char expected[] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8,
                                             3,   0,   0,   0,   0,   0,   0,   0, 4, 0, 0, 0, 0, 0, 0, 0, /* header */
                                             3,   0,   0,   0,   0,   0,   0,   0, 2, 0, 0, 0,             /* lengths */
                                             0,   0,   0,   0,   0,   0,   0,   0, 6, 0, 0, 0, 0, 0, 0, 0, 6, 0,
                                             0,   0,   0,   0,   0,   0, /* pointers */
                                             0,   0,   0,   0,   0,   0,   0,   0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0,
                                             0,   0,   0,   0,   0,   0,   3,   0, 0, 0, 0, 0, 0, 0}; /* boundaries */
    char *directory = support_make_directory(), *prefix = prefix_in(directory), *path, *data;
    size_t size;
    looplm_error err = {0};
    write_three(prefix, 49152);
    assert_true(asprintf(&path, "%s.idx", prefix) > 0);
    assert_int_equal(file_read(path, 1 << 16, &data, &size, &err), 0);
    assert_int_equal(size, sizeof expected);
    assert_memory_equal(data, expected, size);
    free(data);
    free(path);
    free(prefix);
    support_remove_directory(directory);
}

static void test_ids_outside_are_refused(void **state) {
    (void)state;
    char *directory = support_make_directory(), *prefix = prefix_in(directory), *path;
    struct indexed_writer *w;
    looplm_error err = {0};
    const int32_t bad[] = {5, 100}, negative[] = {-1};
    assert_int_equal(indexed_writer_open(&w, prefix, 100, &err), 0);
    assert_int_equal(indexed_writer_add(w, bad, 2, &err), LOOPLM_MISMATCH);
    assert_int_equal(indexed_writer_add(w, negative, 1, &err), LOOPLM_MISMATCH);
    indexed_writer_abort(w);
    assert_true(asprintf(&path, "%s.bin", prefix) > 0);
    assert_false(file_exists(path));
    free(path);
    free(prefix);
    support_remove_directory(directory);
}

static void write_bytes(const char *path, const char *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

/* Any byte of the index changed, and any cut of it: an error or other documents, never a crash. */
static void test_damage(void **state) {
    (void)state;
    char *directory = support_make_directory(), *prefix = prefix_in(directory), *path, *data, *changed;
    size_t size;
    looplm_error err = {0};
    struct indexed *x;
    write_three(prefix, 49152);
    assert_true(asprintf(&path, "%s.idx", prefix) > 0);
    assert_int_equal(file_read(path, 1 << 16, &data, &size, &err), 0);
    changed = malloc(size);
    for (size_t cut = 0; cut < size; cut++) {
        write_bytes(path, data, cut);
        assert_int_not_equal(indexed_open(&x, prefix, &err), 0);
        assert_null(x);
    }
    for (size_t at = 0; at < size; at++) {
        memcpy(changed, data, size);
        changed[at] ^= (char)0x81;
        write_bytes(path, changed, size);
        /* All but the boundaries between documents can have one value only. */
        bool inner = at >= size - 24 && at < size - 8;
        int status = indexed_open(&x, prefix, &err);
        if (status == 0) indexed_close(x);
        if (!inner) assert_int_not_equal(status, 0);
    }
    write_bytes(path, data, size);
    free(path);
    assert_true(asprintf(&path, "%s.bin", prefix) > 0);
    write_bytes(path, "abc", 3);
    assert_int_equal(indexed_open(&x, prefix, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, ".bin", "3 bytes", "10", NULL);
    free(changed);
    free(data);
    free(path);
    free(prefix);
    support_remove_directory(directory);
}

static void test_empty(void **state) {
    (void)state;
    char *directory = support_make_directory(), *prefix = prefix_in(directory);
    struct indexed_writer *w;
    struct indexed *x;
    looplm_error err = {0};
    assert_int_equal(indexed_writer_open(&w, prefix, 100, &err), 0);
    assert_int_equal(indexed_writer_commit(w, &err), 0);
    assert_int_equal(indexed_open(&x, prefix, &err), 0);
    assert_int_equal(indexed_documents(x), 0);
    indexed_close(x);
    free(prefix);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_bytes), cmocka_unit_test(test_ids_outside_are_refused),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
