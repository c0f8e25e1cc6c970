/* The trainer's state: bpe_train.c counts words, bpe_train_merge.c makes merges, bpe_train_save.c writes files. */
#ifndef TEXT_BPE_TRAIN_INTERNAL_H
#define TEXT_BPE_TRAIN_INTERNAL_H

#include "text/bpe_train.h"
#include "text/tokenizer_internal.h"

struct train_word {
    size_t offset; /* of its bytes, and of its symbols while merging */
    uint32_t n;    /* bytes, then symbols left */
    int64_t count;
};

struct train_merge {
    int32_t left, right;
};

struct bpe_trainer {
    struct bpe_train_options options; /* .special is not kept */
    struct vocab vocab;               /* of the tokenizer in the making */
    struct tokenizer *splitter;       /* its added tokens and splitter cut the text */
    struct split_memory *memory;
    int32_t byte_id[256];
    char *bytes; /* of all distinct words */
    size_t bytes_used, bytes_room;
    struct train_word *words;
    size_t n_words, words_room;
    uint32_t *slots; /* word index + 1; open addressing */
    size_t n_slots;
    struct train_merge *merges;
    size_t n_merges;
    looplm_error *err; /* of the call in progress */
};

/* Doubles *array until it holds n items of item_size; the array's room is *room. */
int train_reserve(void **array, size_t *room, size_t n, size_t item_size, looplm_error *err);

#endif
