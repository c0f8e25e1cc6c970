/* The backend: one table of simple ops, memory, and recorded passes.
 *
 * A caller records a list of ops into a `struct pass` and executes it; ops run in the order recorded and each sees
 * the results of all before it. Model, engine and training are written above this header and never ask which device
 * they are on. On the CPU one thread team stays in one parallel region for the whole pass (cpu/cpu.h).
 *
 * Letters: B rows, S positions of a sequence, D hidden, H query heads, G kv heads, K head dimension, F ffn, V
 * vocabulary, N outputs of a product. Matrices are row-major; `ld` is the distance in elements between rows. D, F and K
 * are multiples of 16 (LANES); B, S, N and V are any positive number; zero rows are allowed everywhere and do nothing.
 *
 * The numeric contract (all CPU tables give the same bits in f32):
 *  - a product's output has one accumulator that starts at 0 (or at y when accumulating) and walks the inner
 *    dimension in order with fused multiply-adds;
 *  - a sum over a vector (norm, softmax) is kept in LANES partial sums, element i in lane i % LANES, each walking in
 * order, combined at the end by the fixed tree: lane j += lane j+8, then j+4, j+2, j+1;
 *  - a sum over rows (gradients of shared weights) walks the rows in order, with fused multiply-adds;
 *  - exp, log and sigmoid are those of base/mathfn.h, lane by lane;
 *  - a row's result depends on that row's inputs alone, never on the number of rows or threads.
 */
#ifndef TENSOR_BACKEND_H
#define TENSOR_BACKEND_H

#include "base/error.h"
#include "tensor/real.h"

#include <stdbool.h>
#include <stdint.h>

#define LANES 16         /* partial sums of a vector reduction; keys of a KV panel */
#define PANEL 64         /* outputs of a packed weight panel */
#define KV_BLOCK 64      /* positions of a KV block */
#define KV_CHUNK 512     /* keys that attention reduces before it combines; a multiple of KV_BLOCK */
#define HEAD_DIM_MAX 256 /* largest K */

/* ---- weights ------------------------------------------------------------------------------------------------- */

#define WEIGHT_TYPE_MAP(X) X(F32, "f32") X(BF16, "bf16") X(Q8, "q8") X(Q4, "q4")
enum weight_type {
#define X(code, name) WEIGHT_##code,
    WEIGHT_TYPE_MAP(X)
#undef X
};

/* A matrix [n, k] packed for y = x W^T. Panel i holds outputs 64i .. 64i+w-1, where w is 64 but for the last panel,
 * whose w is what is left rounded up to 16 (missing outputs are zero). f32: [k][w]. bf16: [ceil(k/2)][w][2], the odd
 * inner element zero. q8, q4: groups of 32 inner elements with a scale (quant.h), k a multiple of 32. In the double
 * build an f32 weight holds doubles. */
struct weight {
    enum weight_type type;
    int32_t n, k;
    void *data; /* 64-byte aligned; owned by whoever allocated it */
};

/* Bytes of a packed weight. */
size_t weight_size(enum weight_type type, int64_t n, int64_t k);

/* The element type of an unpacked source matrix or tensor. */
enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F64 };
size_t dtype_size(enum dtype dtype);

/* ---- the KV cache as kernels see it --------------------------------------------------------------------------- */

#define KV_TYPE_MAP(X) X(F32, "f32") X(BF16, "bf16") X(Q8, "q8")
enum kv_type {
#define X(code, name) KV_##code,
    KV_TYPE_MAP(X)
#undef X
};

/* One block holds KV_BLOCK positions of one loop: [layers]{ keys [G], values [G] }, so that what a token reads of the
 * heads of a layer lies together. Keys: KV_BLOCK / LANES panels of [K][LANES]; values: [KV_BLOCK][K]. (In the double
 * build f32 means double.) q8: an element is a signed byte, -127..127, times the scale of its position; the scales
 * [KV_BLOCK], in bf16, lie behind the keys' bytes, and behind the values'. How a key or value becomes bytes and a scale
 * is said in quant.h. */
struct kv_geometry {
    enum kv_type type;
    int32_t layers, kv_heads, head_dim;
};
static inline size_t kv_element_size(enum kv_type type) {
    return type == KV_F32 ? sizeof(real) : type == KV_BF16 ? sizeof(uint16_t) : sizeof(int8_t);
}
size_t kv_block_size(const struct kv_geometry *g); /* bytes of a block */
/* Bytes from the start of a block to the keys of (layer, kv head), and from those to the values. */
size_t kv_offset(const struct kv_geometry *g, int layer, int kv_head);
size_t kv_values_after(const struct kv_geometry *g);

/* A run: `count` consecutive positions of one sequence at one loop, in rows row .. row+count-1 of the pass. blocks[p /
 * KV_BLOCK] is the block that holds position p of this loop; position p attends to positions 0..p of the same table. */
struct run {
    int32_t row, count, first, loop;
    void *const *blocks;
};

/* ---- ops ------------------------------------------------------------------------------------------------------ */

/* out[b] = row ids[b] of the packed table [V, D]. */
struct op_embed {
    const struct weight *table;
    const int32_t *ids;
    real *out;
    int32_t rows;
};

/* out[b] = (residual ? residual[b] : 0) + x[b] * rstd[b] * weight, rstd = 1 / sqrt(mean(x^2) + eps); rows of `dim`
 * elements, contiguous. out may be x or residual. rstd (may be NULL) keeps the factor [rows] for the backward pass.
 * Bits: n = x * rstd; y = n * weight; out = residual + y. */
struct op_rmsnorm {
    const real *x, *weight, *residual;
    real *out, *rstd;
    int32_t rows, dim;
    real eps;
};

/* out = a + b, n elements; out may be a or b. */
struct op_add {
    const real *a, *b;
    real *out;
    int64_t n;
};

/* y[b, n] (+)= sum_k x[b, k] w[n, k]. bf16: x rounded to bf16 first. q8, q4: x quantised by groups of 32 (quant.h); per
 * group the exact integer sum, then one step of a float chain in order: y = fma(float(sum), weight scale * input scale,
 * y). */
struct op_matmul {
    const real *x;
    int64_t ldx;
    const struct weight *weight;
    real *y;
    int64_t ldy;
    int32_t rows;
    bool accumulate;
};

/* cos and sin of the rotary angles of each row's position: table[b] = K/2 cosines, then K/2 sines. The angle is
 * (float)position * inverse_frequency[i], a float product, as the reference computes it. */
struct op_rope_table {
    const struct run *runs;
    int32_t n_runs;
    const float *inverse_frequency;
    int32_t head_dim;
    real *table;
};

/* A place (block, slot) gets the K and V, all layers and kv heads, of another one, or the mean of several. `of` = 1: a
 * copy; the rest is said at op_kv_lend. */
struct kv_lend {
    const void *from;
    void *to;
    int32_t from_slot, to_slot, of;
};

/* From qkv[b] = H query heads, G key heads, G value heads: each query and key head is normalised (RMS norm over K with
 * q_norm, k_norm [K], unless NULL), rotated (rotate-half: pairs i, i + K/2), the query written to q[b] [H K] (may alias
 * qkv's first part: then ldq = ldqkv), key and value rounded to the KV type and stored at the row's position. rstd (may
 * be NULL) keeps [rows, H + G] for the backward pass. The copies `lends`, all of = 1, are made for this layer: what the
 * rows are the first to read, into panels that the rows' own keys go to as well, so the lines are fetched once. lend_s
 * (may be NULL) [threads] += the seconds that each thread takes for them. */
struct op_qkv {
    const real *qkv;
    int64_t ldqkv;
    real *q;
    int64_t ldq;
    const real *rope, *q_norm, *k_norm;
    real eps;
    real *rstd;
    const struct run *runs;
    int32_t n_runs;
    struct kv_geometry kv;
    int32_t layer, heads;
    const struct kv_lend *lends;
    int32_t n_lends;
    double *lend_s;
};

/* out[b, h] = softmax(scale q[b,h] . keys) values over positions 0 .. p(b). Scores: one accumulator over K in order per
 * key, then one product with scale, and with q8 one more with the key's scale; bytes enter as the numbers they are, and
 * the weight of a value is its exp times its scale (the sum is of the exps alone). Per absolute chunk of KV_CHUNK keys:
 * maximum m, then exp(s - m), their sum s (LANES partial sums by key index within the chunk), and o[d] = one
 * accumulator over the keys in order; chunks are combined in order: m' = max(m, mc), o = o * exp(m - m') + oc * exp(mc
 * - m') (product, then fused multiply-add), sums likewise; out = o / sum. A single chunk is taken as it is. Keys after
 * p must not be read as values, whatever they hold. lse (may be NULL) keeps m + log(sum) [rows, H]. */
struct op_attention {
    const real *q;
    int64_t ldq;
    real *out;
    int64_t ldout;
    real *lse;
    const struct run *runs;
    int32_t n_runs;
    struct kv_geometry kv;
    int32_t layer, heads;
    real scale;
};

/* out[b, f] = silu(gate[b, f]) * up[b, f], gate = gate_up[b][0..F), up = gate_up[b][F..2F); silu(g) = g * sigmoid(g).
 */
struct op_silu_mul {
    const real *gate_up;
    real *out;
    int32_t rows, ffn;
};

/* logit[b] = weight . h[b] + bias[0] (LANES partial sums), lambda[b] = sigmoid(logit[b]); either output may be NULL. */
struct op_gate {
    const real *h, *weight, *bias;
    real *logit, *lambda;
    int32_t rows, dim;
};

/* distance[b] = ||a[b] - b[b]|| / ||b[b]||. */
struct op_distance {
    const real *a, *b;
    real *distance;
    int32_t rows, dim;
};

/* Every lend of a list (a token that left early lends its planes). of = 1: a copy. n > 1: the place of this lend
 * becomes the mean of what it and the n - 1 lends after it come from; those say 0, and their `to` nothing. The place
 * may be among them. Bits of the mean: elements as stored, with q8 times their scale, are added in double in the order
 * of the list, divided by n, rounded to real, and stored as qkv stores (q8: with a new scale). So the mean of equal
 * numbers is that number (q8: what qkv or a mean stored of magnitudes between 1e-28, below which all is 0, and 3e38).
 * No other lend may touch a place that one writes. */
struct op_kv_lend {
    const struct kv_lend *lends;
    int32_t n_lends;
    struct kv_geometry kv;
};

/* dst[i] = src[index[i]] (gather) or dst[index[i]] = src[i] (scatter, accumulate: +=), rows of dim elements. Indices of
 * a scatter are distinct. */
struct op_rows {
    const real *src;
    real *dst;
    const int32_t *index;
    int32_t rows, dim;
    bool accumulate;
};

/* Over the vocabulary: max[b], lse[b] = max + log(sum exp(logit - max)) (LANES partial sums), ce[b] = lse[b] -
 * logits[b, target[b]] (0 where target < 0). ce, max and targets may be NULL. */
struct op_cross_entropy {
    const real *logits;
    int64_t ld;
    const int32_t *targets;
    real *ce, *lse, *max;
    int32_t rows, vocab;
};

/* logits[b, v] = weight[b] * (exp(logits[b, v] - lse[b]) - [v == target[b]]); 0 where target < 0. */
struct op_cross_entropy_grad {
    real *logits;
    int64_t ld;
    const int32_t *targets;
    const real *lse, *weight;
    int32_t rows, vocab;
};

/* y[b] = y[b] + scale[b] * x[b] (fused multiply-add), rows of dim elements. */
struct op_row_axpy {
    const real *x, *scale;
    real *y;
    int32_t rows;
    int64_t dim;
};

/* ---- ops of the backward pass. Gradients of weights always accumulate into dweight; those of activations overwrite
 * unless said. --------- */

/* dtable[ids[b]] += dout[b], rows in order; dtable is row-major [V, D]. */
struct op_embed_grad {
    const int32_t *ids;
    const real *dout;
    real *dtable;
    int32_t rows, dim;
};

/* With n = x * rstd: dx (+)= rstd * (weight * dy - n * mean(weight * dy * n)); dweight[d] += sum_b dy[b, d] n[b, d]
 * (dweight may be NULL). dx may be NULL too; without dweight it may be x. */
struct op_rmsnorm_grad {
    const real *x, *weight, *rstd, *dy;
    real *dx, *dweight;
    int32_t rows, dim;
    bool accumulate;
};

/* Where the sums of a gradient of weights go: they go on from dweight; replace it; or are made from zero and then added
 * to it, of at most DW_ADD_ROWS rows. */
enum dw_mode { DW_ACCUMULATE, DW_SET, DW_ADD };
#define DW_ADD_ROWS 1024

/* dweight[n, k] += sum_b dy[b, n] x[b, k]; row-major [n, k]. (dx is op_matmul with the transposed packing.) bf16: dy
 * and x are rounded to bf16 first; instructions that add a pair of products take rows 2i and 2i+1 together, the last
 * row of an odd number with a row of zeros. With rstd [rows] and norm [k], not NULL, x is what rmsnorm makes of it: (x
 * rstd[b]) norm[k], which then need not be kept. */
struct op_matmul_dw {
    enum weight_type type; /* f32 or bf16, as the weights of the products */
    const real *dy;
    int64_t lddy;
    const real *x;
    int64_t ldx;
    real *dweight;
    int32_t rows, n, k;
    enum dw_mode mode;
    const real *rstd, *norm;
};

/* KV in f32 or bf16. For one sequence at one loop (all runs share its block table; every row of its pass is here):
 * dq[b], and per position s in [0, positions) dk[s], dv[s] [G K] with respect to the rounded keys and values of the
 * table (zeroed first, positions nobody attends to stay zero). delta = dout . out per row and head; p = exp(scale q.k -
 * lse). With `round` (KV in bf16) q, dout, p and ds are rounded to bf16 where products, and delta, take them. */
struct op_attention_grad {
    const real *q;
    int64_t ldq;
    const real *out, *dout;
    int64_t ldout;
    const real *lse;
    real *dq;
    int64_t lddq;
    real *dk, *dv;
    const struct run *runs;
    int32_t n_runs;
    struct kv_geometry kv;
    int32_t layer, heads, positions;
    real scale;
    bool round;
};

/* Backward of op_qkv: dq [rows, H K] and the rows' dk, dv (indexed by position, [S, G K]) to dqkv[b]; dq_norm, dk_norm
 * accumulate (NULL without norms: then qkv is not read, and dqkv may be qkv). */
struct op_qkv_grad {
    const real *qkv;
    int64_t ldqkv;
    const real *rstd, *rope, *q_norm, *k_norm;
    const real *dq;
    int64_t lddq;
    const real *dk, *dv;
    real *dqkv;
    real *dq_norm, *dk_norm;
    const struct run *runs;
    int32_t n_runs, heads, kv_heads, head_dim;
};

/* dgate_up (may be gate_up) from dout; s = sigmoid(g): dup = dout * g s; dgate = dout * up * s (1 + g (1 - s)). */
struct op_silu_mul_grad {
    const real *gate_up, *dout;
    real *dgate_up;
    int32_t rows, ffn;
};

/* dh[b] += dlogit[b] * weight; dweight += sum_b dlogit[b] h[b]; dbias[0] += sum_b dlogit[b]. dh may be NULL (stage II).
 */
struct op_gate_grad {
    const real *h, *weight, *dlogit;
    real *dh, *dweight, *dbias;
    int32_t rows, dim;
};

/* partial[i] = sum of squares, in double, of elements [4096 i, 4096 (i+1)), one accumulator per lane, combined by the
 * tree. */
#define SUM_SQUARES_BLOCK 4096
struct op_sum_squares {
    const real *x;
    double *partial;
    int64_t n;
};

/* AdamW with decoupled decay: g = grad * grad_scale; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr * (m / c1 /
 * (sqrt(v / c2) + eps) + decay * p); c1, c2 are the bias corrections. */
struct op_adamw {
    real *param, *m, *v;
    const real *grad;
    int64_t n;
    real lr, beta1, beta2, eps, decay, correction1, correction2, grad_scale;
};

/* memset to 0. */
struct op_zero {
    void *data;
    size_t size;
};

/* Packs rows [row, row + rows) of the weight from a row-major source [rows, k]; the missing outputs of the last panel
 * are zeroed by whoever packs the last row. q8 and q4 round the source as quant.h says. */
struct op_pack {
    struct weight *weight;
    int64_t row, rows;
    const void *source;
    enum dtype dtype;
};

/* weight ([k, n] packed: n outputs become the inner dimension) = transpose of the row-major source [n, k] of reals; f32
 * and bf16 alone. */
struct op_pack_transposed {
    struct weight *weight;
    const real *source;
};

/* correct[b] = 1 where targets[b] >= 0 and its logit equals max[b], and no lower id's does; else 0. max is that of
 * op_cross_entropy. */
struct op_correct {
    const real *logits;
    int64_t ld;
    const int32_t *targets;
    const real *max;
    real *correct;
    int32_t rows;
};

/* Looks for NaN and infinity in a tensor as it is stored: bad[i] becomes 1 when one is among elements [SCAN_BLOCK i,
 * SCAN_BLOCK (i+1)), else 0. */
#define SCAN_BLOCK 65536
struct op_scan_finite {
    const void *source;
    enum dtype dtype;
    int64_t n;
    uint8_t *bad;
};

/* clang-format off */
#define OP_MAP(X)                                                                                                                   \
    X(EMBED, embed) X(RMSNORM, rmsnorm) X(ADD, add) X(MATMUL, matmul) X(ROPE_TABLE, rope_table) X(QKV, qkv) X(ATTENTION, attention) \
    X(SILU_MUL, silu_mul) X(GATE, gate) X(DISTANCE, distance) X(KV_LEND, kv_lend) X(GATHER, rows) X(SCATTER, rows)                  \
    X(CROSS_ENTROPY, cross_entropy) X(CROSS_ENTROPY_GRAD, cross_entropy_grad) X(ROW_AXPY, row_axpy) X(EMBED_GRAD, embed_grad)       \
    X(RMSNORM_GRAD, rmsnorm_grad) X(MATMUL_DW, matmul_dw) X(ATTENTION_GRAD, attention_grad) X(QKV_GRAD, qkv_grad)                   \
    X(SILU_MUL_GRAD, silu_mul_grad) X(GATE_GRAD, gate_grad) X(SUM_SQUARES, sum_squares) X(ADAMW, adamw) X(ZERO, zero)               \
    X(PACK, pack) X(PACK_TRANSPOSED, pack_transposed) X(SCAN_FINITE, scan_finite) X(CORRECT, correct)
/* clang-format on */

enum op_kind {
#define X(code, type) OP_##code,
    OP_MAP(X)
#undef X
        OP_COUNT
};

struct op {
    enum op_kind kind;
    union {
        struct op_embed embed;
        struct op_rmsnorm rmsnorm;
        struct op_add add;
        struct op_matmul matmul;
        struct op_rope_table rope_table;
        struct op_qkv qkv;
        struct op_attention attention;
        struct op_silu_mul silu_mul;
        struct op_gate gate;
        struct op_distance distance;
        struct op_kv_lend kv_lend;
        struct op_rows rows;
        struct op_cross_entropy cross_entropy;
        struct op_cross_entropy_grad cross_entropy_grad;
        struct op_row_axpy row_axpy;
        struct op_embed_grad embed_grad;
        struct op_rmsnorm_grad rmsnorm_grad;
        struct op_matmul_dw matmul_dw;
        struct op_attention_grad attention_grad;
        struct op_qkv_grad qkv_grad;
        struct op_silu_mul_grad silu_mul_grad;
        struct op_gate_grad gate_grad;
        struct op_sum_squares sum_squares;
        struct op_adamw adamw;
        struct op_zero zero;
        struct op_pack pack;
        struct op_pack_transposed pack_transposed;
        struct op_correct correct;
        struct op_scan_finite scan_finite;
    };
};

/* A recorded pass. The pointers in its ops must stay valid until it has been executed; recording keeps the memory of
 * earlier passes. */
struct pass {
    struct op *ops;
    int32_t count, capacity;
};
/* Appends an op and returns it: `pass_add(p, (struct op){.kind = OP_ADD, .add = {...}})`. Out of memory aborts (a pass
 * is a few kilobytes). */
void pass_add(struct pass *pass, struct op op);
void pass_clear(struct pass *pass); /* forgets the ops, keeps the memory */
void pass_free(struct pass *pass);

/* ---- a device -------------------------------------------------------------------------------------------------- */

struct backend {
    const char *name;  /* "cpu" */
    const char *table; /* which kernels: "scalar", "avx2", "avx512", ... */
    int threads;
    /* Executes every op of the pass, in order, and returns when all are done. */
    void (*execute)(struct backend *backend, const struct pass *pass);
    /* 64-byte aligned memory, zeroed; large blocks ask for huge pages. NULL when it cannot be had. */
    void *(*alloc)(struct backend *backend, size_t size);
    void (*release)(struct backend *backend, void *memory, size_t size);
    void (*close)(struct backend *backend);
};

#endif
