/* A corpus: one source of text as tokenised documents, cut into the sequences that training reads. */
#ifndef TRAIN_CORPUS_H
#define TRAIN_CORPUS_H

#include "text/indexed.h"
#include "text/tokenizer.h"

/* What all corpora of a run share. */
struct corpus_options {
    const struct tokenizer *tokenizer; /* NULL: only indexed files can be read */
    const char *tokenizer_hash;        /* 64 hexadecimal digits; names the files of the cache */
    const char *cache;                 /* directory, made when it is needed */
    int32_t vocab;                     /* of the model */
    int32_t end_id;                    /* of the token that ends a document */
    int32_t sequence;                  /* longest piece, in positions */
};

/* A document of n ids is read as those ids and the end token (which is added when the last id is another). Every
 * position but the end token's predicts the next; these positions are cut into pieces of at most `sequence`, and each
 * piece is a sequence of its own. */
struct corpus {
    struct indexed *ids;
    struct indexed *mask; /* NULL: every target counts; else 1 for each id that should be learned */
    int64_t documents, pieces, tokens;
    int64_t *first_piece; /* [documents + 1] */
    int32_t sequence, end_id;
    char hash[65]; /* of the documents' lengths: what a resumed run compares */
};

/* path: a .txt (one document) or a .jsonl (one per line: "text", or "prompt" and "answer", whose loss is on the answer
 * alone), plain, .gz or .zst, tokenised once into the cache; or the PREFIX of PREFIX.bin and .idx, with an optional
 * PREFIX-mask. */
int corpus_open(struct corpus *corpus, const char *path, const struct corpus_options *options, looplm_error *err);
void corpus_close(struct corpus *corpus);
/* ids and targets hold `sequence` items; a target is -1 where nothing is asked. Returns the number of positions. */
int32_t corpus_piece(const struct corpus *corpus, int64_t piece, int32_t *ids, int32_t *targets);
/* The number of positions alone. */
int32_t corpus_piece_length(const struct corpus *corpus, int64_t piece);

/* The hash for the options: of the files that a tokenizer directory (or tokenizer.json) consists of. */
int corpus_tokenizer_hash(const char *path, char hash[65], looplm_error *err);

#endif
