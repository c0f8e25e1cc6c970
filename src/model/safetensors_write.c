/* Owns writing safetensors: the declared tensors become the header when the first byte of data comes; the file appears
 * whole, by rename, or not at all. Invariant: `written` never passes `declared`, and a commit demands that they are
 * equal. */
#include "model/safetensors.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#define HEADER_ALIGN 64 /* the data begins at a multiple of this, so that what is used mapped lies on a cache line */

struct safetensors_writer {
    struct file_writer file;
    json_t *header;
    size_t declared, written; /* bytes of data */
    bool begun;               /* the header is out */
    bool failed;              /* no memory for the header: told by commit */
};

static size_t type_size(const char *dtype) {
    if (strcmp(dtype, "F64") == 0 || strcmp(dtype, "I64") == 0) return 8;
    if (strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0) return 4;
    if (strcmp(dtype, "BF16") == 0 || strcmp(dtype, "F16") == 0) return 2;
    return strcmp(dtype, "U8") == 0 || strcmp(dtype, "I8") == 0 ? 1 : 0;
}

int safetensors_writer_open(struct safetensors_writer **out, const char *path, looplm_error *err) {
    *out = NULL;
    struct safetensors_writer *w = calloc(1, sizeof *w);
    if (w) w->header = json_object();
    if (!w || !w->header) {
        free(w);
        return error_set(err, LOOPLM_MEMORY, "%s: no memory to write it", path);
    }
    int status = file_writer_open(&w->file, path, err);
    if (status) {
        json_decref(w->header);
        free(w);
        return status;
    }
    *out = w;
    return LOOPLM_OK;
}

int safetensors_writer_declare(struct safetensors_writer *w, const char *name, const char *dtype, int32_t dims,
                               const int64_t *shape, looplm_error *err) {
    CHECK_EQ(w->begun, false);
    CHECK_LE(dims, SAFETENSORS_DIMS_MAX);
    CHECK_LT(0, type_size(dtype));
    if (json_object_get(w->header, name))
        return error_set(err, LOOPLM_MISMATCH, "%s: tensor '%s' is declared twice", w->file.path, name);
    size_t size = type_size(dtype);
    json_t *list = json_array();
    for (int32_t i = 0; i < dims; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(size, (size_t)shape[i], &size)) {
            json_decref(list);
            return error_set(err, LOOPLM_LIMIT, "%s: tensor '%s' has more bytes than can be counted", w->file.path,
                             name);
        }
        json_array_append_new(list, json_integer(shape[i]));
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", list, "data_offsets",
                              (json_int_t)w->declared, (json_int_t)(w->declared + size));
    if (!entry || json_object_set_new(w->header, name, entry) != 0) {
        return error_set(err, LOOPLM_MEMORY, "%s: no memory for the tensor '%s' of its header", w->file.path, name);
    }
    w->declared += size;
    return LOOPLM_OK;
}

static void write_header(struct safetensors_writer *w) {
    w->begun = true;
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) {
        w->failed = true;
        return;
    }
    unsigned char bytes[8]; /* of its length, before it */
    size_t length = strlen(text), before = sizeof bytes;
    size_t padded = (before + length + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN - before;
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    file_writer_write(&w->file, bytes, sizeof bytes);
    file_writer_write(&w->file, text, length);
    file_writer_printf(&w->file, "%*s", (int)(padded - length), "");
    free(text);
}

void safetensors_writer_write(struct safetensors_writer *w, const void *data, size_t size) {
    if (!w->begun) write_header(w);
    CHECK_LE(size, w->declared - w->written);
    w->written += size;
    file_writer_write(&w->file, data, size);
}

void safetensors_writer_abort(struct safetensors_writer *w) {
    if (!w) return;
    file_writer_abort(&w->file);
    json_decref(w->header);
    free(w);
}

int safetensors_writer_commit(struct safetensors_writer *w, looplm_error *err) {
    if (!w->begun) write_header(w);
    int status = LOOPLM_OK;
    if (w->failed) {
        status = error_set(err, LOOPLM_MEMORY, "%s: no memory for its header; nothing was written", w->file.path);
    } else if (w->written != w->declared) {
        status = error_set(err, LOOPLM_MISMATCH,
                           "%s: %zu bytes of tensors were written, %zu were declared; nothing was kept", w->file.path,
                           w->written, w->declared);
    } else {
        status = file_writer_commit(&w->file, err);
    }
    safetensors_writer_abort(w);
    return status;
}
