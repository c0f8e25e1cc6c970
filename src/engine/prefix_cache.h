/* The prefix cache: KV blocks of prompts that have run, by what is in them.
 *
 * An entry is one whole block of KV_BLOCK positions (one pool block per loop) whose loops were all computed; it may
 * hold only those, so that any KV policy can use it. Its key is a chain: SHA-256 of the key of the block before it and
 * of its ids; the first follows a root that names the model, the weight and KV types, the loops and the adapter. Equal
 * keys therefore mean equal planes, by the bits promise.
 *
 * Invariants.
 *   1. An entry owns its blocks, beside the sequences that use them; it is idle when nobody else does.
 *   2. An entry's parent (the block before it) is in the cache as long as the entry is.
 *   3. A sequence that uses an entry uses all before it: idle parents have idle children only, so as long as an idle
 *      entry exists, an idle one without children does, and evicting it frees its blocks.
 * Nothing is allocated after prefix_cache_open. One thread owns it: the engine's.
 */
#ifndef ENGINE_PREFIX_CACHE_H
#define ENGINE_PREFIX_CACHE_H

#include "model/kv.h"
#include "model/model.h"

#define PREFIX_KEY_SIZE 32
struct prefix_key {
    unsigned char bytes[PREFIX_KEY_SIZE];
};
struct prefix_cache;

/* Sized for every block of the pool. */
int prefix_cache_open(struct prefix_cache **cache, struct kv_pool *pool, int32_t planes, looplm_error *err);
/* Gives back every block it owns. NULL is allowed. */
void prefix_cache_close(struct prefix_cache *cache);
void prefix_cache_clear(struct prefix_cache *cache);

/* The root of a chain. adapter: its name and version, "" for none. */
struct prefix_key prefix_key_root(const struct model *model, enum kv_type kv_type, int32_t loops, const char *adapter);
/* The key of the block after `before` that holds these KV_BLOCK ids. */
struct prefix_key prefix_key_next(const struct prefix_key *before, const int32_t *ids);

/* The blocks [loops] under a key, or NULL; they stay the cache's, and valid until its next call. */
void *const *prefix_cache_find(const struct prefix_cache *cache, const struct prefix_key *key);
/* Keeps blocks [loops] under a key that is absent. before: the key of the block before, which is present, or NULL for a
 * first block. False when `before` is absent: nothing is kept then. */
bool prefix_cache_add(struct prefix_cache *cache, const struct prefix_key *key, const struct prefix_key *before,
                      int32_t loops, void *const *blocks);
/* Marks an entry as used now. Call from the last of a chain to the first: a parent is then newer than its children. */
void prefix_cache_touch(struct prefix_cache *cache, const struct prefix_key *key);
/* Drops idle entries, least recently used first, until the pool has `blocks` available or none is left; how many. */
int64_t prefix_cache_evict(struct prefix_cache *cache, int64_t blocks);

struct prefix_cache_counters {
    int64_t entries, blocks; /* now */
    int64_t added, evicted;  /* entries, so far */
};
struct prefix_cache_counters prefix_cache_counters(const struct prefix_cache *cache);

#endif
