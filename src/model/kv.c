/* The KV cache (kv.h). A sequence keeps, per loop, the length of the prefix whose plane is there (`ready`): invariants
 * 1 and 2 then say that rows enter a loop exactly at its `ready`, so the check is one comparison a row and not a walk
 * over the past. */
#include "model/kv.h"

#include <stdlib.h>
#include <string.h>

int kv_sequence_init(struct kv_sequence *seq, struct kv_pool *pool, enum kv_policy policy, int32_t loops,
                     int32_t capacity_max, looplm_error *err) {
    int32_t capacity = (capacity_max + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    CHECK_LE(loops, KV_BLOCK); /* slots of `aside` */
    *seq =
        (struct kv_sequence){.pool = pool, .policy = policy, .loops = loops, .loops_max = loops, .capacity = capacity};
    seq->blocks = calloc((size_t)loops * (size_t)(capacity / KV_BLOCK), sizeof(void *));
    seq->done = calloc((size_t)capacity, 1);
    seq->left = calloc((size_t)capacity, 1);
    seq->ready = calloc((size_t)loops, sizeof(int32_t));
    seq->there = calloc((size_t)loops, sizeof(int32_t));
    if (seq->blocks && seq->done && seq->left && seq->ready && seq->there) return 0;
    kv_sequence_free(seq);
    return error_set(err, LOOPLM_MEMORY, "KV tables for %d positions could not be had", capacity);
}

static void **table(struct kv_sequence *seq, int32_t loop) {
    return seq->blocks + (size_t)loop * (size_t)(seq->capacity / KV_BLOCK);
}

static bool block_joined(const struct kv_sequence *seq, int32_t i) {
    return seq->loops > 1 && kv_table(seq, 0)[i] == kv_table(seq, 1)[i];
}

/* Blocks [first, last) of the tables; a joined one once. */
static void give_blocks(struct kv_sequence *seq, int32_t first, int32_t last) {
    for (int32_t i = first; i < last; i++)
        for (int32_t r = block_joined(seq, i) ? seq->loops - 1 : 0; r < seq->loops; r++)
            kv_block_give(seq->pool, table(seq, r)[i]);
}

static void give_aside(struct kv_sequence *seq) {
    if (seq->aside) kv_block_give(seq->pool, seq->aside);
    seq->aside = NULL;
}

void kv_sequence_free(struct kv_sequence *seq) {
    if (seq->blocks) {
        give_blocks(seq, 0, seq->positions / KV_BLOCK);
        give_aside(seq);
    }
    free(seq->blocks);
    free(seq->done);
    free(seq->left);
    free(seq->ready);
    free(seq->there);
    *seq = (struct kv_sequence){0};
}

bool kv_reserve(struct kv_sequence *seq, int32_t n) {
    CHECK_LE(n, seq->capacity);
    int32_t have = seq->positions / KV_BLOCK, want = (n + KV_BLOCK - 1) / KV_BLOCK,
            planes = seq->joined ? 1 : seq->loops;
    if (want <= have) return true;
    if (kv_pool_available(seq->pool) < (int64_t)(want - have) * planes) return false;
    for (int32_t r = 0; r < seq->loops; r++)
        for (int32_t i = have; i < want; i++)
            table(seq, r)[i] = r < planes ? kv_block_take(seq->pool) : table(seq, 0)[i];
    seq->positions = want * KV_BLOCK;
    return true;
}

int32_t kv_joined_blocks(const struct kv_sequence *seq) {
    int32_t n = 0;
    for (int32_t i = 0; i < seq->positions / KV_BLOCK; i++) n += block_joined(seq, i);
    return n;
}

int64_t kv_blocks(const struct kv_sequence *seq) {
    int64_t blocks = seq->positions / KV_BLOCK, joined = kv_joined_blocks(seq);
    return (blocks - joined) * seq->loops + joined + (seq->aside != NULL);
}

static void run_lends(const struct kv_sequence *seq, const struct kv_lend *lends, int32_t n) {
    struct op op = {.kind = OP_KV_LEND, .kv_lend = {lends, n, seq->pool->geometry}};
    struct pass pass = {.ops = &op, .count = 1, .capacity = 1};
    if (n > 0) seq->pool->backend->execute(seq->pool->backend, &pass);
}

/* The positions of block i that have left: the mean over the planes of the loops that each ran goes to block `to`. */
static void mean_planes(const struct kv_sequence *seq, int32_t i, void *to) {
    struct kv_lend lends[4 * KV_BLOCK];
    int32_t n = 0;
    for (int32_t slot = 0; slot < KV_BLOCK; slot++) {
        const int32_t depth = seq->left[i * KV_BLOCK + slot];
        if (n + depth > (int32_t)(sizeof lends / sizeof *lends)) {
            run_lends(seq, lends, n);
            n = 0;
        }
        for (int32_t r = 0; r < depth; r++, n++)
            lends[n] = (struct kv_lend){kv_table(seq, r)[i], to, slot, slot, r == 0 ? depth : 0};
    }
    run_lends(seq, lends, n);
}

/* A block of planes that may be written over: nobody else has it; else a new one, or NULL when there is none. */
static void *own_block(struct kv_sequence *seq, int32_t i) {
    for (int32_t r = 0; r < seq->loops; r++)
        if (kv_block_owners(seq->pool, table(seq, r)[i]) == 1) return table(seq, r)[i];
    return kv_pool_available(seq->pool) > 0 ? kv_block_take(seq->pool) : NULL;
}

/* One plane stays of a block. */
static bool join_block(struct kv_sequence *seq, int32_t i) {
    void *one = table(seq, seq->policy == KV_POLICY_SHARED_FIRST ? 0 : seq->loops - 1)[i];
    if (seq->policy == KV_POLICY_SHARED_MEAN) {
        one = own_block(seq, i);
        if (!one) return false;
        mean_planes(seq, i, one);
    }
    for (int32_t r = 0; r < seq->loops; r++) {
        if (table(seq, r)[i] != one) kv_block_give(seq->pool, table(seq, r)[i]);
        table(seq, r)[i] = one;
    }
    return true;
}

/* The last block first, which nobody shares: what it gives back is there for means of shared ones. Where blocks are
 * missing some are joined, and the rest may follow later. */
static bool join(struct kv_sequence *seq) {
    for (int32_t i = seq->positions / KV_BLOCK - 1; i >= 0; i--)
        if (seq->loops > 1 && !block_joined(seq, i) && !join_block(seq, i)) return false;
    seq->joined = true;
    return true;
}

/* Blocks that positions >= n lie in get a copy at every loop. False without a change when the pool has too few. */
static bool part(struct kv_sequence *seq, int32_t n) {
    int32_t first = n / KV_BLOCK, blocks = seq->positions / KV_BLOCK;
    if (kv_pool_available(seq->pool) < (int64_t)(blocks - first) * (seq->loops - 1)) return false;
    for (int32_t i = first; i < blocks; i++)
        for (int32_t r = 1; r < seq->loops; r++)
            table(seq, r)[i] = memcpy(kv_block_take(seq->pool), table(seq, 0)[i], seq->pool->block_size);
    seq->joined = false;
    return true;
}

bool kv_begin(struct kv_sequence *seq, int32_t from, int32_t n, bool generated) {
    if (kv_policy_shared(seq->policy)) {
        if (generated && !seq->joined && !join(seq)) return false;
        if (!generated && seq->joined && !part(seq, from)) return false;
        if (generated && seq->policy != KV_POLICY_SHARED_LAST && seq->loops > 1 && !seq->aside) {
            if (kv_pool_available(seq->pool) < 1) return false;
            seq->aside = kv_block_take(seq->pool);
        }
    }
    return kv_reserve(seq, n);
}

void kv_shrink(struct kv_sequence *seq, int32_t n) {
    int32_t have = seq->positions / KV_BLOCK, want = (n + KV_BLOCK - 1) / KV_BLOCK;
    for (int32_t r = 0; r < seq->loops; r++) CHECK_LE(seq->ready[r], n);
    give_blocks(seq, want, have);
    if (want < have) seq->positions = want * KV_BLOCK;
}

static bool plane_supplied(const struct kv_sequence *seq, int32_t p, int32_t loop) {
    return seq->done[p] > loop || (seq->policy != KV_POLICY_FULL && seq->left[p] && seq->left[p] <= loop);
}

static void ready_advance(struct kv_sequence *seq, int32_t loop) {
    int32_t p = seq->ready[loop];
    while (p < seq->positions && plane_supplied(seq, p, loop)) p++;
    seq->ready[loop] = p;
}

void kv_enter(struct kv_sequence *seq, int32_t loop, int32_t first, int32_t count) {
    CHECK_LT(loop, seq->loops);
    CHECK_LE(first + count, seq->positions); /* invariant 5 */
    CHECK_EQ(seq->ready[loop], first);       /* invariant 2 */
    if (seq->owes) CHECK_EQ(seq->there[loop], first);
    for (int32_t i = first / KV_BLOCK; i <= (first + count - 1) / KV_BLOCK; i++)
        CHECK_EQ(kv_block_owners(seq->pool, table(seq, loop)[i]), 1);
    for (int32_t p = first; p < first + count; p++) {
        CHECK_EQ(seq->done[p], loop); /* invariant 1 */
        seq->done[p]++;
    }
    seq->there[loop] = first + count;
    ready_advance(seq, loop);
}

int32_t kv_owed(struct kv_sequence *seq, int32_t loop, int32_t n, struct kv_lend *lends, int32_t room) {
    int32_t made = 0;
    CHECK_LE(n, seq->ready[loop]);
    for (; seq->owes && seq->there[loop] < n && made < room; seq->there[loop]++, made++) {
        const int32_t p = seq->there[loop], depth = seq->left[p], block = p / KV_BLOCK, slot = p % KV_BLOCK;
        CHECK_LE(1, depth);
        CHECK_LE(depth, loop);
        lends[made] = (struct kv_lend){kv_table(seq, depth - 1)[block], kv_table(seq, loop)[block], slot, slot, 1};
    }
    return made;
}

void kv_pay(struct kv_sequence *seq, int32_t n) {
    struct kv_lend lends[4 * KV_BLOCK];
    for (int32_t r = 1; r < seq->loops; r++)
        for (int32_t made; (made = kv_owed(seq, r, n, lends, (int32_t)(sizeof lends / sizeof *lends))) > 0;)
            run_lends(seq, lends, made);
}

/* A generated row's keys and values go from its slot aside, and back: the first loop's, or the mean of all it ran. */
static int32_t return_aside(const struct kv_sequence *seq, int32_t p, int32_t depth, struct kv_lend *lends) {
    void *block = kv_table(seq, 0)[p / KV_BLOCK];
    const int32_t slot = p % KV_BLOCK, of = seq->policy == KV_POLICY_SHARED_MEAN ? depth : 1;
    if (!seq->aside || depth == 1) return 0;
    for (int32_t r = 0; r < of; r++)
        lends[r] = r + 1 < depth ? (struct kv_lend){seq->aside, block, r, slot, r == 0 ? of : 0}
                                 : (struct kv_lend){block, block, slot, slot, 0};
    return of;
}

int32_t kv_leave(struct kv_sequence *seq, int32_t p, int32_t depth, struct kv_lend *lends) {
    CHECK_EQ(seq->left[p], 0);
    CHECK_EQ(seq->done[p], depth);
    seq->left[p] = (uint8_t)depth;
    if (seq->policy == KV_POLICY_FULL) return 0;
    int32_t n = 0, block = p / KV_BLOCK, slot = p % KV_BLOCK;
    for (int32_t r = depth; r < seq->loops; r++) {
        if (!seq->joined && !seq->owes)
            lends[n++] = (struct kv_lend){kv_table(seq, depth - 1)[block], kv_table(seq, r)[block], slot, slot, 1};
        ready_advance(seq, r);
    }
    return seq->joined ? return_aside(seq, p, depth, lends) : n;
}

int32_t kv_stay(const struct kv_sequence *seq, int32_t p, struct kv_lend *lends) {
    const int32_t done = seq->done[p];
    if (!seq->joined || !seq->aside || (done > 1 && seq->policy == KV_POLICY_SHARED_FIRST)) return 0;
    lends[0] = (struct kv_lend){kv_table(seq, 0)[p / KV_BLOCK], seq->aside, p % KV_BLOCK, done - 1, 1};
    return 1;
}

/* Zeroes the slots [slot, KV_BLOCK) of a block: columns of the key panels, rows of the values. */
static void block_zero_from(const struct kv_geometry *g, unsigned char *block, int32_t slot) {
    if (slot == 0) {
        memset(block, 0, kv_block_size(g));
        return;
    }
    size_t half = kv_values_after(g), element = kv_element_size(g->type);
    size_t scales = KV_BLOCK * (size_t)g->head_dim + sizeof(uint16_t) * (size_t)slot; /* q8 */
    for (int32_t layer = 0; layer < g->layers; layer++) {
        for (int32_t head = 0; head < g->kv_heads; head++) {
            unsigned char *keys = block + kv_offset(g, layer, head);
            for (int32_t s = slot; s < KV_BLOCK; s++) {
                unsigned char *column = keys + element * (size_t)(s / LANES * LANES * g->head_dim + s % LANES);
                for (int32_t d = 0; d < g->head_dim; d++) memset(column + element * (size_t)(d * LANES), 0, element);
            }
            size_t row = element * (size_t)g->head_dim;
            memset(keys + half + row * (size_t)slot, 0, row * (size_t)(KV_BLOCK - slot));
            if (g->type != KV_Q8) continue;
            memset(keys + scales, 0, sizeof(uint16_t) * (size_t)(KV_BLOCK - slot));
            memset(keys + half + scales, 0, sizeof(uint16_t) * (size_t)(KV_BLOCK - slot));
        }
    }
}

void kv_restart(struct kv_sequence *seq) {
    memset(seq->done, 0, (size_t)seq->capacity);
    memset(seq->left, 0, (size_t)seq->capacity);
    memset(seq->ready, 0, (size_t)seq->loops * sizeof *seq->ready);
    memset(seq->there, 0, (size_t)seq->loops * sizeof *seq->there);
}

static void ready_limit(struct kv_sequence *seq, int32_t n) {
    for (int32_t r = 0; r < seq->loops; r++) {
        if (seq->ready[r] > n) seq->ready[r] = n;
        if (seq->there[r] > n) seq->there[r] = n;
    }
}

void kv_drop(struct kv_sequence *seq, int32_t n) {
    ready_limit(seq, n);
    if (n >= seq->positions) return;
    memset(seq->done + n, 0, (size_t)(seq->positions - n));
    memset(seq->left + n, 0, (size_t)(seq->positions - n));
}

void kv_release(struct kv_sequence *seq) {
    kv_drop(seq, 0);
    give_blocks(seq, 0, seq->positions / KV_BLOCK);
    give_aside(seq);
    seq->positions = 0;
    seq->joined = false;
}

bool kv_fork(struct kv_sequence *seq, struct kv_sequence *from, int32_t n) {
    CHECK_EQ(seq->positions, 0);
    CHECK_EQ(seq->loops, from->loops);
    int32_t whole = n / KV_BLOCK, blocks = (n + KV_BLOCK - 1) / KV_BLOCK;
    int32_t copies = blocks == whole ? 0 : block_joined(from, whole) ? 1 : seq->loops;
    if (kv_pool_available(seq->pool) < copies) return false;
    kv_pay(from, n);
    for (int32_t r = 0; r < seq->loops; r++) {
        CHECK_LE(n, from->ready[r]);
        for (int32_t i = 0; i < blocks; i++) {
            void *block = kv_table(from, r)[i];
            if (r > 0 && block_joined(from, i))
                block = table(seq, 0)[i];
            else if (i < whole)
                kv_block_share(seq->pool, block);
            else
                block = memcpy(kv_block_take(seq->pool), block, seq->pool->block_size);
            table(seq, r)[i] = block;
        }
        seq->ready[r] = seq->there[r] = n;
    }
    seq->positions = blocks * KV_BLOCK;
    seq->joined = blocks > 0 && kv_joined_blocks(seq) == blocks;
    memcpy(seq->done, from->done, (size_t)n);
    memcpy(seq->left, from->left, (size_t)n);
    return true;
}

void kv_append(struct kv_sequence *seq, void *const *blocks) {
    CHECK_LT(seq->positions, seq->capacity);
    for (int32_t r = 0; r < seq->loops; r++) {
        CHECK_EQ(seq->ready[r], seq->positions);
        kv_block_share(seq->pool, blocks[r]);
        table(seq, r)[seq->positions / KV_BLOCK] = blocks[r];
        seq->ready[r] += KV_BLOCK;
        seq->there[r] = seq->ready[r];
    }
    memset(seq->done + seq->positions, seq->loops, KV_BLOCK);
    memset(seq->left + seq->positions, seq->loops, KV_BLOCK);
    seq->positions += KV_BLOCK;
}

void kv_replace(struct kv_sequence *seq, int32_t index, void *const *blocks) {
    for (int32_t r = 0; r < seq->loops; r++) {
        CHECK_LE((index + 1) * KV_BLOCK, seq->ready[r]);
        kv_block_share(seq->pool, blocks[r]);
        kv_block_give(seq->pool, table(seq, r)[index]);
        table(seq, r)[index] = blocks[r];
    }
}

int32_t kv_complete(const struct kv_sequence *seq, int32_t limit) {
    int32_t n = limit;
    for (int32_t r = 0; r < seq->loops; r++)
        if (seq->ready[r] < n) n = seq->ready[r];
    /* A position whose last loop has run may still wait to leave; only the last ones can. */
    while (n > 0 && !seq->left[n - 1]) n--;
    return n;
}

bool kv_block_computed(const struct kv_sequence *seq, int32_t index) {
    if (block_joined(seq, index)) return false;
    for (int32_t p = index * KV_BLOCK; p < (index + 1) * KV_BLOCK; p++)
        if (seq->done[p] != seq->loops) return false;
    return true;
}

void kv_reuse(struct kv_sequence *seq, enum kv_policy policy, int32_t loops) {
    CHECK_LE(loops, seq->loops_max);
    kv_release(seq);
    seq->policy = policy;
    seq->loops = loops;
    seq->owes = false;
}

void kv_truncate(struct kv_sequence *seq, int32_t n) {
    int32_t block = n / KV_BLOCK;
    for (int32_t r = 0; r < seq->loops; r++) {
        for (int32_t i = block; i < seq->positions / KV_BLOCK; i++)
            block_zero_from(&seq->pool->geometry, kv_table(seq, r)[i], i == block ? n % KV_BLOCK : 0);
    }
    ready_limit(seq, n);
    if (n < seq->capacity) {
        memset(seq->done + n, 0, (size_t)(seq->capacity - n));
        memset(seq->left + n, 0, (size_t)(seq->capacity - n));
    }
}
