/* Recipes as flat keys, and the inputs that a recipe must not be. */
#include "support/support.h"

#include "base/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_entry(const struct yaml_keys *y, const char *key, const char *value, int line) {
    const struct yaml_entry *e = yaml_keys_find(y, key);
    if (!e) fail_msg("no key %s", key);
    if (value) {
        assert_string_equal(e->value, value);
    } else {
        assert_null(e->value);
    }
    assert_int_equal(e->line, line);
}

static void keys_become_flat(void **state) {
    (void)state;
    static const char text[] = "# a recipe\n"
                               "a: 1\n"
                               "b:\n"
                               "  c: {d: 'two words', e: \"\"}\n"
                               "  f: [x, [y, z]]\n"
                               "g:\n"
                               "- h: 1\n"
                               "  i: 2\n"
                               "- h: 3\n"
                               "j:\n"
                               "k: null\n"
                               "l: 'null'\n";
    struct yaml_keys y;
    assert_int_equal(yaml_keys_parse(&y, text, strlen(text), "r", NULL), 0);
    assert_int_equal(y.count, 12);
    assert_entry(&y, "a", "1", 2);
    assert_entry(&y, "b.c.d", "two words", 4);
    assert_entry(&y, "b.c.e", "", 4);
    assert_entry(&y, "b.f.0", "x", 5);
    assert_entry(&y, "b.f.1.1", "z", 5);
    assert_entry(&y, "g.0.i", "2", 8);
    assert_entry(&y, "g.1.h", "3", 9);
    assert_entry(&y, "j", NULL, 10);
    assert_entry(&y, "k", NULL, 11);
    assert_entry(&y, "l", "null", 12);
    yaml_keys_free(&y);
    assert_int_equal(yaml_keys_parse(&y, "", 0, "r", NULL), 0);
    assert_int_equal(y.count, 0);
    yaml_keys_free(&y);
}

static void assert_refused(const char *text, size_t size, looplm_status expected, const char *part) {
    struct yaml_keys y;
    looplm_error err = {0};
    if (!yaml_keys_parse(&y, text, size, "recipe.yaml", &err)) fail_msg("accepted: %.200s", text);
    support_assert_error(&err, expected, "recipe.yaml", part, NULL);
    assert_null(y.entries);
}

static void bad_recipes_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"a: 1\na: 2\n", ":2: key 'a' was given before, on line 1"},
        {"a: {b: 1}\na: {c: 1}\n", "'a' was given before"},
        {"a: 1\na: {c: 1}\n", "'a' was given before"},
        {"a.b: 1\na: {b: 1}\n", "'a' was given before"},
        {"a: {b: 1}\na: 1\n", "'a' was given before"},
        {"a: [{b: 1}]\na.0.b: 1\n", "'a.0.b' was given before"},
        {"a: &x 1\n", "anchors"},
        {"a: &x {b: 1}\n", "anchors"},
        {"a: *x\n", "aliases"},
        {"- a\n", "at the top"},
        {"just text\n", "at the top"},
        {"? [a, b]\n: 1\n", "plain text"},
        {"a: []\n", "empty"},
        {"a: {}\n", "empty"},
        {"a: 1\n---\nb: 2\n", "second document"},
        {"a: [1\n", "not valid YAML"},
        {"a: \"\\0\"\n", "zero byte"},
        {"'': 1\n", "a key is empty"},
        {"a: \xff\xfe\n", "not valid YAML"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_refused(cases[i].text, strlen(cases[i].text), LOOPLM_FORMAT, cases[i].part);
    }
}

static void limits_hold(void **state) {
    (void)state;
    enum { SIZE = YAML_SIZE_MAX + 100 };
    char *text = malloc(SIZE);
    assert_non_null(text);
    memset(text, '#', SIZE);
    assert_refused(text, SIZE, LOOPLM_LIMIT, "at most");
    memset(text, '[', 1000);
    memcpy(text, "a: ", 3);
    assert_refused(text, 1000, LOOPLM_LIMIT, "32 levels");
    memset(text, 'k', 1000);
    memcpy(text + 400, ": 1\n", 4);
    assert_refused(text, 404, LOOPLM_LIMIT, "longer than");
    size_t n = (size_t)snprintf(text, SIZE, "a: [");
    for (int i = 0; i < YAML_ENTRIES_MAX + 1; i++) n += (size_t)snprintf(text + n, SIZE - n, "1,");
    text[n - 1] = ']';
    assert_refused(text, n, LOOPLM_FORMAT, "too many");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_become_flat),
        cmocka_unit_test(bad_recipes_are_refused),
        cmocka_unit_test(limits_hold),
    };
    return cmocka_run_group_tests_name("base.yaml", tests, NULL, NULL);
}
