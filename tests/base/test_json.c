/* JSON: what is refused, and how the getters name what is wrong. */
#include "support/support.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static void assert_refused(const char *text, looplm_status expected, const char *part) {
    json_t *value;
    looplm_error err = {0};
    if (!json_parse(text, strlen(text), "config.json", &value, &err)) fail_msg("accepted: %.200s", text);
    assert_null(value);
    support_assert_error(&err, expected, "config.json", part, NULL);
}

static void bad_text_is_refused(void **state) {
    (void)state;
    assert_refused("", LOOPLM_FORMAT, "not valid JSON");
    assert_refused("{\"a\": 1,\n \"a\": 2}", LOOPLM_FORMAT, "line 2");
    assert_refused("{\"a\": 1} x", LOOPLM_FORMAT, "not valid JSON");
    assert_refused("{\"a\": \"\\ud800\"}", LOOPLM_FORMAT, "not valid JSON");
    assert_refused("\"\xff\"", LOOPLM_FORMAT, "not valid JSON");
    char deep[JSON_DEPTH_MAX + 2];
    memset(deep, '[', sizeof deep);
    deep[sizeof deep - 1] = 0;
    assert_refused(deep, LOOPLM_LIMIT, "deeper than 64");
    /* Brackets inside strings are not depth. */
    json_t *value;
    char text[300] = "[\"\\\"";
    memset(text + 4, '[', 100);
    strcpy(text + 104, "\"]");
    assert_int_equal(json_parse(text, strlen(text), "x", &value, NULL), 0);
    json_decref(value);
}

static void getters_read_and_complain(void **state) {
    (void)state;
    static const char text[] =
        "{\"i\": 5, \"d\": 0.5, \"b\": true, \"s\": \"text\", \"a\": [1], \"o\": {}, \"n\": null}";
    json_t *root;
    assert_int_equal(json_parse(text, strlen(text), "c.json", &root, NULL), 0);
    struct json_at at = {root, "c.json", "model"};
    int64_t i = 7;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    const json_t *a = NULL;
    looplm_error err;
    assert_int_equal(json_need_int(at, "i", 0, 10, &i, &err), 0);
    assert_int_equal(i, 5);
    assert_int_equal(json_need_double(at, "d", 0, 1, &d, &err), 0);
    assert_int_equal(json_need_double(at, "i", 0, 10, &d, &err), 0);
    assert_true(d == 5.0);
    assert_int_equal(json_need_bool(at, "b", &b, &err), 0);
    assert_true(b);
    assert_int_equal(json_need_string(at, "s", &s, &err), 0);
    assert_string_equal(s, "text");
    assert_int_equal(json_need_array(at, "a", &a, &err), 0);
    assert_int_equal(json_need_object(at, "o", &a, &err), 0);

    assert_int_equal(json_need_int(at, "i", 6, 10, &i, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "c.json", "'model.i'", "found 5", "integer from 6 to 10", NULL);
    assert_int_equal(json_need_int(at, "d", 0, 10, &i, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "found 0.5", NULL);
    assert_int_equal(json_need_int(at, "absent", 0, 10, &i, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "'model.absent'", "found nothing", NULL);
    assert_int_equal(json_need_bool(at, "s", &b, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "the string \"text\"", "true or false", NULL);
    assert_int_equal(json_need_string(at, "o", &s, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "found an object", "a string", NULL);
    assert_int_equal(json_need_array(at, "n", &a, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "found null", "an array", NULL);

    i = 7;
    assert_int_equal(json_want_int(at, "absent", 0, 10, &i, &err), 0);
    assert_int_equal(json_want_int(at, "n", 0, 10, &i, &err), 0);
    assert_int_equal(i, 7);
    assert_int_equal(json_want_int(at, "s", 0, 10, &i, &err), LOOPLM_FORMAT);
    json_decref(root);
}

static void files_come_back(void **state) {
    (void)state;
    char *directory = support_make_directory(), *path = file_join(directory, "a.json");
    json_t *value = json_pack("{s:f, s:[i,i]}", "x", 0.1, "y", 1, 2), *read;
    assert_int_equal(json_write(path, value, NULL), 0);
    assert_int_equal(json_read(path, 1000, &read, NULL), 0);
    assert_true(json_equal(value, read));
    json_decref(read);
    looplm_error err;
    assert_int_equal(json_read(path, 10, &read, &err), LOOPLM_LIMIT);
    assert_int_equal(json_read(directory, 10, &read, &err), LOOPLM_IO);
    json_decref(value);
    free(path);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(getters_read_and_complain),
        cmocka_unit_test(files_come_back),
    };
    return cmocka_run_group_tests_name("base.json", tests, NULL, NULL);
}
