/* The prefix cache (prefix_cache.h): entries in a hash table and in one list by last use. */
#include "engine/prefix_cache.h"

#include "base/sha256.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE (-1)

struct entry {
    struct prefix_key key;
    int32_t parent, children; /* entry of the block before, NONE for a first block; entries whose parent this is */
    int32_t loops;
    int32_t newer, older; /* by last use */
    int32_t next;         /* in its bucket, or of the free entries */
};

struct prefix_cache {
    struct kv_pool *pool; /* borrowed */
    int32_t planes, n_entries_max;
    struct entry *entries; /* [n_entries_max] */
    void **blocks;         /* [n_entries_max][planes] */
    int32_t *buckets;      /* [n_buckets], a power of two */
    int32_t n_buckets, free, newest, oldest;
    struct prefix_cache_counters counters;
};

/* ---- keys ------------------------------------------------------------------------------------------------------- */

struct prefix_key prefix_key_root(const struct model *model, enum kv_type kv_type, int32_t loops, const char *adapter) {
    char text[96];
    struct prefix_key key;
    struct sha256 sha;
    int n = snprintf(text, sizeof text, "looplm %016" PRIx64 " weights %d kv %d loops %d adapter ",
                     model_fingerprint(model), (int)model->weight_type, (int)kv_type, loops);
    sha256_init(&sha);
    sha256_update(&sha, text, (size_t)n);
    sha256_update(&sha, adapter, strlen(adapter));
    sha256_finish(&sha, key.bytes);
    return key;
}

struct prefix_key prefix_key_next(const struct prefix_key *before, const int32_t *ids) {
    struct prefix_key key;
    struct sha256 sha;
    sha256_init(&sha);
    sha256_update(&sha, before->bytes, sizeof before->bytes);
    sha256_update(&sha, ids, KV_BLOCK * sizeof *ids);
    sha256_finish(&sha, key.bytes);
    return key;
}

/* ---- table and list --------------------------------------------------------------------------------------------- */

static int32_t *bucket_of(const struct prefix_cache *c, const struct prefix_key *key) {
    uint32_t hash;
    memcpy(&hash, key->bytes, sizeof hash);
    return &c->buckets[hash & (uint32_t)(c->n_buckets - 1)];
}

static int32_t find(const struct prefix_cache *c, const struct prefix_key *key) {
    int32_t i = *bucket_of(c, key);
    while (i != NONE && memcmp(&c->entries[i].key, key, sizeof *key) != 0) i = c->entries[i].next;
    return i;
}

static void unlink_use(struct prefix_cache *c, int32_t i) {
    struct entry *e = &c->entries[i];
    if (e->newer == NONE) c->newest = e->older;
    if (e->newer != NONE) c->entries[e->newer].older = e->older;
    if (e->older == NONE) c->oldest = e->newer;
    if (e->older != NONE) c->entries[e->older].newer = e->newer;
}

static void link_newest(struct prefix_cache *c, int32_t i) {
    struct entry *e = &c->entries[i];
    e->newer = NONE;
    e->older = c->newest;
    if (c->newest == NONE) c->oldest = i;
    if (c->newest != NONE) c->entries[c->newest].newer = i;
    c->newest = i;
}

static void **blocks_of(const struct prefix_cache *c, int32_t i) {
    return c->blocks + (size_t)i * (size_t)c->planes;
}

/* A sequence that uses an entry uses its block at every loop, so the first one speaks for all. */
static bool idle(const struct prefix_cache *c, int32_t i) {
    return kv_block_owners(c->pool, blocks_of(c, i)[0]) == 1;
}

static void drop(struct prefix_cache *c, int32_t i) {
    struct entry *e = &c->entries[i];
    CHECK_EQ(e->children, 0); /* invariant 2 */
    for (int32_t r = 0; r < e->loops; r++) kv_block_give(c->pool, blocks_of(c, i)[r]);
    c->counters.blocks -= e->loops;
    c->counters.entries--;
    if (e->parent != NONE) c->entries[e->parent].children--;
    unlink_use(c, i);
    int32_t *link = bucket_of(c, &e->key);
    while (*link != i) link = &c->entries[*link].next;
    *link = e->next;
    e->next = c->free;
    c->free = i;
}

/* ---- the cache -------------------------------------------------------------------------------------------------- */

int prefix_cache_open(struct prefix_cache **out, struct kv_pool *pool, int32_t planes, looplm_error *err) {
    struct prefix_cache *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return error_set(err, LOOPLM_MEMORY, "out of memory");
    *c = (struct prefix_cache){.pool = pool, .planes = planes, .n_buckets = 16, .newest = NONE, .oldest = NONE};
    c->n_entries_max = (int32_t)pool->n_blocks;
    while (c->n_buckets < c->n_entries_max) c->n_buckets *= 2;
    c->entries = malloc((size_t)c->n_entries_max * sizeof *c->entries);
    c->blocks = malloc((size_t)c->n_entries_max * (size_t)planes * sizeof *c->blocks);
    c->buckets = malloc((size_t)c->n_buckets * sizeof *c->buckets);
    if (!c->entries || !c->blocks || !c->buckets) {
        error_set(err, LOOPLM_MEMORY, "a prefix cache of %d entries could not be had", c->n_entries_max);
        prefix_cache_close(c);
        return LOOPLM_MEMORY;
    }
    for (int32_t i = 0; i < c->n_buckets; i++) c->buckets[i] = NONE;
    for (int32_t i = 0; i < c->n_entries_max; i++) c->entries[i].next = i + 1 < c->n_entries_max ? i + 1 : NONE;
    *out = c;
    return 0;
}

void prefix_cache_clear(struct prefix_cache *c) {
    while (c->counters.entries > 0)
        for (int32_t i = c->oldest, newer; i != NONE; i = newer) {
            newer = c->entries[i].newer;
            if (c->entries[i].children == 0) drop(c, i);
        }
}

void prefix_cache_close(struct prefix_cache *c) {
    if (!c) return;
    prefix_cache_clear(c);
    free(c->entries);
    free(c->blocks);
    free(c->buckets);
    free(c);
}

void *const *prefix_cache_find(const struct prefix_cache *c, const struct prefix_key *key) {
    int32_t i = find(c, key);
    return i == NONE ? NULL : blocks_of(c, i);
}

bool prefix_cache_add(struct prefix_cache *c, const struct prefix_key *key, const struct prefix_key *before,
                      int32_t loops, void *const *blocks) {
    int32_t parent = before ? find(c, before) : NONE, i = c->free;
    if ((before && parent == NONE) || i == NONE) return false;
    struct entry *e = &c->entries[i];
    c->free = e->next;
    *e = (struct entry){.key = *key, .parent = parent, .loops = loops};
    if (parent != NONE) c->entries[parent].children++;
    for (int32_t r = 0; r < loops; r++) {
        kv_block_share(c->pool, blocks[r]);
        blocks_of(c, i)[r] = blocks[r];
    }
    int32_t *bucket = bucket_of(c, key);
    e->next = *bucket;
    *bucket = i;
    link_newest(c, i);
    c->counters.added++;
    c->counters.entries++;
    c->counters.blocks += loops;
    return true;
}

void prefix_cache_touch(struct prefix_cache *c, const struct prefix_key *key) {
    int32_t i = find(c, key);
    if (i == NONE) return;
    unlink_use(c, i);
    link_newest(c, i);
}

/* The idle entry without children that was used longest ago. */
static int32_t candidate(const struct prefix_cache *c) {
    int32_t i = c->oldest;
    while (i != NONE && (c->entries[i].children > 0 || !idle(c, i))) i = c->entries[i].newer;
    return i;
}

int64_t prefix_cache_evict(struct prefix_cache *c, int64_t blocks) {
    int64_t evicted = 0;
    for (int32_t i; kv_pool_available(c->pool) < blocks && (i = candidate(c)) != NONE; evicted++) drop(c, i);
    c->counters.evicted += evicted;
    return evicted;
}

struct prefix_cache_counters prefix_cache_counters(const struct prefix_cache *c) {
    return c->counters;
}
