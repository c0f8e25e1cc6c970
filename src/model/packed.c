/* Owns the names and checks of a packed model's matrices, and its writing. Mapping them is model_load.c's; config.c
 * reads the quantization_config.
 *
 * The file is untrusted: a matrix is accepted only where its bytes are those of its panels by the config's shapes, so
 * kernels stay inside the map whatever the values are. */
#include "model/packed.h"

#include "model/model_place.h"
#include "model/values.h"
#include "tensor/quant.h"

#include <stdlib.h>
#include <string.h>

#define PER_LAYER 4

static size_t padded_size(const struct packed_matrix *m, enum weight_type type) {
    return (weight_size(type, m->n, m->k) + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
}

/* ---- the list --------------------------------------------------------------------------------------------------- */

int32_t packed_count(const struct model_config *c) {
    return 1 + PER_LAYER * c->layers + !c->tied;
}

static struct packed_matrix of_layer(const struct model_config *c, int32_t layer, int32_t which) {
    int64_t d = c->hidden, k = c->head_dim;
    const struct {
        const char *name;
        enum tensor_role role;
        int64_t n, k;
    } matrices[PER_LAYER] = {{"self_attn.qkv_proj", TENSOR_Q, (c->heads + 2 * (int64_t)c->kv_heads) * k, d},
                             {"self_attn.o_proj", TENSOR_O, d, c->heads * k},
                             {"mlp.gate_up_proj", TENSOR_GATE, 2 * (int64_t)c->ffn, d},
                             {"mlp.down_proj", TENSOR_DOWN, d, c->ffn}};
    struct packed_matrix m = {
        .role = matrices[which].role, .layer = layer, .n = matrices[which].n, .k = matrices[which].k};
    snprintf(m.name, sizeof m.name, "model.layers.%d.%s.weight", layer, matrices[which].name);
    return m;
}

struct packed_matrix packed_get(const struct model_config *c, int32_t index) {
    CHECK_LT(index, packed_count(c));
    if (index == 0) return (struct packed_matrix){"model.embed_tokens.weight", TENSOR_EMBED, -1, c->vocab, c->hidden};
    if (index > PER_LAYER * c->layers)
        return (struct packed_matrix){"lm_head.weight", TENSOR_HEAD, -1, c->vocab, c->hidden};
    return of_layer(c, (index - 1) / PER_LAYER, (index - 1) % PER_LAYER);
}

/* The length of the name that `name` has before ".TYPE", and the type; 0 when it does not end so. */
static size_t split_name(const char *name, enum weight_type *type) {
    const char *dot = strrchr(name, '.');
    for (int t = WEIGHT_F32; dot && t <= WEIGHT_Q4; t++) {
        if (strcmp(dot + 1, model_weight_type_name((enum weight_type)t)) != 0) continue;
        *type = (enum weight_type)t;
        return (size_t)(dot - name);
    }
    return 0;
}

bool packed_is_matrix(const struct model_config *c, const char *name) {
    enum weight_type type;
    size_t length = split_name(name, &type);
    for (int32_t i = 0; length && i < packed_count(c); i++) {
        struct packed_matrix m = packed_get(c, i);
        if (strlen(m.name) == length && memcmp(m.name, name, length) == 0) return true;
    }
    return false;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static const struct safetensors_entry *find_typed(const struct safetensors *files, const struct packed_matrix *m,
                                                  enum weight_type type) {
    char name[TENSOR_NAME_MAX + 8];
    snprintf(name, sizeof name, "%s.%s", m->name, model_weight_type_name(type));
    return safetensors_find(files, name);
}

static int check_entry(const struct safetensors *files, const struct packed_matrix *m,
                       const struct safetensors_entry *entry, enum weight_type type, looplm_error *err) {
    const char *path = safetensors_path(files, entry);
    if (quant_type(type) && m->k % QUANT_GROUP) {
        return error_set(err, LOOPLM_MISMATCH,
                         "%s: tensor '%s' has %lld inputs by config.json, and %s takes a multiple of %d; they are not "
                         "of one model",
                         path, entry->name, (long long)m->k, model_weight_type_name(type), QUANT_GROUP);
    }
    size_t expected = padded_size(m, type);
    if (strcmp(entry->dtype, "U8") != 0 || entry->dims != 1 || entry->size != expected) {
        char found[SAFETENSORS_SHAPE_TEXT];
        return error_set(err, LOOPLM_MISMATCH,
                         "%s: tensor '%s': found shape %s of %s, expected [%zu] of U8, a packed %lld x %lld by "
                         "config.json; they are not of one model: quantise it again",
                         path, entry->name, safetensors_shape_text(entry->dims, entry->shape, found), entry->dtype,
                         expected, (long long)m->n, (long long)m->k);
    }
    if ((uintptr_t)safetensors_data(files, entry) % PACKED_ALIGN) {
        return error_set(err, LOOPLM_FORMAT,
                         "%s: tensor '%s' starts at byte %zu, expected a multiple of %d; another program has written "
                         "the file: quantise it again",
                         path, entry->name, entry->offset, PACKED_ALIGN);
    }
    return LOOPLM_OK;
}

int packed_find(const struct safetensors *files, const struct packed_matrix *m, const struct safetensors_entry **entry,
                enum weight_type *type, looplm_error *err) {
    *entry = NULL;
    for (int t = WEIGHT_F32; t <= WEIGHT_Q4; t++) {
        const struct safetensors_entry *found = find_typed(files, m, (enum weight_type)t);
        if (!found) continue;
        if (*entry) {
            return error_set(err, LOOPLM_MISMATCH, "%s: tensor '%s' is there as %s and as %s, expected one of them",
                             safetensors_path(files, found), m->name, model_weight_type_name(*type),
                             model_weight_type_name((enum weight_type)t));
        }
        *entry = found;
        *type = (enum weight_type)t;
    }
    if (*entry) return check_entry(files, m, *entry, *type, err);
    return error_set(err, LOOPLM_MISMATCH,
                     "%s: packed tensor '%s.TYPE' is missing, of any type; config.json and the weights are not of one "
                     "model, or a shard is incomplete",
                     files->n_files ? files->files[0].path : "model.safetensors", m->name);
}

int packed_check(const struct safetensors *files, const struct model_config *c, looplm_error *err) {
    enum weight_type narrowest = WEIGHT_F32;
    for (int32_t i = 0; i < packed_count(c); i++) {
        struct packed_matrix m = packed_get(c, i);
        const struct safetensors_entry *entry;
        enum weight_type type;
        int status = packed_find(files, &m, &entry, &type, err);
        if (status) return status;
        if (m.layer >= 0 && type > narrowest) narrowest = type;
    }
    if (narrowest == c->packed_type) return LOOPLM_OK;
    return error_set(err, LOOPLM_MISMATCH,
                     "%s: found matrices of %s, expected %s by quantization_config.weights of config.json; they are "
                     "not of one model: quantise it again",
                     files->files[0].path, model_weight_type_name(narrowest), model_weight_type_name(c->packed_type));
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int declare_all(struct safetensors_writer *w, struct model *model, const struct tensor_table *table,
                       looplm_error *err) {
    int status = LOOPLM_OK;
    for (int32_t i = 0; !status && i < packed_count(&model->config); i++) {
        struct packed_matrix m = packed_get(&model->config, i);
        int64_t row;
        enum weight_type type = model_matrix(model, m.role, m.layer, &row)->type;
        int64_t size = (int64_t)padded_size(&m, type);
        char name[TENSOR_NAME_MAX + 8];
        snprintf(name, sizeof name, "%s.%s", m.name, model_weight_type_name(type));
        status = safetensors_writer_declare(w, name, "U8", 1, &size, err);
    }
    for (int32_t i = 0; !status && i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        int64_t shape[2] = {spec->dims == 2 ? spec->rows : spec->cols, spec->cols};
        if (!tensor_is_matrix(spec)) status = safetensors_writer_declare(w, spec->name, "F32", spec->dims, shape, err);
    }
    return status;
}

static void write_all(struct safetensors_writer *w, struct model *model, const struct tensor_table *table,
                      float *values) {
    static const unsigned char zeros[PACKED_ALIGN];
    for (int32_t i = 0; i < packed_count(&model->config); i++) {
        struct packed_matrix m = packed_get(&model->config, i);
        int64_t row;
        const struct weight *weight = model_matrix(model, m.role, m.layer, &row);
        size_t size = weight_size(weight->type, weight->n, weight->k);
        safetensors_writer_write(w, weight->data, size);
        safetensors_writer_write(w, zeros, padded_size(&m, weight->type) - size);
    }
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        if (tensor_is_matrix(spec)) continue;
        values_from_real(model_vector(model, spec->role, spec->layer), spec->cols, DTYPE_F32, values);
        safetensors_writer_write(w, values, (size_t)spec->cols * sizeof *values);
    }
}

int packed_write(struct model *model, const char *path, looplm_error *err) {
    struct tensor_table table;
    struct safetensors_writer *w;
    int status = tensor_table_init(&table, &model->config, err);
    if (status) return status;
    int64_t widest = model->config.hidden > model->config.head_dim ? model->config.hidden : model->config.head_dim;
    float *values = malloc((size_t)widest * sizeof *values);
    if (!values) status = error_set(err, LOOPLM_MEMORY, "%s: no memory to write it", path);
    if (!status) status = safetensors_writer_open(&w, path, err);
    if (!status && (status = declare_all(w, model, &table, err))) {
        safetensors_writer_abort(w);
    } else if (!status) {
        write_all(w, model, &table, values);
        status = safetensors_writer_commit(w, err);
    }
    free(values);
    tensor_table_free(&table);
    return status;
}
