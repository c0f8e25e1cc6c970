/* The scalar table: qkv (norm, rotation, the store into the KV cache), lends in the cache, attention, and gradients.
 * The oracle of the vector tables: each function is the loop that backend.h describes. A masked key is never touched.
 */
#include "tensor/cpu/naive.h"
#include "tensor/quant.h"

/* One head of K: the RMS norm with `weight` (none if NULL), then the rotation of pairs (i, i + K/2). */
static real norm_and_rotate(const real *x, const real *weight, const real *rope, real eps, int head_dim, real *y) {
    int half = head_dim / 2;
    real rstd = 1, n[HEAD_DIM_MAX];
    if (weight) rstd = 1 / real_sqrt(lanes_dot(x, x, head_dim) / (real)head_dim + eps);
    for (int i = 0; i < head_dim; i++) n[i] = weight ? x[i] * rstd * weight[i] : x[i];
    for (int i = 0; i < half; i++) {
        real c = rope[i], s = rope[half + i];
        y[i] = real_fma(n[i], c, -(n[half + i] * s));
        y[half + i] = real_fma(n[half + i], c, n[i] * s);
    }
    return rstd;
}

/* The scale of x [K], stored, and the factor that takes an element to its byte. */
static float store_scale(const struct kv_geometry *kv, void *half, int64_t position, const real *x) {
    int32_t amax_bits = 0;
    float factor;
    for (int d = 0; d < kv->head_dim; d++) {
        int32_t bits = (int32_t)(math_to_bits((float)x[d]) & 0x7fffffffu);
        if (bits > amax_bits) amax_bits = bits;
    }
    quant_kv_scale(amax_bits, &kv_scales(kv, half)[position % KV_BLOCK], &factor);
    return factor;
}

/* The key x [K] of a position among the keys `half`, or, with `value`, the value among the values. */
static void store_head(const struct kv_geometry *kv, void *half, bool value, int64_t position, const real *x) {
    float factor = kv->type == KV_Q8 ? store_scale(kv, half, position, x) : 0;
    for (int d = 0; d < kv->head_dim; d++) {
        int64_t i = value ? kv_value_index(kv->head_dim, position, d) : kv_key_index(kv->head_dim, position, d);
        if (kv->type == KV_F32) {
            ((real *)half)[i] = x[d];
        } else if (kv->type == KV_BF16) {
            ((uint16_t *)half)[i] = bf16_from_float((float)x[d]);
        } else {
            ((int8_t *)half)[i] = (int8_t)quant_round((float)x[d], factor, -127, 127);
        }
    }
}

/* n elements of a key panel, LANES apart: sizes that the compiler knows, or every element is a call. */
static void copy_column(char *to, const char *from, size_t element, int n) {
    const size_t step = LANES * element;
    for (int d = 0; d < n; d++, to += step, from += step) {
        if (element == 2) {
            memcpy(to, from, 2);
        } else if (element == 1) {
            *to = *from;
        } else {
            memcpy(to, from, sizeof(real));
        }
    }
}

#define LENDS_AHEAD 2 /* copies, between fetching and making one */

/* The lines that a copy of keys, or with `value` of values, reads and writes; `at` as below. */
static void fetch_head(const struct kv_geometry *kv, const struct kv_lend *lend, size_t at, bool value) {
    const size_t row = kv_element_size(kv->type) * (size_t)kv->head_dim, panel = row * LANES;
    const size_t from = value ? row * (size_t)lend->from_slot : panel * (size_t)(lend->from_slot / LANES),
                 to = value ? row * (size_t)lend->to_slot : panel * (size_t)(lend->to_slot / LANES);
    for (size_t i = 0; i < (value ? row : panel); i += 64) {
        __builtin_prefetch((const char *)lend->from + at + from + i, 0, 2);
        __builtin_prefetch((const char *)lend->to + at + to + i, 1, 2);
    }
}

/* Copies the keys, or with `value` the values, of one (layer, kv head), which start `at` bytes into the blocks. */
static void copy_head(const struct kv_geometry *kv, const struct kv_lend *lend, size_t at, bool value) {
    const size_t element = kv_element_size(kv->type);
    const char *from = (const char *)lend->from + at;
    char *to = (char *)lend->to + at;
    if (value) {
        memcpy(to + element * (size_t)kv_value_index(kv->head_dim, lend->to_slot, 0),
               from + element * (size_t)kv_value_index(kv->head_dim, lend->from_slot, 0),
               element * (size_t)kv->head_dim);
    } else {
        const int64_t i = kv_key_index(kv->head_dim, lend->from_slot, 0),
                      j = kv_key_index(kv->head_dim, lend->to_slot, 0);
        copy_column(to + element * (size_t)j, from + element * (size_t)i, element, kv->head_dim);
    }
    if (kv->type == KV_Q8) kv_scales(kv, to)[lend->to_slot] = kv_scales(kv, from)[lend->from_slot];
}

/* The same with the mean of lends[0..of). */
static void mean_head(const struct kv_geometry *kv, const struct kv_lend *lends, size_t at, bool value) {
    double sum[HEAD_DIM_MAX];
    real mean[HEAD_DIM_MAX];
    for (int n = 0; n < lends->of; n++) {
        const char *from = (const char *)lends[n].from + at;
        const int32_t slot = lends[n].from_slot;
        const double scale = (double)kv_scale(kv, from, slot);
        for (int d = 0; d < kv->head_dim; d++) {
            int64_t i = value ? kv_value_index(kv->head_dim, slot, d) : kv_key_index(kv->head_dim, slot, d);
            double x = (double)kv_load(kv->type, from, i) * scale;
            sum[d] = n == 0 ? x : sum[d] + x;
        }
    }
    for (int d = 0; d < kv->head_dim; d++) mean[d] = (real)(sum[d] / lends->of);
    store_head(kv, (char *)lends->to + at, value, lends->to_slot, mean);
}

/* Where the keys, or values, of a (layer, kv head) start in a block. */
static size_t half_at(const struct kv_geometry *kv, int layer, int g, bool value) {
    return kv_offset(kv, layer, g) + (value ? kv_values_after(kv) : 0);
}

void naive_kv_lend(const struct op *op, const struct worker *worker) {
    const struct op_kv_lend *o = &op->kv_lend;
    const struct kv_geometry *kv = &o->kv;
    int64_t begin, end;
    worker_share(worker, (int64_t)kv->layers * kv->kv_heads, 1, &begin, &end);
    /* Head by head, since copies of a row to several planes, and of neighbours, then find the lines in cache. */
    for (int64_t i = begin; i < end; i++) {
        for (int n = 0; n < o->n_lends; n++) {
            if (o->lends[n].of == 0) continue;
            for (int value = 0; value < 2; value++)
                (o->lends[n].of == 1 ? copy_head : mean_head)(
                    kv, &o->lends[n], half_at(kv, (int)(i / kv->kv_heads), (int)(i % kv->kv_heads), value), value);
        }
    }
}

void naive_qkv_lends(const struct op_qkv *o, int g, bool value) {
    const size_t at = half_at(&o->kv, o->layer, g, value);
    for (int n = 0; n < o->n_lends; n++) {
        const int ahead = n + LENDS_AHEAD, g_ahead = g + ahead / o->n_lends;
        if (g_ahead < o->kv.kv_heads)
            fetch_head(&o->kv, &o->lends[ahead % o->n_lends], half_at(&o->kv, o->layer, g_ahead, value), value);
        copy_head(&o->kv, &o->lends[n], at, value);
    }
}

void naive_qkv(const struct op *op, const struct worker *worker) {
    const struct op_qkv *o = &op->qkv;
    const struct kv_geometry *kv = &o->kv;
    int64_t begin, end;
    int K = kv->head_dim, H = o->heads, G = kv->kv_heads;
    worker_share(worker, G, 1, &begin, &end);
    for (int64_t g = begin; g < end; g++)
        for (int value = 0; value < 2; value++) naive_qkv_lends(o, (int)g, value);
    worker_share(worker, runs_rows(o->runs, o->n_runs), 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int32_t offset;
        const struct run *run = runs_find(o->runs, i, &offset);
        int64_t b = run->row + offset, position = run->first + offset;
        for (int head = 0; head < H + 2 * G; head++) {
            const real *x = o->qkv + b * o->ldqkv + head * K, *rope = o->rope + b * K;
            real y[HEAD_DIM_MAX], rstd;
            if (head < H + G) {
                const real *norm = head < H ? o->q_norm : o->k_norm;
                rstd = norm_and_rotate(x, norm, rope, o->eps, K, y);
                if (norm && o->rstd) o->rstd[b * (H + G) + head] = rstd;
            }
            if (head < H) {
                memcpy(o->q + b * o->ldq + head * K, y, (size_t)K * sizeof(real));
            } else if (head < H + G) {
                store_head(kv, kv_keys(kv, run->blocks, position, o->layer, head - H), false, position, y);
            } else {
                store_head(kv, kv_values(kv, run->blocks, position, o->layer, head - H - G), true, position, x);
            }
        }
    }
}

/* What attention has made of the keys so far: the maximum score, the sum of exp(score - max), and the output [K]
 * before it is divided by that sum. */
struct softmax_state {
    real max, sum, out[HEAD_DIM_MAX];
};

/* Scores of n <= KV_CHUNK keys against q [K]: keys `first` .. of one (layer, kv head). */
static void naive_scores(const struct op_attention *o, const struct run *run, int g, const real *q, int64_t first,
                         int n, real *scores) {
    const struct kv_geometry *kv = &o->kv;
    for (int j = 0; j < n; j++) {
        const void *keys = kv_keys(kv, run->blocks, first + j, o->layer, g);
        real score = 0;
        for (int d = 0; d < kv->head_dim; d++)
            score = real_fma(q[d], kv_load(kv->type, keys, kv_key_index(kv->head_dim, first + j, d)), score);
        scores[j] = score * o->scale;
        if (kv->type == KV_Q8) scores[j] *= kv_scale(kv, keys, first + j);
    }
}

static void naive_chunk(const struct op_attention *o, const struct run *run, int g, const real *q, int64_t first, int n,
                        struct softmax_state *state) {
    const struct kv_geometry *kv = &o->kv;
    real scores[KV_CHUNK] = {0}, lane[LANES] = {0};
    naive_scores(o, run, g, q, first, n, scores);
    state->max = scores[0];
    for (int j = 1; j < n; j++) state->max = scores[j] > state->max ? scores[j] : state->max;
    for (int j = 0; j < n; j++) {
        scores[j] = real_exp(scores[j] - state->max);
        lane[j % LANES] += scores[j];
    }
    state->sum = lanes_sum(lane);
    for (int d = 0; d < kv->head_dim; d++) {
        state->out[d] = 0;
        for (int j = 0; j < n; j++) {
            const void *values = kv_values(kv, run->blocks, first + j, o->layer, g);
            real v = kv_load(kv->type, values, kv_value_index(kv->head_dim, first + j, d));
            real weight = kv->type == KV_Q8 ? scores[j] * kv_scale(kv, values, first + j) : scores[j];
            state->out[d] = real_fma(weight, v, state->out[d]);
        }
    }
}

/* total = total and then chunk. */
static void naive_combine(struct softmax_state *total, const struct softmax_state *chunk, int head_dim) {
    real max = total->max > chunk->max ? total->max : chunk->max;
    real a = real_exp(total->max - max), b = real_exp(chunk->max - max);
    total->max = max;
    total->sum = real_fma(chunk->sum, b, total->sum * a);
    for (int d = 0; d < head_dim; d++) total->out[d] = real_fma(chunk->out[d], b, total->out[d] * a);
}

void naive_attention(const struct op *op, const struct worker *worker) {
    const struct op_attention *o = &op->attention;
    int64_t begin, end;
    int K = o->kv.head_dim, H = o->heads;
    worker_share(worker, runs_rows(o->runs, o->n_runs) * H, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int32_t offset, h = (int32_t)(i % H), g = h / (H / o->kv.kv_heads);
        const struct run *run = runs_find(o->runs, i / H, &offset);
        int64_t b = run->row + offset, keys = run->first + offset + 1;
        struct softmax_state total, chunk;
        for (int64_t first = 0; first < keys; first += KV_CHUNK) {
            int n = (int)(keys - first < KV_CHUNK ? keys - first : KV_CHUNK);
            naive_chunk(o, run, g, o->q + b * o->ldq + h * K, first, n, first ? &chunk : &total);
            if (first) naive_combine(&total, &chunk, K);
        }
        for (int d = 0; d < K; d++) o->out[b * o->ldout + h * K + d] = total.out[d] / total.sum;
        if (o->lse) o->lse[b * H + h] = total.max + real_log(total.sum);
    }
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

/* An input of a product. */
static real grad_input(const struct op_attention_grad *o, real x) {
    return o->round ? bf16_round(x) : x;
}

/* What the row b, at `position`, gives to its own dq and to dk and dv of every key it saw, for query head h. */
static void naive_attention_grad_row(const struct op_attention_grad *o, const struct run *run, int64_t b,
                                     int64_t position, int h) {
    const struct kv_geometry *kv = &o->kv;
    int K = kv->head_dim, G = kv->kv_heads, g = h / (o->heads / G);
    const real *out = o->out + b * o->ldout + h * K;
    real *dq = o->dq + b * o->lddq + h * K, q[HEAD_DIM_MAX], dout[HEAD_DIM_MAX];
    for (int d = 0; d < K; d++) {
        q[d] = grad_input(o, o->q[b * o->ldq + h * K + d]);
        dout[d] = grad_input(o, o->dout[b * o->ldout + h * K + d]);
        dq[d] = 0;
    }
    real delta = lanes_dot(dout, out, K);
    for (int64_t j = 0; j <= position; j++) {
        const void *keys = kv_keys(kv, run->blocks, j, o->layer, g),
                   *values = kv_values(kv, run->blocks, j, o->layer, g);
        real *dk = o->dk + (j * G + g) * K, *dv = o->dv + (j * G + g) * K, score = 0, dp = 0;
        for (int d = 0; d < K; d++) {
            score = real_fma(q[d], kv_load(kv->type, keys, kv_key_index(K, j, d)), score);
            dp = real_fma(dout[d], kv_load(kv->type, values, kv_value_index(K, j, d)), dp);
        }
        real p = real_exp(score * o->scale - o->lse[b * o->heads + h]);
        real ds = grad_input(o, p * (dp - delta) * o->scale);
        p = grad_input(o, p);
        for (int d = 0; d < K; d++) {
            dq[d] = real_fma(ds, kv_load(kv->type, keys, kv_key_index(K, j, d)), dq[d]);
            dk[d] = real_fma(ds, q[d], dk[d]);
            dv[d] = real_fma(p, dout[d], dv[d]);
        }
    }
}

/* The sums of dk and dv walk the query heads of the group in order and, for each, the rows in order. */
void naive_attention_grad(const struct op *op, const struct worker *worker) {
    const struct op_attention_grad *o = &op->attention_grad;
    int64_t begin, end, K = o->kv.head_dim, G = o->kv.kv_heads, group = o->heads / G;
    CHECK_LE(o->kv.type, KV_BF16);
    worker_share(worker, G, 1, &begin, &end);
    for (int64_t g = begin; g < end; g++) {
        for (int64_t s = 0; s < o->positions; s++) {
            memset(o->dk + (s * G + g) * K, 0, (size_t)K * sizeof(real));
            memset(o->dv + (s * G + g) * K, 0, (size_t)K * sizeof(real));
        }
        for (int64_t h = g * group; h < (g + 1) * group; h++)
            for (int32_t r = 0; r < o->n_runs; r++)
                for (int32_t i = 0; i < o->runs[r].count; i++)
                    naive_attention_grad_row(o, &o->runs[r], o->runs[r].row + i, o->runs[r].first + i, (int)h);
    }
}

/* The gradient before the rotation, at element d of a head. */
static real unrotate(const real *dy, const real *rope, int head_dim, int d) {
    int half = head_dim / 2, i = d % half;
    real c = rope[i], s = rope[half + i];
    return d < half ? real_fma(dy[d], c, dy[d + half] * s) : real_fma(dy[d], c, -(dy[d - half] * s));
}

/* The gradient of head `head` (queries, then keys) at row b and position: [K]. */
static const real *qkv_head_grad(const struct op_qkv_grad *o, int64_t b, int64_t position, int head) {
    int64_t K = o->head_dim;
    if (head < o->heads) return o->dq + b * o->lddq + head * K;
    return o->dk + (position * o->kv_heads + head - o->heads) * K;
}

static void naive_qkv_grad_head(const struct op_qkv_grad *o, int64_t b, int64_t position, int head) {
    int K = o->head_dim, H = o->heads, G = o->kv_heads;
    const real *x = o->qkv + b * o->ldqkv + head * K, *norm = head < H ? o->q_norm : o->k_norm;
    real *dx = o->dqkv + b * o->ldqkv + head * K, dy[HEAD_DIM_MAX], g[HEAD_DIM_MAX], n[HEAD_DIM_MAX];
    if (head >= H + G) {
        memcpy(dx, o->dv + (position * G + head - H - G) * K, (size_t)K * sizeof(real));
        return;
    }
    for (int d = 0; d < K; d++) dy[d] = unrotate(qkv_head_grad(o, b, position, head), o->rope + b * K, K, d);
    if (!norm) {
        memcpy(dx, dy, (size_t)K * sizeof(real));
        return;
    }
    real rstd = o->rstd[b * (H + G) + head];
    for (int d = 0; d < K; d++) {
        n[d] = x[d] * rstd;
        g[d] = norm[d] * dy[d];
    }
    real mean = lanes_dot(g, n, K) / (real)K;
    for (int d = 0; d < K; d++) dx[d] = rstd * real_fma(-n[d], mean, g[d]);
}

/* dnorm[d] += sum over rows, and for each over heads [first, first + heads), of dy n, in that order. */
static void naive_qkv_grad_norm(const struct op_qkv_grad *o, int first, int heads, int d, real *dnorm) {
    int K = o->head_dim, planes = o->heads + o->kv_heads;
    for (int32_t r = 0; r < o->n_runs; r++) {
        for (int32_t i = 0; i < o->runs[r].count; i++) {
            int64_t b = o->runs[r].row + i, position = o->runs[r].first + i;
            for (int head = first; head < first + heads; head++) {
                real n = o->qkv[b * o->ldqkv + head * K + d] * o->rstd[b * planes + head];
                real dy = unrotate(qkv_head_grad(o, b, position, head), o->rope + b * K, K, d);
                dnorm[d] = real_fma(dy, n, dnorm[d]);
            }
        }
    }
}

void naive_qkv_grad(const struct op *op, const struct worker *worker) {
    const struct op_qkv_grad *o = &op->qkv_grad;
    int64_t begin, end;
    worker_share(worker, runs_rows(o->runs, o->n_runs), 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int32_t offset;
        const struct run *run = runs_find(o->runs, i, &offset);
        for (int head = 0; head < o->heads + 2 * o->kv_heads; head++)
            naive_qkv_grad_head(o, run->row + offset, run->first + offset, head);
    }
    worker_share(worker, o->head_dim, 1, &begin, &end);
    for (int64_t d = begin; d < end; d++) {
        if (o->q_norm && o->dq_norm) naive_qkv_grad_norm(o, 0, o->heads, (int)d, o->dq_norm);
        if (o->k_norm && o->dk_norm) naive_qkv_grad_norm(o, o->heads, o->kv_heads, (int)d, o->dk_norm);
    }
}
