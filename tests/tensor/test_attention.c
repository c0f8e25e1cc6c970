/* Attention and what surrounds the KV cache: rope_table, qkv, attention, kv_lend and the gradients. Every table and 1,
 * 2, 3 threads against the scalar table (equal bits), for all KV types; the scalar table against plain sums in double;
 * a row alone against the row in a batch; and caches whose unwritten positions are NaN. */
#include "support/kernels.h"
#include "support/support.h"
#include "tensor/convert.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One sequence, and the rows that a pass takes of it: up to two runs. */
struct shape {
    int heads, kv_heads, head_dim;
    int first, count, gap,
        count2; /* run 1 is first .. first+count-1; run 2 follows after `gap` positions that were cached earlier */
};
static const struct shape shapes[] = {
    {1, 1, 16, 0, 1, 0, 0},    {1, 1, 16, 0, 5, 0, 3},    {2, 1, 32, 3, 7, 2, 1},     {3, 3, 48, 0, 13, 0, 0},
    {4, 2, 64, 0, 64, 0, 0},   {4, 4, 64, 60, 9, 1, 8},   {6, 2, 80, 0, 17, 40, 70},  {8, 1, 128, 63, 2, 0, 0},
    {5, 1, 112, 127, 3, 0, 1}, {2, 2, 256, 0, 70, 0, 0},  {1, 1, 16, 500, 30, 0, 0},  {4, 2, 32, 511, 1, 0, 1},
    {2, 1, 96, 1022, 5, 1, 2}, {30, 1, 16, 1, 3, 600, 1}, {3, 1, 144, 1500, 2, 0, 0}, {2, 2, 64, 0, 200, 0, 0},
};

enum { LAYERS = 2, LAYER = 1, ROWS_BEFORE = 2 }; /* the first rows of the pass belong to nobody */

struct scene {
    struct shape shape;
    struct kv_cache cache;
    struct run runs[2];
    int n_runs, rows, positions; /* rows of the pass; positions that hold something */
    int64_t ldqkv, ldq, ldout;
    real *qkv, *q, *rope, *out, *dout, *lse, *q_norm, *k_norm, *rstd;
};

static struct scene scene_make(uint64_t *seed, struct shape shape, enum kv_type type) {
    struct scene s = {.shape = shape, .n_runs = shape.count2 ? 2 : 1};
    int H = shape.heads, G = shape.kv_heads, K = shape.head_dim, second = shape.first + shape.count + shape.gap;
    s.rows = ROWS_BEFORE + shape.count + shape.count2;
    s.positions = second + shape.count2;
    s.cache = kv_cache_make(type, LAYERS, G, K, s.positions + 70);
    kv_cache_poison(&s.cache);
    kv_cache_fill(&s.cache, seed, s.positions, 1);
    s.runs[0] = (struct run){ROWS_BEFORE, shape.count, shape.first, 0, s.cache.blocks};
    s.runs[1] = (struct run){ROWS_BEFORE + shape.count, shape.count2, second, 0, s.cache.blocks};
    s.ldqkv = (H + 2 * G) * K + 3, s.ldq = H * K + 5, s.ldout = H * K + 1;
    size_t rows = (size_t)s.rows;
    s.qkv = ops_reals(seed, rows * (size_t)s.ldqkv, 1);
    s.q = ops_reals(seed, rows * (size_t)s.ldq, 1);
    s.rope = ops_reals(seed, rows * (size_t)K, 1);
    s.out = ops_reals(seed, rows * (size_t)s.ldout, 1);
    s.dout = ops_reals(seed, rows * (size_t)s.ldout, 1);
    s.lse = ops_reals(seed, rows * (size_t)H, 1);
    s.q_norm = ops_reals(seed, (size_t)K, 1);
    s.k_norm = ops_reals(seed, (size_t)K, 1);
    s.rstd = ops_reals(seed, rows * (size_t)(H + G), 1);
    return s;
}

static void scene_free(struct scene *s) {
    kv_cache_free(&s->cache);
    free(s->qkv), free(s->q), free(s->rope), free(s->out), free(s->dout), free(s->lse);
    free(s->q_norm), free(s->k_norm), free(s->rstd);
}

/* The row's run, or NULL for a row of nobody; its position. */
static int scene_position(const struct scene *s, int row) {
    for (int r = 0; r < s->n_runs; r++) {
        int offset = row - s->runs[r].row;
        if (offset >= 0 && offset < s->runs[r].count) return s->runs[r].first + offset;
    }
    return -1;
}

static struct op scene_qkv(const struct scene *s, bool norms) {
    return (struct op){.kind = OP_QKV,
                       .qkv = {s->qkv, s->ldqkv, s->q, s->ldq, s->rope, norms ? s->q_norm : NULL,
                               norms ? s->k_norm : NULL, (real)1e-6, s->rstd, s->runs, s->n_runs, s->cache.geometry,
                               .layer = LAYER, .heads = s->shape.heads}};
}

static struct op scene_attention(const struct scene *s) {
    return (struct op){.kind = OP_ATTENTION,
                       .attention = {s->q, s->ldq, s->out, s->ldout, s->lse, s->runs, s->n_runs, s->cache.geometry,
                                     LAYER, s->shape.heads, (real)(1 / sqrt(s->shape.head_dim))}};
}

/* Every shape with the first `types` KV types. */
#define FOR_SCENES(seed, s, types)                                                                                   \
    for (int i = 0; i < COUNT(shapes) * (types); i += THIN(3) + (THIN(3) > 1 && (types) == 3))                       \
        for (struct scene s = scene_make(&seed, shapes[i / (types)], (enum kv_type)(i % (types))), *once = &s; once; \
             scene_free(&s), once = NULL)
#define ALL_TYPES 3
#define GRADIENT_TYPES 2 /* f32 and bf16 */

static void test_rope_table(void **state) {
    (void)state;
    uint64_t seed = 1;
    FOR_SCENES(seed, s, ALL_TYPES) {
        int K = s.shape.head_dim;
        float *frequency = ops_alloc((size_t)K / 2 * sizeof *frequency);
        for (int d = 0; d < K / 2; d++) frequency[d] = (float)pow(10000, -2.0 * d / K);
        struct op op = {.kind = OP_ROPE_TABLE, .rope_table = {s.runs, s.n_runs, frequency, K, s.rope}};
        struct output output = OUTPUT_REALS(s.rope, s.rows * K);
        kernels_check("rope_table", &op, &output, 1);
        for (int b = ROWS_BEFORE; b < s.rows; b++) {
            for (int d = 0; d < K / 2; d++) {
                float angle = (float)scene_position(&s, b) * frequency[d];
                assert_true(fabs(s.rope[b * K + d] - cos(angle)) <= FLT_EPSILON);
                assert_true(fabs(s.rope[b * K + K / 2 + d] - sin(angle)) <= FLT_EPSILON);
            }
        }
        free(frequency);
    }
}

/* A head as qkv should leave it, in double. */
static void head_exact(const real *x, const real *norm, const real *rope, int K, double *y) {
    double squares = 0, n[HEAD_DIM_MAX];
    for (int d = 0; d < K; d++) squares += (double)x[d] * x[d];
    for (int d = 0; d < K; d++) n[d] = norm ? x[d] / sqrt(squares / K + 1e-6) * norm[d] : x[d];
    for (int d = 0; d < K / 2; d++) {
        y[d] = n[d] * rope[d] - n[d + K / 2] * rope[K / 2 + d];
        y[d + K / 2] = n[d + K / 2] * rope[d] + n[d] * rope[K / 2 + d];
    }
}

static void test_qkv(void **state) {
    (void)state;
    uint64_t seed = 2;
    FOR_SCENES(seed, s, ALL_TYPES) {
        int K = s.shape.head_dim, H = s.shape.heads, G = s.shape.kv_heads;
        enum kv_type type = s.cache.geometry.type;
        double y[HEAD_DIM_MAX], unit = type == KV_BF16 ? 1.0 / 256 : 0; /* half a unit of bf16, relative */
        struct op op = scene_qkv(&s, i / ALL_TYPES % 2);
        struct output outputs[] = {OUTPUT_REALS(s.q, s.rows * s.ldq),
                                   OUTPUT_REALS(s.rstd, s.rows * (H + G)),
                                   {"cache", s.cache.memory, s.cache.size, true}};
        kernels_check("qkv", &op, outputs, 3);
        for (int b = ROWS_BEFORE; b < s.rows; b++) {
            int position = scene_position(&s, b);
            for (int head = 0; head < H + 2 * G; head++) {
                const real *x = s.qkv + b * s.ldqkv + head * K, *norm = head < H ? op.qkv.q_norm : op.qkv.k_norm;
                head_exact(x, norm, s.rope + b * K, K, y);
                double largest = 0; /* q8: half a step, and half of one more where the rounded scale is too small */
                for (int d = 0; d < K; d++) largest = fmax(largest, fabs(head < H + G ? y[d] : x[d]));
                double step = head < H || type != KV_Q8 ? 0 : largest / 127;
                for (int d = 0; d < K; d++) {
                    double rounding = head < H ? 0 : unit, size = head < H + G ? 20 : fabs(x[d]);
                    double want = head < H + G ? y[d] : x[d];
                    real got = head < H ? s.q[b * s.ldq + head * K + d]
                                        : kv_cache_get(&s.cache, head >= H + G, position, LAYER, (head - H) % G, d);
                    assert_true(fabs(got - want) <= fabs(want) * rounding + 0.76 * step + K * FLT_EPSILON * size);
                }
            }
        }
    }
}

/* The copies that a qkv owes, of its own layer alone. */
static void test_qkv_lends(void **state) {
    (void)state;
    uint64_t seed = 4;
    FOR_SCENES(seed, s, ALL_TYPES) {
        const int K = s.shape.head_dim, G = s.shape.kv_heads, from = s.positions + 40, to = s.positions + 3;
        struct kv_lend lends[4];
        double seconds[3] = {0};
        kv_cache_fill(&s.cache, &seed, s.positions + 70, 1);
        for (int n = 0; n < COUNT(lends); n++)
            lends[n] = (struct kv_lend){s.cache.blocks[(from + n) / KV_BLOCK], s.cache.blocks[(to + 2 * n) / KV_BLOCK],
                                        (from + n) % KV_BLOCK, (to + 2 * n) % KV_BLOCK, 1};
        struct op op = scene_qkv(&s, true);
        op.qkv.lends = lends, op.qkv.n_lends = COUNT(lends), op.qkv.lend_s = seconds;
        struct output outputs[] = {OUTPUT_REALS(s.q, s.rows * s.ldq), {"cache", s.cache.memory, s.cache.size, true}};
        const real other = kv_cache_get(&s.cache, false, to, 1 - LAYER, 0, 0);
        kernels_check("qkv with lends", &op, outputs, 2);
        assert_true(kv_cache_get(&s.cache, false, to, 1 - LAYER, 0, 0) == other);
        for (int j = 0; j < COUNT(lends) * 2 * G * K; j++) {
            const int n = j / (2 * G * K), value = j / (G * K) % 2, g = j / K % G, d = j % K;
            assert_true(kv_cache_get(&s.cache, value, from + n, LAYER, g, d) ==
                        kv_cache_get(&s.cache, value, to + 2 * n, LAYER, g, d));
        }
    }
}

/* q may be qkv's own first part. */
static void test_qkv_in_place(void **state) {
    (void)state;
    uint64_t seed = 3;
    FOR_SCENES(seed, s, ALL_TYPES) {
        struct op op = scene_qkv(&s, true);
        ops_run("scalar", 1, &op, 1);
        op.qkv.q = s.qkv, op.qkv.ldq = s.ldqkv;
        struct output output = OUTPUT_REALS(s.qkv, s.rows * s.ldqkv);
        kernels_check("qkv in place", &op, &output, 1);
        for (int b = ROWS_BEFORE; b < s.rows; b++)
            ops_assert_equal("qkv in place", "scalar", s.qkv + b * s.ldqkv, s.q + b * s.ldq,
                             (size_t)(s.shape.heads * s.shape.head_dim));
    }
}

/* Softmax attention in double, the plainest way: out [K] and the log of the sum of exponentials. */
static double attention_exact(const struct scene *s, int row, int head, double *out) {
    int K = s->shape.head_dim, g = head / (s->shape.heads / s->shape.kv_heads), keys = scene_position(s, row) + 1;
    double *score = ops_alloc((size_t)keys * sizeof *score), max = -INFINITY, sum = 0;
    for (int j = 0; j < keys; j++) {
        for (int d = 0; d < K; d++)
            score[j] += (double)s->q[row * s->ldq + head * K + d] * kv_cache_get(&s->cache, false, j, LAYER, g, d);
        score[j] /= sqrt(K);
        max = fmax(max, score[j]);
    }
    for (int j = 0; j < keys; j++) sum += exp(score[j] - max);
    for (int d = 0; d < K; d++) {
        out[d] = 0;
        for (int j = 0; j < keys; j++)
            out[d] += exp(score[j] - max) / sum * kv_cache_get(&s->cache, true, j, LAYER, g, d);
    }
    free(score);
    return max + log(sum);
}

static void test_attention(void **state) {
    (void)state;
    uint64_t seed = 4;
    FOR_SCENES(seed, s, ALL_TYPES) {
        int K = s.shape.head_dim, H = s.shape.heads;
        double want[HEAD_DIM_MAX];
        struct op op = scene_attention(&s);
        struct output outputs[] = {OUTPUT_REALS(s.out, s.rows * s.ldout), OUTPUT_REALS(s.lse, s.rows * H)};
        kernels_check("attention", &op, outputs, 2);
        for (int b = ROWS_BEFORE; b < s.rows; b++) {
            for (int head = 0; head < H; head++) {
                double lse = attention_exact(&s, b, head, want);
                /* Scores are sums of K terms near 1 / sqrt(K), so they are wrong by about K epsilon; values are
                 * below 8. */
                double tolerance = (2 * K + scene_position(&s, b) + 64) * (double)FLT_EPSILON;
                assert_true(fabs(s.lse[b * H + head] - lse) <= 8 * tolerance);
                for (int d = 0; d < K; d++)
                    assert_true(fabs(s.out[b * s.ldout + head * K + d] - want[d]) <= 8 * tolerance);
            }
        }
    }
}

static void value_ones(struct kv_cache *cache, int position, int g) {
    if (cache->geometry.type == KV_Q8) kv_cache_set_scale(cache, true, position, LAYER, g, 0.25f);
    for (int d = 0; d < cache->geometry.head_dim; d++) kv_cache_set(cache, true, position, LAYER, g, d, 1);
}

/* Scores of thousands, equal scores, and scores that underflow: all finite, and the weights still sum to 1. */
static void test_attention_extremes(void **state) {
    (void)state;
    uint64_t seed = 5;
    const real scales[] = {0, 300, (real)1e-30};
    for (int e = 0; e < COUNT(scales); e++) {
        FOR_SCENES(seed, s, ALL_TYPES) {
            int K = s.shape.head_dim, H = s.shape.heads;
            for (int j = 0; j < s.rows * s.ldq; j++) s.q[j] *= scales[e];
            for (int p = 0; p < s.positions; p++)
                for (int g = 0; g < s.shape.kv_heads; g++) value_ones(&s.cache, p, g);
            struct op op = scene_attention(&s);
            struct output outputs[] = {OUTPUT_REALS(s.out, s.rows * s.ldout), OUTPUT_REALS(s.lse, s.rows * H)};
            kernels_check("attention of extremes", &op, outputs, 2);
            for (int b = ROWS_BEFORE; b < s.rows; b++) {
                for (int d = 0; d < H * K; d++) assert_true(fabs(s.out[b * s.ldout + d] - 1) <= 1e-3);
                for (int h = 0; h < H && e == 0; h++)
                    assert_true(fabs(s.lse[b * H + h] - log(scene_position(&s, b) + 1)) <= 1e-4);
                for (int h = 0; h < H; h++) assert_true(isfinite(s.lse[b * H + h]));
            }
        }
    }
}

/* One key: the output is its value and lse is its score, both exactly. */
static void test_attention_one_key(void **state) {
    (void)state;
    uint64_t seed = 6;
    struct scene s = scene_make(&seed, shapes[0], KV_F32);
    struct op op = scene_attention(&s);
    ops_run("scalar", 1, &op, 1);
    double unused[HEAD_DIM_MAX], lse = attention_exact(&s, ROWS_BEFORE, 0, unused);
    for (int d = 0; d < 16; d++)
        assert_true(s.out[ROWS_BEFORE * s.ldout + d] == kv_cache_get(&s.cache, true, 0, LAYER, 0, d));
    assert_true(fabs(s.lse[ROWS_BEFORE] - lse) <= 1e-5);
    scene_free(&s);
}

/* Each row as a run of its own, on one thread, has the bits that it had among all rows on three. */
static void test_attention_row_alone(void **state) {
    (void)state;
    uint64_t seed = 7;
    FOR_SCENES(seed, s, ALL_TYPES) {
        struct op op = scene_attention(&s);
        size_t n = (size_t)(s.rows * s.ldout);
        for (int t = 0; ops_table(t); t++) {
            real *out = ops_copy(s.out, n);
            ops_run(ops_table(t), 3, &op, 1);
            for (int b = ROWS_BEFORE; b < s.rows; b++) {
                struct run run = {b, 1, scene_position(&s, b), 0, s.cache.blocks};
                struct op alone = op;
                alone.attention.runs = &run, alone.attention.n_runs = 1, alone.attention.out = out;
                ops_run(ops_table(t), 1, &alone, 1);
            }
            ops_assert_equal("attention, a row alone", ops_table(t), out, s.out, n);
            free(out);
        }
    }
}

static void test_kv_lend(void **state) {
    (void)state;
    uint64_t seed = 8;
    for (int i = 0; i < ALL_TYPES; i++) {
        struct kv_cache cache = kv_cache_make((enum kv_type)i, 3, 2, 48, 2 * KV_BLOCK);
        kv_cache_fill(&cache, &seed, 2 * KV_BLOCK, 1);
        struct kv_lend lends[] = {{cache.blocks[0], cache.blocks[1], 0, 0, 1},
                                  {cache.blocks[0], cache.blocks[1], 63, 31, 1},
                                  {cache.blocks[1], cache.blocks[0], 17, 18, 1}};
        struct op op = {.kind = OP_KV_LEND, .kv_lend = {lends, COUNT(lends), cache.geometry}};
        unsigned char *before = memcpy(ops_alloc(cache.size), cache.memory, cache.size);
        struct output output = {"cache", cache.memory, cache.size, true};
        kernels_check("kv_lend", &op, &output, 1);
        size_t changed = 0, element = kv_element_size((enum kv_type)i);
        for (size_t b = 0; b < cache.size; b += element)
            changed += memcmp(before + b, (char *)cache.memory + b, element) != 0;
        assert_true(changed > 0 && changed <= 3 * 3 * 2 * 2 * (48 + 2)); /* q8: the scale's two bytes */
        for (int l = 0; l < COUNT(lends); l++) {
            int back = lends[l].from == cache.blocks[1], from = lends[l].from_slot + KV_BLOCK * back,
                to = lends[l].to_slot + KV_BLOCK * !back;
            for (int j = 0; j < 3 * 2 * 2 * 48; j++)
                assert_true(kv_cache_get(&cache, j & 1, from, j / 192, j / 96 % 2, j / 2 % 48) ==
                            kv_cache_get(&cache, j & 1, to, j / 192, j / 96 % 2, j / 2 % 48));
        }
        free(before);
        kv_cache_free(&cache);
    }
}

/* Means of 2, 7 and 3 places, the last into one of them, and a copy between them; every byte as the oracle has it. */
static void test_kv_mean(void **state) {
    (void)state;
    uint64_t seed = 9;
    static const int from[] = {5, 6, 7, 64, 65, 66, 67, 68, 69, 127, 0, 70, 20}, of[] = {2, 1, 7, 3},
                     to[] = {1, 2, 80, 70};
    for (int type = 0; type < ALL_TYPES; type++) {
        struct kv_cache cache = kv_cache_make((enum kv_type)type, 3, 2, 48, 2 * KV_BLOCK);
        kv_cache_fill(&cache, &seed, 2 * KV_BLOCK, 1);
        struct kv_lend lends[COUNT(from)] = {{0}};
        struct kv_place places[COUNT(from)];
        for (int i = 0; i < COUNT(from); i++) {
            lends[i] = (struct kv_lend){.from = cache.blocks[from[i] / KV_BLOCK], .from_slot = from[i] % KV_BLOCK};
            places[i] = (struct kv_place){&cache, from[i]};
        }
        struct op op = {.kind = OP_KV_LEND, .kv_lend = {lends, COUNT(lends), cache.geometry}};
        struct op copy = {.kind = OP_KV_LEND, .kv_lend = {lends + 2, 1, cache.geometry}};
        unsigned char *before = memcpy(ops_alloc(cache.size), cache.memory, cache.size);
        for (int i = 0, n = 0; i < COUNT(of); n += of[i++]) {
            lends[n].to = cache.blocks[to[i] / KV_BLOCK];
            lends[n].to_slot = to[i] % KV_BLOCK;
            lends[n].of = of[i];
            if (of[i] > 1) kv_cache_set_mean(&cache, to[i], places + n, of[i]);
        }
        ops_run("scalar", 1, &copy, 1); /* as test_kv_lend has shown */
        unsigned char *want = memcpy(ops_alloc(cache.size), cache.memory, cache.size);
        memcpy(cache.memory, before, cache.size);
        struct output output = {"cache", cache.memory, cache.size, true};
        kernels_check("kv_lend, means", &op, &output, 1);
        assert_memory_equal(cache.memory, want, cache.size);
        free(before), free(want);
        kv_cache_free(&cache);
    }
}

/* The mean of equal numbers, as they were stored, changes no byte; one that is not finite makes the mean so. */
static void test_kv_mean_of_equals(void **state) {
    (void)state;
    uint64_t seed = 10;
    const float sizes[] = {1, 0, 1e-22f, 1e-10f, 3e37f, 127, 1e-3f};
    for (int type = 0; type < ALL_TYPES; type++) {
        struct kv_cache cache = kv_cache_make((enum kv_type)type, 1, 1, 48, KV_BLOCK);
        struct kv_lend lends[9] = {{0}};
        struct op op = {.kind = OP_KV_LEND, .kv_lend = {lends, COUNT(lends), cache.geometry}};
        for (int size = 0; size < COUNT(sizes); size++) {
            kv_cache_fill(&cache, &seed, KV_BLOCK, (real)sizes[size]);
            for (int of = 9; of > 1; of--) { /* the first of them is of different places: what a mean stores */
                for (int i = 0; i < of; i++)
                    lends[i] = (struct kv_lend){cache.blocks[0], cache.blocks[0], of < 9 ? 3 : i, 3, i == 0 ? of : 0};
                op.kv_lend.n_lends = of;
                unsigned char *before = memcpy(ops_alloc(cache.size), cache.memory, cache.size);
                ops_run("scalar", 1, &op, 1);
                if (of < 9) assert_memory_equal(before, cache.memory, cache.size);
                free(before);
            }
        }
        lends[1].from_slot = 5;
        if (type == KV_Q8) kv_cache_set_scale(&cache, true, 5, 0, 0, NAN);
        if (type != KV_Q8) kv_cache_set(&cache, true, 5, 0, 0, 47, (real)NAN);
        ops_run("scalar", 1, &op, 1);
        assert_true(isnan(kv_cache_get(&cache, true, 3, 0, 0, 47)));
        kv_cache_free(&cache);
    }
}

/* What q8 makes of rows that are all zero, tiny, huge, not numbers, or just at its rounding's edges. */
static void test_q8_extremes(void **state) {
    (void)state;
    enum { K = 48, ROWS = 14, G = 1 };
    struct kv_cache cache = kv_cache_make(KV_Q8, 2, G, K, ROWS);
    struct run run = {0, ROWS, 0, 0, cache.blocks};
    real *x = ops_alloc(ROWS * 3 * K * sizeof *x), *rope = ops_alloc(ROWS * K * sizeof *rope);
    real *q = ops_alloc(ROWS * K * sizeof *q), *out = ops_alloc(ROWS * K * sizeof *out), lse[ROWS];
    uint64_t seed = 12;
    const real sizes[ROWS] = {0, 1, (real)1e-30, (real)1e-38, (real)1e-45, FLT_MAX, (real)3e38, 127, 1, 1, 1, 1, 1, 1};
    for (int b = 0; b < ROWS; b++) {
        for (int d = 0; d < K; d++) rope[b * K + d] = d < K / 2; /* not turned: cosine 1, sine 0 */
        for (int d = 0; d < 3 * K; d++)
            x[b * 3 * K + d] = sizes[b] * (real)(ops_random_below(&seed, 2001) / 1000.0 - 1);
        for (int d = K; d < 3 * K; d += K) x[b * 3 * K + d + 5] = sizes[b];
    }
    real *edge = x + 7 * 3 * K + 2 * K; /* scale 1: ties go to even, both ends are reached */
    for (int d = 0; d < K; d++) edge[d] = (real)(d % 2 ? -127 + d : d + 0.5);
    edge[5] = -127;
    x[9 * 3 * K + 2 * K + 3] = NAN, x[10 * 3 * K + 2 * K + 40] = INFINITY, x[11 * 3 * K + K] = -INFINITY;
    struct op op = {
        .kind = OP_QKV,
        .qkv = {x, 3 * K, q, K, rope, NULL, NULL, 0, NULL, &run, 1, cache.geometry, .layer = 1, .heads = 1}};
    struct output outputs[] = {{"cache", cache.memory, cache.size, true}};
    kernels_check("q8 of extremes", &op, outputs, 1);
    for (int d = 0; d < K; d++) {
        assert_true(kv_cache_get(&cache, true, 0, 1, 0, d) == 0 && kv_cache_get(&cache, true, 4, 1, 0, d) == 0);
        assert_true(isfinite(kv_cache_get(&cache, true, 5, 1, 0, d)));
        assert_true(kv_cache_get(&cache, true, 7, 1, 0, d) == rintf((float)edge[d]));
        assert_true(isnan(kv_cache_get(&cache, true, 9, 1, 0, d)) && isnan(kv_cache_get(&cache, true, 10, 1, 0, d)));
        assert_true(isnan(kv_cache_get(&cache, false, 11, 1, 0, d)) &&
                    isfinite(kv_cache_get(&cache, false, 9, 1, 0, d)));
    }
    assert_true(fabs(kv_cache_get(&cache, true, 6, 1, 0, 5) / 3e38 - 1) < 0.005);
    struct op attention = {.kind = OP_ATTENTION,
                           .attention = {q, K, out, K, lse, &run, 1, cache.geometry, 1, 1, (real)0.1}};
    struct output results[] = {OUTPUT_REALS(out, ROWS * K), OUTPUT_REALS(lse, ROWS)};
    kernels_check("attention of q8 extremes", &attention, results, 2);
    assert_true(isfinite(out[3 * K]) && isnan(out[9 * K + 1])); /* a value that is not a number is seen */
    free(x), free(rope), free(q), free(out);
    kv_cache_free(&cache);
}

static void test_attention_grad(void **state) {
    (void)state;
    uint64_t seed = 9;
    FOR_SCENES(seed, s, GRADIENT_TYPES) {
        struct op forward = scene_attention(&s);
        ops_run("scalar", 1, &forward, 1);
        int n_kv = (s.positions + 3) * s.shape.kv_heads * s.shape.head_dim;
        real *dq = ops_reals(&seed, (size_t)(s.rows * s.ldq), 1), *dk = ops_reals(&seed, (size_t)n_kv, 1),
             *dv = ops_reals(&seed, (size_t)n_kv, 1);
        struct op op = {.kind = OP_ATTENTION_GRAD,
                        .attention_grad = {s.q, s.ldq, s.out, s.dout, s.ldout, s.lse, dq, s.ldq, dk, dv, s.runs,
                                           s.n_runs, s.cache.geometry, LAYER, s.shape.heads, s.positions + 3,
                                           forward.attention.scale, false}};
        struct output outputs[] = {OUTPUT_REALS(dq, s.rows * s.ldq), OUTPUT_REALS(dk, n_kv), OUTPUT_REALS(dv, n_kv)};
        kernels_check("attention_grad", &op, outputs, 3);
        /* Finite in spite of the poisoned tail, and nothing for positions that nobody attends to. */
        for (int j = 0; j < n_kv; j++) assert_true(isfinite(dk[j]) && isfinite(dv[j]));
        for (int j = s.positions * s.shape.kv_heads * s.shape.head_dim; j < n_kv; j++)
            assert_true(dk[j] == 0 && dv[j] == 0);
        free(dq), free(dk), free(dv);
    }
}

/* A gradient of the rounded form: dq, dk and dv one after the other, of every row and position. */
static real *rounded_run(const struct scene *s, const char *table, int threads, size_t n_q, size_t n_kv) {
    real *all = ops_alloc((n_q + 2 * n_kv) * sizeof *all);
    memset(all, 0, n_q * sizeof *all);
    struct op op = {.kind = OP_ATTENTION_GRAD,
                    .attention_grad = {s->q, s->ldq, s->out, s->dout, s->ldout, s->lse, all, s->ldq, all + n_q,
                                       all + n_q + n_kv, s->runs, s->n_runs, s->cache.geometry, LAYER, s->shape.heads,
                                       s->positions + 3, (real)(1 / sqrt(s->shape.head_dim)), true}};
    ops_run(table, threads, &op, 1);
    return all;
}

/* Adds a product to a sum and its size to the sum of sizes. */
static void rounded_add(double *sum, double *size, double x, double y) {
    *sum += x * y;
    *size += fabs(x * y);
}

/* What row b and query head h give, and the sizes of the terms. */
static void rounded_row(const struct scene *s, int b, int h, double *want, double *size, size_t n_q, size_t n_kv) {
    int K = s->shape.head_dim, G = s->shape.kv_heads, g = h / (s->shape.heads / G);
    const real *q = s->q + b * s->ldq + h * K, *out = s->out + b * s->ldout + h * K;
    const real *dout = s->dout + b * s->ldout + h * K;
    double delta = 0, scale = 1 / sqrt(K);
    for (int d = 0; d < K; d++) delta += (double)bf16_round(dout[d]) * out[d];
    for (int j = 0; j <= scene_position(s, b); j++) {
        double score = 0, dp = 0;
        for (int d = 0; d < K; d++) {
            score += (double)bf16_round(q[d]) * kv_cache_get(&s->cache, false, j, LAYER, g, d);
            dp += (double)bf16_round(dout[d]) * kv_cache_get(&s->cache, true, j, LAYER, g, d);
        }
        double p = exp(score * scale - s->lse[b * s->shape.heads + h]), ds = p * (dp - delta) * scale;
        p = bf16_round((real)p), ds = bf16_round((real)ds);
        for (int d = 0; d < K; d++) {
            size_t at = (size_t)(b * s->ldq + h * K + d), kv = n_q + (size_t)((j * G + g) * K + d);
            rounded_add(&want[at], &size[at], ds, kv_cache_get(&s->cache, false, j, LAYER, g, d));
            rounded_add(&want[kv], &size[kv], ds, bf16_round(q[d]));
            rounded_add(&want[kv + n_kv], &size[kv + n_kv], p, bf16_round(dout[d]));
        }
    }
}

/* Plain sums in double. A term may be off by a unit of bf16, where p or ds lies between two of them; what little the
 * sums before them differ by is less than that. */
static void assert_rounded(const struct scene *s, const char *table, const real *got, size_t n_q, size_t n_kv) {
    size_t n = n_q + 2 * n_kv;
    double *want = calloc(n, sizeof *want), *size = calloc(n, sizeof *size);
    assert_true(want && size);
    for (int b = ROWS_BEFORE; b < s->rows; b++)
        for (int h = 0; h < s->shape.heads; h++) rounded_row(s, b, h, want, size, n_q, n_kv);
    for (size_t i = 0; i < n; i++) size[i] = size[i] * 0x1p-7 + 1e-6;
    ops_assert_close("attention_grad, rounded", table, got, want, n, size);
    free(want);
    free(size);
}

static void test_attention_grad_rounded(void **state) {
    (void)state;
    uint64_t seed = 21;
    FOR_SCENES(seed, s, GRADIENT_TYPES) {
        if (s.cache.geometry.type != KV_BF16) continue;
        struct op forward = scene_attention(&s);
        ops_run("scalar", 1, &forward, 1);
        size_t n_q = (size_t)(s.rows * s.ldq), n_kv = (size_t)((s.positions + 3) * s.shape.kv_heads * s.shape.head_dim);
        real *oracle = rounded_run(&s, "scalar", 1, n_q, n_kv);
        assert_rounded(&s, "scalar", oracle, n_q, n_kv);
        for (int t = 0; ops_table(t); t++) {
            real *one = rounded_run(&s, ops_table(t), 1, n_q, n_kv);
            if (strcmp(ops_table(t), "avx512amx") != 0) {
                ops_assert_equal("attention_grad, rounded", ops_table(t), one, oracle, n_q + 2 * n_kv);
            } else {
                assert_rounded(&s, ops_table(t), one, n_q, n_kv);
            }
            for (int threads = 2; threads <= 3; threads++) {
                real *again = rounded_run(&s, ops_table(t), threads, n_q, n_kv);
                ops_assert_equal("attention_grad, more threads", ops_table(t), again, one, n_q + 2 * n_kv);
                free(again);
            }
            free(one);
        }
        free(oracle);
    }
}

static void test_qkv_grad(void **state) {
    (void)state;
    uint64_t seed = 10;
    FOR_SCENES(seed, s, GRADIENT_TYPES) {
        int K = s.shape.head_dim, H = s.shape.heads, G = s.shape.kv_heads;
        size_t n_kv = (size_t)(s.positions * G * K);
        bool norms = i % 4 < 2;
        real *dk = ops_reals(&seed, n_kv, 1), *dv = ops_reals(&seed, n_kv, 1),
             *dqkv = ops_reals(&seed, (size_t)(s.rows * s.ldqkv), 1);
        real *dq_norm = ops_reals(&seed, (size_t)K, 1), *dk_norm = ops_reals(&seed, (size_t)K, 1);
        struct op op = {.kind = OP_QKV_GRAD,
                        .qkv_grad = {s.qkv, s.ldqkv, s.rstd, s.rope, norms ? s.q_norm : NULL, norms ? s.k_norm : NULL,
                                     s.q, s.ldq, dk, dv, dqkv, norms ? dq_norm : NULL, norms ? dk_norm : NULL, s.runs,
                                     s.n_runs, H, G, K}};
        struct output outputs[] = {OUTPUT_REALS(dqkv, s.rows * s.ldqkv), OUTPUT_REALS(dq_norm, K),
                                   OUTPUT_REALS(dk_norm, K)};
        kernels_check("qkv_grad", &op, outputs, 3);
        free(dk), free(dv), free(dqkv), free(dq_norm), free(dk_norm);
    }
}

/* The bits themselves, so that two compilers that agree with their own scalar table also agree with each other. */
static void test_bits(void **state) {
    (void)state;
    uint64_t seed = 11, hash = 0;
    struct scene s = scene_make(&seed, shapes[6], KV_BF16);
    int n_kv = s.positions * s.shape.kv_heads * s.shape.head_dim, width = s.rows * (int)s.ldqkv;
    real *dq = ops_copy(s.q, (size_t)(s.rows * s.ldq)), *dk = ops_reals(&seed, (size_t)n_kv, 1);
    real *dv = ops_copy(dk, (size_t)n_kv), *dqkv = ops_reals(&seed, (size_t)width, 1);
    struct op forward = scene_attention(&s);
    struct op ops[] = {
        scene_qkv(&s, true),
        forward,
        {.kind = OP_ATTENTION_GRAD,
         .attention_grad = {s.q, s.ldq, s.out, s.dout, s.ldout, s.lse, dq, s.ldq, dk, dv, s.runs, s.n_runs,
                            s.cache.geometry, LAYER, s.shape.heads, s.positions, forward.attention.scale, false}},
        {.kind = OP_QKV_GRAD,
         .qkv_grad = {s.qkv, s.ldqkv, s.rstd, s.rope, s.q_norm, s.k_norm, dq, s.ldq, dk, dv, dqkv, s.lse, s.lse + 80,
                      s.runs, s.n_runs, s.shape.heads, s.shape.kv_heads, s.shape.head_dim}},
    };
    ops_run("scalar", 1, ops, COUNT(ops));
    hash = kernels_hash(hash, s.out, (size_t)(s.rows * s.ldout) * sizeof(real));
    hash = kernels_hash(hash, s.lse, (size_t)(s.rows * s.shape.heads) * sizeof(real));
    hash = kernels_hash(hash, dqkv, (size_t)width * sizeof(real));
    if (hash != 0x639781961a9bf878u) fail_msg("hash %#llx", (unsigned long long)hash);
    free(dq), free(dk), free(dv), free(dqkv);
    scene_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_table),
        cmocka_unit_test(test_qkv),
        cmocka_unit_test(test_qkv_in_place),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_extremes),
        cmocka_unit_test(test_attention_one_key),
        cmocka_unit_test(test_attention_row_alone),
        cmocka_unit_test(test_qkv_lends),
        cmocka_unit_test(test_kv_lend),
        cmocka_unit_test(test_kv_mean),
        cmocka_unit_test(test_kv_mean_of_equals),
        cmocka_unit_test(test_q8_extremes),
        cmocka_unit_test(test_attention_grad),
        cmocka_unit_test(test_attention_grad_rounded),
        cmocka_unit_test(test_qkv_grad),
        cmocka_unit_test(test_bits),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
