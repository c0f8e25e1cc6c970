/* The one file that touches zlib, and the one of text/ that touches Zstandard. */
#include "text/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define COMPRESSED_CHUNK ((size_t)1 << 17)

struct reader {
    char *path;
    FILE *file; /* plain and .zst; borrowed when it is stdin */
    gzFile gz;
    ZSTD_DStream *zstd;
    unsigned char *chunk; /* compressed bytes waiting */
    ZSTD_inBuffer in;
    bool frame_open; /* .zst: inside a frame */
};

static bool ends_with(const char *text, size_t size, const char *end) {
    size_t n = strlen(end);
    return size > n && !strncasecmp(text + size - n, end, n);
}

bool reader_path_is(const char *path, const char *extension) {
    size_t size = strlen(path);
    if (ends_with(path, size, ".gz"))
        size -= 3;
    else if (ends_with(path, size, ".zst"))
        size -= 4;
    return ends_with(path, size, extension);
}

static int open_failed(struct reader *r, looplm_error *err) {
    int status = errno == ENOMEM ? LOOPLM_MEMORY : LOOPLM_IO;
    return error_set(err, (looplm_status)status, "%s: cannot be read: %s", r->path, strerror(errno));
}

static int open_zstd(struct reader *r, looplm_error *err) {
    r->zstd = ZSTD_createDStream();
    r->chunk = malloc(COMPRESSED_CHUNK);
    if (r->zstd && r->chunk) return 0;
    return error_set(err, LOOPLM_MEMORY, "%s: no memory to decompress", r->path);
}

int reader_open(struct reader **reader, const char *path, looplm_error *err) {
    struct reader *r = *reader = calloc(1, sizeof *r);
    if (r) r->path = strdup(strcmp(path, "-") ? path : "standard input");
    if (!r || !r->path) {
        free(r);
        *reader = NULL;
        return error_set(err, LOOPLM_MEMORY, "no memory to read %s", path);
    }
    int status = 0;
    if (!strcmp(path, "-")) {
        r->file = stdin;
    } else if (ends_with(path, strlen(path), ".gz")) {
        errno = ENOMEM; /* zlib leaves errno alone when it has no memory */
        r->gz = gzopen(path, "rb");
        if (!r->gz)
            status = open_failed(r, err);
        else
            gzbuffer(r->gz, COMPRESSED_CHUNK);
    } else {
        r->file = fopen(path, "rb");
        if (!r->file)
            status = open_failed(r, err);
        else if (ends_with(path, strlen(path), ".zst"))
            status = open_zstd(r, err);
    }
    if (status == 0) return 0;
    reader_close(r);
    *reader = NULL;
    return status;
}

void reader_close(struct reader *r) {
    if (!r) return;
    if (r->gz) gzclose(r->gz);
    if (r->file && r->file != stdin) fclose(r->file);
    ZSTD_freeDStream(r->zstd);
    free(r->chunk);
    free(r->path);
    free(r);
}

static int read_gz(struct reader *r, void *data, size_t size, size_t *n, looplm_error *err) {
    int got = gzread(r->gz, data, (unsigned)(size < (1u << 30) ? size : 1u << 30)), code = Z_OK;
    const char *message = gzerror(r->gz, &code);
    *n = got > 0 ? (size_t)got : 0;
    if (got > 0) return 0;
    if (got == 0 && (code == Z_OK || code == Z_STREAM_END)) return 0;
    if (code == Z_ERRNO) return open_failed(r, err);
    return error_set(err, LOOPLM_FORMAT, "%s: damaged or truncated gzip data: %s", r->path, message);
}

static int read_plain(struct reader *r, void *data, size_t size, size_t *n, looplm_error *err) {
    *n = fread(data, 1, size, r->file);
    return *n == 0 && ferror(r->file) ? open_failed(r, err) : 0;
}

static int read_zstd(struct reader *r, void *data, size_t size, size_t *n, looplm_error *err) {
    ZSTD_outBuffer out = {.dst = data, .size = size};
    while (out.pos == 0) {
        if (r->in.pos == r->in.size) {
            r->in = (ZSTD_inBuffer){.src = r->chunk};
            int status = read_plain(r, r->chunk, COMPRESSED_CHUNK, &r->in.size, err);
            if (status) return status;
            if (r->in.size == 0 && !r->frame_open) break;
            if (r->in.size == 0) return error_set(err, LOOPLM_FORMAT, "%s: truncated Zstandard data", r->path);
        }
        size_t left = ZSTD_decompressStream(r->zstd, &out, &r->in);
        if (ZSTD_isError(left)) {
            return error_set(err, LOOPLM_FORMAT, "%s: damaged Zstandard data: %s", r->path, ZSTD_getErrorName(left));
        }
        r->frame_open = left != 0;
    }
    *n = out.pos;
    return 0;
}

int reader_read(struct reader *r, void *data, size_t size, size_t *n, looplm_error *err) {
    *n = 0;
    if (size == 0) return 0;
    if (r->gz) return read_gz(r, data, size, n, err);
    return r->zstd ? read_zstd(r, data, size, n, err) : read_plain(r, data, size, n, err);
}

/* Reads to the end into *data, which grows; on failure the caller frees it. */
static int read_rest(struct reader *r, size_t size_max, char **data, size_t *size, looplm_error *err) {
    size_t room = 0, n = 1;
    for (*size = 0; n > 0; *size += n) {
        if (room - *size < 2) {
            room = room ? room * 2 : 1 << 16;
            char *grown = realloc(*data, room);
            if (!grown) return error_set(err, LOOPLM_MEMORY, "%s: no memory for %zu bytes", r->path, room);
            *data = grown;
        }
        int status = reader_read(r, *data + *size, room - *size - 1, &n, err);
        if (status) return status;
        if (*size + n > size_max) return error_set(err, LOOPLM_LIMIT, "%s: more than %zu bytes", r->path, size_max);
    }
    (*data)[*size] = 0;
    return 0;
}

int reader_read_all(const char *path, size_t size_max, char **data, size_t *size, looplm_error *err) {
    struct reader *reader;
    *data = NULL;
    int status = reader_open(&reader, path, err);
    if (status) return status;
    status = read_rest(reader, size_max, data, size, err);
    reader_close(reader);
    if (status) {
        free(*data);
        *data = NULL;
    }
    return status;
}
