/* Recorded passes and the geometry of packed weights and KV blocks: what every backend shares.
 *
 * A pass owns its list of ops; what the ops point to belongs to the caller. */
#include "tensor/backend.h"
#include "tensor/quant.h"

#include <stdlib.h>

void pass_add(struct pass *pass, struct op op) {
    CHECK_LT(op.kind, OP_COUNT);
    if (pass->count == pass->capacity) {
        int32_t capacity = pass->capacity ? 2 * pass->capacity : 64;
        struct op *ops = realloc(pass->ops, (size_t)capacity * sizeof *ops);
        CHECK_EQ(ops != NULL, 1);
        pass->ops = ops;
        pass->capacity = capacity;
    }
    pass->ops[pass->count++] = op;
}

void pass_clear(struct pass *pass) {
    pass->count = 0;
}

void pass_free(struct pass *pass) {
    free(pass->ops);
    *pass = (struct pass){0};
}

size_t dtype_size(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_BF16:
    case DTYPE_F16:
        return 2;
    case DTYPE_F32:
        return 4;
    default:
        return 8;
    }
}

size_t weight_size(enum weight_type type, int64_t n, int64_t k) {
    int64_t outputs = (n + LANES - 1) / LANES * LANES;
    if (quant_type(type)) {
        CHECK_EQ(k % QUANT_GROUP, 0);
        return (size_t)(k / QUANT_GROUP * outputs * quant_group_size(type));
    }
    if (type == WEIGHT_BF16) return (size_t)((k + 1) / 2 * outputs) * 2 * sizeof(uint16_t);
    return (size_t)(k * outputs) * sizeof(real);
}

/* Bytes of the keys, or the values, of one (layer, kv head) in a block, scales included. */
static size_t kv_half_size(const struct kv_geometry *g) {
    size_t scales = g->type == KV_Q8 ? KV_BLOCK * sizeof(uint16_t) : 0;
    return KV_BLOCK * (size_t)g->head_dim * kv_element_size(g->type) + scales;
}

size_t kv_block_size(const struct kv_geometry *g) {
    return 2 * kv_half_size(g) * (size_t)g->layers * (size_t)g->kv_heads;
}

size_t kv_offset(const struct kv_geometry *g, int layer, int kv_head) {
    return kv_half_size(g) * (2 * (size_t)layer * (size_t)g->kv_heads + (size_t)kv_head);
}

size_t kv_values_after(const struct kv_geometry *g) {
    return kv_half_size(g) * (size_t)g->kv_heads;
}
