/* Shared by the tests of kernels: runs one op on every table and thread count against the scalar table, and builds KV
 * caches. Above ops.h, which runs ops and compares arrays. */
#ifndef TESTS_SUPPORT_KERNELS_H
#define TESTS_SUPPORT_KERNELS_H

#include "support/ops.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* Memory that an op writes. With `bytes` it is compared byte by byte (a KV cache), else as reals. */
struct output {
    const char *what;
    void *data;
    size_t size; /* in bytes */
    bool bytes;
};
#define OUTPUT_REALS(name, n) ((struct output){#name, (name), (size_t)(n) * sizeof(real), false})

/* Runs the op with the scalar table on one thread, then with every table on 1, 2 and 3 threads, each time from the same
 * outputs, and fails unless all give the same bits. Leaves the scalar result in the outputs. */
void kernels_check(const char *what, const struct op *op, const struct output *outputs, int n_outputs);

/* A hash (FNV-1a) of the bytes, to go on from `hash` (0 to start): for results that no compiler may change. */
uint64_t kernels_hash(uint64_t hash, const void *data, size_t size);

/* One block table with room for `positions`. The blocks lie in one allocation, out of order. */
struct kv_cache {
    struct kv_geometry geometry;
    int positions, n_blocks;
    void **blocks;
    void *memory;
    size_t size;
};
struct kv_cache kv_cache_make(enum kv_type type, int layers, int kv_heads, int head_dim, int positions);
void kv_cache_free(struct kv_cache *cache);

/* Every byte to 0xff, which is a NaN in every type. */
void kv_cache_poison(struct kv_cache *cache);
/* Positions 0 .. count-1 of all layers and heads to random keys and values, rounded to the type; in q8 bytes of the
 * whole range, -128 too, and scales of many sizes, 0 too. */
void kv_cache_fill(struct kv_cache *cache, uint64_t *seed, int count, real scale);

/* Element d of a key, or of a value: an independent reading of the layout that backend.h describes. */
real kv_cache_get(const struct kv_cache *cache, bool value, int position, int layer, int head, int d);
void kv_cache_set(struct kv_cache *cache, bool value, int position, int layer, int head, int d, real x);
/* The scale of a q8 key, or value; kv_cache_set rounds to multiples of it. */
void kv_cache_set_scale(struct kv_cache *cache, bool value, int position, int layer, int head, float scale);
/* K and V at `position` become the mean of those at n places, as struct kv_lend (backend.h) says. */
struct kv_place {
    const struct kv_cache *cache;
    int position;
};
void kv_cache_set_mean(struct kv_cache *cache, int position, const struct kv_place *places, int n);

#endif
