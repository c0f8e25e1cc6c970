/* Pre-tokenization: the hand-written patterns against the same patterns run by PCRE2, on random Unicode. */
#include "support/support.h"
#include "text/split.h"
#include "text/unicode_class.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define ROUNDS (3000 / THIN(10))
#define CHARACTERS_MAX 40

struct words {
    size_t ends[8 * CHARACTERS_MAX];
    size_t n;
    char text[8 * CHARACTERS_MAX];
    size_t size;
};

static int collect(void *context, const char *word, size_t size) {
    struct words *words = context;
    assert_true(size > 0);
    memcpy(words->text + words->size, word, size);
    words->size += size;
    words->ends[words->n++] = words->size;
    return 0;
}

static void split(const struct splitter *splitter, struct split_memory *memory, const char *text, size_t size,
                  struct words *words) {
    looplm_error err = {0};
    words->n = words->size = 0;
    if (split_text(splitter, memory, text, size, collect, words, &err)) fail_msg("%s", err.message);
}

static uint64_t next(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Whether the installed PCRE2 has the same class for a character as our table: its version of Unicode may be older. */
static bool same_class(const struct unicode_classes *classes, pcre2_code *const patterns[3], pcre2_match_data *match,
                       uint32_t c) {
    char text[UTF8_CHARACTER_BYTES_MAX];
    size_t size = utf8_write(c, text);
    for (int i = 0; i < 3; i++) {
        bool theirs = pcre2_match(patterns[i], (PCRE2_SPTR)text, size, 0, 0, match, NULL) > 0;
        if (theirs != (classes->of[c] == i + UNICODE_LETTER)) return false;
    }
    return true;
}

/* All characters on whose class both agree; most of them all. */
static uint32_t *common_characters(size_t *n) {
    static const char *const sources[3] = {"\\p{L}", "\\p{N}", "[\\p{Z}\\t-\\r\\x{85}]"};
    struct unicode_classes *classes = unicode_classes_new();
    uint32_t *out = malloc(UTF8_CODE_POINTS * sizeof *out);
    pcre2_code *patterns[3];
    int code;
    PCRE2_SIZE at;
    for (int i = 0; i < 3; i++) {
        patterns[i] =
            pcre2_compile((PCRE2_SPTR)sources[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    }
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    *n = 0;
    for (uint32_t c = 0; c < UTF8_CODE_POINTS; c++) {
        bool surrogate = c >= 0xD800 && c < 0xE000;
        if (!surrogate && same_class(classes, patterns, match, c)) out[(*n)++] = c;
    }
    for (int i = 0; i < 3; i++) pcre2_code_free(patterns[i]);
    pcre2_match_data_free(match);
    free(classes);
    return out;
}

static size_t random_text(uint64_t *state, const uint32_t *characters, size_t n, char *text) {
    static const char *const likely[] = {" ",   "  ",       "\n",           "\r\n",    "'", "'s", "'t", "'m", "'d",
                                         "'ll", "'LL",      "'re",          "'Ve",     "t", "a",  "Z",  "7",  "\t",
                                         "!",   "\xC2\xA0", "\xE1\xA0\x8E", "\xC5\xBF"};
    size_t size = 0, count = 1 + next(state) % CHARACTERS_MAX;
    for (size_t i = 0; i < count; i++) {
        uint64_t kind = next(state) % 4;
        if (kind < 3) {
            const char *part = likely[next(state) % (sizeof likely / sizeof *likely)];
            memcpy(text + size, part, strlen(part));
            size += strlen(part);
        } else {
            /* Half of them below U+0800, where there is more variety. */
            size += utf8_write(characters[next(state) % (next(state) % 2 ? n : 0x700)], text + size);
        }
    }
    return size;
}

static void compare_with_regex(const char *pattern) {
    struct splitter *hand, *regex;
    struct split_memory *hand_memory, *regex_memory;
    looplm_error err = {0};
    size_t n;
    uint32_t *characters = common_characters(&n);
    uint64_t state = 1;
    assert_true(n > 1000000);
    assert_int_equal(splitter_open(&hand, &err) | splitter_open(&regex, &err), 0);
    assert_int_equal(splitter_add_regex(hand, pattern, SPLIT_ISOLATED, false, false, &err), 0);
    assert_int_equal(splitter_add_regex(regex, pattern, SPLIT_ISOLATED, false, true, &err), 0);
    assert_int_equal(split_memory_open(&hand_memory, hand, &err) | split_memory_open(&regex_memory, regex, &err), 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct words a, b;
        char text[8 * CHARACTERS_MAX];
        size_t size = random_text(&state, characters, n, text);
        split(hand, hand_memory, text, size, &a);
        split(regex, regex_memory, text, size, &b);
        if (a.n != b.n || memcmp(a.ends, b.ends, a.n * sizeof *a.ends))
            fail_msg("round %d: \"%.*s\"", round, (int)size, text);
        assert_int_equal(a.size, size);
        assert_memory_equal(a.text, text, size);
    }
    split_memory_close(hand_memory);
    split_memory_close(regex_memory);
    splitter_close(hand);
    splitter_close(regex);
    free(characters);
}

static void test_gpt2_equals_regex(void **state) {
    (void)state;
    compare_with_regex(split_pattern_gpt2);
}

static void test_qwen2_equals_regex(void **state) {
    (void)state;
    compare_with_regex(split_pattern_qwen2);
}

/* Joins the words of a text by '|'. */
static void assert_split(const struct splitter *splitter, const char *text, const char *expected) {
    struct split_memory *memory;
    struct words words;
    looplm_error err = {0};
    char joined[512] = "";
    assert_int_equal(split_memory_open(&memory, splitter, &err), 0);
    split(splitter, memory, text, strlen(text), &words);
    for (size_t i = 0, at = 0; i < words.n; at = words.ends[i++]) {
        snprintf(joined + strlen(joined), sizeof joined - strlen(joined), "%s%.*s", i ? "|" : "",
                 (int)(words.ends[i] - at), words.text + at);
    }
    assert_string_equal(joined, expected);
    split_memory_close(memory);
}

static void test_stages(void **state) {
    (void)state;
    struct splitter *s;
    looplm_error err = {0};
    assert_int_equal(splitter_open(&s, &err), 0);
    assert_split(s, "one text", "one text");
    assert_int_equal(splitter_add_digits(s, true, &err), 0);
    assert_split(s, "ab12 c\xC2\xBD", "ab|1|2| c|\xC2\xBD");
    assert_int_equal(splitter_add_gpt2(s, false, true, &err), 0);
    assert_split(s, "a  1b  c it's", "a|  |1|b| | c| it|'s");
    splitter_close(s);
    assert_int_equal(splitter_open(&s, &err), 0);
    assert_int_equal(splitter_add_digits(s, false, &err), 0);
    assert_int_equal(splitter_add_gpt2(s, true, false, &err), 0);
    assert_split(s, "ab12 c", " ab| 12| c");
    splitter_close(s);
}

static void test_regex_behaviours(void **state) {
    (void)state;
    static const struct {
        enum split_behaviour behaviour;
        bool invert;
        const char *expected;
    } cases[] = {{SPLIT_ISOLATED, false, "a|,,|b|,|c"}, {SPLIT_REMOVED, false, "a|b|c"}, {SPLIT_REMOVED, true, ",,|,"}};
    looplm_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct splitter *s;
        assert_int_equal(splitter_open(&s, &err), 0);
        assert_int_equal(splitter_add_regex(s, ",+", cases[i].behaviour, cases[i].invert, false, &err), 0);
        assert_split(s, "a,,b,c", cases[i].expected);
        splitter_close(s);
    }
}

static void test_bad_regex(void **state) {
    (void)state;
    struct splitter *s;
    struct split_memory *memory;
    struct words words = {0};
    looplm_error err = {0};
    assert_int_equal(splitter_open(&s, &err), 0);
    assert_int_equal(splitter_add_regex(s, "a(", SPLIT_ISOLATED, false, false, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "regex", "compile", NULL);
    assert_int_equal(splitter_add_regex(s, "[a&&b]", SPLIT_ISOLATED, false, false, &err), LOOPLM_UNSUPPORTED);
    /* Backtracking without end is an error, not a hang. */
    assert_int_equal(splitter_add_regex(s, "(a+)+$", SPLIT_ISOLATED, false, false, &err), 0);
    assert_int_equal(split_memory_open(&memory, s, &err), 0);
    static const char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    assert_int_equal(split_text(s, memory, text, strlen(text), collect, &words, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, "gave up", NULL);
    split_memory_close(memory);
    splitter_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2_equals_regex),
        cmocka_unit_test(test_qwen2_equals_regex),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_regex_behaviours),
        cmocka_unit_test(test_bad_regex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
