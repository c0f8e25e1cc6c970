/* The file of a sequence at rest (session_file.h). */
#include "engine/session_file.h"

#include <stdio.h>
#include <string.h>

static int declare_all(struct safetensors_writer *w, const struct sequence *s, int64_t meta_size, looplm_error *err) {
    const struct kv_sequence *kv = sequence_kv(s);
    int64_t n_ids = sequence_length(s), n_run = sequence_run_length(s);
    int status = safetensors_writer_declare(w, "meta", "U8", 1, &meta_size, err);
    if (!status) status = safetensors_writer_declare(w, "ids", "I32", 1, &n_ids, err);
    if (!status) status = safetensors_writer_declare(w, "depths", "U8", 1, &n_run, err);
    int64_t shape[2] = {(n_run + KV_BLOCK - 1) / KV_BLOCK, (int64_t)kv->pool->block_size};
    for (int32_t r = 0; r < kv->loops && !status; r++) {
        char name[16];
        snprintf(name, sizeof name, "kv.%d", r);
        status = safetensors_writer_declare(w, name, "U8", 2, shape, err);
    }
    return status;
}

static void write_all(struct safetensors_writer *w, const struct sequence *s, const char *meta) {
    const struct kv_sequence *kv = sequence_kv(s);
    int32_t n_run = sequence_run_length(s);
    safetensors_writer_write(w, meta, strlen(meta));
    safetensors_writer_write(w, sequence_ids(s), (size_t)sequence_length(s) * sizeof(int32_t));
    safetensors_writer_write(w, kv->left, (size_t)n_run);
    for (int32_t r = 0; r < kv->loops; r++)
        for (int32_t i = 0; i < (n_run + KV_BLOCK - 1) / KV_BLOCK; i++) safetensors_writer_write(w, kv_table(kv, r)[i], kv->pool->block_size);
}

int session_file_write(const struct sequence *s, const char *meta, const char *path, looplm_error *err) {
    struct safetensors_writer *w = NULL;
    int status = safetensors_writer_open(&w, path, err);
    if (status) return status;
    status = declare_all(w, s, (int64_t)strlen(meta), err);
    if (status) {
        safetensors_writer_abort(w);
        return status;
    }
    write_all(w, s, meta);
    return safetensors_writer_commit(w, err);
}

int session_file_restore(struct sequence *s, const struct safetensors *st, const char *path, bool tail_sampled, looplm_error *err) {
    const struct safetensors_entry *ids = safetensors_find(st, "ids"), *depths = safetensors_find(st, "depths");
    const struct kv_sequence *kv = sequence_kv(s);
    if (!ids || !depths || strcmp(ids->dtype, "I32") || strcmp(depths->dtype, "U8") || depths->size > ids->size / 4 || ids->size / 4 > (size_t)kv->capacity)
        return error_set(err, LOOPLM_FORMAT, "%s: ids and depths are missing or do not fit each other; the file is damaged", path);
    int32_t n_run = (int32_t)depths->size;
    const uint8_t *depth = safetensors_data(st, depths);
    for (int32_t i = 0; i < n_run; i++)
        if (depth[i] < 1 || depth[i] > kv->loops) return error_set(err, LOOPLM_FORMAT, "%s: depth %d at position %d is outside 1 to %d; the file is damaged", path, depth[i], i, kv->loops);
    int status = sequence_restore(s, safetensors_data(st, ids), depth, (int32_t)(ids->size / 4), n_run, tail_sampled, err);
    size_t blocks = (size_t)(n_run + KV_BLOCK - 1) / KV_BLOCK;
    for (int32_t r = 0; r < kv->loops && !status; r++) {
        char name[16];
        snprintf(name, sizeof name, "kv.%d", r);
        const struct safetensors_entry *plane = safetensors_find(st, name);
        if (!plane || plane->size != blocks * kv->pool->block_size)
            return error_set(err, LOOPLM_FORMAT, "%s: plane %s has %zu bytes, expected %zu; the file is damaged or of another model", path, name, plane ? plane->size : 0,
                             blocks * kv->pool->block_size);
        for (size_t i = 0; i < blocks; i++)
            memcpy(kv_table(kv, r)[i], (const unsigned char *)safetensors_data(st, plane) + i * kv->pool->block_size, kv->pool->block_size);
    }
    return status;
}
