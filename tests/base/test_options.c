/* Options: command lines, recipes, overrides, help and record from one table; every mistake with its remedy. */
#include "support/support.h"

#include "base/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_OPTIONS(X)                                                            \
    X(ARGUMENT, model, "MODEL", "a model directory")                                 \
    X(ARGUMENTS, inputs, "IN...", "what to read")                                    \
    X(TEXT, prompt, "prompt", 'p', NULL, "TEXT", "the prompt")                       \
    X(INT, tokens, "tokens", 'n', 256, 1, 4096, "N", "how many")                     \
    X(REAL, top_p, "top-p", 0, 1.0, 0.0, 1.0, "P", "mass to keep")                   \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16", "type of the weights") \
    X(FLAG, json, "json", 'j', "print JSON")                                         \
    X(LIST, stop, "stop", 0, "TEXT", "stop strings")
OPTIONS_DEFINE(sample, SAMPLE_OPTIONS)

#define RECIPE_OPTIONS(X)                                                     \
    X(TEXT, out, "out", 0, OPTION_NEEDED, "DIR", "where the run goes")        \
    X(REAL, lr, "train.lr", 0, 1e-3, 0.0, INFINITY, "X", "learning rate")     \
    X(INT, steps, "train.steps", 0, 100, 1, 1000000, "N", "steps")            \
    X(SWITCH, recompute, "train.recompute", 0, true, "recompute")             \
    X(CHOICE, schedule, "train.schedule", 0, "wsd", "wsd|cosine", "schedule") \
    X(LIST, held_out, "eval.files", 0, "FILE", "held-out text")               \
    X(LIST, paths, "data.*.path", 0, "FILE", "training text")                 \
    X(LIST, shares, "data.*.share", 0, "X", "its share")
OPTIONS_DEFINE(recipe, RECIPE_OPTIONS)

/* Splits at spaces and parses. */
static int parse(struct sample *o, const char *line, bool *help, looplm_error *err) {
    static char text[512];
    char *argv[32] = {"program"}, *rest = text;
    int argc = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *word; (word = strsep(&rest, " ")) && argc < 31;) argv[argc++] = word;
    assert_int_equal(options_init(sample_table(), o, err), 0);
    return options_parse(sample_table(), o, argc, argv, help, err);
}

static void defaults_hold(void **state) {
    (void)state;
    struct sample o;
    bool help;
    assert_int_equal(parse(&o, "m a", &help, NULL), 0);
    assert_string_equal(o.model, "m");
    assert_int_equal(o.inputs.count, 1);
    assert_null(o.prompt);
    assert_int_equal(o.tokens, 256);
    assert_true(o.top_p == 1.0);
    assert_int_equal(o.weights, 0);
    assert_false(o.json || o.tokens_given || help);
    assert_true(o.model_given);
    options_free(sample_table(), &o);
}

static void every_form_is_read(void **state) {
    (void)state;
    struct sample o;
    bool help;
    const char *line = "m --prompt=a=b -n 7 --top-p 0.25 --weights bf16 -j --stop x --stop=y -- -a -";
    assert_int_equal(parse(&o, line, &help, NULL), 0);
    assert_string_equal(o.prompt, "a=b");
    assert_int_equal(o.tokens, 7);
    assert_true(o.tokens_given && o.json);
    assert_true(o.top_p == 0.25);
    assert_int_equal(o.weights, 2);
    assert_int_equal(o.stop.count, 2);
    assert_string_equal(o.stop.items[1], "y");
    assert_int_equal(o.inputs.count, 2);
    assert_string_equal(o.inputs.items[0], "-a");
    assert_string_equal(o.inputs.items[1], "-");
    options_free(sample_table(), &o);
    assert_int_equal(parse(&o, "m a -n9 -n8 -", &help, NULL), 0);
    assert_int_equal(o.tokens, 8);
    options_free(sample_table(), &o);
    assert_int_equal(parse(&o, "--help", &help, NULL), 0);
    assert_true(help);
    options_free(sample_table(), &o);
}

static void mistakes_are_explained(void **state) {
    (void)state;
    static const struct {
        const char *line, *part, *other;
    } cases[] = {
        {"m a --tokns 3", "'--tokns'", "'--tokens'"},
        {"m a --zzzzzz", "--zzzzzz", "--help"},
        {"m a -x", "-x", "--help"},
        {"m a --tokens 0", "'0'", "from 1 to 4096"},
        {"m a --tokens 3x", "'3x'", "integer"},
        {"m a --tokens 99999999999999999999", "99999", "from 1 to 4096"},
        {"m a --tokens=", "''", "integer"},
        {"m a --top-p nan", "'nan'", "from 0 to 1"},
        {"m a --top-p 1.5", "'1.5'", "from 0 to 1"},
        {"m a --weights bf61", "auto|f32|bf16", "did you mean 'bf16'"},
        {"m a --json=1", "--json", "no value"},
        {"m a --prompt", "--prompt", "nothing after it"},
        {"m", "IN...", "missing"},
        {"", "IN...", "missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sample o;
        bool help;
        looplm_error err = {0};
        assert_int_equal(parse(&o, cases[i].line, &help, &err), LOOPLM_USAGE);
        support_assert_error(&err, LOOPLM_USAGE, cases[i].part, cases[i].other, NULL);
        options_free(sample_table(), &o);
    }
}

static const char good_recipe[] = "out: runs/a\n"
                                  "train:\n"
                                  "  lr: 3e-4   # a comment\n"
                                  "  schedule: cosine\n"
                                  "  recompute: false\n"
                                  "  steps: ~\n"
                                  "eval: {files: [a.txt, b.txt]}\n"
                                  "data:\n"
                                  "  - path: x.jsonl\n"
                                  "    share: 0.5\n"
                                  "  - path: y.jsonl\n";

static void read_recipe(struct recipe *o, const char *text, int expected, looplm_error *err) {
    char *directory = support_make_directory();
    char *path = support_write_file(directory, "r.yaml", text);
    assert_int_equal(options_init(recipe_table(), o, err), 0);
    assert_int_equal(options_read(recipe_table(), o, path, err), expected);
    free(path);
    support_remove_directory(directory);
}

static void recipes_are_read(void **state) {
    (void)state;
    struct recipe o;
    read_recipe(&o, good_recipe, 0, NULL);
    assert_string_equal(o.out, "runs/a");
    assert_true(o.lr == 3e-4);
    assert_int_equal(o.schedule, 1);
    assert_false(o.recompute);
    assert_int_equal(o.steps, 100);
    assert_false(o.steps_given);
    assert_int_equal(o.held_out.count, 2);
    assert_string_equal(o.held_out.items[1], "b.txt");
    assert_int_equal(o.paths.count, 2);
    assert_int_equal(o.shares.count, 2);
    assert_string_equal(o.shares.items[0], "0.5");
    assert_null(o.shares.items[1]);
    assert_int_equal(options_override(recipe_table(), &o, "train.steps=7", NULL), 0);
    assert_int_equal(options_override(recipe_table(), &o, "data.1.share=2", NULL), 0);
    assert_int_equal(options_override(recipe_table(), &o, "eval.files=p,q,r", NULL), 0);
    assert_int_equal(o.steps, 7);
    assert_string_equal(o.shares.items[1], "2");
    assert_int_equal(o.held_out.count, 3);
    assert_int_equal(options_check(recipe_table(), &o, "r.yaml", NULL), 0);
    options_free(recipe_table(), &o);
}

static void recipe_mistakes_are_explained(void **state) {
    (void)state;
    static const struct {
        const char *text, *part, *other;
    } cases[] = {
        {"out: a\ntrain: {lrr: 1}\n", "r.yaml:2", "did you mean 'train.lr'"},
        {"out: a\ntrain:\n  lr: fast\n", "r.yaml:3", "'fast'"},
        {"out: a\ntrain:\n  steps: 0\n", "key 'train.steps'", "from 1 to 1000000"},
        {"out: a\ntrain:\n  recompute: yes\n", "'yes'", "true or false"},
        {"out: a\ntrain:\n  schedule: cos\n", "wsd|cosine", "r.yaml:3"},
        {"data: [{path: a, shar: 2}]\n", "data.0.shar", "r.yaml:1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct recipe o;
        looplm_error err = {0};
        read_recipe(&o, cases[i].text, LOOPLM_USAGE, &err);
        support_assert_error(&err, LOOPLM_USAGE, cases[i].part, cases[i].other, NULL);
        options_free(recipe_table(), &o);
    }
    struct recipe o;
    looplm_error err;
    read_recipe(&o, "train: {lr: 1}\n", 0, NULL);
    assert_int_equal(options_check(recipe_table(), &o, "r.yaml", &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "r.yaml", "key out is missing", NULL);
    assert_int_equal(options_override(recipe_table(), &o, "train.stesp=1", &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "--set", "train.steps", NULL);
    assert_int_equal(options_override(recipe_table(), &o, "nonsense", &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "key=value", NULL);
    assert_int_equal(options_override(recipe_table(), &o, "data.99999.path=a", &err), LOOPLM_USAGE);
    assert_int_equal(options_override(recipe_table(), &o, "eval.files.5=a", &err), LOOPLM_USAGE);
    options_free(recipe_table(), &o);
}

static void the_record_has_every_value(void **state) {
    (void)state;
    struct recipe o;
    read_recipe(&o, good_recipe, 0, NULL);
    json_t *record = options_dump(recipe_table(), &o);
    assert_non_null(record);
    assert_int_equal(json_object_size(record), 8);
    assert_string_equal(json_string_value(json_object_get(record, "train.schedule")), "cosine");
    assert_int_equal(json_integer_value(json_object_get(record, "train.steps")), 100);
    assert_true(json_is_false(json_object_get(record, "train.recompute")));
    assert_int_equal(json_array_size(json_object_get(record, "data.*.path")), 2);
    assert_true(json_is_null(json_array_get(json_object_get(record, "data.*.share"), 1)));
    json_decref(record);
    options_free(recipe_table(), &o);
}

static void the_help_has_every_option(void **state) {
    (void)state;
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    options_print_help(sample_table(), out);
    options_print_keys(recipe_table(), out);
    fclose(out);
    static const char *const parts[] = {"MODEL",
                                        "-n, --tokens N",
                                        "(1 to 4096; default 256)",
                                        "auto|f32|bf16; default auto",
                                        "-j, --json",
                                        "--help",
                                        "train.lr",
                                        "(0 to inf; default 0.001)",
                                        "(needed)"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (!strstr(text, parts[i])) fail_msg("the help lacks '%s':\n%s", parts[i], text);
    }
    for (char *line, *rest = text; (line = strsep(&rest, "\n"));) assert_true(strlen(line) <= 100);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_hold),
        cmocka_unit_test(every_form_is_read),
        cmocka_unit_test(mistakes_are_explained),
        cmocka_unit_test(recipes_are_read),
        cmocka_unit_test(recipe_mistakes_are_explained),
        cmocka_unit_test(the_record_has_every_value),
        cmocka_unit_test(the_help_has_every_option),
    };
    return cmocka_run_group_tests_name("base.options", tests, NULL, NULL);
}
