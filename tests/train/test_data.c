/* Corpora and their order: what a piece holds, masks, permutations, curricula, cursors. */
#include "support/support.h"

#include "base/file.h"
#include "train/data.h"

#include <stdlib.h>
#include <string.h>

#define VOCAB 64
#define SEQUENCE 4

static char *directory;

static int make_directory(void **state) {
    (void)state;
    directory = support_make_directory();
    return 0;
}

static int remove_directory(void **state) {
    (void)state;
    support_remove_directory(directory);
    return 0;
}

/* Documents as rows of ids; -1 ends a row. Fresh path of the prefix. */
static char *write_indexed(const char *name, int n, const int32_t rows[][12]) {
    char *prefix = file_join(directory, name);
    struct indexed_writer *w;
    looplm_error err;
    assert_int_equal(indexed_writer_open(&w, prefix, VOCAB, &err), 0);
    for (int i = 0; i < n; i++) {
        size_t m = 0;
        while (rows[i][m] >= 0) m++;
        assert_int_equal(indexed_writer_add(w, rows[i], m, &err), 0);
    }
    assert_int_equal(indexed_writer_commit(w, &err), 0);
    return prefix;
}

static struct corpus_options plain_options(void) {
    return (struct corpus_options){.vocab = VOCAB, .end_id = 0, .sequence = SEQUENCE};
}

static void assert_piece(const struct corpus *corpus, int64_t piece, int32_t n, const int32_t *ids,
                         const int32_t *targets) {
    int32_t found_ids[SEQUENCE], found_targets[SEQUENCE];
    assert_int_equal(corpus_piece(corpus, piece, found_ids, found_targets), n);
    assert_memory_equal(found_ids, ids, (size_t)n * sizeof *ids);
    assert_memory_equal(found_targets, targets, (size_t)n * sizeof *targets);
}

/* Five ids and the end that is added: five positions in two pieces; one that ends already; an empty document; one id.
 */
static void test_pieces(void **state) {
    (void)state;
    static const int32_t rows[][12] = {{1, 2, 3, 4, 5, -1}, {6, 7, 0, -1}, {-1}, {8, -1}, {0, -1}};
    char *prefix = write_indexed("pieces", 5, rows);
    struct corpus_options options = plain_options();
    struct corpus corpus;
    looplm_error err;
    assert_int_equal(corpus_open(&corpus, prefix, &options, &err), 0);
    assert_int_equal(corpus.pieces, 4);
    assert_piece(&corpus, 0, 4, (int32_t[]){1, 2, 3, 4}, (int32_t[]){2, 3, 4, 5});
    assert_piece(&corpus, 1, 1, (int32_t[]){5}, (int32_t[]){0});
    assert_piece(&corpus, 2, 2, (int32_t[]){6, 7}, (int32_t[]){7, 0});
    assert_piece(&corpus, 3, 1, (int32_t[]){8}, (int32_t[]){0});
    corpus_close(&corpus);
    free(prefix);
}

static void test_mask(void **state) {
    (void)state;
    static const int32_t rows[][12] = {{1, 2, 3, 4, 5, -1}}, masks[][12] = {{0, 0, 0, 1, 1, -1}};
    char *prefix = write_indexed("masked", 1, rows), *mask = write_indexed("masked-mask", 1, masks);
    struct corpus_options options = plain_options();
    struct corpus corpus;
    looplm_error err;
    assert_int_equal(corpus_open(&corpus, prefix, &options, &err), 0);
    assert_piece(&corpus, 0, 4, (int32_t[]){1, 2, 3, 4}, (int32_t[]){-1, -1, 4, 5});
    assert_piece(&corpus, 1, 1, (int32_t[]){5}, (int32_t[]){0});
    corpus_close(&corpus);
    free(mask);
    static const int32_t wrong[][12] = {{0, 0, -1}};
    mask = write_indexed("masked-mask", 1, wrong);
    assert_int_equal(corpus_open(&corpus, prefix, &options, &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, "masked-mask", "2 items", "expected 5", NULL);
    free(mask);
    free(prefix);
}

static void test_bad_sources(void **state) {
    (void)state;
    struct corpus_options options = plain_options();
    struct corpus corpus;
    looplm_error err;
    assert_int_equal(corpus_open(&corpus, "/nowhere/text.txt", &options, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "/nowhere/text.txt", "No such file", NULL);
    static const int32_t large[][12] = {{1, 63, -1}}, empty[][12] = {{-1}};
    char *prefix = write_indexed("large", 1, large);
    options.vocab = 63;
    assert_int_not_equal(corpus_open(&corpus, prefix, &options, &err), 0);
    free(prefix);
    prefix = write_indexed("empty", 1, empty);
    assert_int_equal(corpus_open(&corpus, prefix, &options, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "no token", NULL);
    free(prefix);
}

/* A tokenizer made on the spot; fresh path of its directory. */
static char *make_tokenizer(struct tokenizer **tokenizer) {
    char *text = support_write_file(directory, "words.txt", "one two three four five six seven\n"), *command, *output;
    char *path = file_join(directory, "tokenizer");
    looplm_error err;
    assert_true(asprintf(&command, "%s tokenizer train --vocab-size 300 -o %s %s", LOOPLM_PROGRAM, path, text) > 0);
    assert_int_equal(support_shell(command, &output), 0);
    assert_int_equal(tokenizer_open(tokenizer, path, &err), 0);
    free(output);
    free(command);
    free(text);
    return path;
}

static void test_prompt_and_answer(void **state) {
    (void)state;
    struct tokenizer *tokenizer;
    char *path = make_tokenizer(&tokenizer), hash[65];
    char *file =
        support_write_file(directory, "qa.jsonl", "{\"prompt\": \"ab\", \"answer\": \"7\"}\n{\"text\": \"7\"}\n");
    char *cache = file_join(directory, "cache");
    looplm_error err;
    assert_int_equal(corpus_tokenizer_hash(path, hash, &err), 0);
    struct corpus_options options = {.tokenizer = tokenizer,
                                     .tokenizer_hash = hash,
                                     .cache = cache,
                                     .vocab = tokenizer_size(tokenizer),
                                     .sequence = SEQUENCE};
    struct corpus corpus;
    int32_t a = tokenizer_id(tokenizer, "a"), b = tokenizer_id(tokenizer, "b"), seven = tokenizer_id(tokenizer, "7");
    for (int round = 0; round < 2; round++) { /* tokenised, then read from the cache */
        assert_int_equal(corpus_open(&corpus, file, &options, &err), 0);
        assert_piece(&corpus, 0, 3, (int32_t[]){a, b, seven}, (int32_t[]){-1, seven, 0});
        assert_piece(&corpus, 1, 1, (int32_t[]){seven}, (int32_t[]){0});
        corpus_close(&corpus);
    }
    free(file);
    file = support_write_file(directory, "bad.jsonl", "{\"text\": \"7\"}\n{\"prompt\": 3}\n");
    assert_int_equal(corpus_open(&corpus, file, &options, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "bad.jsonl", "line 2", "\"answer\"", NULL);
    options.tokenizer = NULL;
    assert_int_equal(corpus_open(&corpus, file, &options, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "model.tokenizer", NULL);
    tokenizer_close(tokenizer);
    free(file);
    free(cache);
    free(path);
}

static void test_permutation(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 63, 64, 65, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t n = sizes[i], moved = 0;
        bool *seen = calloc((size_t)n, 1);
        for (int64_t j = 0; j < n; j++) {
            int64_t piece = data_piece(7, 0, n, j);
            assert_in_range(piece, 0, n - 1);
            assert_false(seen[piece]);
            seen[piece] = true;
            moved += data_piece(7, 0, n, j + n) != piece; /* the next epoch has another order */
        }
        if (n >= 63) assert_true(moved > n / 2);
        free(seen);
    }
}

/* Two sources with one document each: ids tell which one a sequence came from. */
static void open_two(struct data *data, struct recipe *recipe, char **a, char **b) {
    static const int32_t first[][12] = {{1, 1, -1}, {1, 1, -1}}, second[][12] = {{2, 2, -1}};
    struct corpus_options options = plain_options();
    looplm_error err;
    *a = write_indexed("first", 2, first);
    *b = write_indexed("second", 1, second);
    *recipe = (struct recipe){.options = {.train_seed = 3}, .n_sources = 2};
    recipe->sources[0] = (struct recipe_source){.path = *a, .weight = 3, .loss_weight = 1, .from = 0, .until = 0.5};
    recipe->sources[1] = (struct recipe_source){.path = *b, .weight = 1, .loss_weight = 5, .from = 0, .until = 1};
    assert_int_equal(data_open(data, recipe, &options, &err), 0);
}

static void test_mixture(void **state) {
    (void)state;
    struct data data;
    struct recipe recipe;
    char *a, *b;
    int32_t ids[SEQUENCE], targets[SEQUENCE], starts[SEQUENCE];
    struct data_unit unit = {.ids = ids, .targets = targets, .starts = starts};
    open_two(&data, &recipe, &a, &b);
    int of_first = 0;
    for (int i = 0; i < 4000; i++) {
        data_next(&data, 0.25, &unit);
        of_first += ids[0] == 1;
    }
    assert_in_range(of_first, 2850, 3150); /* 3000 are expected, with a deviation of 27 */
    for (int i = 0; i < 50; i++) {
        data_next(&data, 0.5, &unit);
        assert_int_equal(ids[0], 2);
    }
    assert_int_equal(data.cursor.sample, 4050);
    /* Two documents of two positions fill a unit of four. */
    assert_int_equal(data.cursor.drawn[0] + data.cursor.drawn[1], 2 * 4050);
    assert_int_equal(unit.n, SEQUENCE);
    assert_int_equal(unit.n_documents, 2);
    assert_int_equal(starts[1], 2);
    assert_true(unit.weight == 5);
    data_close(&data);
    free(a);
    free(b);
}

static void test_cursor(void **state) {
    (void)state;
    struct data data, other;
    struct recipe recipe;
    char *a, *b;
    int32_t ids[SEQUENCE], targets[SEQUENCE], starts[SEQUENCE], ids_2[SEQUENCE], targets_2[SEQUENCE],
        starts_2[SEQUENCE];
    struct data_unit unit = {.ids = ids, .targets = targets, .starts = starts};
    struct data_unit unit_2 = {.ids = ids_2, .targets = targets_2, .starts = starts_2};
    looplm_error err;
    open_two(&data, &recipe, &a, &b);
    for (int i = 0; i < 17; i++) data_next(&data, 0.1, &unit);
    json_t *saved = data_state(&data);
    free(a);
    free(b);
    open_two(&other, &recipe, &a, &b);
    assert_int_equal(data_restore(&other, saved, "state.json", &err), 0);
    for (int i = 0; i < 50; i++) {
        data_next(&data, 0.1, &unit);
        data_next(&other, 0.1, &unit_2);
        assert_int_equal(unit.n, unit_2.n);
        assert_int_equal(unit.n_documents, unit_2.n_documents);
        assert_memory_equal(ids, ids_2, (size_t)unit.n * sizeof *ids);
    }
    json_object_set_new(json_array_get(json_object_get(saved, "sources"), 1), "tokens", json_integer(99));
    assert_int_equal(data_restore(&other, saved, "state.json", &err), LOOPLM_MISMATCH);
    support_assert_error(&err, LOOPLM_MISMATCH, "second", "99 tokens", "restore the file", NULL);
    json_decref(saved);
    data_close(&data);
    data_close(&other);
    free(a);
    free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pieces),      cmocka_unit_test(test_mask),
                                       cmocka_unit_test(test_bad_sources), cmocka_unit_test(test_mixture),
                                       cmocka_unit_test(test_permutation), cmocka_unit_test(test_prompt_and_answer),
                                       cmocka_unit_test(test_cursor)};
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
