/* Putting a tokenizer together, whatever files it comes from. */
#include "text/normalize.h"
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

int tokenizer_new(struct tokenizer **tokenizer, looplm_error *err) {
    struct tokenizer *t = *tokenizer = calloc(1, sizeof *t);
    if (!t) return error_set(err, LOOPLM_MEMORY, "no memory for a tokenizer");
    vocab_init(&t->vocab);
    bpe_init(&t->bpe);
    int status = splitter_open(&t->splitter, err);
    if (status) {
        tokenizer_close(t);
        *tokenizer = NULL;
        return status;
    }
    t->classes = splitter_classes(t->splitter);
    return 0;
}

void tokenizer_close(struct tokenizer *tokenizer) {
    if (!tokenizer) return;
    vocab_free(&tokenizer->vocab);
    bpe_free(&tokenizer->bpe);
    splitter_close(tokenizer->splitter);
    for (int i = 0; i < 2; i++) added_set_free(&tokenizer->added[i]);
    free(tokenizer);
}

static bool is_added(const struct tokenizer *t, int32_t id) {
    for (int set = 0; set < 2; set++) {
        for (size_t i = 0; i < t->added[set].n; i++) {
            if (t->added[set].tokens[i].id == id) return true;
        }
    }
    return false;
}

/* token.text is borrowed here; the set gets a copy, normalized where that is how it will be looked for. */
static int add_to_set(struct tokenizer *t, struct added_token token, looplm_error *err) {
    const char *normal = token.text;
    bool fresh = false;
    int status =
        t->nfc && token.normalized ? normalize_nfc(token.text, token.size, &normal, &token.size, &fresh, err) : 0;
    if (status) return status;
    token.text = malloc(token.size + 1);
    if (token.text) memcpy(token.text, normal, token.size);
    if (fresh) free((char *)normal);
    if (!token.text) return error_set(err, LOOPLM_MEMORY, "no memory for the added tokens");
    return added_set_add(&t->added[token.normalized], token, err);
}

int tokenizer_add_token(struct tokenizer *t, struct added_token token, looplm_error *err) {
    if (token.size == 0) return 0; /* The reference passes over empty ones too. */
    int32_t found = vocab_find(&t->vocab, token.text, token.size);
    if (found >= 0 && found != token.id) {
        return error_set(err, LOOPLM_FORMAT, "the added token \"%.60s\" has id %d, but %d in the vocabulary",
                         token.text, (int)token.id, (int)found);
    }
    int status = found >= 0 ? 0 : vocab_add(&t->vocab, token.id, token.text, token.size, err);
    if (status) return status;
    if (is_added(t, token.id))
        return error_set(err, LOOPLM_FORMAT, "the added token \"%.60s\" is listed twice", token.text);
    t->vocab.entries[token.id].special = token.special;
    return add_to_set(t, token, err);
}

int tokenizer_add_merge(struct tokenizer *t, const char *left, size_t left_size, const char *right, size_t right_size,
                        size_t rank, looplm_error *err) {
    char joined[2 * VOCAB_TOKEN_BYTES_MAX];
    if (rank >= BPE_MERGES_MAX) return error_set(err, LOOPLM_LIMIT, "more than %zu merges", BPE_MERGES_MAX);
    if (!left_size || !right_size || left_size > VOCAB_TOKEN_BYTES_MAX || right_size > VOCAB_TOKEN_BYTES_MAX) {
        return error_set(err, LOOPLM_FORMAT, "merge %zu has a part of %zu bytes, expected 1..%d", rank,
                         left_size && right_size ? (left_size > right_size ? left_size : right_size) : 0,
                         VOCAB_TOKEN_BYTES_MAX);
    }
    memcpy(joined, left, left_size);
    memcpy(joined + left_size, right, right_size);
    int32_t a = vocab_find(&t->vocab, left, left_size), b = vocab_find(&t->vocab, right, right_size);
    int32_t result = vocab_find(&t->vocab, joined, left_size + right_size);
    if (a < 0 || b < 0 || result < 0) {
        const char *missing = a < 0 ? left : b < 0 ? right : joined;
        size_t size = a < 0 ? left_size : b < 0 ? right_size : left_size + right_size;
        return error_set(err, LOOPLM_FORMAT, "merge %zu needs \"%.*s\", which is not in the vocabulary", rank,
                         (int)(size < 60 ? size : 60), missing);
    }
    return bpe_add_merge(&t->bpe, a, b, (uint32_t)rank, result, err);
}

void tokenizer_finish(struct tokenizer *t) {
    bpe_bind_bytes(&t->bpe, &t->vocab);
    for (int i = 0; i < 2; i++) added_set_sort(&t->added[i]);
}
