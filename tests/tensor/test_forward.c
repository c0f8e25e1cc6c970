/* The small ops of the forward pass: every table and 1, 2, 3 threads against the scalar table (equal bits), a row alone
 * against the row in a batch, and the scalar table against plain sums in double. */
#include "support/kernels.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int rows_tried[] = {0, 1, 2, 3, 5, 7, 8, 13, 17, 64};
static const int dims_tried[] = {16, 32, 48, 80, 256, 272};

/* Bound on |computed - exact| for a sum of n terms of total size `size`, with a few operations around it. */
static double bound(int n, double size) {
    return (n + 16) * (double)FLT_EPSILON * size;
}

static void test_rmsnorm(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried) * 2; i++) {
        int rows = rows_tried[i / 2 % COUNT(rows_tried)], dim = dims_tried[i / 2 / COUNT(rows_tried)], n = rows * dim;
        real *x = ops_reals(&seed, (size_t)n, 3), *weight = ops_reals(&seed, (size_t)dim, 1);
        real *residual = ops_reals(&seed, (size_t)n, 1), *out = ops_copy(residual, (size_t)n);
        real *rstd = ops_reals(&seed, (size_t)rows, 1);
        bool in_place = i % 2; /* then out is the residual, and rstd is not kept */
        struct op op = {
            .kind = OP_RMSNORM,
            .rmsnorm = {x, weight, in_place ? out : NULL, out, in_place ? NULL : rstd, rows, dim, (real)1e-6}};
        struct output outputs[] = {OUTPUT_REALS(out, n), OUTPUT_REALS(rstd, rows)};
        kernels_check("rmsnorm", &op, outputs, 2);
        for (int b = 0; b < rows; b++) {
            double squares = 0;
            for (int d = 0; d < dim; d++) squares += (double)x[b * dim + d] * x[b * dim + d];
            for (int d = 0; d < dim; d++) {
                double y = x[b * dim + d] / sqrt(squares / dim + 1e-6) * weight[d],
                       r = in_place ? residual[b * dim + d] : 0;
                assert_true(fabs(out[b * dim + d] - (r + y)) <= bound(dim, fabs(y) + fabs(r)));
            }
        }
        free(x), free(weight), free(residual), free(out), free(rstd);
    }
}

static void test_add_and_axpy(void **state) {
    (void)state;
    uint64_t seed = 2;
    const int sizes[] = {0, 1, 15, 16, 17, 31, 33, 64, 100, 1000};
    for (int i = 0; i < COUNT(sizes); i++) {
        int n = sizes[i];
        real *a = ops_reals(&seed, (size_t)n, 1), *b = ops_reals(&seed, (size_t)n, 1);
        struct op op = {.kind = OP_ADD, .add = {a, b, b, n}};
        struct output output = OUTPUT_REALS(b, n);
        kernels_check("add", &op, &output, 1);
        free(a), free(b);
    }
    for (int rows = 0; rows < 9; rows++) {
        for (int dim = 1; dim < 70; dim += 1 + dim / 3) {
            int n = rows * dim;
            real *x = ops_reals(&seed, (size_t)n, 1), *y = ops_reals(&seed, (size_t)n, 1),
                 *before = ops_copy(y, (size_t)n);
            real *scale = ops_reals(&seed, (size_t)rows, 1);
            struct op op = {.kind = OP_ROW_AXPY, .row_axpy = {x, scale, y, rows, dim}};
            struct output output = OUTPUT_REALS(y, n);
            kernels_check("row_axpy", &op, &output, 1);
            for (int j = 0; j < n; j++) {
                double product = (double)scale[j / dim] * x[j];
                assert_true(fabs(y[j] - (before[j] + product)) <= bound(1, fabs(product) + fabs(before[j])));
            }
            free(x), free(y), free(before), free(scale);
        }
    }
}

static void test_silu_mul(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried); i++) {
        int rows = rows_tried[i % COUNT(rows_tried)], ffn = dims_tried[i / COUNT(rows_tried)], n = rows * ffn;
        real *gate_up = ops_reals(&seed, (size_t)(2 * n), 10), *out = ops_reals(&seed, (size_t)n, 1);
        if (rows) gate_up[0] = -200, gate_up[1] = 200, gate_up[2] = 0;
        struct op op = {.kind = OP_SILU_MUL, .silu_mul = {gate_up, out, rows, ffn}};
        struct output output = OUTPUT_REALS(out, n);
        kernels_check("silu_mul", &op, &output, 1);
        for (int j = 0; j < n; j++) {
            double g = gate_up[j / ffn * 2 * ffn + j % ffn],
                   want = g / (1 + exp(-g)) * gate_up[j / ffn * 2 * ffn + ffn + j % ffn];
            assert_true(fabs(out[j] - want) <= bound(1, fabs(want)) + FLT_MIN);
        }
        free(gate_up), free(out);
    }
}

static void test_gate_and_distance(void **state) {
    (void)state;
    uint64_t seed = 4;
    for (int i = 0; i < COUNT(rows_tried) * COUNT(dims_tried); i++) {
        int rows = rows_tried[i % COUNT(rows_tried)], dim = dims_tried[i / COUNT(rows_tried)], n = rows * dim;
        real *a = ops_reals(&seed, (size_t)n, 1), *b = ops_reals(&seed, (size_t)n, 1),
             *weight = ops_reals(&seed, (size_t)dim, 1);
        real *logit = ops_reals(&seed, (size_t)rows, 1), *lambda = ops_reals(&seed, (size_t)rows, 1), bias = (real)0.25;
        struct op gate = {.kind = OP_GATE, .gate = {a, weight, &bias, logit, lambda, rows, dim}};
        struct output outputs[] = {OUTPUT_REALS(logit, rows), OUTPUT_REALS(lambda, rows)};
        kernels_check("gate", &gate, outputs, 2);
        for (int r = 0; r < rows; r++) {
            double sum = bias, size = fabs(sum);
            for (int d = 0; d < dim; d++) {
                sum += (double)a[r * dim + d] * weight[d];
                size += fabs((double)a[r * dim + d] * weight[d]);
            }
            assert_true(fabs(logit[r] - sum) <= bound(dim, size));
            assert_true(fabs(lambda[r] - 1 / (1 + exp(-(double)logit[r]))) <= bound(1, 1));
        }
        struct op distance = {.kind = OP_DISTANCE, .distance = {a, b, logit, rows, dim}};
        kernels_check("distance", &distance, outputs, 1);
        for (int r = 0; r < rows; r++) {
            double difference = 0, size = 0;
            for (int d = 0; d < dim; d++) {
                difference += pow((double)a[r * dim + d] - b[r * dim + d], 2);
                size += pow(b[r * dim + d], 2);
            }
            assert_true(fabs(logit[r] - sqrt(difference / size)) <= bound(dim, sqrt(difference / size)));
        }
        free(a), free(b), free(weight), free(logit), free(lambda);
    }
}

static void test_rows(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < COUNT(rows_tried) * 4; i++) {
        int rows = rows_tried[i / 4], dim = i % 2 ? 48 : 37;
        real *many = ops_reals(&seed, (size_t)(2 * rows + 1) * (size_t)dim, 1),
             *few = ops_reals(&seed, (size_t)(rows * dim), 1);
        int32_t *index = ops_alloc((size_t)(rows + 1) * sizeof *index);
        for (int r = 0; r < rows; r++) index[r] = 2 * rows - 2 * r - (int)ops_random_below(&seed, 2);
        struct op gather = {.kind = OP_GATHER, .rows = {many, few, index, rows, dim, i % 4 >= 2}};
        struct output to_few = OUTPUT_REALS(few, rows * dim);
        kernels_check("gather", &gather, &to_few, 1);
        for (int j = 0; j < rows * dim && i % 4 < 2; j++) assert_true(few[j] == many[index[j / dim] * dim + j % dim]);
        struct op scatter = {.kind = OP_SCATTER, .rows = {few, many, index, rows, dim, i % 4 >= 2}};
        struct output to_many = OUTPUT_REALS(many, (2 * rows + 1) * dim);
        kernels_check("scatter", &scatter, &to_many, 1);
        for (int j = 0; j < rows * dim && i % 4 < 2; j++) assert_true(few[j] == many[index[j / dim] * dim + j % dim]);
        free(many), free(few), free(index);
    }
}

/* ce, lse and max against double; huge logits, equal logits and the signs of zero included. */
static void test_cross_entropy(void **state) {
    (void)state;
    uint64_t seed = 6;
    const int vocabs[] = {1, 2, 15, 16, 17, 64, 100, 1003};
    for (int i = 0; i < COUNT(vocabs) * 8; i++) {
        int vocab = vocabs[i / 8], rows = rows_tried[i % 8 + 1], ld = vocab + i % 3 * 5, n = rows * ld;
        const real scales[] = {1, 0, 30, 1000};
        real *logits = ops_reals(&seed, (size_t)n, scales[i % 4]);
        real *ce = ops_reals(&seed, (size_t)rows, 1), *lse = ops_copy(ce, (size_t)rows),
             *max = ops_copy(ce, (size_t)rows);
        int32_t *targets = ops_alloc((size_t)rows * sizeof *targets);
        for (int b = 0; b < rows; b++) targets[b] = (int)ops_random_below(&seed, (uint32_t)vocab + 1) - 1;
        for (int j = 0; j < n && i % 4 == 1; j += 2) logits[j] = (real)-0.0;
        struct op op = {.kind = OP_CROSS_ENTROPY, .cross_entropy = {logits, ld, targets, ce, lse, max, rows, vocab}};
        struct output outputs[] = {OUTPUT_REALS(ce, rows), OUTPUT_REALS(lse, rows), OUTPUT_REALS(max, rows)};
        kernels_check("cross_entropy", &op, outputs, 3);
        for (int b = 0; b < rows; b++) {
            double largest = -INFINITY, sum = 0;
            for (int v = 0; v < vocab; v++) largest = fmax(largest, logits[b * ld + v]);
            for (int v = 0; v < vocab; v++) sum += exp(logits[b * ld + v] - largest);
            double exact = largest + log(sum), tolerance = bound(vocab, 1 + fabs(largest));
            assert_true(max[b] == largest);
            assert_true(fabs(lse[b] - exact) <= tolerance);
            assert_true(fabs(ce[b] - (targets[b] < 0 ? 0 : exact - logits[b * ld + targets[b]])) <= 2 * tolerance);
        }
        real *weight = ops_reals(&seed, (size_t)rows, 1), *before = ops_copy(logits, (size_t)n);
        struct op grad = {.kind = OP_CROSS_ENTROPY_GRAD,
                          .cross_entropy_grad = {logits, ld, targets, lse, weight, rows, vocab}};
        struct output output = OUTPUT_REALS(logits, n);
        kernels_check("cross_entropy_grad", &grad, &output, 1);
        for (int j = 0; j < n; j++) {
            int b = j / ld, v = j % ld;
            if (v >= vocab) {
                assert_memory_equal(&logits[j], &before[j], sizeof(real));
                continue;
            }
            double want = targets[b] < 0 ? 0 : weight[b] * (exp((double)before[j] - lse[b]) - (v == targets[b]));
            assert_true(fabs(logits[j] - want) <= bound(vocab, (2 + fabs((double)lse[b])) * fabs(weight[b])));
        }
        free(logits), free(ce), free(lse), free(max), free(targets), free(weight), free(before);
    }
}

/* A row alone has the bits it has in a batch: each op of rows, on every table, with the rows one by one. */
static void test_row_alone(void **state) {
    (void)state;
    enum { ROWS = 13, DIM = 80 };
    uint64_t seed = 7;
    real *x = ops_reals(&seed, ROWS * 2 * DIM, 2), *weight = ops_reals(&seed, DIM, 1), bias = 1;
    real *batch = ops_reals(&seed, 4 * ROWS * DIM, 1), *alone = ops_copy(batch, 4 * ROWS * DIM);
    for (int t = 0; ops_table(t); t++) {
        for (int b = -1; b < ROWS; b++) { /* -1: the batch */
            int at = b < 0 ? 0 : b, rows = b < 0 ? ROWS : 1;
            real *out = b < 0 ? batch : alone;
            struct op ops[] = {
                {.kind = OP_RMSNORM,
                 .rmsnorm = {x + at * DIM, weight, NULL, out + at * DIM, NULL, rows, DIM, (real)1e-5}},
                {.kind = OP_SILU_MUL, .silu_mul = {x + at * 2 * DIM, out + (ROWS + at) * DIM, rows, DIM}},
                {.kind = OP_GATE, .gate = {x + at * DIM, weight, &bias, out + 2 * ROWS * DIM + at, NULL, rows, DIM}},
                {.kind = OP_CROSS_ENTROPY,
                 .cross_entropy = {x + at * DIM, DIM, NULL, NULL, out + 3 * ROWS * DIM + at, NULL, rows, DIM}},
            };
            ops_run(ops_table(t), b < 0 ? 3 : 1, ops, COUNT(ops));
        }
        ops_assert_equal("a row alone", ops_table(t), alone, batch, 4 * ROWS * DIM);
    }
    free(x), free(weight), free(batch), free(alone);
}

static void test_zero(void **state) {
    (void)state;
    uint64_t seed = 8;
    const int sizes[] = {0, 1, 1000, 1025, 5000};
    for (int i = 0; i < COUNT(sizes); i++) {
        real *data = ops_reals(&seed, (size_t)sizes[i] + 1, 1), after = data[sizes[i]];
        struct op op = {.kind = OP_ZERO, .zero = {data, (size_t)sizes[i] * sizeof *data}};
        struct output output = OUTPUT_REALS(data, sizes[i] + 1);
        kernels_check("zero", &op, &output, 1);
        for (int j = 0; j < sizes[i]; j++) assert_true(data[j] == 0);
        assert_true(data[sizes[i]] == after);
        free(data);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),   cmocka_unit_test(test_add_and_axpy),
        cmocka_unit_test(test_silu_mul),  cmocka_unit_test(test_gate_and_distance),
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_row_alone), cmocka_unit_test(test_zero),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
