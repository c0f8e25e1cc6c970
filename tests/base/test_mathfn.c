/* exp, log and sigmoid against double libm, in units in the last place, over a dense sweep of all floats. */
#include "support/support.h"

#include "base/mathfn.h"

#include <float.h>
#include <stdlib.h>

/* A prime step over the 2^32 bit patterns: 4 million floats of every exponent. LOOPLM_MATHFN_STEP=1 visits all. */
#define SWEEP_STEP (1021u * THIN(17))

static double ulp_distance(float got, double want) {
    float nearest = (float)want;
    if (isinf(nearest)) nearest = copysignf(FLT_MAX, nearest);
    int exponent;
    frexp(want, &exponent);
    if (exponent < -125) exponent = -125;
    if (isinf(got)) return isinf((float)want) || fabs(want) > FLT_MAX * (1 - 0x1p-24) ? 0 : 1e9;
    return fabs((double)got - want) / ldexp(1.0, exponent - 24);
}

static uint64_t sweep_step(void) {
    const char *text = getenv("LOOPLM_MATHFN_STEP");
    return text ? strtoull(text, NULL, 10) : SWEEP_STEP;
}

static void assert_same(float got, float want) {
    assert_int_equal(math_to_bits(got), math_to_bits(want));
}

static void exp_is_within_one_ulp(void **state) {
    (void)state;
    double worst = 0;
    float at = 0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += sweep_step()) {
        float x = math_from_bits((uint32_t)bits);
        if (isnan(x) || isinf(x)) continue;
        double d = ulp_distance(math_exp(x), exp((double)x));
        if (d > worst) worst = d, at = x;
    }
    print_message("exp: largest error %.3f ulp at %a\n", worst, (double)at);
    assert_true(worst <= 1.0);
}

static void log_is_within_one_ulp(void **state) {
    (void)state;
    double worst = 0;
    float at = 0;
    for (uint64_t bits = 1; bits < 0x7f800000u; bits += sweep_step()) {
        float x = math_from_bits((uint32_t)bits);
        double d = ulp_distance(math_log(x), log((double)x));
        if (d > worst) worst = d, at = x;
    }
    for (float x = 0.9f; x < 1.1f; x = nextafterf(x, 2.0f)) {
        double d = x == 1.0f ? fabsf(math_log(x)) : ulp_distance(math_log(x), log((double)x));
        if (d > worst) worst = d, at = x;
    }
    print_message("log: largest error %.3f ulp at %a\n", worst, (double)at);
    assert_true(worst <= 1.0);
}

static void sigmoid_is_within_2_1_ulp(void **state) {
    (void)state;
    double worst = 0;
    float at = 0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += sweep_step()) {
        float x = math_from_bits((uint32_t)bits);
        if (isnan(x) || x < -87.3f) continue;
        double d = ulp_distance(math_sigmoid(x), 1 / (1 + exp(-(double)x)));
        if (d > worst) worst = d, at = x;
    }
    print_message("sigmoid: largest error %.3f ulp at %a\n", worst, (double)at);
    assert_true(worst <= 2.1);
    for (float x = -87.3f; x > -200.0f; x -= 0.01f) {
        assert_true(fabs((double)math_sigmoid(x) - 1 / (1 + exp(-(double)x))) < 0x1p-127);
    }
}

static void the_ends_are_exact(void **state) {
    (void)state;
    assert_same(math_exp(0.0f), 1.0f);
    assert_same(math_exp(-0.0f), 1.0f);
    assert_same(math_exp(INFINITY), INFINITY);
    assert_same(math_exp(-INFINITY), 0.0f);
    assert_same(math_exp(-FLT_MAX), 0.0f);
    assert_same(math_exp(-103.0f), 0x1p-149f);
    assert_true(isnan(math_exp(NAN)));
    assert_same(math_log(1.0f), 0.0f);
    assert_same(math_log(0.0f), -INFINITY);
    assert_same(math_log(-0.0f), -INFINITY);
    assert_same(math_log(INFINITY), INFINITY);
    assert_true(isnan(math_log(-1.0f)));
    assert_true(isnan(math_log(-INFINITY)));
    assert_true(isnan(math_log(NAN)));
    assert_same(math_sigmoid(0.0f), 0.5f);
    assert_same(math_sigmoid(INFINITY), 1.0f);
    assert_same(math_sigmoid(-INFINITY), 0.0f);
    assert_true(isnan(math_sigmoid(NAN)));
}

/* The bits are a promise: a change of compiler or of the text must show here. */
static void a_digest_of_the_bits_stays(void **state) {
    (void)state;
    uint64_t digest = 14695981039346656037u;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 65521) {
        float x = math_from_bits((uint32_t)bits);
        if (isnan(x)) continue;
        float y[3] = {math_exp(x), math_log(x), math_sigmoid(x)};
        for (int i = 0; i < 3; i++) {
            uint32_t b = isnan(y[i]) ? 0x7fc00000u : math_to_bits(y[i]);
            digest = (digest ^ b) * 1099511628211u;
        }
    }
    assert_int_equal(digest, 0x7eb1169da8be21fbu);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_one_ulp),      cmocka_unit_test(log_is_within_one_ulp),
        cmocka_unit_test(sigmoid_is_within_2_1_ulp),  cmocka_unit_test(the_ends_are_exact),
        cmocka_unit_test(a_digest_of_the_bits_stays),
    };
    return cmocka_run_group_tests_name("base.mathfn", tests, NULL, NULL);
}
