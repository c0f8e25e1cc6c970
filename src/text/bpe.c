/* The merge loop: of all neighbouring pairs the one of lowest rank is merged, the leftmost first among equals, until
 * no pair has a rank. Short words scan; long ones keep a heap, so a word of n bytes costs O(n log n). */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANK UINT32_MAX

struct bpe_node {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t previous, next;
};

/* A pair that could be merged. It is stale when the nodes no longer hold these ids. */
struct bpe_candidate {
    uint32_t rank;
    int32_t at; /* of the left node */
    int32_t left, right;
};

void bpe_init(struct bpe *bpe) {
    *bpe = (struct bpe){.unknown_id = -1};
    for (int i = 0; i < 256; i++) bpe->byte_id[i] = -1;
}

void bpe_free(struct bpe *bpe) {
    free(bpe->slots);
    bpe_init(bpe);
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static struct bpe_merge *find_slot(const struct bpe *bpe, uint64_t pair) {
    uint64_t hash = pair * 0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash ^ hash >> 32) & (bpe->n_slots - 1);
    while (bpe->slots[slot].pair != pair && bpe->slots[slot].pair != BPE_NO_PAIR)
        slot = (slot + 1) & (bpe->n_slots - 1);
    return &bpe->slots[slot];
}

static const struct bpe_merge *find_merge(const struct bpe *bpe, int32_t left, int32_t right) {
    const struct bpe_merge *merge = bpe->n_slots ? find_slot(bpe, pair_of(left, right)) : NULL;
    return merge && merge->pair != BPE_NO_PAIR ? merge : NULL;
}

static uint32_t rank_of(const struct bpe *bpe, int32_t left, int32_t right) {
    const struct bpe_merge *merge = find_merge(bpe, left, right);
    return merge ? merge->rank : NO_RANK;
}

static int grow_slots(struct bpe *bpe, looplm_error *err) {
    if ((bpe->n_merges + 1) * 2 <= bpe->n_slots) return 0;
    struct bpe_merge *old = bpe->slots;
    size_t n_old = bpe->n_slots, n = n_old ? n_old * 2 : 1024;
    struct bpe_merge *slots = malloc(n * sizeof *slots);
    if (!slots) return error_set(err, LOOPLM_MEMORY, "no memory for the merges");
    for (size_t i = 0; i < n; i++) slots[i].pair = BPE_NO_PAIR;
    bpe->slots = slots;
    bpe->n_slots = n;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].pair != BPE_NO_PAIR) *find_slot(bpe, old[i].pair) = old[i];
    }
    free(old);
    return 0;
}

int bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t result, looplm_error *err) {
    if (grow_slots(bpe, err)) return LOOPLM_MEMORY;
    struct bpe_merge *slot = find_slot(bpe, pair_of(left, right));
    if (slot->pair == BPE_NO_PAIR) bpe->n_merges++;
    *slot = (struct bpe_merge){.pair = pair_of(left, right), .rank = rank, .result = result};
    return 0;
}

void bpe_bind_bytes(struct bpe *bpe, const struct vocab *vocab) {
    for (int b = 0; b < 256; b++) {
        char text[2];
        uint32_t c = byte_level_code_point((unsigned char)b);
        size_t size = c < 0x80 ? 1 : 2;
        text[0] = (char)(size == 1 ? c : 0xC0 | c >> 6);
        text[1] = (char)(0x80 | (c & 0x3F));
        bpe->byte_id[b] = vocab_find(vocab, text, size);
    }
}

int id_list_reserve(struct id_list *list, size_t more, looplm_error *err) {
    if (list->room - list->n >= more) return 0;
    size_t room = list->room ? list->room : 256;
    while (room - list->n < more) room *= 2;
    int32_t *ids = realloc(list->ids, room * sizeof *ids);
    if (!ids) return error_set(err, LOOPLM_MEMORY, "no memory for %zu ids", room);
    list->ids = ids;
    list->room = room;
    return 0;
}

void bpe_memory_free(struct bpe_memory *memory) {
    free(memory->nodes);
    free(memory->heap);
    *memory = (struct bpe_memory){0};
}

/* Appends the ids of the single bytes; out has room for one per byte. */
static void append_bytes(const struct bpe *bpe, const char *word, size_t size, struct id_list *out) {
    bool after_unknown = false;
    for (size_t i = 0; i < size; i++) {
        int32_t id = bpe->byte_id[(unsigned char)word[i]];
        bool unknown = id < 0;
        if (unknown) id = bpe->unknown_id;
        if (id >= 0 && !(unknown && after_unknown && bpe->fuse_unknown)) out->ids[out->n++] = id;
        after_unknown = unknown;
    }
}

/* Merges ids[0..n) in place by scanning; returns how many are left. */
static size_t merge_short(const struct bpe *bpe, int32_t *ids, size_t n) {
    uint32_t ranks[BPE_SHORT_SYMBOLS]; /* of the pair (i, i+1) */
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(bpe, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best]) best = i;
        }
        if (ranks[best] == NO_RANK) break;
        ids[best] = find_merge(bpe, ids[best], ids[best + 1])->result;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof *ranks);
        if (best > 0) ranks[best - 1] = rank_of(bpe, ids[best - 1], ids[best]);
        if (best + 1 < n) ranks[best] = rank_of(bpe, ids[best], ids[best + 1]);
    }
    return n;
}

static bool comes_before(const struct bpe_candidate *a, const struct bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* The heap has room: each node pushes at most once at the start, and each merge removes a node and pushes twice. */
static void heap_push(struct bpe_memory *m, struct bpe_candidate candidate) {
    size_t at = m->heap_used++;
    for (; at > 0 && comes_before(&candidate, &m->heap[(at - 1) / 2]); at = (at - 1) / 2)
        m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = candidate;
}

static struct bpe_candidate heap_pop(struct bpe_memory *m) {
    struct bpe_candidate top = m->heap[0], moved = m->heap[--m->heap_used];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < m->heap_used; at = child) {
        if (child + 1 < m->heap_used && comes_before(&m->heap[child + 1], &m->heap[child])) child++;
        if (!comes_before(&m->heap[child], &moved)) break;
        m->heap[at] = m->heap[child];
    }
    m->heap[at] = moved;
    return top;
}

static void consider(const struct bpe *bpe, struct bpe_memory *m, int32_t at) {
    if (at < 0 || m->nodes[at].next < 0) return;
    int32_t left = m->nodes[at].id, right = m->nodes[m->nodes[at].next].id;
    uint32_t rank = rank_of(bpe, left, right);
    if (rank != NO_RANK) heap_push(m, (struct bpe_candidate){.rank = rank, .at = at, .left = left, .right = right});
}

static int reserve_long(struct bpe_memory *m, size_t n, looplm_error *err) {
    if (n > INT32_MAX / 4) return error_set(err, LOOPLM_LIMIT, "a word of %zu bytes is too long", n);
    m->heap_used = 0;
    if (n <= m->room) return 0;
    bpe_memory_free(m);
    m->nodes = malloc(n * sizeof *m->nodes);
    m->heap = malloc(3 * n * sizeof *m->heap);
    if (!m->nodes || !m->heap) {
        bpe_memory_free(m);
        return error_set(err, LOOPLM_MEMORY, "no memory to merge a word of %zu bytes", n);
    }
    m->room = n;
    m->heap_room = 3 * n;
    return 0;
}

/* As merge_short, with a linked list and a heap. */
static size_t merge_long(const struct bpe *bpe, struct bpe_memory *m, int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        m->nodes[i] =
            (struct bpe_node){.id = ids[i], .previous = (int32_t)i - 1, .next = i + 1 < n ? (int32_t)i + 1 : -1};
    }
    for (size_t i = 0; i + 1 < n; i++) consider(bpe, m, (int32_t)i);
    while (m->heap_used) {
        struct bpe_candidate c = heap_pop(m);
        struct bpe_node *left = &m->nodes[c.at];
        if (left->id != c.left || left->next < 0 || m->nodes[left->next].id != c.right) continue;
        struct bpe_node *right = &m->nodes[left->next];
        left->id = find_merge(bpe, c.left, c.right)->result;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0) m->nodes[left->next].previous = c.at;
        consider(bpe, m, left->previous);
        consider(bpe, m, c.at);
    }
    size_t kept = 0;
    for (int32_t at = 0; at >= 0; at = m->nodes[at].next) ids[kept++] = m->nodes[at].id;
    return kept;
}

int bpe_encode_word(const struct bpe *bpe, struct bpe_memory *memory, const char *word, size_t size,
                    size_t short_symbols_max, struct id_list *out, looplm_error *err) {
    if (id_list_reserve(out, size, err)) return LOOPLM_MEMORY;
    size_t first = out->n;
    append_bytes(bpe, word, size, out);
    size_t n = out->n - first;
    if (n < 2) return 0;
    if (n <= short_symbols_max && n <= BPE_SHORT_SYMBOLS) {
        out->n = first + merge_short(bpe, out->ids + first, n);
        return 0;
    }
    int status = reserve_long(memory, n, err);
    if (status == 0) out->n = first + merge_long(bpe, memory, out->ids + first, n);
    return status;
}
