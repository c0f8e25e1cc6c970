/* The tokenizer: byte-level BPE read from tokenizer.json, or from a vocabulary and merges. Ids are those of PyPI's
 * `tokenizers`. A struct tokenizer is read-only once open and may be used by many threads at once. */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "base/error.h"

#include <stdbool.h>

#define TOKENIZER_FILE_BYTES_MAX ((size_t)64 << 20)
#define TOKENIZER_TEXT_BYTES_MAX ((size_t)256 << 20)
#define TOKENIZER_ADDED_MAX 4096

struct tokenizer;

/* Opens a tokenizer.json, or a directory that holds one, or one with vocab.json or encoder.json beside merges.txt or
 * vocab.bpe. */
int tokenizer_open(struct tokenizer **tokenizer, const char *path, looplm_error *err);
/* From the bytes of a tokenizer.json; name is for messages. */
int tokenizer_open_json(struct tokenizer **tokenizer, const char *json, size_t size, const char *name,
                        looplm_error *err);
void tokenizer_close(struct tokenizer *tokenizer);

/* The highest id + 1. */
int32_t tokenizer_size(const struct tokenizer *tokenizer);
/* An error (LOOPLM_MISMATCH) when the tokenizer has ids that the model's vocabulary lacks. A model may have more rows
 * than the tokenizer has ids: they are padding. */
int tokenizer_check_vocabulary(const struct tokenizer *tokenizer, int64_t vocab_size, looplm_error *err);
/* The id of a token by its text as the file writes it ("<|im_end|>", "\xC4\xA0the"); -1 when there is none. */
int32_t tokenizer_id(const struct tokenizer *tokenizer, const char *text);
/* The text as the file writes it, and the bytes that the token stands for; NULL for an id without a token. Borrowed. */
const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t id, size_t *size);
const char *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *size);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);

/* Text to ids; *ids is fresh. Bytes that are not UTF-8 are read as U+FFFD, as Python's errors="replace" does; NUL bytes
 * are characters like any other. parse_special reads the strings of special tokens in the text as those tokens. */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, bool parse_special,
                     int32_t **ids, size_t *n, looplm_error *err);

/* The same for many texts: keeps its memory and a bounded cache of words. One thread uses it at a time. */
struct encoder;
int encoder_open(struct encoder **encoder, const struct tokenizer *tokenizer, looplm_error *err);
void encoder_close(struct encoder *encoder);
/* *ids belongs to the encoder until its next call. */
int encoder_encode(struct encoder *encoder, const char *text, size_t size, bool parse_special, const int32_t **ids,
                   size_t *n, looplm_error *err);

/* Ids to text; *text is fresh, NUL-terminated, and always valid UTF-8: bytes that form no character become U+FFFD. An
 * id outside 0..size-1 is an error; one in a gap of the vocabulary is passed over. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special, char **text,
                     size_t *size, looplm_error *err);

/* Ids to text as they come. What all pushes and the flush give, joined, is what tokenizer_decode gives. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    char *buffer; /* owned */
    char held[4]; /* the start of a character that is not whole yet */
    size_t n_held;
};
int detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool skip_special,
                     looplm_error *err);
void detokenizer_free(struct detokenizer *detokenizer);
/* *text holds whole characters alone (maybe none), until the next call. Ids without a token give nothing. */
void detokenizer_push(struct detokenizer *detokenizer, int32_t id, const char **text, size_t *size);
/* U+FFFD when a character was left unfinished, else nothing; the detokenizer is as new afterwards. */
void detokenizer_flush(struct detokenizer *detokenizer, const char **text, size_t *size);

#endif
