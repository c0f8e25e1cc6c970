/* Opening a model: the packed weights are those of the file in every table and at any thread count; what does not fit
 * the config is refused by name. */
#include "base/file.h"
#include "model/model.h"
#include "model/params.h"
#include "model/safetensors.h"
#include "support/support.h"
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct backend *open_backend(int threads, const char *table) {
    struct backend *backend;
    looplm_error err;
    if (cpu_open(&backend, threads, table, &err)) fail_msg("%s", err.message);
    return backend;
}

static struct model *open_model(const char *directory, struct backend *backend, const struct model_options *options) {
    struct model *model;
    looplm_error err;
    if (model_open(&model, directory, backend, options, &err)) fail_msg("%s", err.message);
    return model;
}

/* Element [n, k] of a packed weight, from the layout that tensor/backend.h describes. */
static float packed_at(const struct weight *w, int64_t n, int64_t k) {
    int64_t outputs = (w->n + 15) / 16 * 16, first = n / PANEL * PANEL,
            width = outputs - first < PANEL ? outputs - first : PANEL;
    if (w->type == WEIGHT_F32) return ((const float *)w->data)[first * w->k + k * width + n % PANEL];
    uint32_t bits = ((const uint16_t *)w->data)[first * ((w->k + 1) / 2 * 2) + (k / 2 * width + n % PANEL) * 2 + k % 2];
    float x;
    bits <<= 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void assert_matrix(const struct params *p, enum tensor_role role, int32_t layer, const struct weight *w,
                          int64_t row, float tolerance) {
    const struct tensor_spec *spec = tensor_find(&p->table, role, layer);
    const real *source = params_at(p, role, layer);
    for (int64_t n = 0; n < spec->rows; n++) {
        for (int64_t k = 0; k < spec->cols; k++) {
            float expected = (float)source[n * spec->cols + k], found = packed_at(w, row + n, k);
            if (fabsf(found - expected) > tolerance * fabsf(expected)) {
                fail_msg("%s[%d, %d]: found %g, expected %g", spec->name, (int)n, (int)k, found, expected);
            }
        }
    }
}

static void assert_vector(const struct params *p, enum tensor_role role, int32_t layer, const real *found) {
    const struct tensor_spec *spec = tensor_find(&p->table, role, layer);
    if (!spec) {
        assert_null(found);
        return;
    }
    assert_memory_equal(found, params_at(p, role, layer), (size_t)spec->cols * sizeof(real));
}

/* Every tensor of the model stands where the forward pass looks for it. */
static void assert_holds(const struct model *m, const struct params *p, float tolerance) {
    const struct model_config *c = &m->config;
    int64_t k = c->head_dim;
    assert_matrix(p, TENSOR_EMBED, -1, &m->embed, 0, tolerance);
    assert_matrix(p, c->tied ? TENSOR_EMBED : TENSOR_HEAD, -1, &m->head, 0, tolerance);
    for (int32_t i = 0; i < c->layers; i++) {
        const struct layer *l = &m->layers[i];
        assert_matrix(p, TENSOR_Q, i, &l->qkv, 0, tolerance);
        assert_matrix(p, TENSOR_K, i, &l->qkv, c->heads * k, tolerance);
        assert_matrix(p, TENSOR_V, i, &l->qkv, (c->heads + c->kv_heads) * k, tolerance);
        assert_matrix(p, TENSOR_O, i, &l->o, 0, tolerance);
        assert_matrix(p, TENSOR_GATE, i, &l->gate_up, 0, tolerance);
        assert_matrix(p, TENSOR_UP, i, &l->gate_up, c->ffn, tolerance);
        assert_matrix(p, TENSOR_DOWN, i, &l->down, 0, tolerance);
        assert_vector(p, TENSOR_INPUT_NORM, i, l->input_norm);
        assert_vector(p, TENSOR_INPUT_NORM_2, i, l->input_norm_2);
        assert_vector(p, TENSOR_POST_NORM, i, l->post_norm);
        assert_vector(p, TENSOR_POST_NORM_2, i, l->post_norm_2);
        assert_vector(p, TENSOR_Q_NORM, i, l->q_norm);
        assert_vector(p, TENSOR_K_NORM, i, l->k_norm);
    }
    assert_vector(p, TENSOR_NORM, -1, m->norm);
    assert_vector(p, TENSOR_EXIT_WEIGHT, -1, m->exit_weight);
    assert_vector(p, TENSOR_EXIT_BIAS, -1, m->exit_bias);
}

static void test_golden_models(void **state) {
    (void)state;
    static const struct {
        const char *path;
        enum weight_type stored;
    } models[] = {{"tests/golden/ouro-mha-r4", WEIGHT_F32}, {"tests/golden/ouro-gqa-tied-r3", WEIGHT_F32},
                  {"tests/golden/ouro-bf16", WEIGHT_BF16},  {"tests/golden/ouro-f16-sharded", WEIGHT_F32},
                  {"tests/golden/llama-gqa", WEIGHT_F32},   {"tests/golden/qwen3-tied", WEIGHT_F32}};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char *directory = support_source_path(models[i].path);
        struct backend *backend = open_backend(2, NULL);
        struct params params;
        looplm_error err;
        if (params_load(&params, directory, &err)) fail_msg("%s", err.message);
        struct model *model = open_model(directory, backend, NULL);
        assert_int_equal(model->weight_type, models[i].stored);
        assert_holds(model, &params, 0);
        model_close(model);
        struct model_options bf16 = {.type_given = true, .weight_type = WEIGHT_BF16};
        model = open_model(directory, backend, &bf16);
        assert_int_equal(model->weight_type, WEIGHT_BF16);
        assert_holds(model, &params, 0x1p-8f);
        model_close(model);
        params_free(&params);
        backend->close(backend);
        free(directory);
    }
}

/* The embedding of a large model takes more than one piece of the loader (32 MiB), of which the last is no whole panel.
 */
enum { SMALL = 2051, LARGE = 33003 };

static char *write_model(enum model_family family, bool tied, int32_t vocab, void (*change)(struct params *)) {
    struct model_config c = {.layers = 1,
                             .hidden = 256,
                             .ffn = 2064,
                             .vocab = vocab,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 32,
                             .tied = tied,
                             .max_positions = 64,
                             .rope_theta = 1e4,
                             .norm_eps = 1e-6,
                             .initializer_range = 0.05,
                             .bos_id = -1,
                             .pad_id = -1};
    model_config_set_family(&c, family);
    char *directory = support_make_directory();
    struct params params;
    looplm_error err;
    if (params_init(&params, &c, 1, 0, &err)) fail_msg("%s", err.message);
    if (change) change(&params);
    if (params_save(&params, directory, DTYPE_F32, &err)) fail_msg("%s", err.message);
    params_free(&params);
    return directory;
}

static void test_tables_and_threads(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, LARGE, NULL);
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++) {
        struct model_options options = {.type_given = true, .weight_type = (enum weight_type)type};
        struct backend *oracle_backend = open_backend(1, "scalar");
        struct model *oracle = open_model(directory, oracle_backend, &options);
        for (const struct cpu_table *const *table = cpu_tables(); *table; table++) {
            if (!(*table)->supported()) continue;
            for (int threads = 1; threads <= 3; threads += 2) {
                struct backend *backend = open_backend(threads, (*table)->name);
                struct model *model = open_model(directory, backend, &options);
                assert_int_equal(model->memory_size, oracle->memory_size);
                assert_memory_equal(model->memory, oracle->memory, model->memory_size);
                assert_memory_equal(model->vectors, oracle->vectors, model->vectors_size);
                model_close(model);
                backend->close(backend);
            }
        }
        model_close(oracle);
        oracle_backend->close(oracle_backend);
    }
    support_remove_directory(directory);
}

static void test_pack_is_open(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_QWEN3, true, SMALL, NULL);
    struct backend *backend = open_backend(2, NULL);
    struct model *opened = open_model(directory, backend, NULL), *packed;
    struct params params;
    looplm_error err;
    if (params_load(&params, directory, &err)) fail_msg("%s", err.message);
    assert_int_equal(model_alloc(&packed, &params.config, backend, WEIGHT_F32, &err), LOOPLM_OK);
    for (int time = 0; time < 2; time++) {
        model_pack(packed, &params);
        assert_memory_equal(packed->memory, opened->memory, opened->memory_size);
        assert_memory_equal(packed->vectors, opened->vectors, opened->vectors_size);
    }
    assert_ptr_equal(opened->head.data, opened->embed.data);
    assert_true(opened->inverse_frequency[0] == 1.0f &&
                opened->inverse_frequency[1] == 1.0f / (float)pow(1e4, 1.0 / 16));
    model_close(packed);
    model_close(opened);
    params_free(&params);
    backend->close(backend);
    support_remove_directory(directory);
}

static void put_nan_last(struct params *p) {
    params_at(p, TENSOR_HEAD, -1)[LARGE * 256 - 1] = (real)NAN;
}
static void put_infinity_first(struct params *p) {
    params_at(p, TENSOR_K, 0)[0] = (real)INFINITY;
}
static void put_nan_in_norm(struct params *p) {
    params_at(p, TENSOR_NORM, -1)[3] = (real)NAN;
}

static void assert_not_opened(const char *directory, looplm_status status, const char *part, const char *part2,
                              const char *part3) {
    struct backend *backend = open_backend(2, NULL);
    struct model *model;
    looplm_error err = {0};
    assert_int_not_equal(model_open(&model, directory, backend, NULL, &err), LOOPLM_OK);
    assert_null(model);
    support_assert_error(&err, status, part, part2, part3, NULL);
    backend->close(backend);
}

static void test_refuses_nonfinite(void **state) {
    (void)state;
    static const struct {
        void (*change)(struct params *);
        const char *tensor, *what;
    } cases[] = {{put_nan_last, "'lm_head.weight'", "element 8448767 is NaN"},
                 {put_infinity_first, "'model.layers.0.self_attn.k_proj.weight'", "element 0 is infinite"},
                 {put_nan_in_norm, "'model.norm.weight'", "element 3 is NaN"}};
    for (int i = 0; i < 3; i++) {
        char *directory = write_model(FAMILY_OURO, false, LARGE, cases[i].change);
        assert_not_opened(directory, LOOPLM_FORMAT, "model.safetensors", cases[i].tensor, cases[i].what);
        support_remove_directory(directory);
    }
}

/* Rewrites one key of the config, so that it contradicts the weights. */
static void change_config(const char *directory, void (*change)(struct model_config *)) {
    struct model_config c;
    looplm_error err;
    assert_int_equal(model_config_read(&c, directory, &err), LOOPLM_OK);
    change(&c);
    assert_int_equal(model_config_write(&c, directory, "float32", &err), LOOPLM_OK);
}
static void more_layers(struct model_config *c) {
    c->layers = 2;
}
static void other_ffn(struct model_config *c) {
    c->ffn = 2048;
}
static void untied(struct model_config *c) {
    c->tied = false;
}
static void tied(struct model_config *c) {
    c->tied = true;
}
static void llama(struct model_config *c) {
    model_config_set_family(c, FAMILY_LLAMA);
}

static void test_refuses_contradictions(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, SMALL, NULL);
    change_config(directory, other_ffn);
    assert_not_opened(directory, LOOPLM_MISMATCH, "'model.layers.0.mlp.gate_proj.weight'", "found shape [2064, 256]",
                      "expected [2048, 256]");
    support_remove_directory(directory);

    directory = write_model(FAMILY_OURO, false, SMALL, NULL);
    change_config(directory, more_layers);
    assert_not_opened(directory, LOOPLM_MISMATCH, "'model.layers.1.input_layernorm.weight' of shape [256] is missing",
                      "and 10 more", "model.safetensors");
    support_remove_directory(directory);

    directory = write_model(FAMILY_OURO, false, SMALL, NULL);
    change_config(directory, llama);
    assert_not_opened(directory, LOOPLM_MISMATCH, "not one that the model_type 'llama'", "early_exit_gate",
                      "model.safetensors");
    support_remove_directory(directory);

    directory = write_model(FAMILY_OURO, true, SMALL, NULL);
    change_config(directory, untied);
    assert_not_opened(directory, LOOPLM_MISMATCH, "'lm_head.weight' of shape [2051, 256] is missing",
                      "tie_word_embeddings", "");
    support_remove_directory(directory);
}

static void test_tied_ignores_the_head(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, SMALL, NULL);
    change_config(directory, tied);
    struct backend *backend = open_backend(1, NULL);
    struct model *model = open_model(directory, backend, NULL);
    assert_ptr_equal(model->head.data, model->embed.data);
    model_close(model);
    backend->close(backend);
    support_remove_directory(directory);
}

static void test_unexpected_type(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, SMALL, NULL), *path = file_join(directory, "model.safetensors");
    char *text;
    size_t size;
    looplm_error err;
    assert_int_equal(file_read(path, 1 << 26, &text, &size, &err), LOOPLM_OK);
    char *type = strstr(text + 8, "\"F32\"");
    assert_non_null(type);
    memcpy(type, "\"I32\"", 5);
    struct file_writer w;
    assert_int_equal(file_writer_open(&w, path, &err), LOOPLM_OK);
    file_writer_write(&w, text, size);
    assert_int_equal(file_writer_commit(&w, &err), LOOPLM_OK);
    assert_not_opened(directory, LOOPLM_FORMAT, "'model.embed_tokens.weight'", "found dtype I32",
                      "expected F32, BF16, F16");
    free(text);
    free(path);
    support_remove_directory(directory);
}

static void test_truncated(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, SMALL, NULL), *path = file_join(directory, "model.safetensors"),
         *command;
    assert_true(asprintf(&command, "truncate -s -100 %s", path) > 0);
    assert_int_equal(support_shell(command, NULL), 0);
    assert_not_opened(directory, LOOPLM_FORMAT, path, "reach beyond", "truncated");
    free(command);
    free(path);
    support_remove_directory(directory);
}

struct seen {
    int64_t last, total;
    int calls;
};
static void see(void *context, int64_t done, int64_t total) {
    struct seen *seen = context;
    assert_true(done >= seen->last && done <= total);
    seen->last = done;
    seen->total = total;
    seen->calls++;
}

static void test_progress(void **state) {
    (void)state;
    char *directory = write_model(FAMILY_OURO, false, SMALL, NULL);
    struct backend *backend = open_backend(1, NULL);
    struct seen seen = {0};
    struct model_options options = {.progress = see, .progress_context = &seen};
    model_close(open_model(directory, backend, &options));
    assert_true(seen.calls >= 9);
    assert_int_equal(seen.last, seen.total);
    options = (struct model_options){.type_given = true, .weight_type = WEIGHT_Q4};
    struct model *model;
    looplm_error err;
    assert_int_equal(model_open(&model, directory, backend, &options, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "q4", "f32 or bf16", NULL);
    backend->close(backend);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_models),
        cmocka_unit_test(test_tables_and_threads),
        cmocka_unit_test(test_pack_is_open),
        cmocka_unit_test(test_refuses_nonfinite),
        cmocka_unit_test(test_refuses_contradictions),
        cmocka_unit_test(test_tied_ignores_the_head),
        cmocka_unit_test(test_unexpected_type),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
