/* Owns the master copy of a model's tensors: one flat buffer in the order of the tensor table, filled from a file or
 * fresh, and written out.
 *
 * Invariant: padding between tensors is zero, from the allocation on; whoever changes values leaves it so. */
#include "model/params.h"

#include "base/random.h"
#include "model/source.h"
#include "model/values.h"
#include "tensor/convert.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define CACHE_LINE 64
#define SAVE_CHUNK 65536  /* elements converted at a time */
#define DRAWS_MAX_LOG2 16 /* random numbers that one element may use */

int params_alloc(struct params *params, const struct model_config *config, looplm_error *err) {
    *params = (struct params){.config = *config};
    int status = tensor_table_init(&params->table, config, err);
    if (status) return status;
    size_t size = (size_t)params->table.elements * sizeof(real), align = size >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    size = (size + align - 1) / align * align;
    params->data = aligned_alloc(align, size);
    if (!params->data) {
        params_free(params);
        return error_set(err, LOOPLM_MEMORY,
                         "no memory for the parameters: %zu MiB are needed; take a smaller model or a larger machine",
                         size >> 20);
    }
    if (align == HUGE_PAGE) madvise(params->data, size, MADV_HUGEPAGE); /* a wish */
    memset(params->data, 0, size);
    return LOOPLM_OK;
}

void params_free(struct params *params) {
    free(params->data);
    tensor_table_free(&params->table);
    *params = (struct params){0};
}

int params_load(struct params *params, const char *directory, looplm_error *err) {
    *params = (struct params){0};
    struct model_source source;
    int status = model_source_open(&source, directory, err);
    if (status) return status;
    if (source.config.packed) {
        model_source_close(&source);
        return error_set(err, LOOPLM_UNSUPPORTED,
                         "%s: its weights are packed (looplm quantize); training starts from the original", directory);
    }
    status = params_alloc(params, &source.config, err);
    for (int32_t i = 0; !status && i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        enum dtype dtype;
        const struct safetensors_entry *entry = model_source_entry(&source, spec, &dtype);
        int64_t n = spec->rows * spec->cols;
        values_to_real(dtype, safetensors_data(&source.files, entry), n, params->data + spec->offset);
        int64_t bad = values_find_nonfinite(DTYPE_REAL, params->data + spec->offset, n);
        if (bad >= 0) status = model_source_nonfinite(&source, spec, bad, err);
        file_map_release(&source.files.files[entry->file], entry->offset, entry->size);
    }
    model_source_close(&source);
    if (status) params_free(params);
    return status;
}

/* ---- fresh values ---------------------------------------------------------------------------------------------- */

/* FNV-1a: a name as a number. */
static uint64_t name_hash(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

static void init_tensor(const struct tensor_spec *spec, uint64_t seed, double deviation, double exit_bias, real *out) {
    int64_t n = spec->rows * spec->cols;
    if (spec->role == TENSOR_EXIT_WEIGHT) return; /* zero: every token starts with the same chance to leave */
    if (spec->role == TENSOR_EXIT_BIAS) {
        out[0] = (real)exit_bias;
    } else if (spec->dims == 1) {
        for (int64_t i = 0; i < n; i++) out[i] = 1;
    } else {
        uint64_t key = random_hash(seed, name_hash(spec->name), 0);
        for (int64_t i = 0; i < n; i++) {
            struct random random = {key, (uint64_t)i << DRAWS_MAX_LOG2};
            out[i] = (real)((float)deviation * random_normal(&random));
        }
    }
}

int params_init(struct params *params, const struct model_config *config, uint64_t seed, double exit_bias,
                looplm_error *err) {
    if (!(config->initializer_range > 0)) {
        *params = (struct params){0};
        return error_set(err, LOOPLM_USAGE,
                         "initializer_range: found %g, expected a positive deviation for fresh values",
                         config->initializer_range);
    }
    int status = params_alloc(params, config, err);
    for (int32_t i = 0; !status && i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        init_tensor(spec, seed, config->initializer_range, exit_bias, params->data + spec->offset);
    }
    return status;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static int declare_all(struct safetensors_writer *w, const struct tensor_table *table, enum dtype dtype,
                       looplm_error *err) {
    int status = LOOPLM_OK;
    for (int32_t i = 0; !status && i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        int64_t shape[2] = {spec->dims == 2 ? spec->rows : spec->cols, spec->cols};
        status = safetensors_writer_declare(w, spec->name, values_dtype_name(dtype), spec->dims, shape, err);
    }
    return status;
}

static void write_tensor(struct safetensors_writer *w, const real *data, int64_t n, enum dtype dtype, void *chunk) {
    for (int64_t i = 0; i < n; i += SAVE_CHUNK) {
        int64_t m = n - i < SAVE_CHUNK ? n - i : SAVE_CHUNK;
        values_from_real(data + i, m, dtype, chunk);
        safetensors_writer_write(w, chunk, (size_t)m * dtype_size(dtype));
    }
}

static int write_weights(const struct params *params, const char *path, enum dtype dtype, looplm_error *err) {
    struct safetensors_writer *w;
    void *chunk = malloc(SAVE_CHUNK * dtype_size(dtype));
    if (!chunk) return error_set(err, LOOPLM_MEMORY, "%s: no memory to write it", path);
    int status = safetensors_writer_open(&w, path, err);
    if (!status && (status = declare_all(w, &params->table, dtype, err))) safetensors_writer_abort(w);
    if (!status) {
        for (int32_t i = 0; i < params->table.count; i++) {
            const struct tensor_spec *spec = &params->table.specs[i];
            write_tensor(w, params->data + spec->offset, spec->rows * spec->cols, dtype, chunk);
        }
        status = safetensors_writer_commit(w, err);
    }
    free(chunk);
    return status;
}

int params_save(const struct params *params, const char *directory, enum dtype dtype, looplm_error *err) {
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16) {
        return error_set(err, LOOPLM_UNSUPPORTED, "%s: models are written as F32 or BF16, not %s", directory,
                         values_dtype_name(dtype));
    }
    int status = file_make_directories(directory, err);
    if (status) return status;
    char *path = file_join(directory, "model.safetensors");
    status = path ? write_weights(params, path, dtype, err)
                  : error_set(err, LOOPLM_MEMORY, "%s: no memory for its path", directory);
    free(path);
    return status ? status
                  : model_config_write(&params->config, directory, dtype == DTYPE_BF16 ? "bfloat16" : "float32", err);
}
