/* Documents packed into one unit are what they are as units of their own: every token's cross-entropy and exit
 * probabilities to the bit, the gradient but for the order of its sums over rows. */
#include "tiny.h"

#include <math.h>

#define LOOPS 3
#define DOCUMENTS 4

static const int32_t starts[DOCUMENTS] = {0, 5, 6, 40};
#define N 75 /* the last document begins in the middle of a KV block's worth of rows and has 35 positions */

static int32_t document_end(int d) {
    return d + 1 < DOCUMENTS ? starts[d + 1] : N;
}

static void check(bool depths, bool recompute) {
    struct model_config config = tiny_config(LOOPS);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct tiny t;
    struct tiny_text text;
    struct unit_result packed, sum = {0}, one;
    static real ce[LOOPS * N], p[LOOPS * N], ce_one[LOOPS * N], p_one[LOOPS * N];
    tiny_open(&t, &config, 5, NULL, 2, N, recompute);
    tiny_text(&text, 6, N, &config, 7, depths);
    struct unit_input input = text.input;
    input.starts = starts;
    input.n_documents = DOCUMENTS;
    unit_evaluate(t.ws, &input, &objective, &packed, ce, p);
    tiny_gradient(&t, &input, &objective);
    real *gradient = malloc(tiny_size(&t));
    assert_non_null(gradient);
    memcpy(gradient, t.gradient, tiny_size(&t));

    memset(t.gradient, 0, tiny_size(&t));
    for (int d = 0; d < DOCUMENTS; d++) {
        int32_t at = starts[d], n = document_end(d) - at;
        struct unit_input alone = {
            .ids = text.ids + at, .targets = text.targets + at, .depths = depths ? text.depths + at : NULL, .n = n};
        unit_evaluate(t.ws, &alone, &objective, &one, ce_one, p_one);
        for (int r = 0; r < LOOPS; r++) {
            assert_memory_equal(ce + r * N + at, ce_one + r * n, (size_t)n * sizeof(real));
            assert_memory_equal(p + r * N + at, p_one + r * n, (size_t)n * sizeof(real));
        }
        unit_gradient(t.ws, &alone, &objective, t.gradient, &one);
        sum.loss += one.loss;
        sum.valid += one.valid;
    }
    assert_true(fabs(sum.loss - packed.loss) < 1e-9 * fabs(packed.loss));
    assert_int_equal(sum.valid, packed.valid);
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < t.params.table.elements; i++) {
        worst = fmax(worst, fabs((double)gradient[i] - (double)t.gradient[i]));
        largest = fmax(largest, fabs((double)gradient[i]));
    }
    /* Sums of some 225 rows in another order: each addition rounds by 2^-24 of the sum. */
    assert_true(worst <= 225 * 0x1p-24 * largest);
    assert_true(largest > 0);
    free(gradient);
    tiny_close(&t);
}

static void test_full_depth(void **state) {
    (void)state;
    check(false, false);
}
static void test_forced_depths(void **state) {
    (void)state;
    check(true, false);
}
static void test_recompute(void **state) {
    (void)state;
    check(true, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_full_depth), cmocka_unit_test(test_forced_depths),
                                       cmocka_unit_test(test_recompute)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
