/* The double build: every op of the backward pass against central differences of its forward op. The loss is a fixed
 * random weighting of the forward op's outputs; the gradient op is given those weights as the gradient of its outputs.
 */
#include "support/kernels.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

/* Truncation of the differences is about STEP^2, rounding about 1e-16 / STEP: both near 1e-10 for values near 1. */
#define STEP 1e-5
#define TOLERANCE 1e-7

/* The weighted sum of an op's outputs after a run of it. */
struct loss {
    struct op op;
    const real *out, *weight; /* [n] */
    int n;
};

static double loss_run(const struct loss *loss) {
    double sum = 0;
    ops_run("scalar", 1, &loss->op, 1);
    for (int i = 0; i < loss->n; i++) sum += loss->weight[i] * loss->out[i];
    return sum;
}

/* d loss / d x by central differences. */
static double difference(double (*run)(const struct loss *), const struct loss *loss, real *x) {
    real kept = *x;
    *x = kept + STEP;
    double above = run(loss);
    *x = kept - STEP;
    double below = run(loss);
    *x = kept;
    return (above - below) / (2 * STEP);
}

static void assert_gradient(const char *what, const struct loss *loss, real *x, const real *dx, int n) {
    for (int i = 0; i < n; i++) {
        double want = difference(loss_run, loss, &x[i]);
        if (!(fabs(dx[i] - want) <= TOLERANCE * (1 + fabs(want))))
            fail_msg("%s: element %d: %.12g, central difference %.12g", what, i, dx[i], want);
    }
}

static void test_rmsnorm(void **state) {
    (void)state;
    enum { ROWS = 3, DIM = 32, N = ROWS * DIM };
    uint64_t seed = 1;
    real *x = ops_reals(&seed, N, 1), *weight = ops_reals(&seed, DIM, 1), *dy = ops_reals(&seed, N, 1);
    real *out = ops_alloc(N * sizeof *out), *rstd = ops_alloc(ROWS * sizeof *rstd), *residual = ops_reals(&seed, N, 1);
    real *dx = ops_reals(&seed, N, 1), *dweight = ops_reals(&seed, DIM, 1), *dx0 = ops_copy(dx, N),
         *dweight0 = ops_copy(dweight, DIM);
    struct loss loss = {{.kind = OP_RMSNORM, .rmsnorm = {x, weight, residual, out, rstd, ROWS, DIM, 1e-3}}, out, dy, N};
    loss_run(&loss);
    real *rstd0 = ops_copy(rstd, ROWS); /* the differences overwrite rstd */
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        struct op op = {.kind = OP_RMSNORM_GRAD,
                        .rmsnorm_grad = {x, weight, rstd0, dy, dx, accumulate ? NULL : dweight, ROWS, DIM, accumulate}};
        for (int i = 0; i < N; i++) dx[i] = dx0[i];
        ops_run("scalar", 2, &op, 1);
        for (int i = 0; i < N && accumulate; i++) dx[i] -= dx0[i];
        assert_gradient("rmsnorm dx", &loss, x, dx, N);
    }
    for (int i = 0; i < DIM; i++) dweight[i] -= dweight0[i];
    assert_gradient("rmsnorm dweight", &loss, weight, dweight, DIM);
    free(x), free(weight), free(dy), free(out), free(rstd), free(rstd0), free(residual), free(dx), free(dweight),
        free(dx0), free(dweight0);
}

static void test_silu_mul(void **state) {
    (void)state;
    enum { ROWS = 3, FFN = 16, N = ROWS * FFN };
    uint64_t seed = 2;
    real *gate_up = ops_reals(&seed, 2 * N, 2), *dout = ops_reals(&seed, N, 1), *out = ops_alloc(N * sizeof *out);
    real *dgate_up = ops_reals(&seed, 2 * N, 1);
    struct loss loss = {{.kind = OP_SILU_MUL, .silu_mul = {gate_up, out, ROWS, FFN}}, out, dout, N};
    struct op op = {.kind = OP_SILU_MUL_GRAD, .silu_mul_grad = {gate_up, dout, dgate_up, ROWS, FFN}};
    ops_run("scalar", 2, &op, 1);
    assert_gradient("silu_mul", &loss, gate_up, dgate_up, 2 * N);
    free(gate_up), free(dout), free(out), free(dgate_up);
}

static void test_gate(void **state) {
    (void)state;
    enum { ROWS = 5, DIM = 16, N = ROWS * DIM };
    uint64_t seed = 3;
    real *h = ops_reals(&seed, N, 1), *weight = ops_reals(&seed, DIM, 1), bias = 0.5,
         *dlogit = ops_reals(&seed, ROWS, 1);
    real *logit = ops_alloc(ROWS * sizeof *logit), *dh = ops_alloc(N * sizeof *dh),
         *dweight = ops_alloc(DIM * sizeof *dweight), dbias = 0;
    struct loss loss = {{.kind = OP_GATE, .gate = {h, weight, &bias, logit, NULL, ROWS, DIM}}, logit, dlogit, ROWS};
    struct op op = {.kind = OP_GATE_GRAD, .gate_grad = {h, weight, dlogit, dh, dweight, &dbias, ROWS, DIM}};
    ops_run("scalar", 2, &op, 1);
    assert_gradient("gate dh", &loss, h, dh, N);
    assert_gradient("gate dweight", &loss, weight, dweight, DIM);
    assert_gradient("gate dbias", &loss, &bias, &dbias, 1);
    free(h), free(weight), free(dlogit), free(logit), free(dh), free(dweight);
}

static void test_cross_entropy(void **state) {
    (void)state;
    enum { ROWS = 4, VOCAB = 37, N = ROWS * VOCAB };
    uint64_t seed = 4;
    real *logits = ops_reals(&seed, N, 2), *weight = ops_reals(&seed, ROWS, 1), *ce = ops_alloc(ROWS * sizeof *ce),
         *lse = ops_alloc(ROWS * sizeof *lse);
    int32_t targets[ROWS] = {3, -1, 36, 0};
    struct loss loss = {
        {.kind = OP_CROSS_ENTROPY, .cross_entropy = {logits, VOCAB, targets, ce, lse, NULL, ROWS, VOCAB}},
        ce,
        weight,
        ROWS};
    loss_run(&loss);
    real *dlogits = ops_copy(logits, N), *lse0 = ops_copy(lse, ROWS);
    struct op op = {.kind = OP_CROSS_ENTROPY_GRAD,
                    .cross_entropy_grad = {dlogits, VOCAB, targets, lse0, weight, ROWS, VOCAB}};
    ops_run("scalar", 2, &op, 1);
    assert_gradient("cross_entropy", &loss, logits, dlogits, N);
    free(logits), free(weight), free(ce), free(lse), free(dlogits), free(lse0);
}

/* A sequence in two runs, the second after positions that were cached before; more than one chunk of keys if
 * `long_past`. */
static void attention_case(int heads, int kv_heads, int head_dim, int first, int count, int gap, int count2) {
    uint64_t seed = 5;
    int rows = count + count2, width = heads * head_dim, positions = first + count + gap + count2,
        n_kv = positions * kv_heads * head_dim;
    struct kv_cache cache = kv_cache_make(KV_F32, 1, kv_heads, head_dim, positions);
    kv_cache_poison(&cache);
    kv_cache_fill(&cache, &seed, positions, 1);
    struct run runs[] = {{0, count, first, 0, cache.blocks}, {count, count2, first + count + gap, 0, cache.blocks}};
    real *q = ops_reals(&seed, (size_t)(rows * width), 1), *out = ops_alloc((size_t)(rows * width) * sizeof *out);
    real *dout = ops_reals(&seed, (size_t)(rows * width), 1), *lse = ops_alloc((size_t)(rows * heads) * sizeof *lse);
    real *dq = ops_copy(q, (size_t)(rows * width)), *dk = ops_reals(&seed, (size_t)n_kv, 1),
         *dv = ops_reals(&seed, (size_t)n_kv, 1);
    struct loss loss = {
        {.kind = OP_ATTENTION, .attention = {q, width, out, width, lse, runs, 2, cache.geometry, 0, heads, 0.3}},
        out,
        dout,
        rows * width};
    loss_run(&loss);
    real *out0 = ops_copy(out, (size_t)(rows * width)), *lse0 = ops_copy(lse, (size_t)(rows * heads));
    struct op op = {.kind = OP_ATTENTION_GRAD,
                    .attention_grad = {q, width, out0, dout, width, lse0, dq, width, dk, dv, runs, 2, cache.geometry, 0,
                                       heads, positions, 0.3, false}};
    ops_run("scalar", 2, &op, 1);
    assert_gradient("attention dq", &loss, q, dq, rows * width);
    int step = n_kv > 1000 ? 97 : 1;
    for (int i = 0; i < n_kv; i += step) {
        int position = i / (kv_heads * head_dim), g = i / head_dim % kv_heads, d = i % head_dim;
        for (int value = 0; value < 2; value++) {
            real kept = kv_cache_get(&cache, value, position, 0, g, d);
            kv_cache_set(&cache, value, position, 0, g, d, kept + STEP);
            double above = loss_run(&loss);
            kv_cache_set(&cache, value, position, 0, g, d, kept - STEP);
            double want = (above - loss_run(&loss)) / (2 * STEP);
            kv_cache_set(&cache, value, position, 0, g, d, kept);
            assert_true(fabs((value ? dv : dk)[i] - want) <= TOLERANCE * (1 + fabs(want)));
        }
    }
    free(q), free(out), free(dout), free(lse), free(dq), free(dk), free(dv), free(out0), free(lse0);
    kv_cache_free(&cache);
}

static void test_attention(void **state) {
    (void)state;
    attention_case(1, 1, 16, 0, 3, 0, 0);
    attention_case(4, 2, 16, 0, 3, 2, 2);
    attention_case(2, 2, 32, 62, 4, 0, 1);
    attention_case(2, 1, 16, 510, 4, 0, 0);
}

/* What qkv writes: the queries, then the keys and the values of the rows, read back from the cache. */
enum {
    QKV_ROWS = 4,
    QKV_HEADS = 4,
    QKV_KV_HEADS = 2,
    QKV_DIM = 32,
    QKV_WIDTH = (QKV_HEADS + 2 * QKV_KV_HEADS) * QKV_DIM
};

struct qkv_loss {
    struct loss loss; /* first, so that a loss is its qkv_loss; weight is [rows, QKV_WIDTH] */
    struct kv_cache *cache;
};

static double qkv_loss_run(const struct loss *loss) {
    const struct qkv_loss *l = (const struct qkv_loss *)loss;
    double sum = 0;
    ops_run("scalar", 1, &loss->op, 1);
    for (int i = 0; i < QKV_ROWS * QKV_WIDTH; i++) {
        int b = i / QKV_WIDTH, at = i % QKV_WIDTH, head = at / QKV_DIM - QKV_HEADS, d = at % QKV_DIM,
            position = b < 3 ? b + 1 : 7;
        real y = head < 0 ? loss->out[b * QKV_HEADS * QKV_DIM + at]
                          : kv_cache_get(l->cache, head >= QKV_KV_HEADS, position, 0, head % QKV_KV_HEADS, d);
        sum += loss->weight[i] * y;
    }
    return sum;
}

static void assert_qkv_gradient(const char *what, const struct qkv_loss *loss, real *x, const real *dx, int n) {
    for (int i = 0; i < n; i++) {
        double want = difference(qkv_loss_run, &loss->loss, &x[i]);
        if (!(fabs(dx[i] - want) <= TOLERANCE * (1 + fabs(want))))
            fail_msg("%s: element %d: %.12g, central difference %.12g", what, i, dx[i], want);
    }
}

static void qkv_case(bool norms) {
    enum { K = QKV_DIM, H = QKV_HEADS, G = QKV_KV_HEADS, ROWS = QKV_ROWS, N = ROWS * QKV_WIDTH };
    uint64_t seed = 6;
    struct kv_cache cache = kv_cache_make(KV_F32, 1, G, K, 8);
    struct run runs[] = {{0, 3, 1, 0, cache.blocks}, {3, 1, 7, 0, cache.blocks}}; /* rows 0..2 at 1..3, row 3 at 7 */
    real *qkv = ops_reals(&seed, N, 1), *q = ops_alloc(ROWS * H * K * sizeof *q), *rope = ops_reals(&seed, ROWS * K, 1);
    real *q_norm = ops_reals(&seed, K, 1), *k_norm = ops_reals(&seed, K, 1),
         *rstd = ops_alloc(ROWS * (H + G) * sizeof *rstd);
    real *weight = ops_reals(&seed, N, 1), *dqkv = ops_reals(&seed, N, 1), *dq_norm = ops_alloc(K * sizeof *dq_norm),
         *dk_norm = ops_alloc(K * sizeof *dk_norm);
    real *dk = ops_alloc(8 * G * K * sizeof *dk), *dv = ops_alloc(8 * G * K * sizeof *dv);
    for (int b = 0; b < ROWS; b++) {
        for (int i = 0; i < G * K; i++) {
            dk[(b < 3 ? b + 1 : 7) * G * K + i] = weight[b * QKV_WIDTH + H * K + i];
            dv[(b < 3 ? b + 1 : 7) * G * K + i] = weight[b * QKV_WIDTH + (H + G) * K + i];
        }
    }
    struct qkv_loss loss = {{{.kind = OP_QKV,
                              .qkv = {qkv, QKV_WIDTH, q, H * K, rope, norms ? q_norm : NULL, norms ? k_norm : NULL,
                                      1e-3, rstd, runs, 2, cache.geometry, .layer = 0, .heads = H}},
                             q,
                             weight,
                             0},
                            &cache};
    qkv_loss_run(&loss.loss);
    real *rstd0 = ops_copy(rstd, ROWS * (H + G));
    struct op op = {.kind = OP_QKV_GRAD,
                    .qkv_grad = {qkv, QKV_WIDTH, rstd0, rope, norms ? q_norm : NULL, norms ? k_norm : NULL, weight,
                                 QKV_WIDTH, dk, dv, dqkv, norms ? dq_norm : NULL, norms ? dk_norm : NULL, runs, 2, H, G,
                                 K}};
    ops_run("scalar", 2, &op, 1);
    assert_qkv_gradient("qkv", &loss, qkv, dqkv, N);
    if (norms) {
        assert_qkv_gradient("q_norm", &loss, q_norm, dq_norm, K);
        assert_qkv_gradient("k_norm", &loss, k_norm, dk_norm, K);
    }
    free(qkv), free(q), free(rope), free(q_norm), free(k_norm), free(rstd), free(weight), free(dqkv), free(dq_norm),
        free(dk_norm);
    free(dk), free(dv), free(rstd0);
    kv_cache_free(&cache);
}

static void test_qkv(void **state) {
    (void)state;
    qkv_case(false);
    qkv_case(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),       cmocka_unit_test(test_silu_mul),  cmocka_unit_test(test_gate),
        cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_attention), cmocka_unit_test(test_qkv),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
