/* The pool of KV blocks (kv_pool.h). */
#include "model/kv_pool.h"

#include <stdlib.h>
#include <string.h>

int kv_pool_init(struct kv_pool *pool, struct backend *backend, struct kv_geometry geometry, int64_t n_blocks,
                 looplm_error *err) {
    *pool = (struct kv_pool){.geometry = geometry, .backend = backend, .n_blocks = n_blocks};
    pool->block_size = kv_block_size(&geometry);
    pool->free_list = malloc((size_t)n_blocks * sizeof *pool->free_list);
    pool->owners = calloc((size_t)n_blocks, sizeof *pool->owners);
    pool->memory = backend->alloc(backend, pool->block_size * (size_t)n_blocks);
    if (!pool->free_list || !pool->owners || !pool->memory) {
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
    free(pool->owners);
    pool->memory = NULL;
    pool->free_list = NULL;
    pool->owners = NULL;
}

static size_t block_index(const struct kv_pool *pool, const void *block) {
    return (size_t)((const unsigned char *)block - pool->memory) / pool->block_size;
}

void *kv_block_take(struct kv_pool *pool) {
    CHECK_LT(0, kv_pool_available(pool));
    size_t index = (size_t)(pool->n_free > 0 ? pool->free_list[--pool->n_free] : pool->n_touched++);
    CHECK_EQ(pool->owners[index], 0);
    pool->owners[index] = 1;
    return pool->memory + index * pool->block_size;
}

void kv_block_share(struct kv_pool *pool, void *block) {
    size_t index = block_index(pool, block);
    CHECK_LT(0, pool->owners[index]);
    pool->owners[index]++;
}

void kv_block_give(struct kv_pool *pool, void *block) {
    size_t index = block_index(pool, block);
    CHECK_LT(0, pool->owners[index]);
    if (--pool->owners[index] > 0) return;
    if (pool->poison) memset(block, 0xff, pool->block_size); /* all ones is a NaN in every float type */
    pool->free_list[pool->n_free++] = (int32_t)index;
}

int32_t kv_block_owners(const struct kv_pool *pool, const void *block) {
    return pool->owners[block_index(pool, block)];
}
