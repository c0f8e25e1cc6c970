/* Central differences over the whole tiny model, in double: every parameter of every tensor, both stages, both priors,
 * full depth and forced mixed exits under last-exited, where keys and values of one loop are read by deeper ones. */
#include "tiny.h"

#define POSITIONS 6
#define STEP 2e-5
#define TOLERANCE 1e-6 /* max |numeric - reported| / max |numeric| over a tensor */

static double loss_of(struct tiny *t, const struct unit_input *input, const struct objective *objective) {
    struct unit_result result;
    model_pack(t->model, &t->params);
    unit_evaluate(t->ws, input, objective, &result, NULL, NULL);
    return result.loss;
}

static void check_tensor(struct tiny *t, const struct tensor_spec *spec, const struct unit_input *input,
                         const struct objective *objective) {
    double error = 0, largest = 0;
    for (int64_t i = 0; i < spec->rows * spec->cols; i += THIN(31)) {
        double *x = &t->params.data[spec->offset + i], old = *x;
        *x = old + STEP;
        double up = loss_of(t, input, objective);
        *x = old - STEP;
        double down = loss_of(t, input, objective);
        *x = old;
        double numeric = (up - down) / (2 * STEP);
        error = fmax(error, fabs(numeric - t->gradient[spec->offset + i]));
        largest = fmax(largest, fabs(numeric));
    }
    /* Differences of a loss around 20 are exact to about 1e-14 / STEP. */
    if (error > TOLERANCE * largest + 1e-9) fail_msg("%s: error %g, largest derivative %g", spec->name, error, largest);
}

static void check(const struct model_config *config, const struct objective *objective, const struct unit_input *input,
                  bool recompute) {
    struct tiny t;
    tiny_open(&t, config, 11, "scalar", 1, POSITIONS, recompute);
    tiny_gradient(&t, input, objective);
    for (int32_t i = 0; i < t.params.table.count; i++) {
        const struct tensor_spec *spec = &t.params.table.specs[i];
        bool gate = spec->role == TENSOR_EXIT_WEIGHT || spec->role == TENSOR_EXIT_BIAS;
        if (objective->kind == OBJECTIVE_STAGE1 || gate) {
            check_tensor(&t, spec, input, objective);
        } else { /* the language model is frozen */
            for (int64_t j = 0; j < spec->rows * spec->cols; j++) assert_true(t.gradient[spec->offset + j] == 0);
        }
    }
    tiny_close(&t);
}

static void test_full_depth(void **state) {
    (void)state;
    struct model_config config = tiny_config(3);
    struct tiny_text text;
    tiny_text(&text, 5, POSITIONS, &config, 0, false);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    check(&config, &objective, &text.input, false);
}

static void test_geometric_prior_and_tied_head(void **state) {
    (void)state;
    struct model_config config = tiny_config(2);
    config.tied = true;
    struct tiny_text text;
    tiny_text(&text, 6, POSITIONS, &config, 3, false);
    struct objective objective = tiny_stage1(PRIOR_GEOMETRIC);
    check(&config, &objective, &text.input, false);
}

/* The facts of the dense families, looped. */
static void test_dense_block(void **state) {
    (void)state;
    struct model_config config = tiny_config(2);
    config.branch_norms = false;
    config.qk_norm = true;
    struct tiny_text text;
    tiny_text(&text, 7, POSITIONS, &config, 0, true);
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    check(&config, &objective, &text.input, false);
}

static void test_forced_depths(void **state) {
    (void)state;
    static const uint8_t depths[][POSITIONS] = {{3, 1, 2, 3, 1, 3}, {1, 3, 1, 2, 3, 2}, {2, 2, 1, 1, 2, 1}};
    struct model_config config = tiny_config(3);
    struct tiny_text text;
    for (int i = 0; i < 3; i++) {
        struct objective objective = tiny_stage1(i == 1 ? PRIOR_GEOMETRIC : PRIOR_UNIFORM);
        tiny_text(&text, 8, POSITIONS, &config, i == 2 ? 4 : 0, true);
        memcpy(text.depths, depths[i], POSITIONS);
        check(&config, &objective, &text.input, i == 1);
    }
}

static void test_stage2(void **state) {
    (void)state;
    struct model_config config = tiny_config(3);
    struct tiny_text text;
    struct objective objective = tiny_stage2();
    for (int depths = 0; depths < 2; depths++) {
        tiny_text(&text, 9, POSITIONS, &config, 0, depths);
        check(&config, &objective, &text.input, false);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_depth),  cmocka_unit_test(test_geometric_prior_and_tied_head),
        cmocka_unit_test(test_dense_block), cmocka_unit_test(test_forced_depths),
        cmocka_unit_test(test_stage2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
