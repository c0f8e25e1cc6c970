/* The schedules at their corners: warm-up, both ends, stairs of loops. */
#include "support/support.h"

#include "train/schedule.h"

#include <math.h>
#include <stdlib.h>

static struct recipe_options plan(int schedule) {
    return (struct recipe_options){.train_steps = 101,
                                   .train_lr = 2,
                                   .train_final_lr = 0.1,
                                   .train_warmup = 10,
                                   .train_decay = 0.2,
                                   .train_schedule = schedule,
                                   .objective_beta = 0.1,
                                   .objective_beta_final = -1};
}

static void assert_near(double found, double expected) {
    if (fabs(found - expected) > 1e-9) fail_msg("found %.12g, expected %.12g", found, expected);
}

static void test_warmup(void **state) {
    (void)state;
    for (int schedule = RECIPE_SCHEDULE_CONSTANT; schedule <= RECIPE_SCHEDULE_WSD; schedule++) {
        struct recipe_options o = plan(schedule);
        assert_near(schedule_lr(&o, 0), 0.2);
        assert_near(schedule_lr(&o, 4), 1);
        assert_near(schedule_lr(&o, 9), 2);
        assert_near(schedule_lr(&o, 10), 2);
        o.train_warmup = 0;
        assert_near(schedule_lr(&o, 0), 2);
    }
}

static void test_constant(void **state) {
    (void)state;
    struct recipe_options o = plan(RECIPE_SCHEDULE_CONSTANT);
    assert_near(schedule_lr(&o, 100), 2);
}

static void test_cosine(void **state) {
    (void)state;
    struct recipe_options o = plan(RECIPE_SCHEDULE_COSINE);
    assert_near(schedule_lr(&o, 55), (2 + 0.2) / 2);
    assert_near(schedule_lr(&o, 100), 0.2);
    for (int64_t step = 11; step <= 100; step++) assert_true(schedule_lr(&o, step) < schedule_lr(&o, step - 1));
}

static void test_wsd(void **state) {
    (void)state;
    struct recipe_options o = plan(RECIPE_SCHEDULE_WSD);
    assert_near(schedule_lr(&o, 80), 2);
    assert_near(schedule_lr(&o, 90), 1.1);
    assert_near(schedule_lr(&o, 100), 0.2);
    o.train_decay = 0;
    assert_near(schedule_lr(&o, 100), 2);
    o.train_decay = 1;
    assert_near(schedule_lr(&o, 10), 2);
    assert_near(schedule_lr(&o, 100), 0.2);
}

static void test_beta(void **state) {
    (void)state;
    struct recipe_options o = plan(RECIPE_SCHEDULE_WSD);
    assert_near(schedule_beta(&o, 77), 0.1);
    o.objective_beta_final = 0.05;
    assert_near(schedule_beta(&o, 0), 0.1);
    assert_near(schedule_beta(&o, 50), 0.075);
    assert_near(schedule_beta(&o, 100), 0.05);
}

static void test_loops(void **state) {
    (void)state;
    struct recipe_options o = plan(RECIPE_SCHEDULE_WSD);
    o.train_steps = 100;
    assert_int_equal(schedule_loops(&o, 4, 0), 4);
    o.train_loops_from = 1;
    o.train_loops_warmup = 0.3;
    assert_int_equal(schedule_loops(&o, 4, 0), 1);
    assert_int_equal(schedule_loops(&o, 4, 9), 1);
    assert_int_equal(schedule_loops(&o, 4, 10), 2);
    assert_int_equal(schedule_loops(&o, 4, 29), 3);
    assert_int_equal(schedule_loops(&o, 4, 30), 4);
    o.train_loops_from = 9;
    assert_int_equal(schedule_loops(&o, 4, 0), 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_warmup), cmocka_unit_test(test_constant),
                                       cmocka_unit_test(test_cosine), cmocka_unit_test(test_wsd),
                                       cmocka_unit_test(test_beta),   cmocka_unit_test(test_loops)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
