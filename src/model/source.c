/* Owns the agreement of a model's files with its config. Leaves values alone. */
#include "model/source.h"

#include "base/file.h"
#include "model/packed.h"

#include "model/values.h"

#include <math.h>
#include <string.h>

static void spec_shape(const struct tensor_spec *spec, int64_t shape[2]) {
    shape[0] = spec->dims == 2 ? spec->rows : spec->cols;
    shape[1] = spec->cols;
}

static bool shape_right(const struct tensor_spec *spec, const struct safetensors_entry *entry) {
    int64_t shape[2];
    spec_shape(spec, shape);
    return entry->dims == spec->dims && memcmp(shape, entry->shape, (size_t)spec->dims * sizeof shape[0]) == 0;
}

/* Where the tensors are, for messages about one that is not. */
static const char *files_name(const struct model_source *s) {
    return s->files.n_files ? s->files.files[0].path : "model.safetensors";
}

static int missing(const struct model_source *s, const struct tensor_spec *spec, looplm_error *err) {
    int32_t count = 0;
    for (int32_t i = 0; i < s->table.count; i++) count += !safetensors_find(&s->files, s->table.specs[i].name);
    int64_t shape[2];
    char text[SAFETENSORS_SHAPE_TEXT], others[48] = "";
    spec_shape(spec, shape);
    safetensors_shape_text(spec->dims, shape, text);
    if (count > 1) snprintf(others, sizeof others, ", and %d more", count - 1);
    return error_set(
        err, LOOPLM_MISMATCH, "%s: tensor '%s' of shape %s is missing%s; %s", files_name(s), spec->name, text, others,
        spec->role == TENSOR_HEAD ? "config.json says tie_word_embeddings false: write the head, or set it to true"
                                  : "config.json and the weights are not of one model, or a shard is incomplete");
}

static int check_tensor(const struct model_source *s, const struct tensor_spec *spec, looplm_error *err) {
    const struct safetensors_entry *entry = safetensors_find(&s->files, spec->name);
    if (!entry) return missing(s, spec, err);
    if (!shape_right(spec, entry)) {
        char found[SAFETENSORS_SHAPE_TEXT], expected[SAFETENSORS_SHAPE_TEXT];
        int64_t shape[2];
        spec_shape(spec, shape);
        return error_set(err, LOOPLM_MISMATCH,
                         "%s: tensor '%s': found shape %s, expected %s by config.json; they are not of one model",
                         safetensors_path(&s->files, entry), spec->name,
                         safetensors_shape_text(entry->dims, entry->shape, found),
                         safetensors_shape_text(spec->dims, shape, expected));
    }
    enum dtype dtype;
    return safetensors_float_type(&s->files, entry, &dtype, err);
}

static bool passed_over(const struct model_source *s, const char *name) {
    static const char frequencies[] = "rotary_emb.inv_freq";
    size_t n = strlen(name), tail = sizeof frequencies - 1;
    if (n >= tail && strcmp(name + n - tail, frequencies) == 0) return true;
    return s->config.tied && strcmp(name, "lm_head.weight") == 0;
}

/* A tensor that the config knows nothing of (a bias, say) would be computed with by whoever wrote the file. */
static int check_no_others(const struct model_source *s, looplm_error *err) {
    int32_t needed = s->config.packed ? packed_count(&s->config) : 0;
    for (int32_t i = 0; i < s->table.count; i++) needed += !(s->config.packed && tensor_is_matrix(&s->table.specs[i]));
    if (s->files.n_entries == needed) return LOOPLM_OK; /* all that are needed were found before */
    for (int32_t i = 0; i < s->files.n_entries; i++) {
        const struct safetensors_entry *entry = &s->files.entries[i];
        if (passed_over(s, entry->name)) continue;
        const struct tensor_spec *spec = tensor_find_name(&s->table, entry->name);
        if (spec && !(s->config.packed && tensor_is_matrix(spec))) continue;
        if (s->config.packed && packed_is_matrix(&s->config, entry->name)) continue;
        return error_set(
            err, LOOPLM_MISMATCH,
            "%s: tensor '%.100s' is not one that the model_type '%s' of config.json has; they are not of one model",
            safetensors_path(&s->files, entry), entry->name, model_family_name(s->config.family));
    }
    return LOOPLM_OK;
}

int model_source_open(struct model_source *s, const char *directory, looplm_error *err) {
    *s = (struct model_source){0};
    if (file_exists(directory) && !file_is_directory(directory))
        return error_set(err, LOOPLM_IO, "%s: it is a file, and the directory of a model was expected", directory);
    int status = model_config_read(&s->config, directory, err);
    if (!status) status = tensor_table_init(&s->table, &s->config, err);
    if (!status) status = safetensors_open(&s->files, directory, err);
    if (!status && s->config.packed) status = packed_check(&s->files, &s->config, err);
    for (int32_t i = 0; !status && i < s->table.count; i++) {
        if (s->config.packed && tensor_is_matrix(&s->table.specs[i])) continue;
        status = check_tensor(s, &s->table.specs[i], err);
    }
    if (!status) status = check_no_others(s, err);
    if (status) model_source_close(s);
    return status;
}

void model_source_close(struct model_source *s) {
    safetensors_close(&s->files);
    tensor_table_free(&s->table);
}

const struct safetensors_entry *model_source_entry(const struct model_source *s, const struct tensor_spec *spec,
                                                   enum dtype *dtype) {
    const struct safetensors_entry *entry = safetensors_find(&s->files, spec->name);
    CHECK_EQ(entry != NULL, true);
    CHECK_EQ(safetensors_float_type(&s->files, entry, dtype, NULL), LOOPLM_OK);
    return entry;
}

int model_source_nonfinite(const struct model_source *s, const struct tensor_spec *spec, int64_t index,
                           looplm_error *err) {
    enum dtype dtype;
    const struct safetensors_entry *entry = model_source_entry(s, spec, &dtype);
    real value;
    values_to_real(dtype, (const unsigned char *)safetensors_data(&s->files, entry) + (size_t)index * dtype_size(dtype),
                   1, &value);
    return error_set(
        err, LOOPLM_FORMAT,
        "%s: tensor '%s': element %lld is %s, expected a finite number; the file is damaged or its training diverged",
        safetensors_path(&s->files, entry), spec->name, (long long)index, isnan(value) ? "NaN" : "infinite");
}
