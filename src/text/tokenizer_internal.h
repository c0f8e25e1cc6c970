/* What a tokenizer is made of: shared by tokenizer.c (use), added.c (added tokens) and tokenizer_load*.c (files). */
#ifndef TEXT_TOKENIZER_INTERNAL_H
#define TEXT_TOKENIZER_INTERNAL_H

#include "text/bpe.h"
#include "text/split.h"
#include "text/tokenizer.h"
#include "text/unicode_class.h"

/* A token that is looked for in the text before anything else happens to it. */
struct added_token {
    char *text; /* owned; normalized when its flag says so */
    size_t size;
    int32_t id;
    bool special;        /* looked for only when special tokens are parsed */
    bool single_word;    /* only where no letter, number or _ touches it */
    bool lstrip, rstrip; /* takes the white space before or after it */
    bool normalized;     /* looked for in the normalized text, else in the text as given */
};

/* Sorted by first byte, longer ones first; start[b]..start[b+1] are those that begin with byte b. */
struct added_set {
    struct added_token *tokens;
    size_t n;
    size_t start[257];
};

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct splitter *splitter;
    const struct unicode_classes *classes; /* the splitter's */
    bool nfc;
    struct added_set added[2]; /* by the flag `normalized` */
};

/* Takes over token.text (frees it on failure too). Sets must be sorted by added_set_sort before they are used. */
int added_set_add(struct added_set *set, struct added_token token, looplm_error *err);
void added_set_sort(struct added_set *set);
void added_set_free(struct added_set *set);

/* What a text falls into: plain pieces (token NULL) and added tokens. */
typedef int added_piece_fn(void *context, const struct added_token *token, const char *text, size_t size);
int added_set_split(const struct added_set *set, const struct unicode_classes *classes, const char *text, size_t size,
                    bool parse_special, added_piece_fn *piece, void *context);

/* tokenizer_build.c: the parts that both kinds of files are made into. */
int tokenizer_new(struct tokenizer **tokenizer, looplm_error *err);
int tokenizer_add_token(struct tokenizer *tokenizer, struct added_token token, looplm_error *err);
/* A merge by its two texts; its result must be in the vocabulary. */
int tokenizer_add_merge(struct tokenizer *tokenizer, const char *left, size_t left_size, const char *right,
                        size_t right_size, size_t rank, looplm_error *err);
/* Binds bytes and sorts the added tokens: the last step. */
void tokenizer_finish(struct tokenizer *tokenizer);
int tokenizer_open_legacy(struct tokenizer **tokenizer, const char *directory, looplm_error *err);

#endif
