/* Training a tokenizer: known merges on a known text, every byte has a token, the order of texts does not matter, and
 * what is trained can be opened and round-trips. */
#include "base/file.h"
#include "support/support.h"
#include "text/bpe_train.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"};

/* Trains on the texts in order and opens what was saved. */
static struct tokenizer *train(int32_t vocab_size, int64_t count_min, const char *const *texts, int n, char **file) {
    const struct bpe_train_options options = {
        .vocab_size = vocab_size, .special = special, .n_special = 5, .count_min = count_min};
    struct bpe_trainer *trainer;
    struct tokenizer *t;
    looplm_error err = {0};
    char *directory = support_make_directory(), *path;
    size_t size;
    assert_int_equal(bpe_trainer_open(&trainer, &options, &err), 0);
    for (int i = 0; i < n; i++) assert_int_equal(bpe_trainer_add(trainer, texts[i], strlen(texts[i]), &err), 0);
    assert_int_equal(bpe_trainer_run(trainer, &err), 0);
    assert_int_equal(bpe_trainer_save(trainer, directory, &err), 0);
    bpe_trainer_close(trainer);
    if (tokenizer_open(&t, directory, &err)) fail_msg("%s", err.message);
    path = file_join(directory, "tokenizer.json");
    if (file) assert_int_equal(file_read(path, 1 << 24, file, &size, &err), 0);
    free(path);
    support_remove_directory(directory);
    return t;
}

static void test_known_merges(void **state) {
    (void)state;
    /* Words: "aaab" 3, "Ġaab" 2. (a,a) 8, then (aa,a)?: aaab -> aa|a|b, Ġaab -> Ġ|aa|b. (aa,a) 3 and (a,b) 3 against
     * (Ġ,aa) 2, (aa,b) 2: lower ids first, and b's and a's are lower than aa's, so a b; then aa ab (3). */
    static const char *const texts[] = {"aaab aab", "aaab\naaab", "x aab", "<|im_end|>"};
    struct tokenizer *t = train(5 + 256 + 3, 1, texts, 4, NULL);
    assert_int_equal(tokenizer_size(t), 264);
    assert_int_equal(tokenizer_id(t, "<|im_end|>"), 2);
    assert_int_equal(tokenizer_id(t, "!"), 5);
    assert_int_equal(tokenizer_id(t, "aa"), 261);
    assert_int_equal(tokenizer_id(t, "ab"), 262);
    assert_int_equal(tokenizer_id(t, "aaab"), 263);
    assert_true(tokenizer_is_special(t, 4));
    tokenizer_close(t);
}

static void test_pairs_run_out(void **state) {
    (void)state;
    static const char *const texts[] = {"ab ab ab cd"};
    struct tokenizer *t = train(1000, 2, texts, 1, NULL);
    /* "ab" 3 times and "Ġab" twice; "cd" only once. */
    assert_int_equal(tokenizer_size(t), 5 + 256 + 2);
    tokenizer_close(t);
}

static void test_order_does_not_matter(void **state) {
    (void)state;
    static const char *const texts[] = {"the cat sat on the mat", "a hat is not that bat, 1234", "the rat ate the oat"};
    static const char *const turned[] = {"the rat ate the oat", "the cat sat on the mat",
                                         "a hat is not that bat, 1234"};
    char *a, *b;
    tokenizer_close(train(300, 1, texts, 3, &a));
    tokenizer_close(train(300, 1, turned, 3, &b));
    assert_string_equal(a, b);
    free(a);
    free(b);
}

static void test_every_byte_round_trips(void **state) {
    (void)state;
    static const char *const texts[] = {"some text to learn from, some text"};
    struct tokenizer *t = train(280, 1, texts, 1, NULL);
    looplm_error err = {0};
    char text[3 * 0x800], *back;
    size_t size = 0, n, back_size;
    int32_t *ids;
    for (uint32_t c = 0; c < 0x800; c++) {
        if (c >= 0x80) text[size++] = (char)(0xC0 | c >> 6);
        text[size++] = (char)(c < 0x80 ? c : 0x80 | (c & 0x3F));
    }
    memcpy(text + size, "\xF4\x8F\xBF\xBF", 4);
    size += 4;
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n, &err), 0);
    assert_int_equal(tokenizer_decode(t, ids, n, false, &back, &back_size, &err), 0);
    assert_int_equal(back_size, size);
    assert_memory_equal(back, text, size);
    free(ids);
    free(back);
    tokenizer_close(t);
}

static void test_bad_options(void **state) {
    (void)state;
    static const char *const twice[] = {"<a>", "<a>"};
    struct bpe_trainer *trainer;
    looplm_error err = {0};
    assert_int_equal(
        bpe_trainer_open(&trainer, &(struct bpe_train_options){.vocab_size = 260, .special = special, .n_special = 5},
                         &err),
        LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "260", "261", NULL);
    assert_int_equal(bpe_trainer_open(&trainer,
                                      &(struct bpe_train_options){.vocab_size = 300, .special = twice, .n_special = 2},
                                      &err),
                     LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "<a>", NULL);
    assert_null(trainer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_merges),          cmocka_unit_test(test_pairs_run_out),
        cmocka_unit_test(test_order_does_not_matter), cmocka_unit_test(test_every_byte_round_trips),
        cmocka_unit_test(test_bad_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
