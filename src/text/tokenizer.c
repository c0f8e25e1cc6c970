/* The use of a tokenizer: encoding. A text goes through: invalid bytes replaced; added tokens found; the rest
 * normalized; added tokens of the normalized kind found; split into words; each word merged, or taken from the cache.
 * Decoding is in detokenizer.c, reading of files in tokenizer_load.c and tokenizer_legacy.c. */
#include "text/normalize.h"
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* The cache: words of at most this many bytes and ids, one entry of 64 bytes per slot, the newest word wins. */
#define CACHE_WORD_BYTES_MAX 22
#define CACHE_WORD_IDS_MAX 10
#define CACHE_SLOTS 16384

struct cached_word {
    uint8_t size, n; /* size 0: a free slot */
    char text[CACHE_WORD_BYTES_MAX];
    int32_t ids[CACHE_WORD_IDS_MAX];
};

struct encoder {
    const struct tokenizer *tokenizer;
    struct split_memory *split;
    struct bpe_memory merge;
    struct cached_word *cache; /* [CACHE_SLOTS] */
    struct id_list out;
    bool parse_special;
    looplm_error *err; /* of the call in progress */
};

int32_t tokenizer_size(const struct tokenizer *tokenizer) {
    return tokenizer->vocab.size;
}

int tokenizer_check_vocabulary(const struct tokenizer *tokenizer, int64_t vocab_size, looplm_error *err) {
    if (tokenizer->vocab.size <= vocab_size) return 0;
    return error_set(
        err, LOOPLM_MISMATCH,
        "the tokenizer has ids up to %d, but the model's vocab_size is %lld; use the tokenizer that the model "
        "was trained with",
        (int)tokenizer->vocab.size - 1, (long long)vocab_size);
}

int32_t tokenizer_id(const struct tokenizer *tokenizer, const char *text) {
    return vocab_find(&tokenizer->vocab, text, strlen(text));
}

const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t id, size_t *size) {
    return vocab_text(&tokenizer->vocab, id, size);
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *size) {
    return vocab_bytes(&tokenizer->vocab, id, size);
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id) {
    return id >= 0 && id < tokenizer->vocab.size && tokenizer->vocab.entries[id].special;
}

int encoder_open(struct encoder **encoder, const struct tokenizer *tokenizer, looplm_error *err) {
    struct encoder *e = *encoder = calloc(1, sizeof *e);
    if (!e) return error_set(err, LOOPLM_MEMORY, "no memory for an encoder");
    e->tokenizer = tokenizer;
    e->cache = calloc(CACHE_SLOTS, sizeof *e->cache);
    int status = e->cache ? 0 : error_set(err, LOOPLM_MEMORY, "no memory for the cache of words");
    if (status == 0) status = split_memory_open(&e->split, tokenizer->splitter, err);
    if (status == 0) status = id_list_reserve(&e->out, 1, err);
    if (status == 0) return 0;
    encoder_close(e);
    *encoder = NULL;
    return status;
}

void encoder_close(struct encoder *encoder) {
    if (!encoder) return;
    split_memory_close(encoder->split);
    bpe_memory_free(&encoder->merge);
    free(encoder->cache);
    free(encoder->out.ids);
    free(encoder);
}

static int append_id(struct encoder *e, int32_t id) {
    if (id_list_reserve(&e->out, 1, e->err)) return LOOPLM_MEMORY;
    e->out.ids[e->out.n++] = id;
    return 0;
}

static int append_ids(struct encoder *e, const int32_t *ids, size_t n) {
    if (id_list_reserve(&e->out, n, e->err)) return LOOPLM_MEMORY;
    memcpy(e->out.ids + e->out.n, ids, n * sizeof *ids);
    e->out.n += n;
    return 0;
}

static int merge_word(struct encoder *e, const char *word, size_t size) {
    const struct tokenizer *t = e->tokenizer;
    if (t->bpe.ignore_merges) {
        char text[2 * VOCAB_TOKEN_BYTES_MAX];
        size_t used = 0;
        for (size_t i = 0; i < size && size <= t->vocab.bytes_size_max; i++) {
            used += utf8_write(byte_level_code_point((unsigned char)word[i]), text + used);
        }
        int32_t id = used ? vocab_find(&t->vocab, text, used) : -1;
        if (id >= 0) return append_id(e, id);
    }
    return bpe_encode_word(&t->bpe, &e->merge, word, size, BPE_SHORT_SYMBOLS, &e->out, e->err);
}

static int encode_word(void *context, const char *word, size_t size) {
    struct encoder *e = context;
    if (size > CACHE_WORD_BYTES_MAX) return merge_word(e, word, size);
    char key[CACHE_WORD_BYTES_MAX] = {0};
    memcpy(key, word, size);
    struct cached_word *slot = &e->cache[vocab_hash(word, size) >> 16 & (CACHE_SLOTS - 1)];
    if (slot->size == size && !memcmp(slot->text, key, sizeof key)) return append_ids(e, slot->ids, slot->n);
    size_t before = e->out.n;
    int status = merge_word(e, word, size);
    size_t n = e->out.n - before;
    if (status || n > CACHE_WORD_IDS_MAX) return status;
    slot->size = (uint8_t)size;
    slot->n = (uint8_t)n;
    memcpy(slot->text, key, sizeof key);
    memcpy(slot->ids, e->out.ids + before, n * sizeof *slot->ids);
    return 0;
}

static int encode_normalized_piece(void *context, const struct added_token *token, const char *text, size_t size) {
    struct encoder *e = context;
    if (token) return append_id(e, token->id);
    return split_text(e->tokenizer->splitter, e->split, text, size, encode_word, e, e->err);
}

static int encode_piece(void *context, const struct added_token *token, const char *text, size_t size) {
    struct encoder *e = context;
    const struct tokenizer *t = e->tokenizer;
    const char *normal = text;
    size_t normal_size = size;
    bool fresh = false;
    if (token) return append_id(e, token->id);
    int status = t->nfc ? normalize_nfc(text, size, &normal, &normal_size, &fresh, e->err) : 0;
    if (status) return status;
    status =
        added_set_split(&t->added[true], t->classes, normal, normal_size, e->parse_special, encode_normalized_piece, e);
    if (fresh) free((char *)normal);
    return status;
}

int encoder_encode(struct encoder *e, const char *text, size_t size, bool parse_special, const int32_t **ids, size_t *n,
                   looplm_error *err) {
    if (size > TOKENIZER_TEXT_BYTES_MAX) {
        return error_set(err, LOOPLM_LIMIT, "a text of %zu bytes is larger than %zu; split it into documents", size,
                         TOKENIZER_TEXT_BYTES_MAX);
    }
    char *replaced = NULL;
    if (!utf8_valid(text, size)) {
        replaced = utf8_replace_invalid(text, size, &size);
        if (!replaced) return error_set(err, LOOPLM_MEMORY, "no memory to replace invalid UTF-8");
        text = replaced;
    }
    e->out.n = 0;
    e->parse_special = parse_special;
    e->err = err;
    int status =
        added_set_split(&e->tokenizer->added[false], e->tokenizer->classes, text, size, parse_special, encode_piece, e);
    free(replaced);
    *ids = e->out.ids;
    *n = e->out.n;
    return status;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, bool parse_special,
                     int32_t **ids, size_t *n, looplm_error *err) {
    struct encoder *encoder;
    const int32_t *borrowed;
    *ids = NULL;
    *n = 0;
    int status = encoder_open(&encoder, tokenizer, err);
    if (status) return status;
    status = encoder_encode(encoder, text, size, parse_special, &borrowed, n, err);
    if (status == 0) {
        *ids = encoder->out.ids;
        encoder->out.ids = NULL;
    }
    encoder_close(encoder);
    return status;
}
