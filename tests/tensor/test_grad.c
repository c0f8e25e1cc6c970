/* The small ops of the backward pass and the optimizer: every table and 1, 2, 3 threads against the scalar table (equal
 * bits). That the scalar table is right is shown by central differences (double_grad.c), and here, for the optimizer
 * and the sum of squares, by a computation in double. */
#include "support/kernels.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static const int rows_tried[] = {0, 1, 2, 3, 5, 7, 8, 13, 17, 64};
static const int dims_tried[] = {16, 32, 48, 80, 256, 272};

static void test_rmsnorm_grad(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried) * 2; i++) {
        int rows = rows_tried[i / 2 % COUNT(rows_tried)], dim = dims_tried[i / 2 / COUNT(rows_tried)], n = rows * dim;
        real *x = ops_reals(&seed, (size_t)n, 1), *dy = ops_reals(&seed, (size_t)n, 1),
             *rstd = ops_reals(&seed, (size_t)rows, 1);
        real *weight = ops_reals(&seed, (size_t)dim, 1), *dweight = ops_reals(&seed, (size_t)dim, 1),
             *dx = ops_reals(&seed, (size_t)n, 1);
        struct op op = {.kind = OP_RMSNORM_GRAD,
                        .rmsnorm_grad = {x, weight, rstd, dy, dx, i % 4 < 2 ? dweight : NULL, rows, dim, i % 2}};
        struct output outputs[] = {OUTPUT_REALS(dx, n), OUTPUT_REALS(dweight, dim)};
        kernels_check("rmsnorm_grad", &op, outputs, 2);
        if (i % 4 == 2) { /* without dweight, not accumulating: in place it is the same */
            op.rmsnorm_grad.dx = x;
            struct output output = OUTPUT_REALS(x, n);
            kernels_check("rmsnorm_grad in place", &op, &output, 1);
            ops_assert_equal("rmsnorm_grad in place", "scalar", x, dx, (size_t)n);
        } else if (i % 4 == 0) { /* dweight alone */
            op.rmsnorm_grad.dx = NULL;
            kernels_check("rmsnorm_grad of the weight", &op, outputs, 2);
        }
        free(x), free(dy), free(rstd), free(weight), free(dweight), free(dx);
    }
}

static void test_silu_mul_grad(void **state) {
    (void)state;
    uint64_t seed = 2;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried); i++) {
        int rows = rows_tried[i % COUNT(rows_tried)], ffn = dims_tried[i / COUNT(rows_tried)], n = rows * ffn;
        real *gate_up = ops_reals(&seed, (size_t)(2 * n), 5), *dout = ops_reals(&seed, (size_t)n, 1),
             *dgate_up = ops_reals(&seed, (size_t)(2 * n), 1);
        if (rows) gate_up[0] = -200, gate_up[1] = 200;
        struct op op = {.kind = OP_SILU_MUL_GRAD, .silu_mul_grad = {gate_up, dout, dgate_up, rows, ffn}};
        struct output output = OUTPUT_REALS(dgate_up, 2 * n);
        kernels_check("silu_mul_grad", &op, &output, 1);
        free(gate_up), free(dout), free(dgate_up);
    }
}

static void test_gate_grad(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried) * 2; i++) {
        int rows = rows_tried[i / 2 % COUNT(rows_tried)], dim = dims_tried[i / 2 / COUNT(rows_tried)], n = rows * dim;
        real *h = ops_reals(&seed, (size_t)n, 1), *weight = ops_reals(&seed, (size_t)dim, 1),
             *dlogit = ops_reals(&seed, (size_t)rows, 1);
        real *dh = ops_reals(&seed, (size_t)n, 1), *dweight = ops_reals(&seed, (size_t)dim, 1),
             *dbias = ops_reals(&seed, 1, 1);
        struct op op = {.kind = OP_GATE_GRAD,
                        .gate_grad = {h, weight, dlogit, i % 2 ? dh : NULL, dweight, dbias, rows, dim}};
        struct output outputs[] = {OUTPUT_REALS(dh, n), OUTPUT_REALS(dweight, dim), OUTPUT_REALS(dbias, 1)};
        kernels_check("gate_grad", &op, outputs, 3);
        free(h), free(weight), free(dlogit), free(dh), free(dweight), free(dbias);
    }
}

static const int sizes_tried[] = {0, 1, 15, 16, 17, 100, 4095, 4096, 4097, 20000};

static void test_sum_squares(void **state) {
    (void)state;
    uint64_t seed = 4;
    for (int i = 0; i < COUNT(sizes_tried); i++) {
        int n = sizes_tried[i], blocks = (n + SUM_SQUARES_BLOCK - 1) / SUM_SQUARES_BLOCK;
        real *x = ops_reals(&seed, (size_t)n, 1);
        double *partial = ops_alloc((size_t)(blocks + 1) * sizeof *partial);
        struct op op = {.kind = OP_SUM_SQUARES, .sum_squares = {x, partial, n}};
        struct output output = {"partial", partial, (size_t)(blocks + 1) * sizeof *partial, true};
        kernels_check("sum_squares", &op, &output, 1);
        for (int b = 0; b < blocks; b++) {
            double sum = 0;
            for (int j = b * SUM_SQUARES_BLOCK; j < n && j < (b + 1) * SUM_SQUARES_BLOCK; j++)
                sum += (double)x[j] * x[j];
            assert_true(fabs(sum - partial[b]) <= SUM_SQUARES_BLOCK * DBL_EPSILON * sum);
        }
        free(x), free(partial);
    }
}

static void test_adamw(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < COUNT(sizes_tried); i++) {
        int n = sizes_tried[i];
        real *param = ops_reals(&seed, (size_t)n, 1), *m = ops_reals(&seed, (size_t)n, 1),
             *v = ops_reals(&seed, (size_t)n, 1);
        real *grad = ops_reals(&seed, (size_t)n, 1);
        for (int j = 0; j < n; j++) v[j] = v[j] * v[j];
        real *before = ops_copy(param, (size_t)n), *m0 = ops_copy(m, (size_t)n), *v0 = ops_copy(v, (size_t)n);
        struct op op = {.kind = OP_ADAMW,
                        .adamw = {param, m, v, grad, n, .lr = (real)0.01, .beta1 = (real)0.9, .beta2 = (real)0.95,
                                  .eps = (real)1e-8, .decay = (real)0.1, .correction1 = (real)0.19,
                                  .correction2 = (real)0.0975, .grad_scale = (real)0.5}};
        struct output outputs[] = {OUTPUT_REALS(param, n), OUTPUT_REALS(m, n), OUTPUT_REALS(v, n)};
        kernels_check("adamw", &op, outputs, 3);
        for (int j = 0; j < n; j++) {
            double g = 0.5 * grad[j], first = 0.9 * m0[j] + 0.1 * g, second = 0.95 * v0[j] + 0.05 * g * g;
            double step = 0.01 * (first / 0.19 / (sqrt(second / 0.0975) + 1e-8) + 0.1 * before[j]);
            assert_true(fabs(m[j] - first) <= 8 * FLT_EPSILON * (fabs(m0[j]) + fabs(g)));
            assert_true(fabs(v[j] - second) <= 8 * FLT_EPSILON * second);
            /* The first moment may cancel, so its error is measured against what it is the sum of. */
            double loose = (fabs(m0[j]) + fabs(g)) / 0.19 / sqrt(second / 0.0975) + fabs(before[j]);
            assert_true(fabs(param[j] - (before[j] - step)) <= 16 * FLT_EPSILON * (fabs(before[j]) + 0.01 * loose));
        }
        free(param), free(m), free(v), free(grad), free(before), free(m0), free(v0);
    }
}

/* The bits themselves of the small ops, forward and backward: see test_bits of test_attention.c. */
static void test_bits(void **state) {
    (void)state;
    enum { ROWS = 7, DIM = 48, N = ROWS * DIM };
    uint64_t seed = 6;
    real *x = ops_reals(&seed, 2 * N, 2), *y = ops_reals(&seed, N, 1), *z = ops_reals(&seed, 2 * N, 1),
         *v = ops_reals(&seed, N, 1);
    real *weight = ops_reals(&seed, DIM, 1), *dweight = ops_reals(&seed, DIM, 1), *r = ops_reals(&seed, 8 * ROWS, 1);
    int32_t targets[ROWS] = {1, 2, -1, 40, 0, 7, 8};
    for (int i = 0; i < N; i++) v[i] *= v[i];
    struct op ops[] = {
        {.kind = OP_RMSNORM, .rmsnorm = {x, weight, y, y, r, ROWS, DIM, (real)1e-5}},
        {.kind = OP_RMSNORM_GRAD, .rmsnorm_grad = {x, weight, r, y, z, dweight, ROWS, DIM, true}},
        {.kind = OP_GATE, .gate = {y, weight, r, r + ROWS, r + 2 * ROWS, ROWS, DIM}},
        {.kind = OP_GATE_GRAD, .gate_grad = {y, weight, r + ROWS, z, dweight, r + 8 * ROWS - 1, ROWS, DIM}},
        {.kind = OP_DISTANCE, .distance = {x, y, r + 3 * ROWS, ROWS, DIM}},
        {.kind = OP_CROSS_ENTROPY,
         .cross_entropy = {y, DIM, targets, r + 4 * ROWS, r + 5 * ROWS, r + 6 * ROWS, ROWS, DIM - 3}},
        {.kind = OP_CROSS_ENTROPY_GRAD, .cross_entropy_grad = {y, DIM, targets, r + 5 * ROWS, r, ROWS, DIM - 3}},
        {.kind = OP_SILU_MUL, .silu_mul = {x, y, ROWS, DIM}},
        {.kind = OP_SILU_MUL_GRAD, .silu_mul_grad = {x, y, z, ROWS, DIM}},
        {.kind = OP_ADAMW,
         .adamw = {x, y, v, z, N, (real)0.01, (real)0.9, (real)0.95, (real)1e-8, (real)0.1, (real)0.5, (real)0.25, 1}},
    };
    ops_run("scalar", 1, ops, COUNT(ops));
    uint64_t hash = kernels_hash(0, x, 2 * N * sizeof(real));
    hash = kernels_hash(hash, r, 8 * ROWS * sizeof(real));
    hash = kernels_hash(hash, dweight, DIM * sizeof(real));
    if (hash != 0xf053d59139b64a84u) fail_msg("hash %#llx", (unsigned long long)hash);
    free(x), free(y), free(z), free(v), free(weight), free(dweight), free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_grad), cmocka_unit_test(test_silu_mul_grad), cmocka_unit_test(test_gate_grad),
        cmocka_unit_test(test_sum_squares),  cmocka_unit_test(test_adamw),         cmocka_unit_test(test_bits),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
