/* Texts as short sequences of ids, for what only reads a sample of text: measuring a model's quality, calibrating its
 * quantisation. Training reads its corpora through train/corpus.h. */
#ifndef TEXT_PIECES_H
#define TEXT_PIECES_H

#include "text/tokenizer.h"

/* Positions [from, n - 1) are asked what follows them: all of a text, the answer alone of a prompt with an answer. */
struct piece {
    int32_t *ids;
    int32_t n, from;
};

struct pieces {
    struct piece *items; /* [count] owned, with their ids */
    int32_t count, room;
    int64_t ids;   /* of all pieces */
    int64_t asked; /* positions that are asked */
};

struct pieces_options {
    const struct tokenizer *tokenizer;
    int32_t sequence; /* longest piece; longer documents are cut */
    int64_t ids_max;  /* read no more than these from a file */
};

/* Appends a file's pieces: .txt (one document) or .jsonl ("text", or "prompt" and "answer"), plain, .gz or .zst. A
 * piece has two ids at least. An error where a file gives none. */
int pieces_read(struct pieces *pieces, const char *path, const struct pieces_options *options, looplm_error *err);
void pieces_free(struct pieces *pieces);

#endif
