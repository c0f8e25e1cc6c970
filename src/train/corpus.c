/* Owns the way from a file of text to pieces of ids. The order in which pieces are read is data.c's.
 *
 * Invariants: the files of the cache are complete when PREFIX.idx is there (the mask is put in place first); the name
 * of a cached file depends on the source's path, size and time and on the tokenizer, so a changed source is tokenised
 * anew.
 */
#include "train/corpus.h"

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/sha256.h"
#include "text/documents.h"
#include "text/reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CACHE_VERSION 1
#define CACHE_NAME_DIGITS 24

static int no_memory(const char *path, looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "%s: no memory to read it", path);
}

int corpus_tokenizer_hash(const char *path, char hash[65], looplm_error *err) {
    static const char *const names[] = {"tokenizer.json", "vocab.json", "encoder.json", "merges.txt", "vocab.bpe"};
    struct sha256 sha;
    sha256_init(&sha);
    bool directory = file_is_directory(path);
    for (size_t i = 0; i < (directory ? sizeof names / sizeof *names : 1); i++) {
        char *file = directory ? file_join(path, names[i]) : strdup(path), *data;
        size_t size;
        if (!file) return no_memory(path, err);
        int status = 0;
        if (!directory || file_exists(file)) {
            status = file_read(file, TOKENIZER_FILE_BYTES_MAX, &data, &size, err);
            if (!status) sha256_update(&sha, data, size);
            if (!status) free(data);
        }
        free(file);
        if (status) return status;
    }
    sha256_finish_hex(&sha, hash);
    return 0;
}

/* ---- tokenising ------------------------------------------------------------------------------------------------- */

/* One source on its way into the cache. */
struct importer {
    const char *path;
    struct encoder *encoder;
    struct indexed_writer *ids, *mask;
    int32_t *buffer, *mask_buffer; /* one document */
    size_t used, room;
    int64_t documents;
    bool masked; /* some document has a prompt */
    struct progress progress;
};

static int reserve(struct importer *im, size_t n, looplm_error *err) {
    if (n <= im->room) return 0;
    size_t room = n + n / 2;
    int32_t *ids = realloc(im->buffer, room * sizeof *ids);
    if (ids) im->buffer = ids;
    int32_t *mask = realloc(im->mask_buffer, room * sizeof *mask);
    if (mask) im->mask_buffer = mask;
    if (!ids || !mask) return no_memory(im->path, err);
    im->room = room;
    return 0;
}

/* Appends the ids of a text to the document; `learned` is their mask. */
static int append(struct importer *im, const char *text, size_t size, int32_t learned, looplm_error *err) {
    const int32_t *ids;
    size_t n;
    int status = encoder_encode(im->encoder, text, size, true, &ids, &n, err);
    if (!status) status = reserve(im, im->used + n, err);
    if (status || n == 0) return status;
    memcpy(im->buffer + im->used, ids, n * sizeof *ids);
    for (size_t i = 0; i < n; i++) im->mask_buffer[im->used + i] = learned;
    im->used += n;
    return 0;
}

static int append_string(struct importer *im, const json_t *string, int32_t learned, looplm_error *err) {
    return append(im, json_string_value(string), json_string_length(string), learned, err);
}

static int read_document(struct importer *im, const struct document *document, looplm_error *err) {
    const json_t *text = json_object_get(document->object, "text");
    const json_t *prompt = json_object_get(document->object, "prompt");
    const json_t *answer = json_object_get(document->object, "answer");
    im->used = 0;
    if (!document->object) return append(im, document->text, document->size, 1, err);
    if (json_is_string(text)) return append_string(im, text, 1, err);
    if (json_is_string(prompt) && json_is_string(answer)) {
        im->masked = true;
        int status = append_string(im, prompt, 0, err);
        return status ? status : append_string(im, answer, 1, err);
    }
    return error_set(err, LOOPLM_FORMAT,
                     "%s: line %lld: expected an object with \"text\", or with \"prompt\" and \"answer\", all strings",
                     im->path, (long long)im->documents + 1);
}

static int import_documents(struct importer *im, looplm_error *err) {
    struct documents *documents;
    enum documents_kind kind = reader_path_is(im->path, ".jsonl") ? DOCUMENTS_JSON : DOCUMENTS_TEXT;
    int status = documents_open(&documents, im->path, kind, err);
    if (status) return status;
    for (bool more = true; !status;) {
        struct document document = {0};
        status = documents_next(documents, &document, &more, err);
        if (status || !more) break;
        status = read_document(im, &document, err);
        if (!status) status = indexed_writer_add(im->ids, im->buffer, im->used, err);
        if (!status) status = indexed_writer_add(im->mask, im->mask_buffer, im->used, err);
        progress_update(&im->progress, ++im->documents, "documents tokenised");
    }
    documents_close(documents);
    return status;
}

/* Both files are put in place, or neither index is. */
static int finish_import(struct importer *im, looplm_error *err) {
    int status = 0;
    if (im->masked) {
        status = indexed_writer_commit(im->mask, err);
    } else {
        indexed_writer_abort(im->mask);
    }
    if (status) {
        indexed_writer_abort(im->ids);
        return status;
    }
    return indexed_writer_commit(im->ids, err);
}

static int import(const char *path, const char *prefix, const char *mask_prefix, const struct corpus_options *options,
                  looplm_error *err) {
    struct importer im = {.path = path};
    if (!options->tokenizer)
        return error_set(err, LOOPLM_USAGE, "%s: it is text, and the recipe names no tokenizer; give model.tokenizer",
                         path);
    int status = encoder_open(&im.encoder, options->tokenizer, err);
    if (status) return status;
    progress_start(&im.progress, path, 0, 0);
    status = indexed_writer_open(&im.ids, prefix, options->vocab, err);
    if (!status && (status = indexed_writer_open(&im.mask, mask_prefix, 2, err))) indexed_writer_abort(im.ids);
    if (!status) {
        status = import_documents(&im, err);
        if (status) {
            indexed_writer_abort(im.ids);
            indexed_writer_abort(im.mask);
        } else {
            status = finish_import(&im, err);
        }
    }
    progress_end(&im.progress);
    encoder_close(im.encoder);
    free(im.buffer);
    free(im.mask_buffer);
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* PATH + SUFFIX exists. */
static bool has_file(const char *path, const char *suffix) {
    char *file;
    if (asprintf(&file, "%s%s", path, suffix) < 0) return false;
    bool there = file_exists(file);
    free(file);
    return there;
}

/* The prefix in the cache that belongs to a file of text; fresh. */
static int cache_prefix(const char *path, const struct corpus_options *options, char **prefix, looplm_error *err) {
    struct stat st;
    if (stat(path, &st) != 0)
        return error_set(err, LOOPLM_IO, "%s: cannot open: %s, and %s.idx is not there either; check the path", path,
                         strerror(errno), path);
    if (!S_ISREG(st.st_mode)) return error_set(err, LOOPLM_IO, "%s: expected a file of text, found no file", path);
    char *real = realpath(path, NULL), *key = NULL, hash[65];
    int n = asprintf(&key, "%d\n%s\n%lld\n%lld.%09ld\n%s\n%d\n", CACHE_VERSION, real ? real : path,
                     (long long)st.st_size, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
                     options->tokenizer_hash ? options->tokenizer_hash : "", options->vocab);
    free(real);
    if (n < 0) return no_memory(path, err);
    sha256_hex(key, (size_t)n, hash);
    free(key);
    if (asprintf(prefix, "%s/%.*s", options->cache, CACHE_NAME_DIGITS, hash) < 0) return no_memory(path, err);
    return file_make_directories(options->cache, err);
}

static void lengths_hash(struct corpus *corpus) {
    struct sha256 sha;
    sha256_init(&sha);
    for (int64_t i = 0; i < corpus->documents; i++) {
        size_t n;
        indexed_document(corpus->ids, (size_t)i, &n);
        uint64_t length = n;
        sha256_update(&sha, &length, sizeof length);
    }
    sha256_finish_hex(&sha, corpus->hash);
}

/* Positions of document i that predict something. */
static int64_t positions_of(const struct corpus *corpus, int64_t i) {
    size_t n;
    int32_t last;
    indexed_document(corpus->ids, (size_t)i, &n);
    if (n == 0) return 0;
    indexed_read(corpus->ids, (size_t)i, n - 1, 1, &last);
    return (int64_t)n - (last == corpus->end_id);
}

static int count_pieces(struct corpus *corpus, const char *path, looplm_error *err) {
    corpus->documents = (int64_t)indexed_documents(corpus->ids);
    corpus->tokens = (int64_t)indexed_tokens(corpus->ids);
    corpus->first_piece = calloc((size_t)corpus->documents + 1, sizeof *corpus->first_piece);
    if (!corpus->first_piece) return no_memory(path, err);
    for (int64_t i = 0; i < corpus->documents; i++)
        corpus->first_piece[i + 1] =
            corpus->first_piece[i] + (positions_of(corpus, i) + corpus->sequence - 1) / corpus->sequence;
    corpus->pieces = corpus->first_piece[corpus->documents];
    if (corpus->pieces == 0)
        return error_set(err, LOOPLM_FORMAT, "%s: it holds no token to learn from; check that it is not empty", path);
    lengths_hash(corpus);
    return 0;
}

static int check_mask(const struct corpus *corpus, const char *path, looplm_error *err) {
    size_t documents = indexed_documents(corpus->ids), found = indexed_documents(corpus->mask);
    for (size_t i = 0; i < documents && i < found; i++) {
        size_t n, m;
        indexed_document(corpus->ids, i, &n);
        indexed_document(corpus->mask, i, &m);
        if (n != m)
            return error_set(err, LOOPLM_MISMATCH, "%s-mask: document %zu has %zu items, expected %zu as in %s.idx",
                             path, i, m, n, path);
    }
    if (documents != found)
        return error_set(err, LOOPLM_MISMATCH, "%s-mask: found %zu documents, expected %zu as in %s.idx", path, found,
                         documents, path);
    return 0;
}

static int open_indexed(struct corpus *corpus, const char *prefix, const char *mask_prefix, int32_t vocab,
                        looplm_error *err) {
    int status = indexed_open(&corpus->ids, prefix, err);
    if (!status) status = indexed_check_ids(corpus->ids, vocab, err);
    if (!status && has_file(mask_prefix, ".idx")) {
        status = indexed_open(&corpus->mask, mask_prefix, err);
        if (!status) status = check_mask(corpus, prefix, err);
    }
    return status ? status : count_pieces(corpus, prefix, err);
}

int corpus_open(struct corpus *corpus, const char *path, const struct corpus_options *options, looplm_error *err) {
    *corpus = (struct corpus){.sequence = options->sequence, .end_id = options->end_id};
    bool indexed = has_file(path, ".idx");
    char *prefix = NULL, *mask_prefix = NULL;
    int status = 0;
    if (indexed) {
        if (!(prefix = strdup(path))) status = no_memory(path, err);
    } else {
        status = cache_prefix(path, options, &prefix, err);
    }
    if (!status && asprintf(&mask_prefix, "%s-mask", prefix) < 0) status = no_memory(path, err);
    if (!status && !indexed && !has_file(prefix, ".idx")) status = import(path, prefix, mask_prefix, options, err);
    if (!status) {
        status = open_indexed(corpus, prefix, mask_prefix, options->vocab, err);
        if (status && !indexed) error_prefix(err, "%s", path); /* the name in the cache says nothing */
    }
    if (status) corpus_close(corpus);
    free(prefix);
    free(mask_prefix);
    return status;
}

void corpus_close(struct corpus *corpus) {
    if (corpus->ids) indexed_close(corpus->ids);
    if (corpus->mask) indexed_close(corpus->mask);
    free(corpus->first_piece);
    *corpus = (struct corpus){0};
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* The document that holds a piece: the last whose first piece is not after it. */
static int64_t find_document(const struct corpus *corpus, int64_t piece) {
    int64_t low = 0, high = corpus->documents - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (corpus->first_piece[middle] <= piece) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* The document of a piece, and where in it the piece begins; returns its number of positions. */
static int64_t locate(const struct corpus *corpus, int64_t piece, int64_t *document, int64_t *first) {
    CHECK_LE(0, piece);
    CHECK_LT(piece, corpus->pieces);
    *document = find_document(corpus, piece);
    *first = (piece - corpus->first_piece[*document]) * corpus->sequence;
    int64_t left = positions_of(corpus, *document) - *first;
    return left < corpus->sequence ? left : corpus->sequence;
}

int32_t corpus_piece_length(const struct corpus *corpus, int64_t piece) {
    int64_t document, first;
    return (int32_t)locate(corpus, piece, &document, &first);
}

int32_t corpus_piece(const struct corpus *corpus, int64_t piece, int32_t *ids, int32_t *targets) {
    int64_t document, first, n = locate(corpus, piece, &document, &first);
    size_t stored, at = (size_t)first + 1;
    indexed_document(corpus->ids, (size_t)document, &stored);
    /* Targets that are stored: all but an end token that was added. */
    size_t known = (size_t)n < stored - at ? (size_t)n : stored - at;
    indexed_read(corpus->ids, (size_t)document, (size_t)first, (size_t)n, ids);
    indexed_read(corpus->ids, (size_t)document, at, known, targets);
    if (known < (size_t)n) targets[known] = corpus->end_id;
    for (size_t i = 0; corpus->mask && i < known; i++) {
        int32_t learned;
        indexed_read(corpus->mask, (size_t)document, at + i, 1, &learned);
        if (!learned) targets[i] = -1;
    }
    return (int32_t)n;
}
