/* The objectives against hand-made values and at their extremes: p by the recurrence of the SPEC, gates that are 0 or 1
 * in float, masks, depths. */
#include "support/support.h"

#include "base/random.h"
#include "train/objective.h"

#include <math.h>
#include <string.h>

#define LOOPS 4
#define POSITIONS 3

static const struct objective stage1 = {OBJECTIVE_STAGE1, PRIOR_UNIFORM, 0.1, 0.3, 50, 0.005};
static const struct objective stage2 = {OBJECTIVE_STAGE2, PRIOR_UNIFORM, 0.1, 0.3, 50, 0.005};

static void near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.9g, expected %.9g", got, want);
}

static void test_exit_follows_the_recurrence(void **state) {
    (void)state;
    const float logit[] = {-1, 0, 2, 0.5f, 3, -2, 9, 9, 9, 7, 7, 7};
    const uint8_t depths[] = {4, 2, 1};
    float p[LOOPS * POSITIONS];
    for (int forced = 0; forced < 2; forced++) {
        struct objective_input input = {LOOPS, POSITIONS, NULL, forced ? depths : NULL, logit, NULL};
        objective_exit(&input, p);
        for (int i = 0; i < POSITIONS; i++) {
            double left = 1;
            int own = forced ? depths[i] : LOOPS;
            for (int r = 0; r < LOOPS; r++) {
                double lambda = 1 / (1 + exp(-(double)logit[r * POSITIONS + i]));
                double want = r >= own ? 0 : r == own - 1 ? left : lambda * left;
                near((double)p[r * POSITIONS + i], want, 1e-7);
                left *= 1 - lambda;
            }
        }
    }
}

static void test_stage1_by_hand(void **state) {
    (void)state;
    /* lambda = 1/2, 1/2, 1/2: p = 1/2, 1/4, 1/8, 1/8. */
    const float logit[] = {0, 0, 0, 0}, ce[] = {4, 3, 2, 1};
    const int32_t targets[] = {5};
    struct objective_input input = {LOOPS, 1, targets, NULL, logit, ce};
    struct objective_sums sums;
    objective_loss(&stage1, &input, NULL, &sums);
    double entropy = 0.5 * log(2) + 0.25 * log(4) + 0.25 * log(8), expected = 2 + 0.75 + 0.25 + 0.125;
    near(sums.entropy, entropy, 1e-12);
    near(sums.loss, expected - 0.1 * entropy, 1e-12);
    struct objective geometric = stage1;
    geometric.prior = PRIOR_GEOMETRIC;
    geometric.prior_exit = 0.5;
    /* The prior is 8, 4, 2, 1 over 15. */
    double kl = 0.5 * log(7.5 / 8) + 0.25 * log(3.75 / 4) + 0.125 * log(1.875 / 2) + 0.125 * log(1.875);
    objective_loss(&geometric, &input, NULL, &sums);
    near(sums.loss, expected + 0.1 * kl, 1e-12);
}

static void test_stage2_by_hand(void **state) {
    (void)state;
    const float logit[] = {5, 0, 1}, ce[] = {2, 1.5f, 1.5f};
    const int32_t targets[] = {0};
    struct objective_input input = {3, 1, targets, NULL, logit, ce};
    struct objective_sums sums;
    float dlogit[3];
    objective_loss(&stage2, &input, dlogit, &sums);
    double gained = 1 / (1 + exp(-50 * (0.5 - 0.005))), idle = 1 / (1 + exp(50 * 0.005)), lambda = 1 / (1 + exp(-1.0));
    double want = log(2) - (idle * log(1 - lambda) + (1 - idle) * log(lambda));
    near(sums.loss, want / 3, 1e-9);
    near((double)dlogit[0], 0, 0); /* the first loop has no term of its own */
    near((double)dlogit[1], (0.5 - (1 - gained)) / 3, 1e-7);
    near((double)dlogit[2], (lambda - (1 - idle)) / 3, 1e-7);
}

/* Gates of 0 and 1 in float and far beyond: nothing is NaN or infinite, p sums to 1. */
static void test_extremes_are_finite(void **state) {
    (void)state;
    const float values[] = {-3e38f, -1e4f, -200, -90, -17, 0, 17, 90, 200, 1e4f, 3e38f};
    const int32_t targets[] = {1};
    const int n = (int)(sizeof values / sizeof *values);
    for (int code = 0; code < n * n * n; code++) {
        const float logit[] = {values[code % n], values[code / n % n], values[code / n / n], 0};
        const float ce[] = {80, 0, 1e-30f, 7};
        struct objective_input input = {LOOPS, 1, targets, NULL, logit, ce};
        float p[LOOPS], dlogit[LOOPS];
        objective_exit(&input, p);
        near((double)p[0] + (double)p[1] + (double)p[2] + (double)p[3], 1, 1e-6);
        for (int prior = 0; prior < 2; prior++) {
            struct objective objective = stage1;
            struct objective_sums sums;
            objective.prior = (enum objective_prior)prior;
            objective_loss(&objective, &input, dlogit, &sums);
            assert_true(isfinite(sums.loss) && isfinite(sums.entropy));
            for (int r = 0; r < LOOPS; r++) assert_true(isfinite(dlogit[r]));
        }
    }
}

static void test_masked_tokens_add_nothing(void **state) {
    (void)state;
    float logit[LOOPS * POSITIONS], ce[LOOPS * POSITIONS], dlogit[LOOPS * POSITIONS];
    for (int i = 0; i < LOOPS * POSITIONS; i++) logit[i] = ce[i] = (float)i / 7;
    const int32_t all[] = {1, 1, 1}, some[] = {1, -1, 1}, none[] = {-1, -1, -1};
    struct objective_sums whole, part, nothing;
    struct objective_input input = {LOOPS, POSITIONS, all, NULL, logit, ce};
    objective_loss(&stage1, &input, dlogit, &whole);
    input.targets = some;
    objective_loss(&stage1, &input, dlogit, &part);
    assert_true(part.loss < whole.loss);
    for (int r = 0; r < LOOPS; r++) assert_true(dlogit[r * POSITIONS + 1] == 0);
    assert_true(dlogit[0] != 0 && dlogit[2] != 0);
    input.targets = none;
    objective_loss(&stage2, &input, dlogit, &nothing);
    assert_true(nothing.loss == 0 && nothing.exit[0] == 0);
}

/* Without a gate all of p is at the last loop, and the loss is its cross-entropy. */
static void test_no_gate(void **state) {
    (void)state;
    const float ce[] = {4, 3, 2, 1};
    const int32_t targets[] = {5};
    struct objective_input input = {LOOPS, 1, targets, NULL, NULL, ce};
    struct objective_sums sums;
    float dlogit[LOOPS];
    objective_loss(&stage1, &input, dlogit, &sums);
    near(sums.loss, 1, 0);
    near(sums.entropy, 0, 0);
    near(sums.exit[3], 1, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exit_follows_the_recurrence),
        cmocka_unit_test(test_stage1_by_hand),
        cmocka_unit_test(test_stage2_by_hand),
        cmocka_unit_test(test_extremes_are_finite),
        cmocka_unit_test(test_masked_tokens_add_nothing),
        cmocka_unit_test(test_no_gate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
