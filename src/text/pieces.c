/* Owns the cutting of documents into pieces (pieces.h). Documents are read in order until the ids are enough. */
#include "text/pieces.h"

#include "text/documents.h"
#include "text/reader.h"

#include <stdlib.h>
#include <string.h>

#define BYTES_FOR_ID 16 /* of a long text no more is tokenised than this for each id wanted */

struct reading {
    struct pieces *pieces;
    const struct pieces_options *options;
    struct encoder *encoder;
    const char *path;
    int64_t left; /* ids that may still be read */
};

static int append(struct reading *r, const int32_t *ids, int32_t n, int32_t from, looplm_error *err) {
    struct pieces *p = r->pieces;
    if (p->count == p->room) {
        int32_t room = p->room ? 2 * p->room : 64;
        struct piece *items = realloc(p->items, (size_t)room * sizeof *items);
        if (!items) return error_set(err, LOOPLM_MEMORY, "%s: no memory for its pieces", r->path);
        p->items = items;
        p->room = room;
    }
    int32_t *copy = malloc((size_t)n * sizeof *copy);
    if (!copy) return error_set(err, LOOPLM_MEMORY, "%s: no memory for its ids", r->path);
    memcpy(copy, ids, (size_t)n * sizeof *ids);
    p->items[p->count++] = (struct piece){copy, n, from};
    p->ids += n;
    p->asked += n - 1 - from;
    r->left -= n;
    return LOOPLM_OK;
}

/* A text in pieces, one after the other. */
static int add_text(struct reading *r, const char *text, size_t size, looplm_error *err) {
    const int32_t *ids;
    size_t n, enough = (size_t)r->left * BYTES_FOR_ID;
    if (size > enough) {
        size = enough;
        while (size > 0 && ((unsigned char)text[size] & 0xc0u) == 0x80u) size--; /* whole characters */
    }
    int status = encoder_encode(r->encoder, text, size, true, &ids, &n, err);
    if (!status && (int64_t)n > r->left) n = (size_t)r->left;
    for (size_t i = 0; !status && i + 1 < n; i += (size_t)r->options->sequence) {
        size_t left = n - i;
        int32_t count = left < (size_t)r->options->sequence ? (int32_t)left : r->options->sequence;
        if (count > 1) status = append(r, ids + i, count, 0, err);
    }
    return status;
}

/* A prompt and its answer as one piece, if it is not too long; the last token of the prompt is the first that is asked.
 * One beyond the ids wanted ends the reading. */
static int add_answer(struct reading *r, const json_t *prompt, const json_t *answer, looplm_error *err) {
    const int32_t *ids;
    size_t n_prompt, n, most = (size_t)r->options->sequence;
    int32_t *all = malloc(most * sizeof *all);
    if (!all) return error_set(err, LOOPLM_MEMORY, "%s: no memory for its ids", r->path);
    int status =
        encoder_encode(r->encoder, json_string_value(prompt), json_string_length(prompt), true, &ids, &n_prompt, err);
    if (!status && n_prompt < most) memcpy(all, ids, n_prompt * sizeof *all);
    if (!status)
        status = encoder_encode(r->encoder, json_string_value(answer), json_string_length(answer), true, &ids, &n, err);
    if (!status && n_prompt > 0 && n > 0 && n_prompt + n <= most) {
        memcpy(all + n_prompt, ids, n * sizeof *all);
        if ((int64_t)(n_prompt + n) > r->left)
            r->left = 0;
        else
            status = append(r, all, (int32_t)(n_prompt + n), (int32_t)n_prompt - 1, err);
    }
    free(all);
    return status;
}

static int add_object(struct reading *r, const json_t *object, looplm_error *err) {
    const json_t *text = json_object_get(object, "text"), *prompt = json_object_get(object, "prompt");
    const json_t *answer = json_object_get(object, "answer");
    if (json_is_string(text)) return add_text(r, json_string_value(text), json_string_length(text), err);
    if (json_is_string(prompt) && json_is_string(answer)) return add_answer(r, prompt, answer, err);
    return error_set(err, LOOPLM_FORMAT,
                     "%s: expected objects with \"text\", or with \"prompt\" and \"answer\", all strings", r->path);
}

static int read_documents(struct reading *r, looplm_error *err) {
    struct documents *documents;
    struct document document;
    bool more = true;
    enum documents_kind kind = reader_path_is(r->path, ".jsonl") ? DOCUMENTS_JSON : DOCUMENTS_TEXT;
    int status = documents_open(&documents, r->path, kind, err);
    if (status) return status;
    while (r->left > 1 && (status = documents_next(documents, &document, &more, err)) == 0 && more) {
        status = document.object ? add_object(r, document.object, err) : add_text(r, document.text, document.size, err);
        if (status) break;
    }
    documents_close(documents);
    return status;
}

int pieces_read(struct pieces *pieces, const char *path, const struct pieces_options *options, looplm_error *err) {
    struct reading r = {.pieces = pieces, .options = options, .path = path, .left = options->ids_max};
    int32_t before = pieces->count;
    int status = encoder_open(&r.encoder, options->tokenizer, err);
    if (status) return status;
    status = read_documents(&r, err);
    encoder_close(r.encoder);
    if (status || pieces->count > before) return status;
    return error_set(err, LOOPLM_FORMAT,
                     "%s: found no text of two tokens or more, nor a prompt and answer of at most %d", path,
                     options->sequence);
}

void pieces_free(struct pieces *pieces) {
    for (int32_t i = 0; i < pieces->count; i++) free(pieces->items[i].ids);
    free(pieces->items);
    *pieces = (struct pieces){0};
}
