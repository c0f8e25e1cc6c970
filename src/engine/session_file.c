/* The file of a sequence at rest (session_file.h). */
#include "engine/session_file.h"

#include <stdio.h>
#include <string.h>

/* ids come first and bytes last: the whole numbers then lie aligned in the mapped file. */
static int declare_all(struct safetensors_writer *w, const struct sequence *s, int64_t meta_size, looplm_error *err) {
    const struct kv_sequence *kv = sequence_kv(s);
    int64_t n_ids = sequence_length(s), n_run = sequence_run_length(s), one = 1;
    int64_t shape[2] = {(n_run + KV_BLOCK - 1) / KV_BLOCK, (int64_t)kv->pool->block_size};
    int status = safetensors_writer_declare(w, "ids", "I32", 1, &n_ids, err);
    if (!status) status = safetensors_writer_declare(w, "n_run", "I32", 1, &one, err);
    for (int32_t r = 0; r < kv->loops && !status; r++) {
        char name[16];
        snprintf(name, sizeof name, "kv.%d", r);
        status = safetensors_writer_declare(w, name, "U8", 2, shape, err);
    }
    if (!status) status = safetensors_writer_declare(w, "depths", "U8", 1, &n_ids, err);
    if (!status) status = safetensors_writer_declare(w, "meta", "U8", 1, &meta_size, err);
    return status;
}

static void write_all(struct safetensors_writer *w, const struct sequence *s, const char *meta) {
    const struct kv_sequence *kv = sequence_kv(s);
    int32_t n_ids = sequence_length(s), n_run = sequence_run_length(s);
    safetensors_writer_write(w, sequence_ids(s), (size_t)n_ids * sizeof(int32_t));
    safetensors_writer_write(w, &n_run, sizeof n_run);
    for (int32_t r = 0; r < kv->loops; r++)
        for (int32_t i = 0; i < (n_run + KV_BLOCK - 1) / KV_BLOCK; i++)
            safetensors_writer_write(w, kv_table(kv, r)[i], kv->pool->block_size);
    safetensors_writer_write(w, kv->left, (size_t)n_run);
    safetensors_writer_write(w, sequence_targets(s) + n_run, (size_t)(n_ids - n_run));
    safetensors_writer_write(w, meta, strlen(meta));
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

/* A tensor of whole numbers, NULL when it is not there, of another type, or not aligned. */
static const int32_t *find_integers(const struct safetensors *st, const char *name, size_t *n) {
    const struct safetensors_entry *entry = safetensors_find(st, name);
    if (!entry || strcmp(entry->dtype, "I32") != 0) return NULL;
    const void *data = safetensors_data(st, entry);
    *n = entry->size / sizeof(int32_t);
    return (uintptr_t)data % sizeof(int32_t) ? NULL : data;
}

static int restore_ids(struct sequence *s, const struct safetensors *st, const char *path, bool tail_sampled,
                       int32_t *n_run, looplm_error *err) {
    size_t n = 0, one = 0;
    const int32_t *ids = find_integers(st, "ids", &n), *run = find_integers(st, "n_run", &one),
                  loops = sequence_kv(s)->loops;
    const struct safetensors_entry *depths = safetensors_find(st, "depths");
    if (!ids || !run || one != 1 || !depths || depths->size != n || n > (size_t)sequence_kv(s)->capacity || *run < 0 ||
        (size_t)*run > n)
        return error_set(err, LOOPLM_FORMAT,
                         "%s: ids, n_run and depths are missing or do not fit each other; the file is damaged", path);
    const uint8_t *depth = safetensors_data(st, depths);
    for (int32_t i = 0; i < (int32_t)n; i++)
        if (depth[i] > loops || (depth[i] < 1 && i < *run))
            return error_set(err, LOOPLM_FORMAT, "%s: depth %d at position %d is outside 1 to %d; the file is damaged",
                             path, depth[i], i, loops);
    *n_run = *run;
    return sequence_restore(s, ids, depth, (int32_t)n, *run, tail_sampled, err);
}

int session_file_restore(struct sequence *s, const struct safetensors *st, const char *path, bool tail_sampled,
                         looplm_error *err) {
    const struct kv_sequence *kv = sequence_kv(s);
    int32_t n_run = 0;
    int status = restore_ids(s, st, path, tail_sampled, &n_run, err);
    size_t blocks = (size_t)(n_run + KV_BLOCK - 1) / KV_BLOCK;
    for (int32_t r = 0; r < kv->loops && !status; r++) {
        char name[16];
        snprintf(name, sizeof name, "kv.%d", r);
        const struct safetensors_entry *plane = safetensors_find(st, name);
        if (!plane || plane->size != blocks * kv->pool->block_size)
            return error_set(err, LOOPLM_FORMAT,
                             "%s: plane %s has %zu bytes, expected %zu; the file is damaged or of another model", path,
                             name, plane ? plane->size : 0, blocks * kv->pool->block_size);
        for (size_t i = 0; i < blocks; i++)
            memcpy(kv_table(kv, r)[i], (const unsigned char *)safetensors_data(st, plane) + i * kv->pool->block_size,
                   kv->pool->block_size);
    }
    return status;
}
