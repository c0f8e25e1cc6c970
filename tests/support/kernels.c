#include "support/kernels.h"

#include "support/support.h"
#include "tensor/convert.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void outputs_compare(const char *what, const char *table, const struct output *output, const void *want) {
    char name[200];
    snprintf(name, sizeof name, "%s: %s", what, output->what);
    if (!output->bytes) {
        ops_assert_equal(name, table, output->data, want, output->size / sizeof(real));
        return;
    }
    for (size_t i = 0; i < output->size; i++) {
        unsigned got = ((const unsigned char *)output->data)[i], expected = ((const unsigned char *)want)[i];
        if (got != expected) fail_msg("%s: table %s, byte %zu: %02x, expected %02x", name, table, i, got, expected);
    }
}

#define OUTPUTS_MAX 8

void kernels_check(const char *what, const struct op *op, const struct output *outputs, int n_outputs) {
    void *before[OUTPUTS_MAX], *want[OUTPUTS_MAX];
    assert_in_range(n_outputs, 1, OUTPUTS_MAX);
    for (int i = 0; i < n_outputs; i++) {
        before[i] = memcpy(ops_alloc(outputs[i].size), outputs[i].data, outputs[i].size);
        want[i] = ops_alloc(outputs[i].size);
    }
    ops_run("scalar", 1, op, 1);
    for (int i = 0; i < n_outputs; i++) memcpy(want[i], outputs[i].data, outputs[i].size);
    for (int t = 0; ops_table(t); t++) {
        for (int threads = 1; threads <= 3; threads++) {
            for (int i = 0; i < n_outputs; i++) memcpy(outputs[i].data, before[i], outputs[i].size);
            ops_run(ops_table(t), threads, op, 1);
            for (int i = 0; i < n_outputs; i++) outputs_compare(what, ops_table(t), &outputs[i], want[i]);
        }
    }
    for (int i = 0; i < n_outputs; i++) {
        memcpy(outputs[i].data, want[i], outputs[i].size);
        free(before[i]);
        free(want[i]);
    }
}

uint64_t kernels_hash(uint64_t hash, const void *data, size_t size) {
    if (hash == 0) hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

struct kv_cache kv_cache_make(enum kv_type type, int layers, int kv_heads, int head_dim, int positions) {
    struct kv_cache cache = {.geometry = {type, layers, kv_heads, head_dim}, .positions = positions};
    cache.n_blocks = (positions + KV_BLOCK - 1) / KV_BLOCK;
    size_t block = kv_block_size(&cache.geometry);
    cache.size = block * (size_t)cache.n_blocks;
    cache.memory = ops_alloc(cache.size);
    cache.blocks = ops_alloc((size_t)cache.n_blocks * sizeof *cache.blocks);
    for (int i = 0; i < cache.n_blocks; i++)
        cache.blocks[i] = (char *)cache.memory + block * (size_t)(cache.n_blocks - 1 - i);
    return cache;
}

void kv_cache_free(struct kv_cache *cache) {
    free(cache->memory);
    free(cache->blocks);
}

void kv_cache_poison(struct kv_cache *cache) {
    memset(cache->memory, 0xff, cache->size);
}

/* The keys, or the values, of a head in the block of a position: in q8 the bytes and behind them the scales. */
static char *kv_cache_half(const struct kv_cache *cache, bool value, int position, int layer, int head) {
    const struct kv_geometry *g = &cache->geometry;
    const size_t sizes[] = {sizeof(real), sizeof(uint16_t), 1}, scales[] = {0, 0, KV_BLOCK * sizeof(uint16_t)};
    size_t half = KV_BLOCK * (size_t)g->head_dim * sizes[g->type] + scales[g->type];
    size_t plane = 2 * (size_t)layer + (value ? 1 : 0);
    return (char *)cache->blocks[position / KV_BLOCK] + (plane * (size_t)g->kv_heads + (size_t)head) * half;
}

/* Where the element is there: keys in panels of LANES positions with the head dimension running, values by row. */
static size_t kv_cache_index(const struct kv_cache *cache, bool value, int position, int d) {
    size_t K = (size_t)cache->geometry.head_dim, slot = (size_t)position % KV_BLOCK;
    return value ? slot * K + (size_t)d : (slot / LANES * K + (size_t)d) * LANES + slot % LANES;
}

static uint16_t *kv_cache_scale(const struct kv_cache *cache, bool value, int position, int layer, int head) {
    char *half = kv_cache_half(cache, value, position, layer, head);
    return (uint16_t *)(void *)(half + KV_BLOCK * cache->geometry.head_dim) + position % KV_BLOCK;
}

real kv_cache_get(const struct kv_cache *cache, bool value, int position, int layer, int head, int d) {
    const void *half = kv_cache_half(cache, value, position, layer, head);
    size_t i = kv_cache_index(cache, value, position, d);
    switch (cache->geometry.type) {
    case KV_F32:
        return ((const real *)half)[i];
    case KV_BF16:
        return (real)bf16_to_float(((const uint16_t *)half)[i]);
    default:
        return (real)((const int8_t *)half)[i] * bf16_to_float(*kv_cache_scale(cache, value, position, layer, head));
    }
}

void kv_cache_set(struct kv_cache *cache, bool value, int position, int layer, int head, int d, real x) {
    void *half = kv_cache_half(cache, value, position, layer, head);
    size_t i = kv_cache_index(cache, value, position, d);
    if (cache->geometry.type == KV_F32) {
        ((real *)half)[i] = x;
    } else if (cache->geometry.type == KV_BF16) {
        ((uint16_t *)half)[i] = bf16_from_float((float)x);
    } else {
        float scale = bf16_to_float(*kv_cache_scale(cache, value, position, layer, head));
        ((int8_t *)half)[i] = scale == 0 ? 0 : (int8_t)rintf((float)x / scale);
    }
}

void kv_cache_set_scale(struct kv_cache *cache, bool value, int position, int layer, int head, float scale) {
    *kv_cache_scale(cache, value, position, layer, head) = bf16_from_float(scale);
}

static void set_mean(struct kv_cache *cache, bool value, int position, int layer, int head,
                     const struct kv_place *places, int n) {
    const int K = cache->geometry.head_dim;
    real mean[HEAD_DIM_MAX];
    float amax = 0, scale = 1, factor = 0;
    for (int d = 0; d < K; d++) {
        double sum = (double)kv_cache_get(places->cache, value, places->position, layer, head, d);
        for (int i = 1; i < n; i++)
            sum += (double)kv_cache_get(places[i].cache, value, places[i].position, layer, head, d);
        mean[d] = (real)(sum / n);
        amax = fmaxf(amax, fabsf((float)mean[d]));
    }
    if (cache->geometry.type == KV_Q8) {
        uint16_t *stored = kv_cache_scale(cache, value, position, layer, head);
        quant_kv_scale((int32_t)math_to_bits(amax), stored, &factor);
        scale = bf16_to_float(*stored);
    }
    for (int d = 0; d < K; d++) {
        if (cache->geometry.type == KV_Q8) mean[d] = (real)(quant_round((float)mean[d], factor, -127, 127) * scale);
        kv_cache_set(cache, value, position, layer, head, d, mean[d]);
    }
}

void kv_cache_set_mean(struct kv_cache *cache, int position, const struct kv_place *places, int n) {
    const struct kv_geometry *g = &cache->geometry;
    for (int i = 0; i < g->layers * g->kv_heads; i++)
        for (int value = 0; value < 2; value++)
            set_mean(cache, value, position, i / g->kv_heads, i % g->kv_heads, places, n);
}

static void fill_bytes(struct kv_cache *cache, uint64_t *seed, bool value, int position, int layer, int head,
                       real scale) {
    char *half = kv_cache_half(cache, value, position, layer, head);
    float size = (float)ops_random(seed, scale / 64);
    kv_cache_set_scale(cache, value, position, layer, head, ops_random_below(seed, 16) ? fabsf(size) : 0);
    for (int d = 0; d < cache->geometry.head_dim; d++)
        half[kv_cache_index(cache, value, position, d)] = (char)(ops_random_below(seed, 256) - 128);
}

void kv_cache_fill(struct kv_cache *cache, uint64_t *seed, int count, real scale) {
    const struct kv_geometry *g = &cache->geometry;
    for (int i = 0; i < count * g->layers * g->kv_heads; i++) {
        int p = i / (g->layers * g->kv_heads), layer = i / g->kv_heads % g->layers, head = i % g->kv_heads;
        if (g->type == KV_Q8) {
            fill_bytes(cache, seed, false, p, layer, head, scale);
            fill_bytes(cache, seed, true, p, layer, head, scale);
            continue;
        }
        for (int d = 0; d < g->head_dim; d++) {
            kv_cache_set(cache, false, p, layer, head, d, ops_random(seed, scale));
            kv_cache_set(cache, true, p, layer, head, d, ops_random(seed, scale));
        }
    }
}
