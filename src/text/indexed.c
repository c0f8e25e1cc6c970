/* Reading and writing indexed datasets. The arrays of the index start at odd offsets, so they are read by memcpy. The
 * bytes are those of a little-endian machine, which is all that looplm builds for. */
#include "text/indexed.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are little-endian");

#define MAGIC "MMIDIDX\0" /* and the NUL that C adds: 9 bytes */
#define HEADER_BYTES (sizeof MAGIC + 8 + 1 + 8 + 8)
#define FORMAT_VERSION 1

struct indexed_writer {
    struct file_writer bin, idx;
    bool bin_open, idx_open;
    enum indexed_type type;
    int64_t vocab_size;
    int32_t *lengths; /* [n] */
    size_t n, room;
};

struct indexed {
    struct file_map bin, idx;
    enum indexed_type type;
    size_t id_bytes;
    uint64_t n_sequences, n_documents;
    const unsigned char *lengths, *pointers, *boundaries;
};

static size_t bytes_of(enum indexed_type type) {
    return type == INDEXED_UINT16 ? 2 : 4;
}

/* "PREFIX.bin" or "PREFIX.idx", fresh. */
static char *path_of(const char *prefix, const char *extension) {
    size_t size = strlen(prefix) + strlen(extension) + 1;
    char *path = malloc(size);
    if (path) snprintf(path, size, "%s%s", prefix, extension);
    return path;
}

static int open_part(struct file_writer *w, const char *prefix, const char *extension, bool *open, looplm_error *err) {
    char *path = path_of(prefix, extension);
    if (!path) return error_set(err, LOOPLM_MEMORY, "no memory for a path");
    int status = file_writer_open(w, path, err);
    *open = status == 0;
    free(path);
    return status;
}

int indexed_writer_open(struct indexed_writer **writer, const char *prefix, int64_t vocab_size, looplm_error *err) {
    struct indexed_writer *w = *writer = calloc(1, sizeof *w);
    if (!w) return error_set(err, LOOPLM_MEMORY, "no memory to write %s", prefix);
    w->type = vocab_size < INDEXED_UINT16_VOCABULARY ? INDEXED_UINT16 : INDEXED_INT32;
    w->vocab_size = vocab_size;
    int status = open_part(&w->bin, prefix, ".bin", &w->bin_open, err);
    if (status == 0) status = open_part(&w->idx, prefix, ".idx", &w->idx_open, err);
    if (status == 0) return 0;
    indexed_writer_abort(w);
    *writer = NULL;
    return status;
}

static void write_ids(struct indexed_writer *w, const int32_t *ids, size_t n) {
    if (w->type == INDEXED_INT32) {
        file_writer_write(&w->bin, ids, n * sizeof *ids);
        return;
    }
    uint16_t part[4096];
    const size_t part_max = sizeof part / sizeof *part;
    for (size_t at = 0; at < n;) {
        size_t count = n - at < part_max ? n - at : part_max;
        for (size_t i = 0; i < count; i++) part[i] = (uint16_t)ids[at + i];
        file_writer_write(&w->bin, part, count * sizeof *part);
        at += count;
    }
}

int indexed_writer_add(struct indexed_writer *w, const int32_t *ids, size_t n, looplm_error *err) {
    if (n > INT32_MAX)
        return error_set(err, LOOPLM_LIMIT, "a document of %zu ids is longer than the format's %d", n, INT32_MAX);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= w->vocab_size) {
            return error_set(err, LOOPLM_MISMATCH, "id %d is outside the vocabulary 0..%lld", (int)ids[i],
                             (long long)w->vocab_size - 1);
        }
    }
    if (w->n == w->room) {
        size_t room = w->room ? w->room * 2 : 1024;
        int32_t *lengths = realloc(w->lengths, room * sizeof *lengths);
        if (!lengths) return error_set(err, LOOPLM_MEMORY, "no memory for %zu documents", room);
        w->lengths = lengths;
        w->room = room;
    }
    w->lengths[w->n++] = (int32_t)n;
    write_ids(w, ids, n);
    return 0;
}

static void write_index(struct indexed_writer *w) {
    const uint64_t version = FORMAT_VERSION, n = w->n, n_boundaries = w->n + 1;
    const unsigned char type = (unsigned char)w->type;
    int64_t pointer = 0;
    file_writer_write(&w->idx, MAGIC, sizeof MAGIC);
    file_writer_write(&w->idx, &version, sizeof version);
    file_writer_write(&w->idx, &type, 1);
    file_writer_write(&w->idx, &n, sizeof n);
    file_writer_write(&w->idx, &n_boundaries, sizeof n_boundaries);
    if (w->n) file_writer_write(&w->idx, w->lengths, w->n * sizeof *w->lengths);
    for (size_t i = 0; i < w->n; i++) {
        file_writer_write(&w->idx, &pointer, sizeof pointer);
        pointer += (int64_t)w->lengths[i] * (int64_t)bytes_of(w->type);
    }
    for (int64_t i = 0; i <= (int64_t)w->n; i++) file_writer_write(&w->idx, &i, sizeof i);
}

int indexed_writer_commit(struct indexed_writer *w, looplm_error *err) {
    write_index(w);
    w->bin_open = false;
    int status = file_writer_commit(&w->bin, err);
    if (status == 0) {
        w->idx_open = false;
        status = file_writer_commit(&w->idx, err);
    }
    indexed_writer_abort(w);
    return status;
}

void indexed_writer_abort(struct indexed_writer *w) {
    if (!w) return;
    if (w->bin_open) file_writer_abort(&w->bin);
    if (w->idx_open) file_writer_abort(&w->idx);
    free(w->lengths);
    free(w);
}

static int64_t read_int64(const unsigned char *array, uint64_t i) {
    int64_t value;
    memcpy(&value, array + 8 * i, sizeof value);
    return value;
}

static int32_t length_of(const struct indexed *x, uint64_t i) {
    int32_t value;
    memcpy(&value, x->lengths + 4 * i, sizeof value);
    return value;
}

static int read_header(struct indexed *x, looplm_error *err) {
    const struct file_map *f = &x->idx;
    uint64_t version, n, m;
    if (f->size < HEADER_BYTES || memcmp(f->data, MAGIC, sizeof MAGIC)) {
        return error_set(err, LOOPLM_FORMAT, "%s is not an indexed dataset: its first bytes are not MMIDIDX", f->path);
    }
    const unsigned char *at = f->data + sizeof MAGIC;
    memcpy(&version, at, 8);
    memcpy(&n, at + 9, 8);
    memcpy(&m, at + 17, 8);
    if (version != FORMAT_VERSION) {
        return error_set(err, LOOPLM_FORMAT, "%s has version %llu, expected %d", f->path, (unsigned long long)version,
                         FORMAT_VERSION);
    }
    x->type = (enum indexed_type)at[8];
    if (x->type != INDEXED_INT32 && x->type != INDEXED_UINT16) {
        return error_set(err, LOOPLM_UNSUPPORTED, "%s holds ids of type %d, expected 4 (int32) or 8 (uint16)", f->path,
                         at[8]);
    }
    uint64_t left = f->size - HEADER_BYTES;
    if (n > left / 12 || m > left / 8 || m < 1 || n * 12 + m * 8 != left) {
        return error_set(err, LOOPLM_FORMAT,
                         "%s says %llu sequences and %llu document boundaries, which do not make its %zu bytes",
                         f->path, (unsigned long long)n, (unsigned long long)m, f->size);
    }
    x->n_sequences = n;
    x->n_documents = m - 1;
    x->id_bytes = bytes_of(x->type);
    x->lengths = f->data + HEADER_BYTES;
    x->pointers = x->lengths + 4 * n;
    x->boundaries = x->pointers + 8 * n;
    return 0;
}

/* Sequences must lie one after the other from the start to the end of the .bin file, so that a document is one stretch.
 */
static int check_arrays(const struct indexed *x, looplm_error *err) {
    uint64_t pointer = 0;
    for (uint64_t i = 0; i < x->n_sequences; i++) {
        if (length_of(x, i) < 0 || read_int64(x->pointers, i) != (int64_t)pointer) {
            return error_set(err, LOOPLM_FORMAT, "%s: sequence %llu has length %d at byte %lld, expected byte %llu",
                             x->idx.path, (unsigned long long)i, (int)length_of(x, i),
                             (long long)read_int64(x->pointers, i), (unsigned long long)pointer);
        }
        pointer += (uint64_t)length_of(x, i) * x->id_bytes;
    }
    if (pointer != x->bin.size) {
        return error_set(err, LOOPLM_MISMATCH, "%s has %zu bytes, but its index describes %llu; tokenize again",
                         x->bin.path, x->bin.size, (unsigned long long)pointer);
    }
    int64_t before = 0;
    for (uint64_t i = 0; i <= x->n_documents; i++) {
        int64_t at = read_int64(x->boundaries, i);
        bool ends = (i > 0 || at == 0) && (i < x->n_documents || at == (int64_t)x->n_sequences);
        if (at < before || !ends) {
            return error_set(err, LOOPLM_FORMAT, "%s: document boundary %llu is %lld, expected a rise from 0 to %llu",
                             x->idx.path, (unsigned long long)i, (long long)at, (unsigned long long)x->n_sequences);
        }
        before = at;
    }
    return 0;
}

static int map_part(struct file_map *map, const char *prefix, const char *extension, looplm_error *err) {
    char *path = path_of(prefix, extension);
    if (!path) return error_set(err, LOOPLM_MEMORY, "no memory for a path");
    int status = file_map_open(map, path, err);
    free(path);
    return status;
}

int indexed_open(struct indexed **indexed, const char *prefix, looplm_error *err) {
    struct indexed *x = calloc(1, sizeof *x);
    *indexed = NULL;
    if (!x) return error_set(err, LOOPLM_MEMORY, "no memory to read %s", prefix);
    int status = map_part(&x->idx, prefix, ".idx", err);
    if (status) {
        free(x);
        return status;
    }
    status = map_part(&x->bin, prefix, ".bin", err);
    if (status) {
        file_map_close(&x->idx);
        free(x);
        return status;
    }
    status = read_header(x, err);
    if (status == 0) status = check_arrays(x, err);
    if (status == 0)
        *indexed = x;
    else
        indexed_close(x);
    return status;
}

void indexed_close(struct indexed *x) {
    if (!x) return;
    file_map_close(&x->bin);
    file_map_close(&x->idx);
    free(x);
}

size_t indexed_documents(const struct indexed *x) {
    return (size_t)x->n_documents;
}

uint64_t indexed_tokens(const struct indexed *x) {
    return x->bin.size / x->id_bytes;
}

enum indexed_type indexed_type(const struct indexed *x) {
    return x->type;
}

/* The byte at which a sequence starts; that of sequence n is the end of the file. */
static uint64_t start_of(const struct indexed *x, int64_t sequence) {
    return (uint64_t)sequence == x->n_sequences ? x->bin.size : (uint64_t)read_int64(x->pointers, (uint64_t)sequence);
}

const void *indexed_document(const struct indexed *x, size_t i, size_t *n) {
    CHECK_LT(i, x->n_documents);
    uint64_t first = start_of(x, read_int64(x->boundaries, i)), last = start_of(x, read_int64(x->boundaries, i + 1));
    *n = (size_t)((last - first) / x->id_bytes);
    return *n ? x->bin.data + first : NULL;
}

static int32_t id_at(const struct indexed *x, const unsigned char *ids, size_t i) {
    if (x->type == INDEXED_UINT16) {
        uint16_t id;
        memcpy(&id, ids + 2 * i, sizeof id);
        return id;
    }
    int32_t id;
    memcpy(&id, ids + 4 * i, sizeof id);
    return id;
}

void indexed_read(const struct indexed *x, size_t i, size_t first, size_t n, int32_t *out) {
    size_t size;
    const unsigned char *ids = indexed_document(x, i, &size);
    CHECK_LE(first, size);
    CHECK_LE(n, size - first);
    for (size_t at = 0; at < n; at++) out[at] = id_at(x, ids, first + at);
}

int indexed_check_ids(const struct indexed *x, int64_t vocab_size, looplm_error *err) {
    for (size_t i = 0; i < x->n_documents; i++) {
        size_t n;
        const unsigned char *ids = indexed_document(x, i, &n);
        for (size_t at = 0; at < n; at++) {
            int32_t id = id_at(x, ids, at);
            if (id >= 0 && id < vocab_size) continue;
            return error_set(
                err, LOOPLM_MISMATCH,
                "%s: id %d (number %zu of document %zu) is outside the model's vocabulary 0..%lld; tokenize with "
                "the model's own tokenizer",
                x->bin.path, (int)id, at, i, (long long)vocab_size - 1);
        }
    }
    return 0;
}
