/* Owns how a config.json becomes a struct model_config, and back. The rules are SPEC's: a key that the arithmetic
 * depends on must be there, since the defaults of the published classes differ from release to release; only
 * total_ut_steps (4) and early_exit_threshold (1) may be missing, and in a llama config, as its first releases were
 * written, head_dim (hidden / heads) and num_key_value_heads (heads). What says that the model computes something else
 * than our block does is refused, never ignored.
 *
 * All mistakes of a file are gathered into one message, the first in full. */
#include "model/config.h"

#include "base/file.h"
#include "base/json.h"
#include "model/packed.h"

#include <libgen.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LOOPS_DEFAULT 4
#define EXIT_THRESHOLD_DEFAULT 1.0

static const char *const family_names[] = {
#define X(code, name) name,
    MODEL_FAMILY_MAP(X)
#undef X
};
#define FAMILY_COUNT ((int)(sizeof family_names / sizeof family_names[0]))

const char *model_family_name(enum model_family family) {
    return family_names[family];
}

void model_config_set_family(struct model_config *config, enum model_family family) {
    config->family = family;
    config->branch_norms = config->exit_gate = family == FAMILY_OURO;
    config->qk_norm = family == FAMILY_QWEN3;
    config->exit_threshold = EXIT_THRESHOLD_DEFAULT;
    config->loops = family == FAMILY_OURO ? LOOPS_DEFAULT : 1;
}

/* ---- gathering mistakes ---------------------------------------------------------------------------------------- */

struct reader {
    struct json_at at;
    struct model_config *config;
    looplm_error *err; /* never NULL */
    int mistakes;
};

/* Keeps the mistake that a check left in `found`; the file's name is said once. */
static void note(struct reader *r, const looplm_error *found) {
    if (r->mistakes++ == 0) {
        *r->err = *found;
        return;
    }
    const char *text = found->message;
    size_t file = strlen(r->at.file);
    if (strncmp(text, r->at.file, file) == 0 && strncmp(text + file, ": ", 2) == 0) text += file + 2;
    size_t used = strlen(r->err->message);
    snprintf(r->err->message + used, sizeof r->err->message - used, "; also %s", text);
}

/* A value as short JSON. */
static void show(const json_t *value, char *out, size_t size) {
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    snprintf(out, size, "%.*s%s", (int)size - 8, text ? text : "nothing", text && strlen(text) > size - 8 ? "..." : "");
    free(text);
}

static void contradiction(struct reader *r, looplm_status status, const char *key, const char *expected) {
    char found[80];
    show(json_object_get(r->at.object, key), found, sizeof found);
    looplm_error err;
    error_set(&err, status, "%s: key '%s': found %s, expected %s", r->at.file, key, found, expected);
    note(r, &err);
}

/* The value of a key, with null read as absent. */
static const json_t *get(const struct reader *r, const char *key) {
    const json_t *value = json_object_get(r->at.object, key);
    return json_is_null(value) ? NULL : value;
}

/* ---- numbers --------------------------------------------------------------------------------------------------- */

static void read_int(struct reader *r, bool needed, const char *key, int64_t min, int64_t max, int32_t *out) {
    looplm_error err;
    int64_t value = *out;
    int status = (needed ? json_need_int : json_want_int)(r->at, key, min, max, &value, &err);
    if (status) note(r, &err);
    *out = (int32_t)value;
}

static void read_double(struct reader *r, bool needed, const char *key, double min, double max, double *out) {
    looplm_error err;
    if ((needed ? json_need_double : json_want_double)(r->at, key, min, max, out, &err)) note(r, &err);
}

static void read_shapes(struct reader *r) {
    struct model_config *c = r->config;
    bool old_llama = c->family == FAMILY_LLAMA;
    read_int(r, true, "num_hidden_layers", 1, MODEL_LAYERS_MAX, &c->layers);
    read_int(r, true, "hidden_size", 16, MODEL_WIDTH_MAX, &c->hidden);
    read_int(r, true, "intermediate_size", 16, MODEL_WIDTH_MAX, &c->ffn);
    read_int(r, true, "vocab_size", 1, MODEL_VOCAB_MAX, &c->vocab);
    read_int(r, true, "num_attention_heads", 1, MODEL_WIDTH_MAX / 16, &c->heads);
    read_int(r, true, "max_position_embeddings", 1, MODEL_POSITIONS_MAX, &c->max_positions);
    c->kv_heads = c->heads;
    if (old_llama && c->heads > 0 && c->hidden % c->heads == 0) c->head_dim = c->hidden / c->heads;
    read_int(r, !old_llama, "num_key_value_heads", 1, MODEL_WIDTH_MAX / 16, &c->kv_heads);
    read_int(r, !(old_llama && c->head_dim), "head_dim", 16, HEAD_DIM_MAX, &c->head_dim);
    read_double(r, true, "rms_norm_eps", 1e-12, 0.1, &c->norm_eps);
    read_double(r, false, "initializer_range", 1e-9, 10, &c->initializer_range);
    looplm_error err;
    if (json_need_bool(r->at, "tie_word_embeddings", &c->tied, &err)) note(r, &err);
}

/* rope_theta stands at the top, or in rope_parameters as newer files have it; where both are, they must agree. */
static void read_rope(struct reader *r) {
    struct model_config *c = r->config;
    const json_t *inner = get(r, "rope_parameters");
    if (!json_is_object(inner)) {
        if (inner) contradiction(r, LOOPLM_FORMAT, "rope_parameters", "an object or null");
        read_double(r, true, "rope_theta", 1, 1e12, &c->rope_theta);
        return;
    }
    struct reader nested = *r;
    nested.at = (struct json_at){inner, r->at.file, "rope_parameters"};
    double top = 0;
    read_double(r, false, "rope_theta", 1, 1e12, &top);
    nested.mistakes = r->mistakes;
    read_double(&nested, top == 0, "rope_theta", 1, 1e12, &c->rope_theta);
    r->mistakes = nested.mistakes;
    if (c->rope_theta == 0) c->rope_theta = top;
    if (top != 0 && c->rope_theta != top)
        contradiction(r, LOOPLM_FORMAT, "rope_theta", "the same value as rope_parameters.rope_theta");
}

static void read_loops(struct reader *r) {
    struct model_config *c = r->config;
    if (c->family == FAMILY_OURO) {
        read_int(r, false, "total_ut_steps", 1, MODEL_LOOPS_MAX, &c->loops);
        read_double(r, false, "early_exit_threshold", 0, 1e6, &c->exit_threshold);
        return;
    }
    const json_t *steps = get(r, "total_ut_steps");
    if (steps && json_integer_value(steps) != 1) {
        contradiction(r, LOOPLM_FORMAT, "total_ut_steps", "no such key, since this model_type does not loop");
    }
}

/* ---- what our block does not compute --------------------------------------------------------------------------- */

/* Absent, null, or an object whose type is "default". */
static bool plain_rope(const json_t *value) {
    if (!value) return true;
    const json_t *type = json_object_get(value, "rope_type");
    if (!type) type = json_object_get(value, "type");
    return json_is_object(value) &&
           (!type || (json_is_string(type) && strcmp(json_string_value(type), "default") == 0));
}

static void check_layer_types(struct reader *r) {
    const json_t *types = get(r, "layer_types");
    if (!types) return;
    char expected[96];
    snprintf(expected, sizeof expected, "an array of %d strings \"full_attention\", one a layer", r->config->layers);
    bool right = json_is_array(types) && json_array_size(types) == (size_t)r->config->layers;
    for (size_t i = 0; right && i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && strcmp(type, "full_attention") == 0) continue;
        char key[48];
        snprintf(key, sizeof key, "layer_types[%zu]", i);
        char found[80];
        show(json_array_get(types, i), found, sizeof found);
        looplm_error err;
        error_set(&err, LOOPLM_UNSUPPORTED, "%s: key '%s': found %s, expected \"full_attention\"", r->at.file, key,
                  found);
        note(r, &err);
        return;
    }
    if (!right) contradiction(r, LOOPLM_FORMAT, "layer_types", expected);
}

static void check_unsupported(struct reader *r) {
    static const char *const must_be_false[] = {"attention_bias", "mlp_bias", "use_sliding_window", "rope_interleaved"};
    for (size_t i = 0; i < sizeof must_be_false / sizeof must_be_false[0]; i++) {
        const json_t *value = get(r, must_be_false[i]);
        if (value && !json_is_false(value)) contradiction(r, LOOPLM_UNSUPPORTED, must_be_false[i], "false");
    }
    if (get(r, "sliding_window") && !json_is_boolean(get(r, "use_sliding_window"))) {
        contradiction(r, LOOPLM_UNSUPPORTED, "sliding_window",
                      "null (full attention), or use_sliding_window false beside it");
    }
    const char *act = json_string_value(get(r, "hidden_act"));
    if (!act || strcmp(act, "silu") != 0) contradiction(r, LOOPLM_UNSUPPORTED, "hidden_act", "\"silu\"");
    if (!plain_rope(get(r, "rope_scaling"))) {
        contradiction(r, LOOPLM_UNSUPPORTED, "rope_scaling", "null or type \"default\"");
    }
    if (json_is_object(get(r, "rope_parameters")) && !plain_rope(get(r, "rope_parameters"))) {
        contradiction(r, LOOPLM_UNSUPPORTED, "rope_parameters", "rope_type \"default\"");
    }
    const json_t *partial = get(r, "partial_rotary_factor");
    if (partial && json_number_value(partial) != 1.0)
        contradiction(r, LOOPLM_UNSUPPORTED, "partial_rotary_factor", "1");
    check_layer_types(r);
}

/* Our own packed form (packed.h), and no other program's. */
static void read_packed(struct reader *r) {
    const json_t *value = get(r, "quantization_config");
    if (!value) return;
    const char *method = json_string_value(json_object_get(value, "quant_method"));
    if (!method || strcmp(method, PACKED_METHOD) != 0) {
        contradiction(r, LOOPLM_UNSUPPORTED, "quantization_config", "none, or our own: give the unquantised model");
        return;
    }
    if (json_integer_value(json_object_get(value, "format")) != PACKED_FORMAT) {
        char expected[80];
        snprintf(expected, sizeof expected, "\"format\": %d; quantise the original again", PACKED_FORMAT);
        contradiction(r, LOOPLM_UNSUPPORTED, "quantization_config", expected);
        return;
    }
    const char *weights = json_string_value(json_object_get(value, "weights"));
    for (int type = WEIGHT_F32; weights && type <= WEIGHT_Q4; type++) {
        if (strcmp(weights, model_weight_type_name((enum weight_type)type)) != 0) continue;
        r->config->packed = true;
        r->config->packed_type = (enum weight_type)type;
        return;
    }
    contradiction(r, LOOPLM_FORMAT, "quantization_config", "\"weights\" of f32, bf16, q8 or q4");
}

/* ---- token ids ------------------------------------------------------------------------------------------------- */

static void add_eos(struct reader *r, const json_t *id) {
    struct model_config *c = r->config;
    int64_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < 0 || value >= c->vocab) {
        contradiction(r, LOOPLM_FORMAT, "eos_token_id", "ids of the vocabulary (0 to vocab_size - 1), one or a list");
        return;
    }
    for (int32_t i = 0; i < c->n_eos; i++) {
        if (c->eos_ids[i] == value) return;
    }
    if (c->n_eos == MODEL_STOP_IDS_MAX) {
        looplm_error err;
        error_set(&err, LOOPLM_LIMIT, "%s: key 'eos_token_id': more than %d ids in all; keep those that end an answer",
                  r->at.file, MODEL_STOP_IDS_MAX);
        note(r, &err);
        return;
    }
    c->eos_ids[c->n_eos++] = (int32_t)value;
}

static void read_eos(struct reader *r) {
    const json_t *eos = get(r, "eos_token_id");
    if (!eos) return;
    if (!json_is_array(eos)) {
        add_eos(r, eos);
        return;
    }
    int before = r->mistakes;
    for (size_t i = 0; i < json_array_size(eos) && r->mistakes == before; i++) add_eos(r, json_array_get(eos, i));
}

static void read_ids(struct reader *r) {
    struct model_config *c = r->config;
    c->bos_id = c->pad_id = -1;
    if (c->vocab == 0) return; /* already a mistake, and the ids cannot be judged */
    read_int(r, false, "bos_token_id", -1, c->vocab - 1, &c->bos_id);
    read_int(r, false, "pad_token_id", -1, c->vocab - 1, &c->pad_id);
    read_eos(r);
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

static int read_family(struct reader *r) {
    const char *name;
    int status = json_need_string(r->at, "model_type", &name, r->err);
    if (status) return status;
    for (int i = 0; i < FAMILY_COUNT; i++) {
        if (strcmp(name, family_names[i]) != 0) continue;
        model_config_set_family(r->config, (enum model_family)i);
        return LOOPLM_OK;
    }
    char offered[128] = "";
    for (int i = 0; i < FAMILY_COUNT; i++) {
        size_t used = strlen(offered);
        snprintf(offered + used, sizeof offered - used, "%s%s", i ? ", " : "", family_names[i]);
    }
    return error_set(r->err, LOOPLM_UNSUPPORTED,
                     "%s: key 'model_type': found \"%.40s\", expected one of %s; other families are not offered",
                     r->at.file, name, offered);
}

static int read_object(struct model_config *config, const json_t *root, const char *origin, looplm_error *err) {
    *config = (struct model_config){0};
    if (!json_is_object(root)) {
        return error_set(err, LOOPLM_FORMAT, "%s: found %s, expected the object of a model's config.json", origin,
                         json_type_name(root));
    }
    struct reader r = {{root, origin, ""}, config, err, 0};
    int status = read_family(&r);
    if (status) return status;
    read_shapes(&r);
    read_rope(&r);
    read_loops(&r);
    read_ids(&r);
    check_unsupported(&r);
    read_packed(&r);
    return r.mistakes ? (int)err->status : model_config_validate(config, origin, err);
}

int model_config_parse(struct model_config *config, const char *text, size_t size, const char *origin,
                       looplm_error *err) {
    looplm_error local;
    if (!err) err = &local;
    json_t *root;
    int status = json_parse(text, size, origin, &root, err);
    if (!status) status = read_object(config, root, origin, err);
    json_decref(root);
    return status;
}

static int add_generation_ids(struct model_config *config, const char *path, looplm_error *err) {
    json_t *root;
    int status = json_read(path, MODEL_CONFIG_BYTES_MAX, &root, err);
    if (!status && !json_is_object(root)) {
        status = error_set(err, LOOPLM_FORMAT, "%s: found %s, expected an object", path, json_type_name(root));
    }
    if (!status) {
        struct reader r = {{root, path, ""}, config, err, 0};
        read_eos(&r);
        if (r.mistakes) status = (int)err->status;
    }
    json_decref(root);
    return status;
}

int model_config_read(struct model_config *config, const char *path, looplm_error *err) {
    looplm_error local;
    if (!err) err = &local;
    size_t n = strlen(path);
    bool file = n > 5 && strcmp(path + n - 5, ".json") == 0 && !file_is_directory(path);
    char *copy = strdup(path);
    char *config_path = file ? strdup(path) : file_join(path, "config.json");
    char *generation = copy ? file_join(file ? dirname(copy) : path, "generation_config.json") : NULL;
    int status = LOOPLM_OK;
    char *text = NULL;
    size_t size;
    if (!config_path || !generation) status = error_set(err, LOOPLM_MEMORY, "%s: no memory for its path", path);
    if (!status) status = file_read(config_path, MODEL_CONFIG_BYTES_MAX, &text, &size, err);
    if (!status) status = model_config_parse(config, text, size, config_path, err);
    if (!status && file_exists(generation)) status = add_generation_ids(config, generation, err);
    free(text);
    free(generation);
    free(config_path);
    free(copy);
    return status;
}

int model_config_validate(const struct model_config *c, const char *origin, looplm_error *err) {
    const struct {
        const char *key;
        int64_t found;
        bool right;
        const char *expected;
    } facts[] = {
        {"num_hidden_layers", c->layers, c->layers >= 1 && c->layers <= MODEL_LAYERS_MAX, "1 to 1024"},
        {"hidden_size", c->hidden, c->hidden >= 16 && c->hidden <= MODEL_WIDTH_MAX && c->hidden % 16 == 0,
         "a multiple of 16 up to 1048576"},
        {"intermediate_size", c->ffn, c->ffn >= 16 && c->ffn <= MODEL_WIDTH_MAX && c->ffn % 16 == 0,
         "a multiple of 16 up to 1048576"},
        {"head_dim", c->head_dim, c->head_dim >= 16 && c->head_dim <= HEAD_DIM_MAX && c->head_dim % 16 == 0,
         "a multiple of 16 up to 256"},
        {"vocab_size", c->vocab, c->vocab >= 1 && c->vocab <= MODEL_VOCAB_MAX, "1 to 16777216"},
        {"num_attention_heads", c->heads, c->heads >= 1 && (int64_t)c->heads * c->head_dim <= MODEL_WIDTH_MAX,
         "at least 1, and heads * head_dim up to 1048576"},
        {"num_key_value_heads", c->kv_heads, c->kv_heads >= 1 && c->kv_heads <= c->heads && c->heads % c->kv_heads == 0,
         "a divisor of num_attention_heads"},
        {"total_ut_steps", c->loops, c->loops >= 1 && c->loops <= MODEL_LOOPS_MAX, "1 to 64"},
        {"max_position_embeddings", c->max_positions, c->max_positions >= 1 && c->max_positions <= MODEL_POSITIONS_MAX,
         "1 to 268435456"},
    };
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        if (facts[i].right) continue;
        return error_set(err, LOOPLM_FORMAT, "%s: key '%s': found %lld, expected %s", origin, facts[i].key,
                         (long long)facts[i].found, facts[i].expected);
    }
    if (!(c->rope_theta >= 1 && c->rope_theta <= 1e12))
        return error_set(err, LOOPLM_FORMAT, "%s: key 'rope_theta': found %g, expected 1 to 1e12", origin,
                         c->rope_theta);
    if (!(c->norm_eps >= 1e-12 && c->norm_eps <= 0.1))
        return error_set(err, LOOPLM_FORMAT, "%s: key 'rms_norm_eps': found %g, expected 1e-12 to 0.1", origin,
                         c->norm_eps);
    return LOOPLM_OK;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static const char *const architectures[] = {
    [FAMILY_OURO] = "OuroForCausalLM",
    [FAMILY_LLAMA] = "LlamaForCausalLM",
    [FAMILY_QWEN3] = "Qwen3ForCausalLM",
};

/* The reference's own classes for Ouro come as files beside the weights. */
static json_t *ouro_facts(const struct model_config *c) {
    json_t *types = json_array();
    for (int32_t i = 0; i < c->layers; i++) json_array_append_new(types, json_string("full_attention"));
    return json_pack("{s:{s:s, s:s, s:s}, s:o, s:i, s:f, s:b, s:n, s:i}", "auto_map", "AutoConfig",
                     "configuration_ouro.OuroConfig", "AutoModel", "modeling_ouro.OuroModel", "AutoModelForCausalLM",
                     "modeling_ouro.OuroForCausalLM", "layer_types", types, "total_ut_steps", (int)c->loops,
                     "early_exit_threshold", c->exit_threshold, "use_sliding_window", 0, "sliding_window",
                     "max_window_layers", (int)c->layers);
}

static json_t *eos_value(const struct model_config *c) {
    if (c->n_eos == 0) return json_null();
    if (c->n_eos == 1) return json_integer(c->eos_ids[0]);
    json_t *list = json_array();
    for (int32_t i = 0; i < c->n_eos; i++) json_array_append_new(list, json_integer(c->eos_ids[i]));
    return list;
}

int model_config_write(const struct model_config *c, const char *directory, const char *dtype, looplm_error *err) {
    CHECK_EQ(c->packed, false);
    json_t *root =
        json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:n, s:s, s:f, s:b, s:s, s:b}",
                  "architectures", architectures[c->family], "model_type", family_names[c->family], "hidden_size",
                  (int)c->hidden, "intermediate_size", (int)c->ffn, "num_hidden_layers", (int)c->layers,
                  "num_attention_heads", (int)c->heads, "num_key_value_heads", (int)c->kv_heads, "head_dim",
                  (int)c->head_dim, "vocab_size", (int)c->vocab, "max_position_embeddings", (int)c->max_positions,
                  "rms_norm_eps", c->norm_eps, "rope_theta", c->rope_theta, "rope_scaling", "hidden_act", "silu",
                  "attention_dropout", 0.0, "tie_word_embeddings", (int)c->tied, "torch_dtype", dtype, "use_cache", 1);
    json_t *more = c->family == FAMILY_OURO ? ouro_facts(c) : json_pack("{s:b}", "attention_bias", 0);
    bool made = root && more && json_object_update(root, more) == 0;
    json_decref(more);
    if (made && c->family == FAMILY_LLAMA) made = json_object_set_new(root, "mlp_bias", json_false()) == 0;
    if (made && c->initializer_range > 0)
        made = json_object_set_new(root, "initializer_range", json_real(c->initializer_range)) == 0;
    if (made)
        made = json_object_set_new(root, "bos_token_id", c->bos_id < 0 ? json_null() : json_integer(c->bos_id)) == 0;
    if (made)
        made = json_object_set_new(root, "pad_token_id", c->pad_id < 0 ? json_null() : json_integer(c->pad_id)) == 0;
    if (made) made = json_object_set_new(root, "eos_token_id", eos_value(c)) == 0;
    char *path = file_join(directory, "config.json");
    int status = made && path ? json_write(path, root, err)
                              : error_set(err, LOOPLM_MEMORY, "%s: no memory to write its config.json", directory);
    free(path);
    json_decref(root);
    return status;
}
