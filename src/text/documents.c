/* Cutting a stream of bytes into documents. Bytes that are not UTF-8 are left to the tokenizer in plain text; in JSON
 * they become U+FFFD first, since no parser takes them. */
#include "text/documents.h"

#include "base/json.h"
#include "text/reader.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK ((size_t)1 << 16)

struct documents {
    struct reader *reader;
    char *path;
    enum documents_kind kind;
    bool lines, done;
    size_t line; /* its number, from 1 */
    char *chunk;
    size_t chunk_at, chunk_size;
    char *text; /* the line or file at hand */
    size_t size, room;
    json_t *object;
};

int documents_open(struct documents **documents, const char *path, enum documents_kind kind, looplm_error *err) {
    struct documents *d = *documents = calloc(1, sizeof *d);
    if (d) {
        d->path = strdup(path);
        d->chunk = malloc(CHUNK);
        d->kind = kind;
        d->lines = reader_path_is(path, ".jsonl");
    }
    int status = d && d->path && d->chunk ? 0 : error_set(err, LOOPLM_MEMORY, "no memory to read %s", path);
    if (status == 0) status = reader_open(&d->reader, path, err);
    if (status == 0) return 0;
    documents_close(d);
    *documents = NULL;
    return status;
}

void documents_close(struct documents *d) {
    if (!d) return;
    reader_close(d->reader);
    json_decref(d->object);
    free(d->path);
    free(d->chunk);
    free(d->text);
    free(d);
}

static int append(struct documents *d, const char *bytes, size_t n, looplm_error *err) {
    if (d->size + n > DOCUMENT_BYTES_MAX) {
        return error_set(err, LOOPLM_LIMIT, "%s: document %zu is larger than %zu bytes; split it", d->path, d->line,
                         DOCUMENT_BYTES_MAX);
    }
    if (d->room < d->size + n + 1) {
        size_t room = d->room ? d->room : CHUNK;
        while (room < d->size + n + 1) room *= 2;
        char *text = realloc(d->text, room);
        if (!text) return error_set(err, LOOPLM_MEMORY, "%s: no memory for a document of %zu bytes", d->path, room);
        d->text = text;
        d->room = room;
    }
    memcpy(d->text + d->size, bytes, n);
    d->size += n;
    d->text[d->size] = 0;
    return 0;
}

/* Collects the next line without its end, or the whole file, in d->text; *any is false when nothing was left. */
static int collect(struct documents *d, bool *any, looplm_error *err) {
    d->size = 0;
    *any = !d->lines && !d->done; /* An empty file is one empty document. */
    d->line++;
    int status = append(d, "", 0, err);
    while (status == 0 && !d->done) {
        if (d->chunk_at == d->chunk_size) {
            d->chunk_at = 0;
            status = reader_read(d->reader, d->chunk, CHUNK, &d->chunk_size, err);
            if (status || d->chunk_size == 0) d->done = true;
            continue;
        }
        const char *from = d->chunk + d->chunk_at;
        size_t left = d->chunk_size - d->chunk_at;
        const char *end = d->lines ? memchr(from, '\n', left) : NULL;
        size_t n = end ? (size_t)(end - from) : left;
        status = append(d, from, n, err);
        d->chunk_at += n + (end != NULL);
        *any = true;
        if (end) break;
    }
    return status;
}

static int parse(struct documents *d, looplm_error *err) {
    json_error_t at;
    if (!utf8_valid(d->text, d->size)) {
        size_t size;
        char *text = utf8_replace_invalid(d->text, d->size, &size);
        if (!text) return error_set(err, LOOPLM_MEMORY, "%s: no memory for line %zu", d->path, d->line);
        free(d->text);
        d->text = text;
        d->size = size;
        d->room = size + 1;
    }
    d->object = json_loadb(d->text, d->size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (!d->object) return error_set(err, LOOPLM_FORMAT, "%s: line %zu is not JSON: %s", d->path, d->line, at.text);
    if (json_is_object(d->object)) return 0;
    return error_set(err, LOOPLM_FORMAT, "%s: line %zu is %s, expected an object", d->path, d->line,
                     json_type_name(d->object));
}

static bool blank(const struct documents *d) {
    return strspn(d->text, " \t\r\n") == d->size;
}

int documents_next(struct documents *d, struct document *document, bool *more, looplm_error *err) {
    *document = (struct document){0};
    json_decref(d->object);
    d->object = NULL;
    int status;
    do status = collect(d, more, err);
    while (status == 0 && *more && d->lines && blank(d));
    if (status || !*more) return status;
    document->text = d->text;
    document->size = d->size;
    if (!d->lines && d->kind == DOCUMENTS_TEXT) return 0;
    status = parse(d, err);
    if (status) return status;
    document->object = d->object;
    if (d->kind == DOCUMENTS_JSON) return 0;
    const json_t *text = json_object_get(d->object, "text");
    if (!json_is_string(text)) {
        return error_set(err, LOOPLM_FORMAT, "%s: line %zu: \"text\" is %s, expected a string", d->path, d->line,
                         json_type_name(text));
    }
    document->text = json_string_value(text);
    document->size = json_string_length(text);
    return 0;
}
