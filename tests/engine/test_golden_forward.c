/* The forward pass against the PyTorch twin and transformers (tests/golden, docs/golden.md): logits, hidden states,
 * lambda and p of every loop, on every kernel table, within 1e-4 of the largest value with f32 weights; and bf16 within
 * what rounding the inputs of products explains. */
#include "base/file.h"
#include "base/random.h"
#include "engine/study.h"
#include "model/params.h"
#include "model/safetensors.h"
#include "support/support.h"
#include "tensor/cpu/cpu.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const float *golden(const struct safetensors *st, const char *name, int64_t elements) {
    const struct safetensors_entry *e = safetensors_find(st, name);
    if (!e) return NULL;
    assert_int_equal(e->size, elements * 4);
    return safetensors_data(st, e);
}

/* max |a - b| / max |b|. */
static double difference(const float *a, const float *b, int64_t n) {
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* NaN counts as worst */
        if (fabs((double)b[i]) > largest) largest = fabs((double)b[i]);
    }
    return worst / largest;
}

static void check(const char *what, const char *directory, const char *table, const float *a, const float *b, int64_t n,
                  double tolerance) {
    if (!b) return;
    double d = difference(a, b, n);
    if (!(d <= tolerance))
        fail_msg("%s, table %s: %s differs by %.2e, allowed %.1e", directory, table, what, d, tolerance);
}

static void run_case(const char *directory, const char *table, double tolerance) {
    looplm_error err = {0};
    struct backend *backend;
    struct model *model;
    struct model_options options = {.type_given = true, .weight_type = WEIGHT_F32};
    assert_int_equal(cpu_open(&backend, 2, table, &err), 0);
    if (model_open(&model, directory, backend, &options, &err)) fail_msg("%s", err.message);
    char *path = file_join(directory, "expected.safetensors");
    struct safetensors st;
    if (safetensors_open(&st, path, &err)) fail_msg("%s", err.message);
    const struct safetensors_entry *ids = safetensors_find(&st, "ids");
    assert_non_null(ids);
    int32_t n = (int32_t)(ids->size / 4), loops = model->config.loops;

    struct study study;
    if (study_run(&study, model, safetensors_data(&st, ids), n, 0, KV_F32, &err)) fail_msg("%s", err.message);
    check("hidden", directory, table, study.hidden, golden(&st, "hidden", (int64_t)loops * n * model->config.hidden),
          (int64_t)loops * n * model->config.hidden, tolerance);
    if (study.gate) {
        check("gate", directory, table, study.gate, golden(&st, "gate", (int64_t)loops * n), (int64_t)loops * n,
              tolerance);
        check("exit", directory, table, study.exit, golden(&st, "exit", (int64_t)loops * n), (int64_t)loops * n,
              tolerance);
    }
    char *scratch = support_make_directory(), *out = file_join(scratch, "out.safetensors");
    if (study_write(&study, out, &err)) fail_msg("%s", err.message);
    struct safetensors written;
    assert_int_equal(safetensors_open(&written, out, &err), 0);
    int64_t logits = (int64_t)loops * n * model->config.vocab;
    check("logits", directory, table, golden(&written, "logits", logits), golden(&st, "logits", logits), logits,
          tolerance);
    safetensors_close(&written);
    study_free(&study);
    safetensors_close(&st);
    free(path);
    free(out);
    support_remove_directory(scratch);
    model_close(model);
    backend->close(backend);
}

/* Runs every committed case; returns how many. */
static int run_all(const char *table, double tolerance) {
    char *root = support_source_path("tests/golden");
    DIR *dir = opendir(root);
    assert_non_null(dir);
    int cases = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        char *directory = file_join(root, entry->d_name);
        if (file_is_directory(directory)) {
            run_case(directory, table, tolerance);
            cases++;
        }
        free(directory);
    }
    closedir(dir);
    free(root);
    return cases;
}

static void each_table(void (*run)(const char *table)) {
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++) {
        if ((*t)->supported())
            run((*t)->name);
        else
            print_message("skipped: table %s is not supported here\n", (*t)->name);
    }
}

static void table_f32(const char *table) {
    assert_true(run_all(table, 1e-4) >= 11);
}

static void test_f32(void **state) {
    (void)state;
    each_table(table_f32);
}

/* ---- bf16
 * ------------------------------------------------------------------------------------------------------------- */

static void hidden_states(struct model *model, enum kv_type kv, struct study *study) {
    static const int32_t ids[] = {5, 1, 44, 17, 3, 29, 60, 8, 21, 2, 33, 12};
    looplm_error err = {0};
    if (study_run(study, model, ids, 12, 0, kv, &err)) fail_msg("%s", err.message);
}

static double rms_difference(const real *a, const real *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(sum / (double)n);
}

/* Every weight of a product times 1 + e, e uniform in +-sqrt(3) 2^-9. */
static void disturb(struct params *params, uint64_t seed) {
    struct random random = {seed, 0};
    for (int32_t i = 0; i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        if (spec->dims != 2 || !spec->decayed) continue;
        real *w = params->data + spec->offset;
        for (int64_t j = 0; j < spec->rows * spec->cols; j++)
            w[j] *= (real)(1 + 1.7320508 / 512 * (2.0 * (double)random_unit(random_next(&random)) - 1));
    }
}

/* The bound: rounding an input to bf16 moves it by at most 2^-9 of itself. A product rounds both its inputs and
 * attention reads rounded keys and values, three errors of at most 2^-9 on the way of any term, independent of each
 * other; so the result may be as far from the f32 one as it is when every weight is moved at random by sqrt(3) 2^-9,
 * carried through all layers and loops by the model itself. The root mean squares are compared, with a factor of 2 for
 * the scatter between draws; and the error must be more than a thirtieth of it, or bf16 was not used. */
static void bf16_case(const char *directory, const char *table) {
    looplm_error err = {0};
    struct backend *backend;
    struct params params;
    struct model *f32, *bf16;
    assert_int_equal(cpu_open(&backend, 2, table, &err), 0);
    if (params_load(&params, directory, &err)) fail_msg("%s", err.message);
    assert_int_equal(model_alloc(&f32, &params.config, backend, WEIGHT_F32, &err), 0);
    assert_int_equal(model_alloc(&bf16, &params.config, backend, WEIGHT_BF16, &err), 0);
    model_pack(f32, &params);
    model_pack(bf16, &params);
    struct study exact, rounded, moved;
    hidden_states(f32, KV_F32, &exact);
    hidden_states(bf16, KV_BF16, &rounded);
    int64_t n = (int64_t)exact.loops * exact.n * params.config.hidden;
    double error = rms_difference(rounded.hidden, exact.hidden, n), explained = 0;
    disturb(&params, 3);
    model_pack(f32, &params);
    hidden_states(f32, KV_F32, &moved);
    explained = rms_difference(moved.hidden, exact.hidden, n);
    if (!(error <= 2 * explained) || !(error >= explained / 30))
        fail_msg("%s, table %s: bf16 moves the hidden states by %.2e (rms); rounding explains %.2e", directory, table,
                 error, explained);
    study_free(&exact);
    study_free(&rounded);
    study_free(&moved);
    model_close(f32);
    model_close(bf16);
    params_free(&params);
    backend->close(backend);
}

static void table_bf16(const char *table) {
    static const char *const cases[] = {"ouro-mha-r4", "ouro-gqa-tied-r3", "ouro-r1",
                                        "ouro-r8",     "qwen3-tied",       "llama-gqa"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64];
        snprintf(name, sizeof name, "tests/golden/%s", cases[i]);
        char *directory = support_source_path(name);
        bf16_case(directory, table);
        free(directory);
    }
}

static void test_bf16(void **state) {
    (void)state;
    each_table(table_bf16);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
