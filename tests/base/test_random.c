/* The hash and its stream: fixed bits, open interval, no bias, moments of the normal, avalanche of the hash. */
#include "support/support.h"

#include "base/random.h"

#include <math.h>
#include <stdlib.h>

static void the_bits_are_fixed(void **state) {
    (void)state;
    assert_int_equal(random_hash(0, 0, 0), 0x238275bc38fcbe91u);
    assert_int_equal(random_hash(1, 2, 3), 0xd0734750fde362b3u);
    assert_int_not_equal(random_hash(1, 2, 3), random_hash(1, 3, 2));
    assert_int_not_equal(random_hash(1, 2, 3), random_hash(2, 1, 3));
}

static void units_stay_inside(void **state) {
    (void)state;
    assert_true(random_unit(0) == 0x1p-24f);
    assert_true(random_unit(UINT64_MAX) == 1.0f - 0x1p-24f);
    double sum = 0;
    for (uint64_t i = 0; i < 1000000; i++) sum += random_unit(random_hash(7, i, 11));
    assert_true(fabs(sum / 1e6 - 0.5) < 0.0015); /* five deviations */
}

/* One flipped bit of any argument flips every output bit with probability one half. */
static void the_hash_avalanches(void **state) {
    (void)state;
    enum { TRIALS = 4000 };
    for (int input = 0; input < 192; input += 5) {
        int flips[64] = {0};
        for (uint64_t t = 0; t < TRIALS; t++) {
            uint64_t x[3] = {t * 977, t, t * t}, y[3] = {x[0], x[1], x[2]};
            y[input / 64] ^= 1ull << (input % 64);
            uint64_t d = random_hash(x[0], x[1], x[2]) ^ random_hash(y[0], y[1], y[2]);
            for (int b = 0; b < 64; b++) flips[b] += (int)(d >> b & 1);
        }
        for (int b = 0; b < 64; b++) assert_true(abs(flips[b] - TRIALS / 2) < 6 * 32); /* six deviations */
    }
}

static void below_has_no_bias(void **state) {
    (void)state;
    struct random random = {.seed = 3};
    int64_t counts[6] = {0};
    for (int i = 0; i < 600000; i++) {
        uint64_t r = random_below(&random, 6);
        assert_true(r < 6);
        counts[r]++;
    }
    double chi2 = 0;
    for (int i = 0; i < 6; i++) chi2 += (double)(counts[i] - 100000) * (double)(counts[i] - 100000) / 100000;
    assert_true(chi2 < 25.7); /* five degrees of freedom, 1e-4 */
    /* With n just over 2^63 half of the draws are refused, and the rest must still reach all of 0..n-1. */
    uint64_t n = (1ull << 63) + 1, high = 0;
    for (int i = 0; i < 1000; i++) high += random_below(&random, n) > n / 2;
    assert_true(high > 400 && high < 600);
}

static void the_normal_has_its_moments(void **state) {
    (void)state;
    enum { N = 400000 };
    struct random random = {.seed = 5};
    double m[5] = {0};
    for (int i = 0; i < N; i++) {
        double x = random_normal(&random), power = 1;
        for (int k = 1; k <= 4; k++) m[k] += power *= x;
    }
    assert_true(fabs(m[1] / N) < 0.008);
    assert_true(fabs(m[2] / N - 1) < 0.012);
    assert_true(fabs(m[3] / N) < 0.032);
    assert_true(fabs(m[4] / N - 3) < 0.08);
}

static void a_stream_resumes(void **state) {
    (void)state;
    struct random a = {.seed = 9};
    for (int i = 0; i < 10; i++) (void)random_normal(&a);
    struct random b = {.seed = a.seed, .counter = a.counter};
    for (int i = 0; i < 10; i++) assert_int_equal(random_next(&a), random_next(&b));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bits_are_fixed),         cmocka_unit_test(units_stay_inside),
        cmocka_unit_test(the_hash_avalanches),        cmocka_unit_test(below_has_no_bias),
        cmocka_unit_test(the_normal_has_its_moments), cmocka_unit_test(a_stream_resumes),
    };
    return cmocka_run_group_tests_name("base.random", tests, NULL, NULL);
}
