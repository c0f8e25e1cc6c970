/* Golden vectors of the PyTorch twin (docs/golden.md): losses and every gradient by name of both stages, the geometric
 * prior, masks, forced mixed depths, and ten AdamW steps; on every kernel table. */
#include "tiny.h"

#include "model/safetensors.h"
#include "support/ops.h"

#include <stdio.h>

#define TOLERANCE 1e-4 /* max |a - b| / max |b| over a tensor */
#define POSITIONS_MAX 16

struct golden {
    struct safetensors expected;
    struct tiny tiny;
    char *directory;
    const char *name, *table;
    bool recompute;
};

static void golden_open(struct golden *g, const char *name, const char *table, bool recompute) {
    looplm_error err = {0};
    char path[512];
    struct params params;
    snprintf(path, sizeof path, "tests/golden/%s", name);
    *g = (struct golden){.name = name, .table = table, .directory = support_source_path(path), .recompute = recompute};
    snprintf(path, sizeof path, "%s/expected.safetensors", g->directory);
    if (safetensors_open(&g->expected, path, &err)) fail_msg("%s", err.message);
    if (params_load(&params, g->directory, &err)) fail_msg("%s", err.message);
    tiny_open_with(&g->tiny, params, table, 2, POSITIONS_MAX, recompute);
}

static void golden_close(struct golden *g) {
    tiny_close(&g->tiny);
    safetensors_close(&g->expected);
    free(g->directory);
}

/* NULL when the case has no such tensor. */
static const void *golden_find(const struct golden *g, const char *name, int64_t *n) {
    const struct safetensors_entry *entry = safetensors_find(&g->expected, name);
    if (!entry) return NULL;
    *n = 1;
    for (int32_t i = 0; i < entry->dims; i++) *n *= entry->shape[i];
    return safetensors_data(&g->expected, entry);
}

static const float *golden_need(const struct golden *g, const char *name, int64_t n) {
    int64_t found = 0;
    const float *data = golden_find(g, name, &found);
    if (!data) fail_msg("%s: %s is not there", g->name, name);
    assert_int_equal(found, n);
    return data;
}

static void compare(const struct golden *g, const char *name, const float *got, double scale, const float *want,
                    int64_t n) {
    double error = 0, largest = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] * scale - (double)want[i]);
        error = difference <= error ? error : difference; /* NaN stays */
        largest = fmax(largest, fabs((double)want[i]));
    }
    if (!(error <= TOLERANCE * largest))
        fail_msg("%s, %s, %s: error %g of %g", g->name, g->table, name, error, largest);
}

static void compare_scalar(const struct golden *g, const char *name, double got) {
    float value = (float)got;
    compare(g, name, &value, 1, golden_need(g, name, 1), 1);
}

/* Targets: the next id, none for the last; or those of the case. */
static void golden_text(const struct golden *g, struct tiny_text *text, const char *ids_name, int sequence,
                        const char *targets_name) {
    int64_t n = 0, total = 0;
    const int32_t *ids = golden_find(g, ids_name, &total);
    assert_non_null(ids);
    n = sequence < 0 ? total : total / 2;
    assert_true(n <= POSITIONS_MAX);
    ids += sequence > 0 ? n * sequence : 0;
    for (int32_t i = 0; i < n; i++) {
        text->ids[i] = ids[i];
        text->targets[i] = i + 1 < n ? ids[i + 1] : -1;
    }
    if (targets_name) memcpy(text->targets, golden_need(g, targets_name, n), (size_t)n * sizeof(int32_t));
    text->input = (struct unit_input){.ids = text->ids, .targets = text->targets, .n = (int32_t)n};
}

/* Every gradient that the case has under the prefix; returns their number. */
static int compare_gradients(const struct golden *g, const char *prefix, double scale) {
    const struct tensor_table *table = &g->tiny.params.table;
    int found = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        char name[256];
        int64_t n = 0;
        snprintf(name, sizeof name, "%s.grad.%s", prefix, spec->name);
        const float *want = golden_find(g, name, &n);
        if (!want) continue;
        assert_int_equal(n, spec->rows * spec->cols);
        compare(g, name, g->tiny.gradient + spec->offset, scale, want, n);
        found++;
    }
    return found;
}

/* Loss and gradients under a prefix; skipped where the case lacks the loss. */
static int check_objective(struct golden *g, const char *prefix, const struct unit_input *input,
                           const struct objective *objective) {
    char name[64];
    int64_t n;
    snprintf(name, sizeof name, "%s.loss", prefix);
    if (!golden_find(g, name, &n)) return 0;
    struct unit_result result = tiny_gradient(&g->tiny, input, objective);
    compare_scalar(g, name, result.loss / (double)result.valid);
    return 1 + compare_gradients(g, prefix, 1.0 / (double)result.valid);
}

static void check_ce(struct golden *g, const char *name, const struct unit_input *input, const char *exit_name) {
    int64_t n = 0, size = (int64_t)g->tiny.params.config.loops * input->n;
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct unit_result result;
    float ce[8 * POSITIONS_MAX], exit[8 * POSITIONS_MAX];
    if (!golden_find(g, name, &n)) return;
    unit_evaluate(g->tiny.ws, input, &objective, &result, ce, exit);
    compare(g, name, ce, 1, golden_need(g, name, size), size);
    if (golden_find(g, exit_name, &n)) compare(g, exit_name, exit, 1, golden_need(g, exit_name, size), size);
}

static int check_depths(struct golden *g, struct tiny_text *text) {
    int64_t n = 0;
    const int32_t *depths = golden_find(g, "depths", &n);
    if (!depths) return 0;
    for (int64_t i = 0; i < n; i++) text->depths[i] = (uint8_t)depths[i];
    text->input.depths = text->depths;
    struct objective uniform = tiny_stage1(PRIOR_UNIFORM), geometric = tiny_stage1(PRIOR_GEOMETRIC);
    check_ce(g, "depth.ce", &text->input, "depth.exit");
    return check_objective(g, "depth", &text->input, &uniform) +
           check_objective(g, "depth.prior", &text->input, &geometric);
}

static void check_case(const char *name, int expected, const char *table, bool recompute) {
    struct golden g;
    struct tiny_text text;
    struct objective uniform = tiny_stage1(PRIOR_UNIFORM), geometric = tiny_stage1(PRIOR_GEOMETRIC),
                     gate = tiny_stage2();
    golden_open(&g, name, table, recompute);
    golden_text(&g, &text, "ids", -1, NULL);
    check_ce(&g, "stage1.ce", &text.input, "exit");
    int found = check_objective(&g, "stage1", &text.input, &uniform);
    found += check_objective(&g, "prior", &text.input, &geometric);
    found += check_objective(&g, "stage2", &text.input, &gate);
    int64_t n;
    if (golden_find(&g, "masked.targets", &n)) {
        struct tiny_text masked;
        golden_text(&g, &masked, "ids", -1, "masked.targets");
        found += check_objective(&g, "masked", &masked.input, &uniform);
    }
    found += check_depths(&g, &text);
    if (found < expected)
        fail_msg("%s: %d expected values were compared, at least %d should be there", name, found, expected);
    golden_close(&g);
}

static void test_cases(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int expected; /* losses and gradients that must be there */
    } cases[] = {{"ouro-mha-r4", 40},     {"ouro-gqa-tied-r3", 40}, {"ouro-r1", 27},
                 {"ouro-r8", 40},         {"ouro-depth-r4", 28},    {"ouro-bf16", 1},
                 {"ouro-f16-sharded", 1}, {"llama-gqa", 19},        {"qwen3-tied", 19}};
    const int n = (int)(sizeof cases / sizeof *cases) * 2;
    for (int t = 0; ops_table(t); t++)
        for (int i = t % THIN(5); i < n; i += THIN(5))
            check_case(cases[i / 2].name, cases[i / 2].expected, ops_table(t), i % 2);
}

/* One batch of two sequences, ten times. */
static void run_adam(struct golden *g) {
    struct tiny *t = &g->tiny;
    struct optimizer_options options = {0.9, 0.95, 1e-8, 0.1, 1.0, false};
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    struct optimizer optimizer;
    struct gradient_tree tree;
    const float *losses = golden_need(g, "adam10.loss", 10), *norms = golden_need(g, "adam10.grad_norm", 10);
    float loss[10], norm[10];
    assert_int_equal(optimizer_init(&optimizer, &t->params, t->backend, &options, NULL), 0);
    assert_int_equal(gradient_tree_init(&tree, t->backend, t->params.table.elements, 2, NULL), 0);
    for (int step = 0; step < 10; step++) {
        double sum = 0, found;
        int64_t valid = 0;
        for (int sequence = 0; sequence < 2; sequence++) {
            struct tiny_text text;
            struct unit_result result;
            golden_text(g, &text, "adam10.ids", sequence, NULL);
            unit_gradient(t->ws, &text.input, &objective, gradient_tree_begin(&tree), &result);
            gradient_tree_push(&tree);
            sum += result.loss;
            valid += result.valid;
        }
        assert_true(optimizer_step(&optimizer, gradient_tree_finish(&tree), (double)valid, 1e-3, &found));
        loss[step] = (float)(sum / (double)valid);
        norm[step] = (float)found;
        tiny_pack(t);
    }
    compare(g, "adam10.loss", loss, 1, losses, 10);
    compare(g, "adam10.grad_norm", norm, 1, norms, 10);
    gradient_tree_free(&tree);
    optimizer_free(&optimizer);
}

static void test_ten_steps(void **state) {
    (void)state;
    for (int i = 0; ops_table(i); i++) {
        struct golden g;
        golden_open(&g, "ouro-adam-r3", ops_table(i), false);
        run_adam(&g);
        const struct tensor_table *table = &g.tiny.params.table;
        for (int32_t s = 0; s < table->count; s++) {
            const struct tensor_spec *spec = &table->specs[s];
            char name[256];
            snprintf(name, sizeof name, "adam10.%s", spec->name);
            compare(&g, name, g.tiny.params.data + spec->offset, 1, golden_need(&g, name, spec->rows * spec->cols),
                    spec->rows * spec->cols);
        }
        golden_close(&g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_ten_steps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
