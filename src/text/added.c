/* Added tokens: found in a text before it is split into words, leftmost and longest first, as the reference does with
 * its two automata (one for the text as given, one for the normalized text). There are few of them, so each position
 * whose byte starts one is compared with those of that byte. */
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

int added_set_add(struct added_set *set, struct added_token token, looplm_error *err) {
    struct added_token *tokens =
        set->n < TOKENIZER_ADDED_MAX ? realloc(set->tokens, (set->n + 1) * sizeof *tokens) : NULL;
    if (!tokens) {
        free(token.text);
        if (set->n >= TOKENIZER_ADDED_MAX) {
            return error_set(err, LOOPLM_LIMIT, "more than %d added tokens", TOKENIZER_ADDED_MAX);
        }
        return error_set(err, LOOPLM_MEMORY, "no memory for the added tokens");
    }
    set->tokens = tokens;
    set->tokens[set->n++] = token;
    return 0;
}

static int by_first_byte_then_longest(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    int first = (unsigned char)x->text[0] - (unsigned char)y->text[0];
    if (first) return first;
    if (x->size != y->size) return x->size > y->size ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

void added_set_sort(struct added_set *set) {
    if (set->n) qsort(set->tokens, set->n, sizeof *set->tokens, by_first_byte_then_longest);
    size_t at = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        set->start[byte] = at;
        while (at < set->n && (unsigned char)set->tokens[at].text[0] == byte) at++;
    }
    set->start[256] = at;
}

void added_set_free(struct added_set *set) {
    for (size_t i = 0; i < set->n; i++) free(set->tokens[i].text);
    free(set->tokens);
    *set = (struct added_set){0};
}

static const struct added_token *longest_at(const struct added_set *set, const char *text, size_t size) {
    unsigned char byte = (unsigned char)text[0];
    for (size_t i = set->start[byte]; i < set->start[byte + 1]; i++) {
        const struct added_token *token = &set->tokens[i];
        if (token->size <= size && !memcmp(token->text, text, token->size)) return token;
    }
    return NULL;
}

static bool is_word_character(const struct unicode_classes *classes, const char *text) {
    size_t length;
    enum unicode_class kind = unicode_class_at(classes, text, &length);
    return kind == UNICODE_LETTER || kind == UNICODE_NUMBER || text[0] == '_';
}

/* The start of the character that ends at `end`. */
static size_t character_before(const char *text, size_t end) {
    do end--;
    while (((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

static bool touches_word(const struct unicode_classes *classes, const char *text, size_t size, size_t start,
                         size_t stop) {
    if (start > 0 && is_word_character(classes, text + character_before(text, start))) return true;
    return stop < size && is_word_character(classes, text + stop);
}

static size_t strip_left(const struct unicode_classes *classes, const char *text, size_t start, size_t start_min) {
    size_t length;
    while (start > start_min) {
        size_t before = character_before(text, start);
        if (unicode_class_at(classes, text + before, &length) != UNICODE_SPACE) break;
        start = before;
    }
    return start;
}

static size_t strip_right(const struct unicode_classes *classes, const char *text, size_t size, size_t stop) {
    size_t length;
    while (stop < size && unicode_class_at(classes, text + stop, &length) == UNICODE_SPACE) stop += length;
    return stop;
}

int added_set_split(const struct added_set *set, const struct unicode_classes *classes, const char *text, size_t size,
                    bool parse_special, added_piece_fn *piece, void *context) {
    size_t done = 0;
    int status = 0;
    for (size_t at = 0; at < size && set->n && status == 0;) {
        const struct added_token *token = longest_at(set, text + at, size - at);
        if (!token) {
            at++;
            continue;
        }
        size_t start = at, stop = at + token->size;
        at = stop;
        if (token->special && !parse_special) continue;
        if (token->single_word && touches_word(classes, text, size, start, stop)) continue;
        if (token->lstrip) start = strip_left(classes, text, start, done);
        if (token->rstrip) at = stop = strip_right(classes, text, size, stop);
        if (done < start) status = piece(context, NULL, text + done, start - done);
        if (status == 0) status = piece(context, token, text + start, stop - start);
        done = stop;
    }
    return status || done == size ? status : piece(context, NULL, text + done, size - done);
}
