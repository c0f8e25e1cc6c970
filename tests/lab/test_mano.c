/* Mano: answers against an evaluator that reads the text from its end, the form of the text, and how lengths, trees and
 * leaves are distributed. */
#include "lab/mano.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRAWS 30000

static struct lab_task open_task(struct mano *mano, int32_t modulus, int32_t least, int32_t most) {
    struct lab_task task;
    looplm_error err;
    *mano = (struct mano){modulus, least, most};
    if (mano_task(&task, mano, &err)) fail_msg("%s", err.message);
    return task;
}

/* The symbols between the head and " =", from the last to the first: numbers are pushed, operators take two. */
static int evaluate(const char *prompt, int modulus, int *operations) {
    int stack[2 * MANO_OPERATIONS_MAX], n = 0;
    const char *first = strchr(prompt, ' '), *at = prompt + strlen(prompt) - 2;
    assert_string_equal(at, " =");
    *operations = 0;
    while (--at >= first) {
        if (*at == ' ') continue;
        if (strchr("+-*", *at)) {
            assert_true(n >= 2 && at[-1] == ' ');
            long a = stack[n - 1], b = stack[n - 2], value = *at == '+' ? a + b : *at == '-' ? a - b : a * b;
            stack[n-- - 2] = (int)(((value % modulus) + modulus) % modulus);
            ++*operations;
            continue;
        }
        while (modulus > 10 && at[-1] != ' ') at--; /* a number of several digits, up to its space */
        stack[n++] = atoi((char[]){at[0], modulus > 10 ? at[1] : 0, modulus > 10 && at[1] != ' ' ? at[2] : 0, 0});
        assert_true(stack[n - 1] < modulus);
    }
    assert_int_equal(n, 1);
    return stack[0];
}

static void test_answers(void **state) {
    (void)state;
    static const int32_t moduli[] = {2, 3, 7, 10, 23, 97};
    for (size_t m = 0; m < sizeof moduli / sizeof *moduli; m++) {
        struct mano mano;
        struct lab_task task = open_task(&mano, moduli[m], 1, 12);
        struct random random = {m, 0};
        for (int i = 0; i < 2000; i++) {
            struct lab_problem p;
            char head[16];
            int operations, value;
            assert_int_equal(lab_draw(&task, &random, 1 + i % 12, false, &p, NULL), 0);
            value = evaluate(p.prompt, moduli[m], &operations);
            assert_int_equal(operations, 1 + i % 12);
            assert_int_equal(value, atoi(p.answer));
            assert_int_equal(p.answer[0] == ' ', moduli[m] > 10);
            snprintf(head, sizeof head, "#%d ", operations);
            assert_int_equal(strncmp(p.prompt, head, strlen(head)), 0);
        }
    }
}

/* A count of n draws that come with probability p, within five standard deviations. */
static void assert_share(int count, int n, double p) {
    double off = count - n * p;
    assert_true(off * off <= 25 * n * p * (1 - p));
}

/* The operations of the expression that starts at text, which is moved behind it; digits have no spaces (modulus 7). */
static int skip_expression(const char **text) {
    if (**text != ' ') return (*text)++, 0;
    *text += 2;
    int left = skip_expression(text), right = skip_expression(text);
    return 1 + left + right;
}

static void test_distribution(void **state) {
    (void)state;
    struct mano mano;
    struct lab_task task = open_task(&mano, 7, 1, 5);
    struct random random = {5, 0};
    int lengths[6] = {0}, left[5] = {0}, roots[128] = {0}, leaves[8] = {0};
    for (int i = 0; i < DRAWS; i++) {
        struct lab_problem p = {0};
        lengths[lab_draw_level(&task, &random, false)]++;
        task.draw(task.world, &random, 5, &p); /* without the split, which would take its share of each */
        const char *at = p.prompt + strlen("#5 +");
        roots[(unsigned char)at[-1]]++;
        left[skip_expression(&at)]++;
        leaves[p.prompt[strlen(p.prompt) - 3] - '0']++;
    }
    for (int i = 0; i < 5; i++) assert_share(lengths[i + 1], DRAWS, 0.2);
    for (int i = 0; i < 5; i++) assert_share(left[i], DRAWS, 0.2);
    for (int i = 0; i < 7; i++) assert_share(leaves[i], DRAWS, 1.0 / 7);
    assert_share(roots['+'], DRAWS, 1.0 / 3);
    assert_share(roots['-'], DRAWS, 1.0 / 3);
    assert_share(roots['*'], DRAWS, 1.0 / 3);
}

/* The split is a fact of files that exist: should these change sides, trained models would be tested on what they saw.
 */
static void test_split_is_fixed(void **state) {
    (void)state;
    struct mano mano;
    struct lab_task task = open_task(&mano, 7, 1, 5);
    struct lab_problem held = {.level = 5, .prompt = "#5 + -11 *0 +2 -54 ="},
                       trained = {.level = 5, .prompt = "#5 * -65 - -1 +065 ="};
    assert_true(lab_is_held_out(&task, &held));
    assert_false(lab_is_held_out(&task, &trained));
}

static void test_text_form(void **state) {
    (void)state;
    struct mano mano;
    struct lab_task task = open_task(&mano, 7, 1, MANO_OPERATIONS_MAX);
    struct random random = {1, 0};
    struct lab_problem p, longest;
    assert_int_equal(lab_draw(&task, &random, 3, false, &p, NULL), 0);
    for (const char *at = p.prompt + 2; *at && strcmp(at, " =") != 0; at++)
        assert_true(*at == ' '           ? strchr("+-*", at[1]) != NULL
                    : strchr("+-*", *at) ? at[-1] == ' '
                                         : *at >= '0' && *at < '7');
    struct lab_task wide = open_task(&mano, MANO_MODULUS_MAX, 1, MANO_OPERATIONS_MAX);
    for (int i = 0; i < 200; i++)
        assert_int_equal(lab_draw(&wide, &random, MANO_OPERATIONS_MAX, i % 2, &longest, NULL), 0);
}

static void test_bounds(void **state) {
    (void)state;
    static const struct mano bad[] = {{1, 1, 4}, {1001, 1, 4}, {7, 0, 4}, {7, 5, 4}, {7, 1, 65}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct lab_task task;
        looplm_error err;
        assert_int_equal(mano_task(&task, &bad[i], &err), LOOPLM_USAGE);
        support_assert_error(&err, LOOPLM_USAGE, "mano", NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers), cmocka_unit_test(test_distribution),
                                       cmocka_unit_test(test_split_is_fixed), cmocka_unit_test(test_text_form),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
