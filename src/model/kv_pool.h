/* The pool of KV blocks: one array, handed out block by block. A block has as many owners as tables or caches that
 * point to it, and goes back when the last one lets go. What is left in a block is never cleared: attention takes no
 * value from beyond a row's own position. Used by one thread.
 */
#ifndef MODEL_KV_POOL_H
#define MODEL_KV_POOL_H

#include "tensor/backend.h"

struct kv_pool {
    struct kv_geometry geometry;
    struct backend *backend; /* borrowed */
    size_t block_size;
    int64_t n_blocks, n_free, n_touched; /* blocks [n_touched, n_blocks) were never handed out */
    int32_t *free_list;                  /* [n_blocks] */
    int32_t *owners;                     /* [n_blocks] 0: free */
    unsigned char *memory;
    bool poison; /* fill freed blocks with NaN (tests) */
};

/* Reserves n_blocks of address space; memory is committed as blocks are first used. */
int kv_pool_init(struct kv_pool *pool, struct backend *backend, struct kv_geometry geometry, int64_t n_blocks,
                 looplm_error *err);
void kv_pool_free(struct kv_pool *pool);
static inline int64_t kv_pool_available(const struct kv_pool *pool) {
    return pool->n_free + (pool->n_blocks - pool->n_touched);
}

/* A block with one owner; there must be one available. */
void *kv_block_take(struct kv_pool *pool);
/* One owner more. */
void kv_block_share(struct kv_pool *pool, void *block);
/* One owner less. */
void kv_block_give(struct kv_pool *pool, void *block);
int32_t kv_block_owners(const struct kv_pool *pool, const void *block);

#endif
