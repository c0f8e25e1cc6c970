/* From ids to text: at once and streaming. Both replace a maximal ill-formed part by one U+FFFD, so the stream, which
 * holds back only what may still become a character, gives the same text. */
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

static const char replacement[3] = {'\xEF', '\xBF', '\xBD'};

int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special, char **text,
                     size_t *size, looplm_error *err) {
    size_t total = 0, length, used = 0;
    *text = NULL;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= tokenizer->vocab.size) {
            return error_set(err, LOOPLM_FORMAT, "id %d (number %zu) is outside the tokenizer's 0..%d", (int)ids[i], i,
                             (int)tokenizer->vocab.size - 1);
        }
        if (vocab_bytes(&tokenizer->vocab, ids[i], &length)) total += length;
    }
    char *bytes = malloc(total + 1);
    if (!bytes) return error_set(err, LOOPLM_MEMORY, "no memory for a text of %zu bytes", total);
    for (size_t i = 0; i < n; i++) {
        const char *piece = vocab_bytes(&tokenizer->vocab, ids[i], &length);
        if (!piece || (skip_special && tokenizer_is_special(tokenizer, ids[i]))) continue;
        memcpy(bytes + used, piece, length);
        used += length;
    }
    *text = utf8_replace_invalid(bytes, used, size);
    free(bytes);
    return *text ? 0 : error_set(err, LOOPLM_MEMORY, "no memory for a text of %zu bytes", total);
}

int detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, bool skip_special, looplm_error *err) {
    *d = (struct detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
    /* What was held, one token, and at the back of the buffer the same joined before replacement. */
    d->buffer = malloc((sizeof replacement + 1) * (sizeof d->held + tokenizer->vocab.bytes_size_max));
    return d->buffer ? 0 : error_set(err, LOOPLM_MEMORY, "no memory for a detokenizer");
}

void detokenizer_free(struct detokenizer *d) {
    free(d->buffer);
    *d = (struct detokenizer){0};
}

void detokenizer_push(struct detokenizer *d, int32_t id, const char **text, size_t *size) {
    size_t n, used = 0, length;
    const char *piece = vocab_bytes(&d->tokenizer->vocab, id, &n);
    *text = d->buffer;
    *size = 0;
    if (!piece || (d->skip_special && tokenizer_is_special(d->tokenizer, id))) return;
    char *joined = d->buffer + sizeof replacement * (sizeof d->held + d->tokenizer->vocab.bytes_size_max);
    memcpy(joined, d->held, d->n_held);
    memcpy(joined + d->n_held, piece, n);
    n += d->n_held;
    d->n_held = 0;
    for (size_t at = 0; at < n; at += length) {
        enum utf8_kind kind = utf8_look(joined + at, n - at, &length);
        if (kind == UTF8_PREFIX) {
            memcpy(d->held, joined + at, length);
            d->n_held = length;
        } else {
            bool good = kind == UTF8_CHARACTER;
            memcpy(d->buffer + used, good ? joined + at : replacement, good ? length : sizeof replacement);
            used += good ? length : sizeof replacement;
        }
    }
    *size = used;
}

void detokenizer_flush(struct detokenizer *d, const char **text, size_t *size) {
    *size = d->n_held ? sizeof replacement : 0;
    memcpy(d->buffer, replacement, *size);
    *text = d->buffer;
    d->n_held = 0;
}
