/* The KV cache (kv.h). A sequence keeps, per loop, the length of the prefix whose plane is there (`ready`): invariants
 * 1 and 2 then say that rows enter a loop exactly at its `ready`, so the check is one comparison a row and not a walk
 * over the past. */
#include "model/kv.h"

#include <stdlib.h>
#include <string.h>

int kv_pool_init(struct kv_pool *pool, struct backend *backend, struct kv_geometry geometry, int64_t n_blocks,
                 looplm_error *err) {
    *pool = (struct kv_pool){.geometry = geometry, .backend = backend, .n_blocks = n_blocks};
    pool->block_size = kv_block_size(&geometry);
    pool->free_list = malloc((size_t)n_blocks * sizeof(int32_t));
    pool->memory = backend->alloc(backend, pool->block_size * (size_t)n_blocks);
    if (!pool->free_list || !pool->memory) {
        kv_pool_free(pool);
        return error_set(err, LOOPLM_MEMORY,
                         "KV cache: %.1f MiB could not be had; use a shorter context or fewer sequences",
                         (double)pool->block_size * (double)n_blocks / 1048576.0);
    }
    return 0;
}

void kv_pool_free(struct kv_pool *pool) {
    if (pool->memory) pool->backend->release(pool->backend, pool->memory, pool->block_size * (size_t)pool->n_blocks);
    free(pool->free_list);
    pool->memory = NULL;
    pool->free_list = NULL;
}

static int64_t pool_available(const struct kv_pool *pool) {
    return pool->n_free + (pool->n_blocks - pool->n_touched);
}

static void *block_take(struct kv_pool *pool) {
    if (pool->n_free > 0) {
        void *block = pool->memory + (size_t)pool->free_list[--pool->n_free] * pool->block_size;
        memset(block, 0, pool->block_size);
        return block;
    }
    CHECK_LT(pool->n_touched, pool->n_blocks);
    return pool->memory + (size_t)pool->n_touched++ * pool->block_size;
}

static void block_give(struct kv_pool *pool, void *block) {
    size_t index = (size_t)((unsigned char *)block - pool->memory) / pool->block_size;
    if (pool->poison) memset(block, 0xff, pool->block_size); /* all ones is a NaN in every float type */
    pool->free_list[pool->n_free++] = (int32_t)index;
}

int kv_sequence_init(struct kv_sequence *seq, struct kv_pool *pool, enum kv_policy policy, int32_t loops,
                     int32_t capacity_max, looplm_error *err) {
    int32_t capacity = (capacity_max + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    *seq = (struct kv_sequence){.pool = pool, .policy = policy, .loops = loops, .capacity = capacity};
    seq->blocks = calloc((size_t)loops * (size_t)(capacity / KV_BLOCK), sizeof(void *));
    seq->done = calloc((size_t)capacity, 1);
    seq->left = calloc((size_t)capacity, 1);
    seq->ready = calloc((size_t)loops, sizeof(int32_t));
    if (seq->blocks && seq->done && seq->left && seq->ready) return 0;
    kv_sequence_free(seq);
    return error_set(err, LOOPLM_MEMORY, "KV tables for %d positions could not be had", capacity);
}

void kv_sequence_free(struct kv_sequence *seq) {
    for (int32_t r = 0; seq->blocks && r < seq->loops; r++)
        for (int32_t i = 0; i < seq->positions / KV_BLOCK; i++) block_give(seq->pool, kv_table(seq, r)[i]);
    free(seq->blocks);
    free(seq->done);
    free(seq->left);
    free(seq->ready);
    *seq = (struct kv_sequence){0};
}

bool kv_reserve(struct kv_sequence *seq, int32_t n) {
    CHECK_LE(n, seq->capacity);
    int32_t have = seq->positions / KV_BLOCK, want = (n + KV_BLOCK - 1) / KV_BLOCK;
    if (want <= have) return true;
    if (pool_available(seq->pool) < (int64_t)(want - have) * seq->loops) return false;
    for (int32_t r = 0; r < seq->loops; r++)
        for (int32_t i = have; i < want; i++)
            seq->blocks[(size_t)r * (size_t)(seq->capacity / KV_BLOCK) + (size_t)i] = block_take(seq->pool);
    seq->positions = want * KV_BLOCK;
    return true;
}

void kv_shrink(struct kv_sequence *seq, int32_t n) {
    int32_t have = seq->positions / KV_BLOCK, want = (n + KV_BLOCK - 1) / KV_BLOCK;
    for (int32_t r = 0; r < seq->loops; r++) {
        CHECK_LE(seq->ready[r], n);
        for (int32_t i = want; i < have; i++) block_give(seq->pool, kv_table(seq, r)[i]);
    }
    if (want < have) seq->positions = want * KV_BLOCK;
}

static bool plane_supplied(const struct kv_sequence *seq, int32_t p, int32_t loop) {
    return seq->done[p] > loop || (seq->policy == KV_POLICY_LAST_EXITED && seq->left[p] && seq->left[p] <= loop);
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
    for (int32_t p = first; p < first + count; p++) {
        CHECK_EQ(seq->done[p], loop); /* invariant 1 */
        seq->done[p]++;
    }
    ready_advance(seq, loop);
}

int32_t kv_leave(struct kv_sequence *seq, int32_t p, int32_t depth, struct kv_lend *lends) {
    CHECK_EQ(seq->left[p], 0);
    CHECK_EQ(seq->done[p], depth);
    seq->left[p] = (uint8_t)depth;
    if (seq->policy != KV_POLICY_LAST_EXITED) return 0;
    int32_t n = 0, block = p / KV_BLOCK;
    for (int32_t r = depth; r < seq->loops; r++) {
        lends[n++] = (struct kv_lend){kv_table(seq, depth - 1)[block], kv_table(seq, r)[block], p % KV_BLOCK};
        ready_advance(seq, r);
    }
    return n;
}

/* Zeroes the slots [slot, KV_BLOCK) of a block: columns of the key panels, rows of the values. */
static void block_zero_from(const struct kv_geometry *g, unsigned char *block, int32_t slot) {
    if (slot == 0) {
        memset(block, 0, kv_block_size(g));
        return;
    }
    size_t half = kv_half_size(g), element = half / (size_t)(KV_BLOCK * g->head_dim);
    for (int32_t layer = 0; layer < g->layers; layer++) {
        for (int32_t head = 0; head < g->kv_heads; head++) {
            unsigned char *keys = block + kv_offset(g, layer, head);
            for (int32_t s = slot; s < KV_BLOCK; s++) {
                unsigned char *column = keys + element * (size_t)(s / LANES * LANES * g->head_dim + s % LANES);
                for (int32_t d = 0; d < g->head_dim; d++) memset(column + element * (size_t)(d * LANES), 0, element);
            }
            size_t row = element * (size_t)g->head_dim;
            memset(keys + half + row * (size_t)slot, 0, row * (size_t)(KV_BLOCK - slot));
        }
    }
}

void kv_restart(struct kv_sequence *seq) {
    memset(seq->done, 0, (size_t)seq->capacity);
    memset(seq->left, 0, (size_t)seq->capacity);
    memset(seq->ready, 0, (size_t)seq->loops * sizeof *seq->ready);
}

void kv_drop(struct kv_sequence *seq, int32_t n) {
    for (int32_t r = 0; r < seq->loops; r++)
        if (seq->ready[r] > n) seq->ready[r] = n;
    if (n >= seq->positions) return;
    memset(seq->done + n, 0, (size_t)(seq->positions - n));
    memset(seq->left + n, 0, (size_t)(seq->positions - n));
}

void kv_truncate(struct kv_sequence *seq, int32_t n) {
    int32_t block = n / KV_BLOCK;
    for (int32_t r = 0; r < seq->loops; r++) {
        for (int32_t i = block; i < seq->positions / KV_BLOCK; i++)
            block_zero_from(&seq->pool->geometry, kv_table(seq, r)[i], i == block ? n % KV_BLOCK : 0);
        if (seq->ready[r] > n) seq->ready[r] = n;
    }
    if (n < seq->capacity) {
        memset(seq->done + n, 0, (size_t)(seq->capacity - n));
        memset(seq->left + n, 0, (size_t)(seq->capacity - n));
    }
}
