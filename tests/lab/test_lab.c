/* The split, documents and rank correlation. */
#include "base/file.h"
#include "base/json.h"
#include "lab/hops.h"
#include "lab/mano.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mano mano = {5, 1, 5};

static struct lab_task open_task(void) {
    struct lab_task task;
    assert_int_equal(mano_task(&task, &mano, NULL), 0);
    return task;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Writes a file of documents and returns its lines' problems, sorted; *n is their number. */
static char **problems_of(const struct lab_task *task, struct lab_documents documents, size_t *n, char **file) {
    char *directory = support_make_directory(), *path = file_join(directory, "a.jsonl"), *text;
    size_t size;
    looplm_error err;
    if (lab_generate(task, &documents, path, &err)) fail_msg("%s", err.message);
    assert_int_equal(file_read(path, (size_t)1 << 26, &text, &size, &err), 0);
    char **problems = malloc((size_t)(documents.documents * documents.problems) * sizeof *problems);
    *n = 0;
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *object;
        assert_int_equal(json_parse(at, (size_t)(end - at), path, &object, &err), 0);
        char *lines = strdup(json_string_value(json_object_get(object, "text"))), *rest = lines, *line;
        while ((line = strsep(&rest, "\n")))
            if (*line) problems[(*n)++] = strdup(line);
        free(lines);
        json_decref(object);
    }
    if (file)
        *file = text;
    else
        free(text);
    free(path);
    support_remove_directory(directory);
    qsort(problems, *n, sizeof *problems, by_text);
    return problems;
}

static void free_problems(char **problems, size_t n) {
    for (size_t i = 0; i < n; i++) free(problems[i]);
    free(problems);
}

/* Training and held-out files of different seeds never share a problem; both halves of a small space are met. */
static void test_split(void **state) {
    (void)state;
    struct lab_task task = open_task();
    size_t n, m, held = 0;
    char **training =
        problems_of(&task, (struct lab_documents){.documents = 20000, .problems = 2, .seed = 1}, &n, NULL);
    char **test = problems_of(
        &task, (struct lab_documents){.documents = 3000, .problems = 2, .held_out = true, .seed = 2}, &m, NULL);
    assert_int_equal(n, 40000);
    assert_int_equal(m, 6000);
    for (size_t i = 0; i < m; i++) {
        assert_true(test[i][1] >= '0' + MANO_HELD_OUT_FROM);
        assert_null(bsearch(&test[i], training, n, sizeof *training, by_text));
    }
    free_problems(training, n);
    free_problems(test, m);
    struct random random = {3, 0};
    for (int i = 0; i < 16000; i++) {
        struct lab_problem p = {.level = 4};
        task.draw(task.world, &random, 4, &p);
        held += lab_is_held_out(&task, &p);
    }
    assert_true(held > 850 && held < 1150); /* a sixteenth: 1000 */
}

static char *file_of(const struct lab_task *task, int64_t documents, uint64_t seed) {
    size_t n;
    char *file,
        **problems =
            problems_of(task, (struct lab_documents){.documents = documents, .problems = 3, .seed = seed}, &n, &file);
    free_problems(problems, n);
    return file;
}

static void test_deterministic(void **state) {
    (void)state;
    struct lab_task task = open_task();
    char *a = file_of(&task, 50, 7), *b = file_of(&task, 50, 7), *c = file_of(&task, 50, 8), *d = file_of(&task, 20, 7);
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    assert_int_equal(strncmp(a, d, strlen(d)), 0); /* a longer file begins like a shorter one */
    free(a);
    free(b);
    free(c);
    free(d);
}

/* Answer documents: what comes before the last problem is solved, and prompt and answer together are a text document.
 */
static void test_answer_form(void **state) {
    (void)state;
    struct lab_task task = open_task();
    char *directory = support_make_directory(), *path = file_join(directory, "a.jsonl");
    looplm_error err;
    struct lab_documents documents = {.documents = 1, .problems = 3, .form = LAB_FORM_ANSWER, .seed = 4};
    json_t *object;
    assert_int_equal(lab_generate(&task, &documents, path, &err), 0);
    assert_int_equal(json_read(path, 1 << 20, &object, &err), 0);
    char joined[3 * LAB_PROMPT_MAX] = "";
    strcat(strcat(strcat(joined, json_string_value(json_object_get(object, "prompt"))),
                  json_string_value(json_object_get(object, "answer"))),
           "\n");
    json_decref(object);
    documents.form = LAB_FORM_TEXT;
    assert_int_equal(lab_generate(&task, &documents, path, &err), 0);
    assert_int_equal(json_read(path, 1 << 20, &object, &err), 0);
    assert_string_equal(joined, json_string_value(json_object_get(object, "text")));
    json_decref(object);
    free(path);
    support_remove_directory(directory);
}

static void test_weights(void **state) {
    (void)state;
    struct lab_task task = open_task();
    struct random random = {1, 0};
    looplm_error err;
    int count[6] = {0};
    assert_int_equal(lab_task_weights(&task, "1,0,2,1,0", "length-weights", &err), 0);
    for (int i = 0; i < 8000; i++) count[lab_draw_level(&task, &random, false)]++;
    assert_int_equal(count[2] + count[5], 0);
    assert_true(abs(count[1] - 2000) < 200 && abs(count[3] - 4000) < 200 && abs(count[4] - 2000) < 200);
    for (int i = 0; i < 1000; i++) assert_true(lab_draw_level(&task, &random, true) >= MANO_HELD_OUT_FROM);
    static const char *const bad[] = {"",           "1,1",       "1,1,1,1,1,1", "0,0,0,0,0",
                                      "1,-1,1,1,1", "1,1,1,1,x", "1,1,1,1,1,",  "1,1,1,1,1000001"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(lab_task_weights(&task, bad[i], "length-weights", &err), LOOPLM_USAGE);
        support_assert_error(&err, LOOPLM_USAGE, "length-weights", "operations", NULL);
    }
}

/* A world too small to have a held-out question says so instead of drawing for ever; so do lengths that hold none out.
 */
static void test_too_few(void **state) {
    (void)state;
    struct hops hops;
    struct lab_task task;
    looplm_error err = {0};
    struct random random = {1, 0};
    struct lab_problem p;
    assert_int_equal(hops_init(&hops, 2, 1, 1, 3, 1, &err), 0);
    assert_int_equal(hops_task(&task, &hops, &err), 0);
    assert_int_equal(lab_draw(&task, &random, 3, true, &p, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, "3 hops", "held out", NULL);
    task = open_task();
    assert_int_equal(lab_task_weights(&task, "1,1,0,0,0", "length-weights", &err), 0);
    assert_int_equal(
        lab_generate(&task, &(struct lab_documents){.documents = 1, .problems = 1, .held_out = true}, "unused", &err),
        LOOPLM_USAGE);
}

static double spearman(const double *x, const double *y, size_t n) {
    double value = 7;
    assert_int_equal(lab_spearman(x, y, n, &value, NULL), 0);
    return value;
}

/* Known values: order alone counts; 1 - 6 sum d^2 / n (n^2 - 1) without ties; with ties Pearson's of mean ranks. */
static void test_spearman(void **state) {
    (void)state;
    static const double up[] = {1, 2, 3, 4, 5}, grows[] = {0.1, 1, 10, 11, 1e9}, down[] = {9, 7, 5, 3, 1};
    static const double mixed[] = {2, 1, 4, 3, 5}, same[] = {4, 4, 4, 4, 4}, tied[] = {1, 1, 2, 2, 3};
    assert_true(fabs(spearman(up, grows, 5) - 1) < 1e-12);
    assert_true(fabs(spearman(up, down, 5) + 1) < 1e-12);
    assert_true(fabs(spearman(up, mixed, 5) - 0.8) < 1e-12);         /* d = 1 1 1 1 0: 1 - 6 * 4 / 120 */
    assert_true(fabs(spearman(up, tied, 5) - 9 / sqrt(90)) < 1e-12); /* ranks .5 .5 2.5 2.5 4: xy 9, xx 10, yy 9 */
    assert_true(isnan(spearman(up, same, 5)));
    assert_true(isnan(spearman(up, up, 1)));
    assert_true(isnan(spearman(up, up, 0)));
}

static void assert_command(const char *arguments, int code, const char *part) {
    char command[1024], *output;
    snprintf(command, sizeof command, "%s lab %s", LOOPLM_PROGRAM, arguments);
    assert_int_equal(support_shell(command, &output), code);
    if (!strstr(output, part)) fail_msg("`looplm lab %s` said: %s", arguments, output);
    free(output);
}

static void test_command(void **state) {
    (void)state;
    assert_command("mani x", 2, "did you mean 'mano'");
    assert_command("mano", 2, "--generate");
    assert_command("mano x --generate y", 2, "--generate");
    assert_command("mano --generate y --people 5", 2, "--people does not belong");
    assert_command("hops --generate y --modulus 5", 2, "--modulus does not belong");
    assert_command("mano --generate y --min-ops 3 --max-ops 2", 2, "least <= most");
    assert_command("mano x --plot y.gif", 2, ".png or .svg");
    assert_command("mano x --exit q=z", 2, "exit rule");
    assert_command("mano /nowhere/at/all", 1, "/nowhere/at/all/config.json");
    assert_command("mano --generate /nowhere/at/all", 1, "/nowhere/at/all");
    char *directory = support_make_directory(), arguments[512];
    snprintf(arguments, sizeof arguments, "mano --generate %s/a.jsonl -n 3 -p 2 && wc -l <%s/a.jsonl", directory,
             directory);
    assert_command(arguments, 0, "3");
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_split),       cmocka_unit_test(test_deterministic),
                                       cmocka_unit_test(test_answer_form), cmocka_unit_test(test_weights),
                                       cmocka_unit_test(test_too_few),     cmocka_unit_test(test_spearman),
                                       cmocka_unit_test(test_command)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
