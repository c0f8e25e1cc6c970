/* safetensors: single files and shards with an index, read mapped and validated; written atomically. The header is
 * untrusted: sizes, offsets, overlaps and shapes are checked before any byte is used. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "base/file.h"
#include "tensor/backend.h"

#define SAFETENSORS_HEADER_MAX ((size_t)100 << 20)
#define SAFETENSORS_DIMS_MAX 8
#define SAFETENSORS_NAME_MAX 1024
#define SAFETENSORS_FILES_MAX 1024
#define SAFETENSORS_INDEX_MAX ((size_t)64 << 20)

struct safetensors_entry {
    char *name;
    char dtype[12]; /* as in the file: "F32", "BF16", "F16", "I32", "U8", ... */
    int32_t dims;
    int32_t file; /* index into files */
    int64_t shape[SAFETENSORS_DIMS_MAX];
    size_t offset, size; /* bytes, in the mapped file */
};

struct safetensors {
    struct file_map *files;
    int32_t n_files;
    bool borrowed;                     /* the bytes are the caller's (safetensors_open_memory) */
    struct safetensors_entry *entries; /* sorted by name */
    int32_t n_entries;
};

/* Opens a model directory (model.safetensors, or model.safetensors.index.json with its shards) or one .safetensors
 * file. */
int safetensors_open(struct safetensors *st, const char *path, looplm_error *err);
/* Bytes in memory that outlive st; `name` is for messages. */
int safetensors_open_memory(struct safetensors *st, const void *data, size_t size, const char *name, looplm_error *err);
void safetensors_close(struct safetensors *st);
const struct safetensors_entry *safetensors_find(const struct safetensors *st, const char *name);
static inline const void *safetensors_data(const struct safetensors *st, const struct safetensors_entry *entry) {
    return st->files[entry->file].data + entry->offset;
}
static inline const char *safetensors_path(const struct safetensors *st, const struct safetensors_entry *entry) {
    return st->files[entry->file].path;
}
/* The tensor's float type, or LOOPLM_FORMAT with file, tensor, found and expected. */
int safetensors_float_type(const struct safetensors *st, const struct safetensors_entry *entry, enum dtype *dtype,
                           looplm_error *err);
/* "[2048, 5632]" into out, for messages; returns out. */
#define SAFETENSORS_SHAPE_TEXT 192
const char *safetensors_shape_text(int32_t dims, const int64_t *shape, char out[SAFETENSORS_SHAPE_TEXT]);

/* A file to write: declare every tensor first, then write their data in the order declared, then commit. No
 * __metadata__. */
struct safetensors_writer;
int safetensors_writer_open(struct safetensors_writer **w, const char *path, looplm_error *err);
/* shape as in the entry; dtype one of the format's names. */
int safetensors_writer_declare(struct safetensors_writer *w, const char *name, const char *dtype, int32_t dims,
                               const int64_t *shape, looplm_error *err);
void safetensors_writer_write(struct safetensors_writer *w, const void *data,
                              size_t size); /* the first call writes the header */
int safetensors_writer_commit(struct safetensors_writer *w,
                              looplm_error *err); /* frees w either way; says if bytes are missing */
void safetensors_writer_abort(struct safetensors_writer *w);

#endif
