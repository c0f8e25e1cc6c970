/* Exit rules: the distribution and Q-exit against a plain transcription of the SPEC, the other rules, and the text
 * form. */
#include "base/random.h"
#include "model/exit.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* SPEC 1, as it is written there: arrays first, then the first loop whose CDF reaches q. */
static int spec_q_exit(const float *lambda, int loops, float q, float *p) {
    float survival = 1, cdf[64], sum = 0;
    for (int r = 0; r < loops; r++) {
        if (r == loops - 1) {
            p[r] = survival;
            cdf[r] = 1;
        } else {
            p[r] = lambda[r] * survival;
            sum = sum + p[r];
            cdf[r] = sum;
            survival = survival * (1 - lambda[r]);
        }
    }
    if (q >= 1) return loops;
    for (int r = 0; r < loops; r++)
        if (cdf[r] >= q) return r + 1;
    return loops;
}

static int engine_exit(const struct exit_rule *rule, const float *lambda, int last, float *p) {
    struct exit_state state = exit_begin();
    struct exit_evidence none = {0};
    int left = 0;
    for (int r = 0; r < last; r++) {
        p[r] = exit_advance(&state, lambda[r], r + 1 == last);
        if (!left && exit_decide(rule, &state, &none, last)) left = r + 1;
    }
    return left;
}

/* Random gates of several kinds: even, saturated at both ends, so small that products underflow, and quarters, whose
 * sums tie with quarter thresholds. */
static float random_lambda(struct random *random, int kind) {
    uint64_t bits = random_next(random);
    switch (kind) {
    case 0:
        return random_unit(bits);
    case 1:
        return (float)(bits % 2);
    case 2:
        return ldexpf(random_unit(bits), -(int)(bits % 150));
    case 3:
        return (float)(bits % 5) * 0.25f;
    default:
        return 1 - ldexpf(random_unit(bits), -(int)(bits % 30));
    }
}

static void test_q_against_spec(void **state) {
    (void)state;
    struct random random = {1, 0};
    int early = 0;
    for (int i = 0; i < 10000; i++) {
        int loops = 1 + (int)random_below(&random, 8);
        float lambda[64], want[64], got[64];
        for (int r = 0; r < loops; r++) lambda[r] = random_lambda(&random, (int)random_below(&random, 5));
        static const float thresholds[] = {0, 0.25f, 0.5f, 0.75f, 1, 1.5f, 0x1p-149f, 0x1.fffffep-1f};
        float q = i % 3 ? random_unit(random_next(&random)) : thresholds[random_below(&random, 8)];
        struct exit_rule rule = {.kind = EXIT_Q, .threshold = q, .min = 1, .max = loops};
        int spec = spec_q_exit(lambda, loops, q, want);
        assert_int_equal(engine_exit(&rule, lambda, loops, got), spec);
        assert_memory_equal(got, want, (size_t)loops * sizeof(float));
        early += spec < loops;
    }
    assert_true(early > 2000 && early < 9000);
}

static void test_sum_is_one(void **state) {
    (void)state;
    struct random random = {2, 0};
    for (int i = 0; i < 10000; i++) {
        float lambda[8], p[8], sum = 0;
        for (int r = 0; r < 8; r++) lambda[r] = random_lambda(&random, (int)random_below(&random, 5));
        struct exit_rule rule = {.kind = EXIT_FULL, .min = 1, .max = 8};
        assert_int_equal(engine_exit(&rule, lambda, 8, p), 8);
        for (int r = 0; r < 8; r++) {
            assert_true(p[r] >= 0);
            sum += p[r];
        }
        assert_true(fabsf(sum - 1) <= 8 * 0x1p-23f); /* one rounding a term */
    }
}

static void test_bounds_and_evidence(void **state) {
    (void)state;
    struct exit_state at = {.cdf = 0.9f, .step = 1};
    struct exit_evidence evidence = {.distance = 0.01f, .confidence = 0.8f};
    struct exit_rule q = {.kind = EXIT_Q, .threshold = 0.5f, .min = 2, .max = 4},
                     diff = {.kind = EXIT_DIFF, .threshold = 0.02f, .min = 1, .max = 4},
                     conf = {.kind = EXIT_CONF, .threshold = 0.8f, .min = 1, .max = 4},
                     mix = {.kind = EXIT_MIX, .min = 1, .max = 4};
    assert_false(exit_decide(&q, &at, &evidence, 4));    /* below min */
    assert_false(exit_decide(&diff, &at, &evidence, 4)); /* there is no earlier loop to compare with */
    assert_true(exit_decide(&conf, &at, &evidence, 4));
    at.step = 2;
    assert_true(exit_decide(&q, &at, &evidence, 4));
    assert_true(exit_decide(&diff, &at, &evidence, 4));
    assert_false(exit_decide(&mix, &at, &evidence, 4));
    evidence = (struct exit_evidence){.distance = 0.02f, .confidence = 0.79f};
    assert_false(exit_decide(&diff, &at, &evidence, 4));
    assert_false(exit_decide(&conf, &at, &evidence, 4));
    at.step = 4;
    assert_true(exit_decide(&mix, &at, &evidence, 4));
}

static void test_text(void **state) {
    (void)state;
    static const char *const good[] = {"full", "loops=3",           "q=0.5", "diff=0.01", "conf=0.9",
                                       "mix",  "q=0.25,min=2,max=3"};
    looplm_error err;
    struct exit_rule rule, again;
    char text[64];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(exit_rule_parse(&rule, good[i], &err), 0);
        exit_rule_format(&rule, text, sizeof text);
        assert_int_equal(exit_rule_parse(&again, text, &err), 0);
        assert_memory_equal(&rule, &again, sizeof rule);
    }
    static const char *const bad[] = {"",
                                      "ful",
                                      "q",
                                      "q=",
                                      "q=x",
                                      "q=-1",
                                      "q=nan",
                                      "loops=0",
                                      "loops=65",
                                      "loops=2.5",
                                      "full=1",
                                      "q=0.5,mid=2",
                                      "q=0.5,min=3,max=2",
                                      ",",
                                      "conf=inf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(exit_rule_parse(&rule, bad[i], &err), LOOPLM_USAGE);
        assert_non_null(strstr(err.message, "exit rule"));
    }
}

static void test_resolve(void **state) {
    (void)state;
    looplm_error err;
    int32_t planes;
    struct exit_rule rule = {.kind = EXIT_LOOPS, .loops = 6};
    assert_int_equal(exit_rule_resolve(&rule, 4, true, &planes, &err), 0);
    assert_int_equal(planes, 6); /* loops=N makes an N-loop model, beyond the trained R too */
    assert_int_equal(rule.max, 6);
    rule = (struct exit_rule){.kind = EXIT_Q, .threshold = 0.5f, .max = 3};
    assert_int_equal(exit_rule_resolve(&rule, 4, true, &planes, &err), 0);
    assert_int_equal(planes, 4); /* prompts keep every plane */
    assert_int_equal(rule.min, 1);
    rule = (struct exit_rule){.kind = EXIT_Q, .threshold = 0.5f};
    assert_int_equal(exit_rule_resolve(&rule, 4, false, &planes, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "no exit gate", NULL);
    rule = (struct exit_rule){.kind = EXIT_FULL, .max = 5};
    assert_int_equal(exit_rule_resolve(&rule, 4, true, &planes, &err), LOOPLM_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_q_against_spec), cmocka_unit_test(test_sum_is_one),
                                       cmocka_unit_test(test_bounds_and_evidence), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_resolve)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
