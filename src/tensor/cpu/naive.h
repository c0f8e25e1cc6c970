/* The scalar table: one plain function per op, which is the oracle of every other table, and the arithmetic on `real`
 * that those functions share. Nothing here is made fast; everything here also works with real = double. */
#ifndef TENSOR_CPU_NAIVE_H
#define TENSOR_CPU_NAIVE_H

#include "base/mathfn.h"
#include "tensor/convert.h"
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <string.h>

op_fn naive_embed, naive_rmsnorm, naive_add, naive_matmul, naive_rope_table, naive_qkv, naive_attention, naive_silu_mul,
    naive_gate, naive_distance, naive_kv_lend, naive_gather, naive_scatter, naive_cross_entropy,
    naive_cross_entropy_grad, naive_row_axpy, naive_embed_grad, naive_rmsnorm_grad, naive_matmul_dw,
    naive_attention_grad, naive_qkv_grad, naive_silu_mul_grad, naive_gate_grad, naive_sum_squares, naive_adamw,
    naive_zero, naive_pack, naive_pack_transposed, naive_scan_finite, naive_correct;

/* The copies that a qkv owes at kv head g: of the keys, or with `value` of the values. */
void naive_qkv_lends(const struct op_qkv *o, int g, bool value);

#ifdef LOOPLM_REAL_DOUBLE
static inline real real_fma(real a, real b, real c) {
    return fma(a, b, c);
}
static inline real real_sqrt(real x) {
    return sqrt(x);
}
static inline real real_exp(real x) {
    return math_exp_d(x);
}
static inline real real_log(real x) {
    return math_log_d(x);
}
static inline real real_sigmoid(real x) {
    return 1 / (1 + math_exp_d(-x));
}
#else
static inline real real_fma(real a, real b, real c) {
    return fmaf(a, b, c);
}
static inline real real_sqrt(real x) {
    return sqrtf(x);
}
static inline real real_exp(real x) {
    return math_exp(x);
}
static inline real real_log(real x) {
    return math_log(x);
}
static inline real real_sigmoid(real x) {
    return math_sigmoid(x);
}
#endif

/* The sum of LANES partial sums by the fixed tree; destroys them. */
static inline real lanes_sum(real lane[LANES]) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

/* sum of a[i] b[i] in LANES partial sums. */
static inline real lanes_dot(const real *a, const real *b, int64_t n) {
    real lane[LANES] = {0};
    for (int64_t i = 0; i < n; i++) lane[i % LANES] = real_fma(a[i], b[i], lane[i % LANES]);
    return lanes_sum(lane);
}

/* ---- the KV cache, element by element -------------------------------------------------------------------------- */

/* Element i of an array of the KV type; of q8 the byte without its scale. */
static inline real kv_load(enum kv_type type, const void *array, int64_t i) {
    if (type == KV_F32) return ((const real *)array)[i];
    if (type == KV_Q8) return ((const int8_t *)array)[i];
    CHECK_EQ(type, KV_BF16);
    return bf16_to_float(((const uint16_t *)array)[i]);
}

/* The keys of (layer, kv head) in the block that holds `position`; the values. */
static inline void *kv_keys(const struct kv_geometry *kv, void *const *blocks, int64_t position, int layer, int head) {
    return (char *)blocks[position / KV_BLOCK] + kv_offset(kv, layer, head);
}
static inline void *kv_values(const struct kv_geometry *kv, void *const *blocks, int64_t position, int layer,
                              int head) {
    return (char *)kv_keys(kv, blocks, position, layer, head) + kv_values_after(kv);
}

/* Where element d of the key, or of the value, at `position` lies in its block's keys or values. */
static inline int64_t kv_key_index(int head_dim, int64_t position, int d) {
    int64_t slot = position % KV_BLOCK;
    return (slot / LANES * head_dim + d) * LANES + slot % LANES;
}
static inline int64_t kv_value_index(int head_dim, int64_t position, int d) {
    return position % KV_BLOCK * head_dim + d;
}

/* The scales [KV_BLOCK] of q8 keys, or values. */
static inline uint16_t *kv_scales(const struct kv_geometry *kv, const void *half) {
    return (uint16_t *)((uintptr_t)half + (size_t)KV_BLOCK * (size_t)kv->head_dim);
}
/* What the elements of a key, or value, are multiplied with. */
static inline real kv_scale(const struct kv_geometry *kv, const void *half, int64_t position) {
    return kv->type == KV_Q8 ? bf16_to_float(kv_scales(kv, half)[position % KV_BLOCK]) : 1;
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */

static inline int64_t runs_rows(const struct run *runs, int32_t n_runs) {
    int64_t rows = 0;
    for (int32_t i = 0; i < n_runs; i++) rows += runs[i].count;
    return rows;
}

/* The i-th row of the runs: its run, and in *offset its place there. */
static inline const struct run *runs_find(const struct run *runs, int64_t i, int32_t *offset) {
    while (i >= runs->count) i -= runs++->count;
    *offset = (int32_t)i;
    return runs;
}

#endif
