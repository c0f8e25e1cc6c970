/* Packed models: a mapped file computes what packing at load computes, bit for bit, and a hostile one is refused before
 * a kernel could read beyond it. */
#include "base/file.h"
#include "base/json.h"
#include "engine/study.h"
#include "model/packed.h"
#include "model/params.h"
#include "support/support.h"
#include "tensor/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

static struct model_config small_config(bool tied) {
    struct model_config c = {.layers = 2,
                             .hidden = 64,
                             .ffn = 96,
                             .vocab = 67, /* the last panel has 16 outputs, of which 3 are used */
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 16,
                             .tied = tied,
                             .max_positions = 64,
                             .rope_theta = 1e4,
                             .norm_eps = 1e-6,
                             .initializer_range = 0.1,
                             .bos_id = -1,
                             .pad_id = -1};
    model_config_set_family(&c, FAMILY_OURO);
    c.loops = 3;
    return c;
}

static struct backend *open_backend(void) {
    struct backend *backend;
    looplm_error err;
    if (cpu_open(&backend, 2, NULL, &err)) fail_msg("%s", err.message);
    return backend;
}

static struct model *open_model(const char *directory, struct backend *backend, const enum weight_type *type) {
    struct model_options options = {.type_given = type != NULL, .weight_type = type ? *type : WEIGHT_F32};
    struct model *model;
    looplm_error err;
    if (model_open(&model, directory, backend, &options, &err)) fail_msg("%s", err.message);
    return model;
}

static char *write_original(bool tied) {
    struct model_config c = small_config(tied);
    struct params params;
    looplm_error err;
    char *directory = support_make_directory();
    if (params_init(&params, &c, 5, 0, &err)) fail_msg("%s", err.message);
    for (int i = 0; i < c.hidden; i++) params_at(&params, TENSOR_EXIT_WEIGHT, -1)[i] = (real)0.1 * (real)(i % 7 - 3);
    if (params_save(&params, directory, DTYPE_F32, &err)) fail_msg("%s", err.message);
    params_free(&params);
    return directory;
}

static void write_config(const char *original, const char *directory, const char *quantization) {
    looplm_error err;
    json_t *root;
    char *from = file_join(original, "config.json"), *to = file_join(directory, "config.json");
    if (json_read(from, 1 << 20, &root, &err)) fail_msg("%s", err.message);
    json_object_set_new(root, "quantization_config", json_loads(quantization, JSON_DECODE_ANY, NULL));
    assert_int_equal(json_write(to, root, &err), 0);
    json_decref(root);
    free(from);
    free(to);
}

/* What `looplm quantize` writes of the weights and the config. */
static char *write_packed(const char *original, struct model *model) {
    char *directory = support_make_directory(), *path = file_join(directory, "model.safetensors"), *text;
    looplm_error err;
    if (packed_write(model, path, &err)) fail_msg("%s", err.message);
    assert_true(asprintf(&text, "{\"quant_method\": \"looplm\", \"format\": 1, \"weights\": \"%s\"}",
                         model_weight_type_name(model->weight_type)) > 0);
    write_config(original, directory, text);
    free(text);
    free(path);
    return directory;
}

static char *write_q4(void) {
    char *original = write_original(false);
    struct backend *backend = open_backend();
    enum weight_type type = WEIGHT_Q4;
    struct model *model = open_model(original, backend, &type);
    char *packed = write_packed(original, model);
    model_close(model);
    backend->close(backend);
    support_remove_directory(original);
    return packed;
}

/* Every loop's hidden states, logits, gate and exit probabilities, as the file of `looplm forward`. */
static char *forward(struct model *model, size_t *size) {
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = i * 29 % 67;
    struct study study;
    looplm_error err;
    if (study_run(&study, model, ids, 40, 0, KV_BF16, &err)) fail_msg("%s", err.message);
    char *directory = support_make_directory(), *path = file_join(directory, "out.safetensors"), *data;
    if (study_write(&study, path, &err)) fail_msg("%s", err.message);
    assert_int_equal(file_read(path, 1 << 24, &data, size, &err), 0);
    study_free(&study);
    free(path);
    support_remove_directory(directory);
    return data;
}

static void assert_same_forward(struct model *a, struct model *b, bool same) {
    size_t n, m;
    char *x = forward(a, &n), *y = forward(b, &m);
    assert_int_equal(n, m);
    assert_int_equal(memcmp(x, y, n) == 0, same);
    free(x);
    free(y);
}

static void assert_mapped(const struct model *model, const struct weight *w) {
    const struct file_map *map = &model->mapped->files[0];
    const unsigned char *data = w->data;
    assert_true(data > map->data && data + weight_size(w->type, w->n, w->k) <= map->data + map->size);
    assert_int_equal((uintptr_t)data % 64, 0);
}

static void test_same_bits(void **state) {
    (void)state;
    struct backend *backend = open_backend();
    for (int tied = 0; tied < 2; tied++) {
        char *original = write_original(tied);
        for (int t = WEIGHT_F32; t <= WEIGHT_Q4; t++) {
            enum weight_type type = (enum weight_type)t;
            struct model *model = open_model(original, backend, &type);
            char *directory = write_packed(original, model);
            struct model *packed = open_model(directory, backend, NULL);
            assert_int_equal(packed->weight_type, type);
            assert_null(packed->memory);
            assert_mapped(packed, &packed->embed);
            assert_mapped(packed, &packed->layers[1].down);
            assert_int_equal(packed->head.data == packed->embed.data, tied);
            assert_same_forward(model, packed, true);
            /* Written again from the map, it is the same file. */
            char *again = write_packed(original, packed), *command;
            assert_true(asprintf(&command, "cmp %s/model.safetensors %s/model.safetensors", directory, again) > 0);
            assert_int_equal(support_shell(command, NULL), 0);
            free(command);
            model_close(packed);
            model_close(open_model(directory, backend, &type)); /* its own type may be asked for */
            model_close(model);
            support_remove_directory(again);
            support_remove_directory(directory);
        }
        support_remove_directory(original);
    }
    backend->close(backend);
}

/* A matrix may have a wider type than the rest. */
static void test_mixed(void **state) {
    (void)state;
    struct backend *backend = open_backend();
    char *original = write_original(false);
    enum weight_type q4 = WEIGHT_Q4, q8 = WEIGHT_Q8;
    struct model *narrow = open_model(original, backend, &q4), *wide = open_model(original, backend, &q8);
    struct weight kept = narrow->layers[1].down;
    narrow->layers[1].down = wide->layers[1].down;
    char *directory = write_packed(original, narrow);
    struct model *mixed = open_model(directory, backend, NULL);
    assert_int_equal(mixed->weight_type, WEIGHT_Q4);
    assert_int_equal(mixed->layers[0].down.type, WEIGHT_Q4);
    assert_int_equal(mixed->layers[1].down.type, WEIGHT_Q8);
    assert_same_forward(narrow, mixed, true);
    narrow->layers[1].down = kept;
    assert_same_forward(narrow, mixed, false);
    model_close(mixed);
    model_close(narrow);
    model_close(wide);
    backend->close(backend);
    support_remove_directory(directory);
    support_remove_directory(original);
}

/* ---- hostile files ---------------------------------------------------------------------------------------------- */

static void assert_refused(const char *directory, looplm_status status, const char *a, const char *b) {
    struct backend *backend = open_backend();
    struct model *model;
    looplm_error err = {0};
    assert_int_equal(model_open(&model, directory, backend, NULL, &err), status);
    assert_null(model);
    support_assert_error(&err, status, directory, a, b, NULL);
    backend->close(backend);
}

/* Rewrites the header of the weights, its end at 8 + `align` n + `shift`. */
static void edit_header(const char *directory, void (*change)(json_t *header), size_t shift) {
    char *path = file_join(directory, "model.safetensors"), *data;
    size_t size, length = 0;
    looplm_error err;
    assert_int_equal(file_read(path, 1 << 24, &data, &size, &err), 0);
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)data[i];
    json_t *header = json_loadb(data + 8, length, 0, NULL);
    assert_non_null(header);
    if (change) change(header);
    char *text = json_dumps(header, JSON_COMPACT);
    size_t padded = (strlen(text) + 8 + 63) / 64 * 64 - 8 + shift;
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    struct file_writer w;
    assert_int_equal(file_writer_open(&w, path, &err), 0);
    file_writer_write(&w, bytes, 8);
    file_writer_printf(&w, "%-*s", (int)padded, text);
    file_writer_write(&w, data + 8 + length, size - 8 - length);
    assert_int_equal(file_writer_commit(&w, &err), 0);
    json_decref(header);
    free(text);
    free(data);
    free(path);
}

#define DOWN "model.layers.1.mlp.down_proj.weight"

static void move(json_t *header, const char *from, const char *to) {
    json_t *entry = json_object_get(header, from);
    assert_non_null(entry);
    json_object_set(header, to, entry);
    json_object_del(header, from);
}
static void other_type(json_t *header) {
    move(header, DOWN ".q4", DOWN ".q8"); /* q8 panels would reach beyond the tensor */
}
static void unknown_type(json_t *header) {
    move(header, DOWN ".q4", DOWN ".q2");
}
static void unpacked_name(json_t *header) {
    move(header, DOWN ".q4", DOWN);
}
static void other_dtype(json_t *header) {
    json_object_set_new(json_object_get(header, DOWN ".q4"), "dtype", json_string("I8"));
}
static void two_dimensions(json_t *header) {
    json_t *entry = json_object_get(header, DOWN ".q4");
    json_int_t size = json_integer_value(json_array_get(json_object_get(entry, "shape"), 0));
    json_object_set_new(entry, "shape", json_pack("[I, I]", size, (json_int_t)1));
}
/* A tensor before it takes its last 64 bytes. */
static void too_small(json_t *header) {
    json_t *entry = json_object_get(header, DOWN ".q4"), *offsets = json_object_get(entry, "data_offsets");
    json_int_t begin = json_integer_value(json_array_get(offsets, 0)),
               end = json_integer_value(json_array_get(offsets, 1)) - 64;
    json_array_set_new(offsets, 1, json_integer(end));
    json_object_set_new(entry, "shape", json_pack("[I]", end - begin));
    json_object_set_new(header, "more",
                        json_pack("{s:s, s:[i], s:[I, I]}", "dtype", "U8", "shape", 64, "data_offsets", end, end + 64));
}
static void both_types(json_t *header) {
    json_object_set_new(header, DOWN ".f32",
                        json_pack("{s:s, s:[i], s:[i, i]}", "dtype", "U8", "shape", 0, "data_offsets", 0, 0));
}
static void further(json_t *header) {
    json_object_set_new(header, "model.layers.7.mlp.down_proj.weight.q4",
                        json_pack("{s:s, s:[i], s:[i, i]}", "dtype", "U8", "shape", 0, "data_offsets", 0, 0));
}
static void norm_missing(json_t *header) {
    move(header, "model.norm.weight", "model.morn.weight");
}

static void test_headers(void **state) {
    (void)state;
    static const struct {
        void (*change)(json_t *header);
        size_t shift;
        looplm_status status;
        const char *a, *b;
    } cases[] = {
        {other_type, 0, LOOPLM_MISMATCH, DOWN ".q8", "a packed 64 x 96"},
        {unknown_type, 0, LOOPLM_MISMATCH, DOWN, "missing"},
        {unpacked_name, 0, LOOPLM_MISMATCH, DOWN, "missing"},
        {other_dtype, 0, LOOPLM_MISMATCH, DOWN ".q4", "of I8"},
        {two_dimensions, 0, LOOPLM_MISMATCH, DOWN ".q4", "found shape ["},
        {too_small, 0, LOOPLM_MISMATCH, DOWN ".q4", "quantise it again"},
        {both_types, 0, LOOPLM_MISMATCH, DOWN, "as f32 and as q4"},
        {further, 0, LOOPLM_MISMATCH, "layers.7", "not one that the model_type"},
        {norm_missing, 0, LOOPLM_MISMATCH, "'model.norm.weight'", "missing"},
        {NULL, 8, LOOPLM_FORMAT, "expected a multiple of 64", "quantise it again"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *directory = write_q4();
        edit_header(directory, cases[i].change, cases[i].shift);
        assert_refused(directory, cases[i].status, cases[i].a, cases[i].b);
        support_remove_directory(directory);
    }
    char *directory = write_q4(); /* the editing itself harms nothing */
    edit_header(directory, NULL, 0);
    struct backend *backend = open_backend();
    model_close(open_model(directory, backend, NULL));
    backend->close(backend);
    support_remove_directory(directory);
}

static void test_truncated(void **state) {
    (void)state;
    char *directory = write_q4(), *command;
    assert_true(asprintf(&command, "truncate -s -64 %s/model.safetensors", directory) > 0);
    assert_int_equal(support_shell(command, NULL), 0);
    assert_refused(directory, LOOPLM_FORMAT, "reach beyond", "truncated");
    free(command);
    support_remove_directory(directory);
}

static void test_configs(void **state) {
    (void)state;
    static const struct {
        const char *text;
        looplm_status status;
        const char *a, *b;
    } cases[] = {
        {"{\"quant_method\": \"looplm\", \"format\": 1, \"weights\": \"q8\"}", LOOPLM_MISMATCH, "found matrices of q4",
         "expected q8"},
        {"{\"quant_method\": \"looplm\", \"format\": 2, \"weights\": \"q4\"}", LOOPLM_UNSUPPORTED, "\"format\": 1",
         "quantise the original again"},
        {"{\"quant_method\": \"looplm\", \"weights\": \"q4\"}", LOOPLM_UNSUPPORTED, "\"format\": 1", ""},
        {"{\"quant_method\": \"looplm\", \"format\": 1, \"weights\": \"q3\"}", LOOPLM_FORMAT, "q3", "bf16, q8 or q4"},
        {"{\"quant_method\": \"looplm\", \"format\": 1}", LOOPLM_FORMAT, "quantization_config", "bf16, q8 or q4"},
        {"{\"quant_method\": \"gptq\", \"bits\": 4}", LOOPLM_UNSUPPORTED, "gptq", "give the unquantised model"},
        {"[]", LOOPLM_UNSUPPORTED, "quantization_config", "give the unquantised model"},
        /* Without it, what is there is not a model's. */
        {"null", LOOPLM_MISMATCH, "model.embed_tokens.weight", "missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *directory = write_q4();
        write_config(directory, directory, cases[i].text);
        assert_refused(directory, cases[i].status, cases[i].a, cases[i].b);
        support_remove_directory(directory);
    }
}

static void test_other_type_and_training(void **state) {
    (void)state;
    char *directory = write_q4();
    struct backend *backend = open_backend();
    struct model_options options = {.type_given = true, .weight_type = WEIGHT_Q8};
    struct model *model;
    struct params params;
    looplm_error err = {0};
    assert_int_equal(model_open(&model, directory, backend, &options, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, directory, "packed as q4", "quantise the original as q8", NULL);
    assert_int_equal(params_load(&params, directory, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, directory, "training starts from the original", NULL);
    backend->close(backend);
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_headers),   cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_configs),   cmocka_unit_test(test_other_type_and_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
