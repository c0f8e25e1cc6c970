/* Central differences of both objectives, in double, against the derivatives that they report. */
#include "support/support.h"

#include "base/random.h"
#include "train/objective.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LOOPS 5
#define POSITIONS 7
#define STEP 1e-5

struct problem {
    struct objective objective;
    struct objective_input input;
    int32_t targets[POSITIONS];
    uint8_t depths[POSITIONS];
    double logit[LOOPS * POSITIONS], ce[LOOPS * POSITIONS];
};

static void fill(struct problem *p, double spread, bool depths) {
    struct random random = {3, 0};
    for (int i = 0; i < LOOPS * POSITIONS; i++) {
        p->logit[i] = spread * (double)random_normal(&random);
        p->ce[i] = fabs(2 + (double)random_normal(&random) * 0.1);
    }
    for (int i = 0; i < POSITIONS; i++) {
        p->targets[i] = i == 2 ? -1 : i;
        p->depths[i] = (uint8_t)(1 + i % LOOPS);
    }
    p->input = (struct objective_input){LOOPS, POSITIONS, p->targets, depths ? p->depths : NULL, p->logit, p->ce};
}

static double loss(const struct problem *p) {
    struct objective_sums sums;
    objective_loss(&p->objective, &p->input, NULL, &sums);
    return sums.loss;
}

static double difference(struct problem *p, double *x) {
    double old = *x;
    *x = old + STEP;
    double up = loss(p);
    *x = old - STEP;
    double down = loss(p);
    *x = old;
    return (up - down) / (2 * STEP);
}

static void check(struct problem *p) {
    double dlogit[LOOPS * POSITIONS], exit[LOOPS * POSITIONS], error = 0, largest = 1e-3;
    struct objective_sums sums;
    objective_loss(&p->objective, &p->input, dlogit, &sums);
    objective_exit(&p->input, exit);
    for (int i = 0; i < LOOPS * POSITIONS; i++) {
        double numeric = difference(p, &p->logit[i]);
        error = fmax(error, fabs(numeric - dlogit[i]));
        largest = fmax(largest, fabs(numeric));
        if (p->objective.kind != OBJECTIVE_STAGE1) continue;
        double by_ce = difference(p, &p->ce[i]), want = p->targets[i % POSITIONS] < 0 ? 0 : exit[i];
        if (fabs(by_ce - want) > 1e-8) fail_msg("derivative by the cross-entropy %d: %g, p is %g", i, by_ce, want);
    }
    if (error > 1e-7 * largest) fail_msg("error %g of a largest derivative %g", error, largest);
}

static void test_differences(void **state) {
    (void)state;
    const double spreads[] = {0.5, 2, 8};
    for (int kind = 0; kind < 2; kind++)
        for (int prior = 0; prior < 2; prior++)
            for (int depths = 0; depths < 2; depths++)
                for (int s = 0; s < 3; s++) {
                    struct problem p = {
                        .objective = {(enum objective_kind)kind, (enum objective_prior)prior, 0.1, 0.3, 50, 0.005}};
                    fill(&p, spreads[s], depths);
                    check(&p);
                }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
