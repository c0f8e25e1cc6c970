/* Making the merges: again and again the pair of symbols that occurs most often, the one of lower ids among equals, so
 * the result is determined. Counts are kept up to date where a merge changes them; a heap holds the best pair, its
 * entries checked against the counts when they come out. */
#include "text/bpe_train_internal.h"

#include <stdlib.h>
#include <string.h>

#define NO_PAIR UINT64_MAX

/* A pair of neighbouring symbols: how often it occurs, and in which words (some of them no longer). */
struct pair {
    uint64_t key; /* left << 32 | right; NO_PAIR: a free slot */
    int64_t count;
    uint32_t *words; /* [n] */
    uint32_t n, room;
    bool risen; /* noted in merging.risen */
};

struct candidate {
    int64_t count;
    uint64_t key;
};

struct merging {
    struct bpe_trainer *trainer;
    int32_t *symbols; /* of all words, at their offsets */
    struct pair *pairs;
    size_t n_pairs, n_slots;
    struct candidate *heap;
    size_t heap_used, heap_room;
    uint64_t *risen; /* pairs whose count rose in the merge at hand */
    size_t n_risen, risen_room;
    looplm_error *err;
};

static uint64_t key_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t find_slot(const struct merging *m, uint64_t key) {
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash ^ hash >> 32) & (m->n_slots - 1);
    while (m->pairs[slot].key != key && m->pairs[slot].key != NO_PAIR) slot = (slot + 1) & (m->n_slots - 1);
    return slot;
}

static int grow_pairs(struct merging *m) {
    if ((m->n_pairs + 1) * 2 <= m->n_slots) return 0;
    struct pair *old = m->pairs;
    size_t n_old = m->n_slots, n = n_old ? n_old * 2 : 1 << 14;
    struct pair *pairs = calloc(n, sizeof *pairs);
    if (!pairs) return error_set(m->err, LOOPLM_MEMORY, "no memory for %zu pairs", n);
    for (size_t i = 0; i < n; i++) pairs[i].key = NO_PAIR;
    m->pairs = pairs;
    m->n_slots = n;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].key != NO_PAIR) m->pairs[find_slot(m, old[i].key)] = old[i];
    }
    free(old);
    return 0;
}

static bool better(const struct candidate *a, const struct candidate *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static int heap_push(struct merging *m, struct candidate c) {
    if (train_reserve((void **)&m->heap, &m->heap_room, m->heap_used + 1, sizeof *m->heap, m->err))
        return LOOPLM_MEMORY;
    size_t at = m->heap_used++;
    for (; at > 0 && better(&c, &m->heap[(at - 1) / 2]); at = (at - 1) / 2) m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = c;
    return 0;
}

static struct candidate heap_pop(struct merging *m) {
    struct candidate top = m->heap[0], moved = m->heap[--m->heap_used];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < m->heap_used; at = child) {
        if (child + 1 < m->heap_used && better(&m->heap[child + 1], &m->heap[child])) child++;
        if (!better(&m->heap[child], &moved)) break;
        m->heap[at] = m->heap[child];
    }
    m->heap[at] = moved;
    return top;
}

/* A pair occurs `change` times more in a word. Pairs that are new or more frequent are noted in risen. */
static int change_count(struct merging *m, int32_t left, int32_t right, int64_t change, uint32_t word) {
    if (grow_pairs(m)) return LOOPLM_MEMORY;
    struct pair *pair = &m->pairs[find_slot(m, key_of(left, right))];
    if (pair->key == NO_PAIR) {
        *pair = (struct pair){.key = key_of(left, right)};
        m->n_pairs++;
    }
    pair->count += change;
    if (change < 0) return 0;
    if (!pair->risen) {
        if (train_reserve((void **)&m->risen, &m->risen_room, m->n_risen + 1, sizeof *m->risen, m->err))
            return LOOPLM_MEMORY;
        m->risen[m->n_risen++] = pair->key;
        pair->risen = true;
    }
    if (pair->n > 0 && pair->words[pair->n - 1] == word) return 0;
    if (pair->n == pair->room) {
        uint32_t room = pair->room ? pair->room * 2 : 2;
        uint32_t *words = realloc(pair->words, room * sizeof *words);
        if (!words) return error_set(m->err, LOOPLM_MEMORY, "no memory for the places of a pair");
        pair->words = words;
        pair->room = room;
    }
    pair->words[pair->n++] = word;
    return 0;
}

/* Puts the pairs that rose in the heap with the counts they have now. */
static int push_risen(struct merging *m) {
    for (size_t i = 0; i < m->n_risen; i++) {
        struct pair *pair = &m->pairs[find_slot(m, m->risen[i])];
        pair->risen = false;
        if (pair->count > 0 && heap_push(m, (struct candidate){.count = pair->count, .key = pair->key}))
            return LOOPLM_MEMORY;
    }
    m->n_risen = 0;
    return 0;
}

static int start(struct merging *m) {
    struct bpe_trainer *t = m->trainer;
    m->symbols = malloc((t->bytes_used + 1) * sizeof *m->symbols);
    if (!m->symbols) return error_set(m->err, LOOPLM_MEMORY, "no memory for the symbols of all words");
    for (size_t i = 0; i < t->bytes_used; i++) m->symbols[i] = t->byte_id[(unsigned char)t->bytes[i]];
    for (size_t w = 0; w < t->n_words; w++) {
        const int32_t *s = m->symbols + t->words[w].offset;
        for (uint32_t i = 0; i + 1 < t->words[w].n; i++) {
            if (change_count(m, s[i], s[i + 1], t->words[w].count, (uint32_t)w)) return LOOPLM_MEMORY;
        }
    }
    return push_risen(m);
}

/* Replaces left right by result in one word, from left to right, and the counts of the pairs around it. */
static int merge_in_word(struct merging *m, uint32_t index, struct train_merge merge, int32_t result) {
    struct train_word *word = &m->trainer->words[index];
    int32_t *s = m->symbols + word->offset;
    uint32_t kept = 0;
    int status = 0;
    for (uint32_t i = 0; i < word->n && status == 0;) {
        if (i + 1 >= word->n || s[i] != merge.left || s[i + 1] != merge.right) {
            s[kept++] = s[i++];
            continue;
        }
        if (kept > 0) {
            status = change_count(m, s[kept - 1], merge.left, -word->count, index);
            if (status == 0) status = change_count(m, s[kept - 1], result, word->count, index);
        }
        if (status == 0 && i + 2 < word->n) {
            status = change_count(m, merge.right, s[i + 2], -word->count, index);
            if (status == 0) status = change_count(m, result, s[i + 2], word->count, index);
        }
        s[kept++] = result;
        i += 2;
    }
    word->n = kept;
    return status;
}

/* The id of the merged token: a new one, or that of another merge which spells the same. */
static int result_of(struct merging *m, struct train_merge merge, int32_t *result) {
    struct vocab *v = &m->trainer->vocab;
    char joined[2 * VOCAB_TOKEN_BYTES_MAX];
    size_t left_size, right_size;
    const char *left = vocab_text(v, merge.left, &left_size), *right = vocab_text(v, merge.right, &right_size);
    memcpy(joined, left, left_size);
    memcpy(joined + left_size, right, right_size);
    *result = vocab_find(v, joined, left_size + right_size);
    if (*result >= 0) return 0;
    *result = v->size;
    return vocab_add(v, v->size, joined, left_size + right_size, m->err);
}

static int apply(struct merging *m, uint64_t key) {
    struct train_merge merge = {.left = (int32_t)(key >> 32), .right = (int32_t)(key & UINT32_MAX)};
    int32_t result;
    int status = result_of(m, merge, &result);
    if (status) return status;
    m->trainer->merges[m->trainer->n_merges++] = merge;
    /* The table may move while counts change, so the list is taken out of it. */
    struct pair *pair = &m->pairs[find_slot(m, key)];
    uint32_t *words = pair->words, n = pair->n;
    pair->words = NULL;
    pair->n = pair->room = 0;
    for (uint32_t i = 0; i < n && status == 0; i++) status = merge_in_word(m, words[i], merge, result);
    free(words);
    m->pairs[find_slot(m, key)].count = 0;
    return status ? status : push_risen(m);
}

static int merge_all(struct merging *m) {
    struct bpe_trainer *t = m->trainer;
    int64_t count_min = t->options.count_min > 1 ? t->options.count_min : 1;
    size_t merges_max = (size_t)t->options.vocab_size * 2; /* Some merges make no new token. */
    t->merges = malloc(merges_max * sizeof *t->merges);
    if (!t->merges) return error_set(m->err, LOOPLM_MEMORY, "no memory for the merges");
    while (t->vocab.size < t->options.vocab_size && t->n_merges < merges_max && m->heap_used > 0) {
        struct candidate top = heap_pop(m);
        int64_t count = m->pairs[find_slot(m, top.key)].count;
        if (top.count < count_min) break;
        if (top.count == count) {
            int status = apply(m, top.key);
            if (status) return status;
        } else if (count > 0 && count < top.count) {
            if (heap_push(m, (struct candidate){.count = count, .key = top.key})) return LOOPLM_MEMORY;
        }
    }
    return 0;
}

int bpe_trainer_run(struct bpe_trainer *trainer, looplm_error *err) {
    struct merging m = {.trainer = trainer, .err = err};
    int status = start(&m);
    if (status == 0) status = merge_all(&m);
    for (size_t i = 0; i < m.n_slots; i++) free(m.pairs[i].words);
    free(m.pairs);
    free(m.symbols);
    free(m.heap);
    free(m.risen);
    return status;
}
