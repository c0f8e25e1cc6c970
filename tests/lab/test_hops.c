/* Multi-hop questions: answers against a reader of the question's words, and the world. */
#include "lab/hops.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct hops *open_world(int32_t people, int32_t relations, int32_t hops_max, uint64_t seed) {
    struct hops *hops = malloc(sizeof *hops);
    looplm_error err;
    if (hops_init(hops, people, relations, 1, hops_max, seed, &err)) fail_msg("%s", err.message);
    return hops;
}

static int32_t find_person(const char *name) {
    for (int32_t p = 0; p < HOPS_PEOPLE_MAX; p++)
        if (strcmp(hops_person(p), name) == 0) return p;
    fail_msg("nobody is named '%s'", name);
    return -1;
}

static int32_t find_relation(const char *name) {
    for (int32_t r = 0; r < HOPS_RELATIONS_MAX; r++)
        if (strcmp(hops_relation(r), name) == 0) return r;
    fail_msg("no relation is named '%s'", name);
    return -1;
}

/* "Q: Who is the A of the B of P? A:" by its words, from the person back to the first relation. */
static int32_t answer_by_words(const struct hops *hops, const char *prompt, int *count) {
    char text[LAB_PROMPT_MAX], *words[64], *rest = text, *word;
    int n = 0;
    snprintf(text, sizeof text, "%s", prompt);
    while ((word = strsep(&rest, " ?")))
        if (*word) words[n++] = word;
    assert_string_equal(words[0], "Q:");
    assert_string_equal(words[n - 1], "A:");
    int32_t person = find_person(words[n - 2]);
    *count = 0;
    for (int i = n - 4; i > 2; i -= 3, ++*count) {
        assert_string_equal(words[i - 1], "the");
        assert_string_equal(words[i + 1], "of");
        person = hops->to[find_relation(words[i])][person];
    }
    return person;
}

static void test_answers(void **state) {
    (void)state;
    struct hops *hops = open_world(60, 4, 4, 3);
    struct lab_task task;
    struct random random = {9, 0};
    int facts = 0, seen[4][60] = {0};
    assert_int_equal(hops_task(&task, hops, NULL), 0);
    for (int i = 0; i < 8000; i++) {
        struct lab_problem p;
        int count;
        assert_int_equal(lab_draw(&task, &random, 1 + i % 4, false, &p, NULL), 0);
        int32_t person = answer_by_words(hops, p.prompt, &count);
        assert_int_equal(count, 1 + i % 4);
        assert_int_equal(p.answer[0], ' ');
        assert_string_equal(p.answer + 1, hops_person(person));
    }
    for (int i = 0; i < 8000; i++) { /* every single fact can be met in training */
        struct lab_problem p;
        char relation[32], name[32];
        assert_int_equal(lab_draw(&task, &random, 1, false, &p, NULL), 0);
        assert_int_equal(sscanf(p.prompt, "Q: Who is the %31s of %31[A-Za-z]? A:", relation, name), 2);
        facts += !seen[find_relation(relation)][find_person(name)]++;
    }
    assert_int_equal(facts, 240);
    free(hops);
}

static void test_world(void **state) {
    (void)state;
    struct hops *a = open_world(128, 16, 8, 1), *b = open_world(128, 16, 8, 1), *c = open_world(128, 16, 8, 2);
    assert_memory_equal(a, b, sizeof *a);
    assert_memory_not_equal(a->to, c->to, sizeof a->to);
    for (int r = 0; r < 16; r++)
        for (int p = 0; p < 128; p++) assert_true(a->to[r][p] < 128 && a->to[r][p] != p);
    for (int p = 0; p < 128; p++)
        for (int q = 0; q < p; q++) assert_string_not_equal(hops_person(p), hops_person(q));
    free(a);
    free(b);
    free(c);
}

static void test_bounds(void **state) {
    (void)state;
    static const int32_t bad[][4] = {{1, 4, 1, 3},  {129, 4, 1, 3}, {60, 0, 1, 3}, {60, 17, 1, 3},
                                     {60, 4, 0, 3}, {60, 4, 1, 9},  {60, 4, 3, 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hops hops;
        looplm_error err;
        assert_int_equal(hops_init(&hops, bad[i][0], bad[i][1], bad[i][2], bad[i][3], 1, &err), LOOPLM_USAGE);
        support_assert_error(&err, LOOPLM_USAGE, "hops", NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers), cmocka_unit_test(test_world),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
