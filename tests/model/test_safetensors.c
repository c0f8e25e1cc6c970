/* safetensors: what is written is read back; every hostile header is refused with a message that names file and tensor.
 */
#include "base/file.h"
#include "model/safetensors.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

/* A file in memory: length, header, and `data` bytes that count up. `length` < 0 writes the header's own. */
static unsigned char *make_bytes(const char *header, int64_t length, size_t data, size_t *size) {
    size_t n = strlen(header);
    uint64_t claimed = length < 0 ? n : (uint64_t)length;
    unsigned char *bytes = malloc(8 + n + data);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(claimed >> (8 * i));
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data; i++) bytes[8 + n + i] = (unsigned char)i;
    *size = 8 + n + data;
    return bytes;
}

/* The bytes are copied to fit, so that a read beyond them is seen by the address sanitizer. */
static void assert_refused(const char *header, int64_t length, size_t data, const char *part, const char *part2) {
    size_t size;
    unsigned char *bytes = make_bytes(header, length, data, &size);
    struct safetensors st;
    looplm_error err = {0};
    if (!safetensors_open_memory(&st, bytes, size, "FILE", &err)) fail_msg("accepted: %s", header);
    support_assert_error(&err, err.status, "FILE", part, part2, NULL);
    free(bytes);
}

static void test_reads(void **state) {
    (void)state;
    size_t size;
    unsigned char *bytes =
        make_bytes("{\"__metadata__\":{\"a\":\"b\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                   "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                   "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,9],\"data_offsets\":[4,4]}}   ",
                   -1, 16, &size);
    struct safetensors st;
    looplm_error err;
    if (safetensors_open_memory(&st, bytes, size, "FILE", &err)) fail_msg("%s", err.message);
    assert_int_equal(st.n_entries, 3);
    const struct safetensors_entry *b = safetensors_find(&st, "b");
    assert_non_null(b);
    assert_int_equal(b->dims, 2);
    assert_int_equal(b->shape[0] * 10 + b->shape[1], 23);
    assert_int_equal(b->size, 12);
    assert_int_equal(*(const unsigned char *)safetensors_data(&st, b), 4);
    assert_null(safetensors_find(&st, "c"));
    enum dtype dtype;
    assert_int_equal(safetensors_float_type(&st, b, &dtype, &err), LOOPLM_OK);
    assert_int_equal(dtype, DTYPE_BF16);
    assert_int_equal(safetensors_float_type(&st, safetensors_find(&st, "empty"), &dtype, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "FILE", "'empty'", "found dtype I64", "BF16", NULL);
    safetensors_close(&st);
    free(bytes);
}

#define A_TENSOR(shape, begin, end) \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void test_hostile_lengths(void **state) {
    (void)state;
    assert_refused("{}", 1000000000000, 0, "claims a header of 1000000000000 bytes", "limit");
    assert_refused("{}", INT64_MAX, 0, "claims a header of", "limit");
    assert_refused("{}", 3, 0, "claims a header of 3 bytes, and 2 follow", "truncated");
    assert_refused("{}", 0, 0, "claims a header of 0 bytes", "not a safetensors");
    assert_refused("{}", 2, 3, "has 3 bytes after its last tensor",
                   "expected none"); /* found by fuzzing: no array of tensors to point into */
    looplm_error err;
    struct safetensors st;
    for (size_t size = 0; size < 8; size++) {
        assert_int_equal(safetensors_open_memory(&st, "\0\0\0\0\0\0\0", size, "FILE", &err), LOOPLM_FORMAT);
        support_assert_error(&err, LOOPLM_FORMAT, "FILE", "too few", NULL);
    }
}

static void test_hostile_ranges(void **state) {
    (void)state;
    assert_refused(A_TENSOR("[2]", "0", "8") "}", -1, 4, "tensor 'a'", "reach beyond the 4");
    assert_refused(A_TENSOR("[2]", "0", "9000000000000000000") "}", -1, 8, "tensor 'a'", "reach beyond");
    assert_refused(A_TENSOR("[2]", "8", "0") "}", -1, 8, "tensor 'a'", "found data_offsets [8, 0]");
    assert_refused(A_TENSOR("[2]", "-8", "0") "}", -1, 8, "tensor 'a'", "found data_offsets [-8, 0]");
    assert_refused(A_TENSOR("[3]", "0", "8") "}", -1, 8, "tensor 'a'",
                   "found 8 bytes, expected 12 for shape [3] of F32");
    assert_refused(A_TENSOR("[2]", "0", "8") "}", -1, 12, "4 bytes after its last tensor", "expected none");
    assert_refused(A_TENSOR("[2]", "4", "12") "}", -1, 12, "tensor 'a'",
                   "4 bytes between 'the header' and it belong to no tensor");
    assert_refused(A_TENSOR("[2]", "0", "8") ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}", -1, 10,
                   "tensor 'b'", "overlap those of 'a' by 2");
    assert_refused(A_TENSOR("[2]", "0", "8") ",\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[9,11]}}", -1, 11,
                   "tensor 'b'", "1 bytes between 'a' and it");
    assert_refused(A_TENSOR("[2]", "0", "8") ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8,
                   "tensor '", "overlap");
}

static void test_hostile_entries(void **state) {
    (void)state;
    assert_refused(A_TENSOR("[4294967296,4294967296]", "0", "0") "}", -1, 0, "tensor 'a'",
                   "more bytes than can be counted");
    assert_refused(A_TENSOR("[9223372036854775807,2]", "0", "0") "}", -1, 0, "tensor 'a'",
                   "more bytes than can be counted");
    assert_refused(A_TENSOR("[-2]", "0", "8") "}", -1, 8, "tensor 'a'", "dimension 0");
    assert_refused(A_TENSOR("[2.0]", "0", "8") "}", -1, 8, "tensor 'a'", "dimension 0");
    assert_refused(A_TENSOR("2", "0", "8") "}", -1, 8, "tensor 'a'", "'shape' is missing or no array");
    assert_refused(A_TENSOR("[1,1,1,1,1,1,1,1,2]", "0", "8") "}", -1, 8, "tensor 'a'", "found 9 dimensions");
    assert_refused("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, "tensor 'a'", "'dtype' is missing");
    assert_refused("{\"a\":{\"dtype\":\"Q\\u001b4\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, "tensor 'a'",
                   "found dtype 'Q?4'");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", -1, 8, "tensor 'a'",
                   "'data_offsets'");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", -1, 8, "tensor 'a'", "'data_offsets'");
    assert_refused("{\"a\":7}", -1, 0, "tensor 'a'", "found an integer, expected an object");
}

static void test_hostile_json(void **state) {
    (void)state;
    assert_refused("[]", -1, 0, "its header is an array", "expected an object");
    assert_refused("{\"a\"", -1, 0, "not valid JSON", "safetensors header");
    assert_refused(A_TENSOR("[2]", "0", "8") ",\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[8,8]}}", -1, 8,
                   "duplicate", "header");
    assert_refused("{\"\xff\":1}", -1, 0, "unable to decode byte 0xff", "header");
    char deep[4096] = "{\"a\":";
    memset(deep + 5, '[', 4000);
    assert_refused(deep, -1, 0, "nests deeper", "header");
}

static void write_one(const char *path, const char *name, float value) {
    struct safetensors_writer *w;
    looplm_error err;
    assert_int_equal(safetensors_writer_open(&w, path, &err), LOOPLM_OK);
    assert_int_equal(safetensors_writer_declare(w, name, "F32", 1, (int64_t[]){1}, &err), LOOPLM_OK);
    safetensors_writer_write(w, &value, sizeof value);
    assert_int_equal(safetensors_writer_commit(w, &err), LOOPLM_OK);
}

static void test_writer(void **state) {
    (void)state;
    char *directory = support_make_directory(), *path = file_join(directory, "model.safetensors");
    struct safetensors_writer *w;
    looplm_error err;
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint16_t b[1] = {0x3f80};
    assert_int_equal(safetensors_writer_open(&w, path, &err), LOOPLM_OK);
    assert_int_equal(safetensors_writer_declare(w, "with \"quotes\"", "F32", 2, (int64_t[]){2, 3}, &err), LOOPLM_OK);
    assert_int_equal(safetensors_writer_declare(w, "b", "BF16", 1, (int64_t[]){1}, &err), LOOPLM_OK);
    assert_int_equal(safetensors_writer_declare(w, "b", "BF16", 1, (int64_t[]){1}, &err), LOOPLM_MISMATCH);
    safetensors_writer_write(w, a, 8);
    safetensors_writer_write(w, a + 2, 16);
    assert_false(file_exists(path));
    safetensors_writer_write(w, b, 2);
    assert_int_equal(safetensors_writer_commit(w, &err), LOOPLM_OK);
    struct safetensors st;
    if (safetensors_open(&st, directory, &err)) fail_msg("%s", err.message);
    const struct safetensors_entry *entry = safetensors_find(&st, "with \"quotes\"");
    assert_non_null(entry);
    assert_int_equal(entry->offset % 8, 0);
    assert_memory_equal(safetensors_data(&st, entry), a, sizeof a);
    assert_memory_equal(safetensors_data(&st, safetensors_find(&st, "b")), b, sizeof b);
    safetensors_close(&st);

    /* Too few bytes: the file that was there stays. */
    assert_int_equal(safetensors_writer_open(&w, path, &err), LOOPLM_OK);
    assert_int_equal(safetensors_writer_declare(w, "c", "F32", 1, (int64_t[]){2}, &err), LOOPLM_OK);
    safetensors_writer_write(w, a, 4);
    assert_int_equal(safetensors_writer_commit(w, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, path, "4 bytes", "8 were declared", NULL);
    assert_int_equal(safetensors_open(&st, path, &err), LOOPLM_OK);
    assert_int_equal(st.n_entries, 2);
    safetensors_close(&st);
    free(path);
    support_remove_directory(directory);
}

static void assert_index(const char *directory, const char *index, const char *part, const char *part2) {
    free(support_write_file(directory, "model.safetensors.index.json", index));
    struct safetensors st;
    looplm_error err;
    int status = safetensors_open(&st, directory, &err);
    if (!part) {
        if (status) fail_msg("%s", err.message);
        assert_int_equal(st.n_files, 2);
        assert_int_equal(st.n_entries, 2);
        safetensors_close(&st);
    } else {
        assert_int_not_equal(status, LOOPLM_OK);
        support_assert_error(&err, err.status, "model.safetensors.index.json", part, part2, NULL);
    }
}

static void test_shards(void **state) {
    (void)state;
    char *directory = support_make_directory(), *one = file_join(directory, "m-1.safetensors"),
         *two = file_join(directory, "m-2.safetensors");
    write_one(one, "a", 1);
    write_one(two, "b", 2);
    assert_index(directory,
                 "{\"metadata\": {}, \"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}", NULL,
                 NULL);
    assert_index(
        directory,
        "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-3.safetensors\", \"c\": \"m-4.safetensors\"}}",
        "2 of its 3 shards missing", "m-3.safetensors, m-4.safetensors");
    assert_index(directory, "{\"weight_map\": {\"a\": \"../m-1.safetensors\"}}", "tensor 'a'", "in the same directory");
    assert_index(directory, "{\"weight_map\": {\"a\": 3}}", "tensor 'a'", "in the same directory");
    assert_index(directory, "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"z\": \"m-1.safetensors\"}}", "tensor 'z'",
                 "not in its shard");
    assert_index(directory, "{\"weight_map\": {\"a\": \"m-2.safetensors\", \"b\": \"m-1.safetensors\"}}", "tensor 'a'",
                 "expected in m-2");
    assert_index(directory, "{}", "weight_map", "found nothing");
    write_one(two, "a", 2);
    free(support_write_file(directory, "model.safetensors.index.json",
                            "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}"));
    struct safetensors st;
    looplm_error err;
    assert_int_equal(safetensors_open(&st, directory, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "tensor 'a'", "it is also in", NULL);
    free(one);
    free(two);
    support_remove_directory(directory);
}

static void test_nothing_there(void **state) {
    (void)state;
    char *directory = support_make_directory();
    struct safetensors st;
    looplm_error err;
    assert_int_equal(safetensors_open(&st, directory, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, directory, "neither model.safetensors nor", NULL);
    free(support_write_file(directory, "pytorch_model.bin", "x"));
    assert_int_equal(safetensors_open(&st, directory, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "pytorch_model.bin", "convert", NULL);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),          cmocka_unit_test(test_hostile_lengths),
        cmocka_unit_test(test_hostile_ranges), cmocka_unit_test(test_hostile_entries),
        cmocka_unit_test(test_hostile_json),   cmocka_unit_test(test_writer),
        cmocka_unit_test(test_shards),         cmocka_unit_test(test_nothing_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
