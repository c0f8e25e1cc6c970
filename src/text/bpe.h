/* Merging byte pairs: from the bytes of one word to ids. */
#ifndef TEXT_BPE_H
#define TEXT_BPE_H

#include "text/vocab.h"

#define BPE_MERGES_MAX ((size_t)VOCAB_IDS_MAX)
/* Words up to this many symbols are merged by scanning for the best pair, longer ones by a heap. The ids are the same.
 */
#define BPE_SHORT_SYMBOLS 48

struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id; BPE_NO_PAIR: a free slot */
    uint32_t rank; /* lower merges first */
    int32_t result;
};
#define BPE_NO_PAIR UINT64_MAX

struct bpe {
    struct bpe_merge *slots; /* open addressing */
    size_t n_slots, n_merges;
    int32_t byte_id[256]; /* -1: no token; such bytes are dropped, or become unknown_id */
    int32_t unknown_id;   /* -1: none */
    bool fuse_unknown;    /* neighbouring unknown bytes are one token */
    bool ignore_merges;   /* a word that is itself a token is taken whole */
};

void bpe_init(struct bpe *bpe);
void bpe_free(struct bpe *bpe);
/* A pair given twice keeps its later rank, as in the reference. */
int bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t result, looplm_error *err);
/* Reads byte_id from the vocabulary's single characters. */
void bpe_bind_bytes(struct bpe *bpe, const struct vocab *vocab);

/* A growing list of ids. */
struct id_list {
    int32_t *ids;
    size_t n, room;
};
int id_list_reserve(struct id_list *list, size_t more, looplm_error *err);

struct bpe_node;
struct bpe_candidate;
/* Memory of one thread for long words; zero it before first use. */
struct bpe_memory {
    struct bpe_node *nodes;
    struct bpe_candidate *heap;
    size_t room, heap_used, heap_room;
};
void bpe_memory_free(struct bpe_memory *memory);

/* Appends the ids of a word. short_symbols_max is BPE_SHORT_SYMBOLS but in tests. */
int bpe_encode_word(const struct bpe *bpe, struct bpe_memory *memory, const char *word, size_t size,
                    size_t short_symbols_max, struct id_list *out, looplm_error *err);

#endif
