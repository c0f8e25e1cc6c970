/* The comparison of two models: against a naive computation in double from what `looplm forward` writes, and a model
 * against itself. */
#include "base/file.h"
#include "engine/quality.h"
#include "engine/study.h"
#include "model/safetensors.h"
#include "support/support.h"
#include "support/tiny.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOOPS = 3, N = 70, FROM = 20, VOCAB = 67, HIDDEN = 32 };

static const float Q = 0.5f;

static void make_ids(int32_t *ids) {
    for (int i = 0; i < N; i++) ids[i] = (i * i + 3 * i) % VOCAB;
}

static struct quality compare(struct model *reference, struct model *model, const int32_t *ids) {
    int32_t copy[N];
    memcpy(copy, ids, sizeof copy);
    struct piece items[2] = {{copy, N, FROM}, {copy, 2, 0}};
    struct pieces pieces = {.items = items, .count = 2};
    struct quality_options options = {.reference = reference,
                                      .model = model,
                                      .reference_kv = kv_type_default(reference->weight_type),
                                      .model_kv = kv_type_default(model->weight_type),
                                      .q = Q};
    struct quality quality = {0};
    looplm_error err = {0};
    if (quality_check(&options, &err) || quality_add(&quality, &options, &pieces, &err)) fail_msg("%s", err.message);
    assert_int_equal(quality.loops, LOOPS);
    assert_int_equal(quality.positions, N - 1 - FROM + 1);
    return quality;
}

/* ---- the naive one ---------------------------------------------------------------------------------------------- */

struct view {
    struct safetensors file;
    const float *logits, *hidden, *exit;
};

static struct view view_open(struct model *model, const int32_t *ids, int32_t n, const char *directory,
                             const char *name) {
    struct study study;
    struct view view;
    looplm_error err = {0};
    char *path = file_join(directory, name);
    if (study_run(&study, model, ids, n, 0, kv_type_default(model->weight_type), &err) ||
        study_write(&study, path, &err) || safetensors_open(&view.file, path, &err))
        fail_msg("%s", err.message);
    view.logits = safetensors_data(&view.file, safetensors_find(&view.file, "logits"));
    view.hidden = safetensors_data(&view.file, safetensors_find(&view.file, "hidden"));
    view.exit = safetensors_data(&view.file, safetensors_find(&view.file, "exit"));
    study_free(&study);
    free(path);
    return view;
}

static double log_sum(const float *logits) {
    double sum = 0;
    for (int v = 0; v < VOCAB; v++) sum += exp((double)logits[v]);
    return log(sum);
}

static int best(const float *logits) {
    int at = 0;
    for (int v = 1; v < VOCAB; v++)
        if (logits[v] > logits[at]) at = v;
    return at;
}

static void add_row(struct quality_loop *to, const float *a, const float *b, const float *x, const float *y, int next) {
    double la = log_sum(a), lb = log_sum(b), difference = 0, size = 0;
    for (int v = 0; v < VOCAB; v++) {
        double p = (double)a[v] - la;
        to->divergence += exp(p) * (p - ((double)b[v] - lb));
    }
    for (int i = 0; i < HIDDEN; i++) {
        difference += ((double)y[i] - (double)x[i]) * ((double)y[i] - (double)x[i]);
        size += (double)x[i] * (double)x[i];
    }
    to->agree += best(a) == best(b);
    to->hidden += sqrt(difference / size);
    to->reference_loss += la - (double)a[next];
    to->loss += lb - (double)b[next];
}

/* The first loop at which the exit's probabilities reach Q. */
static int depth_of(const float *exits, int n, int position) {
    double sum = 0;
    int r = 0;
    do sum += (double)exits[r++ * n + position];
    while (r < LOOPS && sum < (double)Q);
    return r;
}

static void naive(struct quality *q, struct model *reference, struct model *model, const int32_t *ids, int n,
                  int from) {
    char *directory = support_make_directory();
    struct view a = view_open(reference, ids, n, directory, "a.st"), b = view_open(model, ids, n, directory, "b.st");
    for (int i = from; i + 1 < n; i++) {
        for (int r = 0; r < LOOPS; r++) {
            int row = r * n + i;
            add_row(&q->at[r], a.logits + row * VOCAB, b.logits + row * VOCAB, a.hidden + row * HIDDEN,
                    b.hidden + row * HIDDEN, ids[i + 1]);
        }
        int x = depth_of(a.exit, n, i), y = depth_of(b.exit, n, i);
        q->exit_agree += x == y;
        q->reference_depth += x;
        q->depth += y;
    }
    safetensors_close(&a.file);
    safetensors_close(&b.file);
    support_remove_directory(directory);
}

static void assert_near(double found, double expected, double tolerance) {
    if (!(fabs(found - expected) <= tolerance)) fail_msg("%.9g, expected %.9g", found, expected);
}

static void test_naive(void **state) {
    (void)state;
    int32_t ids[N];
    struct tiny reference, model;
    struct quality expected = {0};
    make_ids(ids);
    tiny_open(&reference, LOOPS, WEIGHT_F32, NULL, 2);
    tiny_open(&model, LOOPS, WEIGHT_Q4, NULL, 2); /* of another ffn size, so another model: far from the reference */
    struct quality found = compare(reference.model, model.model, ids);
    naive(&expected, reference.model, model.model, ids, N, FROM);
    naive(&expected, reference.model, model.model, ids, 2, 0);
    for (int r = 0; r < LOOPS; r++) {
        assert_true(expected.at[r].divergence > 0.1 * N);
        assert_near(found.at[r].divergence, expected.at[r].divergence, 1e-4 * expected.at[r].divergence + 1e-6 * N);
        assert_true(found.at[r].agree == expected.at[r].agree);
        assert_near(found.at[r].hidden, expected.at[r].hidden, 1e-6 * expected.at[r].hidden);
        assert_near(found.at[r].loss, expected.at[r].loss, 1e-6 * expected.at[r].loss);
        assert_near(found.at[r].reference_loss, expected.at[r].reference_loss, 1e-6 * expected.at[r].loss);
    }
    assert_true(found.exit_agree == expected.exit_agree);
    assert_true(found.depth == expected.depth);
    assert_true(found.reference_depth == expected.reference_depth);
    assert_true(found.depth > found.positions && found.depth < LOOPS * found.positions); /* depths vary */
    tiny_close(&reference);
    tiny_close(&model);
}

static void test_itself(void **state) {
    (void)state;
    int32_t ids[N];
    struct tiny tiny;
    make_ids(ids);
    tiny_open(&tiny, LOOPS, WEIGHT_F32, NULL, 2);
    struct quality q = compare(tiny.model, tiny.model, ids);
    for (int r = 0; r < LOOPS; r++) {
        assert_true(q.at[r].divergence == 0 && q.at[r].hidden == 0 && q.at[r].loss == q.at[r].reference_loss);
        assert_true(q.at[r].agree == q.positions);
    }
    assert_true(q.exit_agree == q.positions && q.depth == q.reference_depth);
    tiny_close(&tiny);
}

/* ---- one class of tensors --------------------------------------------------------------------------------------- */

/* A parameter tensor as it would be if it were rounded to q4 and back; rows * cols fresh reals. */
static real *rounded(const struct params *params, const struct tensor_spec *spec) {
    const real *from = params->data + spec->offset;
    real *to = malloc((size_t)(spec->rows * spec->cols) * sizeof *to);
    for (int64_t i = 0; i < spec->rows * spec->cols; i += QUANT_GROUP) {
        int8_t q[QUANT_GROUP];
        uint16_t scale;
        quant_weight_group(WEIGHT_Q4, from + i, q, &scale);
        for (int j = 0; j < QUANT_GROUP; j++) to[i + j] = (real)((float)q[j] * bf16_to_float(scale));
    }
    return to;
}

/* Rounding in the packed model is packing what was rounded before, and moves no other tensor. */
static void check_round(enum tensor_role role) {
    struct tiny tiny; /* of q4, for its sizes */
    struct model *found, *expected;
    looplm_error err = {0};
    tiny_open(&tiny, LOOPS, WEIGHT_Q4, NULL, 1);
    struct params *params = &tiny.params;
    for (int i = 0; i < 2; i++) {
        struct model **model = i ? &expected : &found;
        assert_int_equal(model_alloc(model, &params->config, tiny.backend, WEIGHT_F32, &err), 0);
        for (int32_t t = 0; i && t < params->table.count; t++) {
            const struct tensor_spec *spec = &params->table.specs[t];
            if (spec->role != role) continue;
            real *values = rounded(params, spec);
            memcpy(params->data + spec->offset, values, (size_t)(spec->rows * spec->cols) * sizeof(real));
            free(values);
        }
        model_pack(*model, params);
    }
    if (quality_round(found, 1u << role, WEIGHT_Q4, &err)) fail_msg("%s", err.message);
    assert_int_equal(found->memory_size, expected->memory_size);
    assert_memory_equal(found->memory, expected->memory, found->memory_size);
    model_close(found);
    model_close(expected);
    tiny_close(&tiny);
}

static void test_round(void **state) {
    (void)state;
    static const enum tensor_role roles[] = {TENSOR_EMBED, TENSOR_Q,  TENSOR_K,    TENSOR_V,   TENSOR_O,
                                             TENSOR_GATE,  TENSOR_UP, TENSOR_DOWN, TENSOR_HEAD};
    struct tiny tiny;
    looplm_error err = {0};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) check_round(roles[i]);
    tiny_open(&tiny, LOOPS, WEIGHT_F32, NULL, 1); /* an ffn of 48 is no whole number of groups */
    assert_int_equal(quality_round(tiny.model, 1u << TENSOR_Q, WEIGHT_Q4, &err), LOOPLM_UNSUPPORTED);
    tiny_close(&tiny);
}

static void test_unlike(void **state) {
    (void)state;
    struct tiny a, b;
    looplm_error err = {0};
    tiny_open(&a, LOOPS, WEIGHT_F32, NULL, 1);
    tiny_open(&b, LOOPS + 1, WEIGHT_F32, NULL, 1);
    struct quality_options options = {.reference = a.model, .model = b.model};
    assert_int_equal(quality_check(&options, &err), LOOPLM_MISMATCH);
    assert_non_null(strstr(err.message, "3 loops"));
    tiny_close(&a);
    tiny_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_naive), cmocka_unit_test(test_itself),
                                       cmocka_unit_test(test_round), cmocka_unit_test(test_unlike)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
