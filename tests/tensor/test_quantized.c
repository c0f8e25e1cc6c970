/* 8- and 4-bit weights: the error of the formats, products on the scalar table against sums in double of what is
 * stored, and equal bits on every table for any rows, threads and hostile values. */
#include "support/kernels.h"
#include "support/support.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const enum weight_type types[] = {WEIGHT_Q8, WEIGHT_Q4};
static const int rows_tried[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 33, 40, 100};
static const struct shape {
    int n, k;
} shapes[] = {{1, 32}, {15, 64}, {16, 96}, {48, 32}, {64, 64}, {65, 160}, {113, 96}, {128, 32}, {150, 224}};

/* ---- the formats ---------------------------------------------------------------------------------------------------
 */

static double squared_error(const float *x, const int8_t *q, float scale) {
    double error = 0;
    for (int i = 0; i < QUANT_GROUP; i++) error += pow((double)x[i] - (double)q[i] * scale, 2);
    return error;
}

/* Half a step, but for what the range cuts off; and the search never loses to -8 alone. */
static void check_group(enum weight_type type, const float *x) {
    int8_t q[QUANT_GROUP], plain[QUANT_GROUP];
    uint16_t bits;
    quant_weight_group(type, x, q, &bits);
    const float scale = bf16_to_float(bits), step = fabsf(scale);
    const int low = type == WEIGHT_Q8 ? -127 : -8, high = type == WEIGHT_Q8 ? 127 : 7;
    for (int i = 0; i < QUANT_GROUP; i++) {
        assert_in_range(q[i] + 128, low + 128, high + 128);
        double error = fabs((double)x[i] - (double)q[i] * scale);
        if (type == WEIGHT_Q4 && (q[i] == low || q[i] == high)) continue;
        if (!(error <= step * 0.50001 + 0x1p-90))
            fail_msg("type %d: %g became %d x %g", type, (double)x[i], q[i], (double)scale);
    }
    if (type != WEIGHT_Q4) return;
    float extreme = 0;
    for (int i = 0; i < QUANT_GROUP; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    float alone = bf16_to_float(bf16_from_float(extreme * -0.125f));
    for (int i = 0; i < QUANT_GROUP; i++) plain[i] = (int8_t)quant_round(x[i], quant_factor(alone), -8, 7);
    assert_true(squared_error(x, q, scale) <= squared_error(x, plain, alone) * 1.00001);
}

static void test_formats(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int t = 0; t < COUNT(types); t++)
        for (int i = 0; i < 3000; i++) {
            float x[QUANT_GROUP];
            float size = (float[]){1, 1e-4f, 1e-25f, 1e-35f, 1e30f}[i % 5];
            for (int j = 0; j < QUANT_GROUP; j++) {
                x[j] = (float)ops_random(&seed, 1) * size;
                if (i % 7 == 1 && ops_random_below(&seed, 6)) x[j] = 0;
                if (i % 7 == 2) x[j] = j % 2 ? size : -size;
            }
            if (i % 7 == 3) x[ops_random_below(&seed, QUANT_GROUP)] = 50 * size;
            if (i == 4) memset(x, 0, sizeof x);
            check_group(types[t], x);
        }
}

/* On normal weights: about 0.66 % of the energy in 4 bits, 45 dB or more in 8. A worse search or a lost level shows
 * here. */
static void test_noise(void **state) {
    (void)state;
    uint64_t seed = 2;
    double energy = 0, error[2] = {0, 0};
    for (int i = 0; i < 4000; i++) {
        float x[QUANT_GROUP];
        for (int j = 0; j < QUANT_GROUP; j++) {
            x[j] = (float)ops_random(&seed, 1);
            energy += (double)x[j] * x[j];
        }
        for (int t = 0; t < COUNT(types); t++) {
            int8_t q[QUANT_GROUP];
            uint16_t scale;
            quant_weight_group(types[t], x, q, &scale);
            error[t] += squared_error(x, q, bf16_to_float(scale));
        }
    }
    assert_true(error[0] / energy < 3e-5);
    assert_true(error[1] / energy < 0.0069);
}

static void test_sizes(void **state) {
    (void)state;
    assert_int_equal(weight_size(WEIGHT_Q8, 64, 64), 64 * 64 * 17 / 16);
    assert_int_equal(weight_size(WEIGHT_Q4, 100, 32), 112 * 18);
}

static void test_inputs(void **state) {
    (void)state;
    float x[QUANT_GROUP] = {0}, scale;
    int8_t q[QUANT_GROUP];
    quant_input_group(x, q, &scale);
    assert_true(scale == 0 && q[0] == 0);
    x[3] = -2.54f;
    x[5] = 0.0502f;
    x[6] = -0.0302f;
    quant_input_group(x, q, &scale);
    assert_int_equal(q[3], -127);
    assert_int_equal(q[5], 3);
    assert_int_equal(q[6], -2);
    x[7] = 1e-45f; /* its reciprocal is infinite, but not the group's */
    quant_input_group(x, q, &scale);
    assert_int_equal(q[7], 0);
    for (int i = 0; i < QUANT_GROUP; i++) x[i] = 1e-40f;
    quant_input_group(x, q, &scale);
    assert_true(scale == 0 && q[0] == 0);
    x[9] = -INFINITY;
    quant_input_group(x, q, &scale);
    assert_true(isnan(scale) && q[9] == 0);
}

/* ---- packing and rows of a table -----------------------------------------------------------------------------------
 */

static void *source_make(uint64_t *seed, enum dtype dtype, int n) {
    unsigned char *source = ops_alloc((size_t)n * dtype_size(dtype) + 64);
    for (int i = 0; i < n; i++) {
        float f = (float)ops_random(seed, ops_random_below(seed, 8) ? 1 : 1e-39f);
        if (ops_random_below(seed, 200) == 0) f = ops_random_below(seed, 2) ? INFINITY : NAN;
        uint16_t half = (uint16_t)ops_random_below(seed, 65536);
        double d = (double)f;
        const void *value = dtype == DTYPE_F32 ? (const void *)&f : dtype == DTYPE_F64 ? (const void *)&d : &half;
        memcpy(source + (size_t)i * dtype_size(dtype), value, dtype_size(dtype));
    }
    return source;
}

static void test_pack(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int s = 0; s < COUNT(shapes); s++)
        for (int dtype = DTYPE_F32; dtype <= DTYPE_F64; dtype++)
            for (int t = 0; t < COUNT(types); t++) {
                const int n = shapes[s].n, k = shapes[s].k, split = n / 3;
                struct weight w = {types[t], n, k, ops_alloc(weight_size(types[t], n, k))};
                char *source = source_make(&seed, (enum dtype)dtype, n * k + 1),
                     *from = source + dtype_size((enum dtype)dtype);
                const char *rest = from + (size_t)(split * k) * dtype_size((enum dtype)dtype);
                struct output out = {"weight", w.data, weight_size(types[t], n, k), true};
                memset(w.data, 0xa5, out.size);
                struct op first = {.kind = OP_PACK, .pack = {&w, 0, split, from, (enum dtype)dtype}};
                struct op last = {.kind = OP_PACK, .pack = {&w, split, n - split, rest, (enum dtype)dtype}};
                kernels_check("pack, first rows", &first, &out, 1);
                kernels_check("pack, last rows", &last, &out, 1);
                free(source);
                free(w.data);
            }
}

static void test_embed(void **state) {
    (void)state;
    static const int32_t ids[] = {0, 112, 64, 63, 5, 5, 111};
    uint64_t seed = 4;
    for (int t = 0; t < COUNT(types); t++) {
        enum { K = 96 };
        struct weight w = ops_weight(&seed, types[t], 113, K, 1, NULL);
        real *out = ops_alloc(COUNT(ids) * K * sizeof *out);
        struct op op = {.kind = OP_EMBED, .embed = {&w, ids, out, COUNT(ids)}};
        kernels_check("embed", &op, (struct output[]){OUTPUT_REALS(out, COUNT(ids) * K)}, 1);
        for (int b = 0; b < COUNT(ids); b++)
            for (int i = 0; i < K; i++) {
                int8_t q[QUANT_GROUP];
                real scale = quant_get(&w, ids[b], i / QUANT_GROUP, q);
                assert_true(out[b * K + i] == q[i % QUANT_GROUP] * scale);
            }
        free(out);
        free(w.data);
    }
}

/* ---- products ------------------------------------------------------------------------------------------------------
 */

/* What the weights and the quantised inputs stand for, multiplied in double; the float chain has two roundings a group.
 */
static void assert_product(const struct op_matmul *op, const real *y0) {
    const struct weight *w = op->weight;
    for (int b = 0; b < op->rows; b++)
        for (int n = 0; n < w->n; n++) {
            double sum = op->accumulate ? (double)y0[b * op->ldy + n] : 0, size = fabs(sum);
            for (int g = 0; g < w->k / QUANT_GROUP; g++) {
                int8_t q[QUANT_GROUP], x[QUANT_GROUP];
                float input_scale;
                double scale = (double)quant_get(w, n, g, q);
                quant_input_group(op->x + b * op->ldx + g * QUANT_GROUP, x, &input_scale);
                for (int i = 0; i < QUANT_GROUP; i++) sum += q[i] * scale * (x[i] * (double)input_scale);
                for (int i = 0; i < QUANT_GROUP; i++) size += fabs(q[i] * scale * (x[i] * (double)input_scale));
            }
            double tolerance = (w->k / QUANT_GROUP + 2) * size * 0x1p-23, got = (double)op->y[b * op->ldy + n];
            if (!(fabs(got - sum) <= tolerance))
                fail_msg("row %d output %d: %.9g, expected %.9g within %.3g", b, n, got, sum, tolerance);
        }
}

static void test_product(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int t = 0; t < COUNT(types); t++)
        for (int s = 0; s < COUNT(shapes); s++)
            for (int r = s % THIN(4); r < COUNT(rows_tried); r += THIN(4)) {
                const int rows = rows_tried[r], n = shapes[s].n, k = shapes[s].k;
                const int64_t ldx = k + r % 3 * 5, ldy = n + s % 3 * 7;
                struct weight w = ops_weight(&seed, types[t], n, k, 1, NULL);
                real *x = ops_reals(&seed, (size_t)(rows * ldx), 1), *y = ops_reals(&seed, (size_t)(rows * ldy), 1);
                real *y0 = ops_copy(y, (size_t)(rows * ldy));
                struct op op = {.kind = OP_MATMUL, .matmul = {x, ldx, &w, y, ldy, rows, (s + r) % 2 == 1}};
                kernels_check("matmul", &op, (struct output[]){OUTPUT_REALS(y, rows * ldy)}, 1);
                assert_product(&op.matmul, y0);
                free(x);
                free(y);
                free(y0);
                free(w.data);
            }
}

/* Every integer at an end of its range, so that any sum that saturates or wraps is seen; then rows of zeros, of
 * denormals, with NaN and infinity. In 8 bits a group's sum is 32 x 127 x 127, in 4 bits 32 x 8 x 127. */
static void test_extremes(void **state) {
    (void)state;
    enum { ROWS = 16, N = 80, K = 128 };
    for (int t = 0; t < COUNT(types); t++)
        for (int pattern = 0; pattern < 4; pattern++) {
            real *source = ops_alloc(N * K * sizeof *source), *x = ops_alloc(ROWS * K * sizeof *x),
                 *y = ops_alloc(ROWS * N * sizeof *y);
            struct weight w = {types[t], N, K, ops_alloc(weight_size(types[t], N, K))};
            for (int i = 0; i < N * K; i++)
                source[i] = pattern == 0 ? -1 : pattern == 1 ? 1 : i % (pattern + 1) ? 1 : -1;
            for (int i = 0; i < ROWS * K; i++) x[i] = (i / K + (pattern == 3 ? i : 0)) % 2 ? 1 : -1;
            for (int i = 0; i < K; i++) {
                x[10 * K + i] = 0;
                x[11 * K + i] = (real)1e-40;
                x[12 * K + i] = i == 40 ? (real)NAN : 1;
                x[13 * K + i] = i == 70 ? (real)INFINITY : 1;
                x[14 * K + i] = i == 90 ? (real)3e38 : (real)1e30;
            }
            struct op pack = {.kind = OP_PACK, .pack = {&w, 0, N, source, DTYPE_REAL}};
            ops_run("scalar", 1, &pack, 1);
            struct op op = {.kind = OP_MATMUL, .matmul = {x, K, &w, y, N, ROWS, false}};
            kernels_check("matmul of extremes", &op, (struct output[]){OUTPUT_REALS(y, ROWS * N)}, 1);
            if (pattern < 2) {
                int8_t q[QUANT_GROUP];
                float scale = quant_get(&w, 3, 1, q), want = 0;
                for (int g = 0; g < K / QUANT_GROUP; g++)
                    want = fmaf((float)(q[0] * -127 * 32), scale * (1 / 127.0f), want);
                assert_true(y[3] == want);
            }
            assert_true(y[10 * N] == 0 && y[11 * N + 5] == 0 && isnan(y[12 * N + 1]) && isnan(y[13 * N + 2]));
            free(source);
            free(x);
            free(y);
            free(w.data);
        }
}

/* A row gives the same bits alone as in a batch that goes past a block of rows. */
static void test_row_alone(void **state) {
    (void)state;
    enum { ROWS = 401, N = 70, K = 1120 };
    uint64_t seed = 6;
    for (int t = 0; t < COUNT(types); t++) {
        struct weight w = ops_weight(&seed, types[t], N, K, 1, NULL);
        real *x = ops_reals(&seed, ROWS * K, 1), *all = ops_alloc(ROWS * N * sizeof *all),
             *one = ops_alloc(N * sizeof *one);
        for (int i = 0; ops_table(i); i++) {
            struct op op = {.kind = OP_MATMUL, .matmul = {x, K, &w, all, N, ROWS, false}};
            ops_run(ops_table(i), 3, &op, 1);
            for (int b = 0; b < ROWS; b += 37) {
                op.matmul.x = x + b * K;
                op.matmul.y = one;
                op.matmul.rows = 1;
                ops_run(ops_table(i), 2, &op, 1);
                ops_assert_equal("a row alone", ops_table(i), one, all + b * N, N);
            }
        }
        free(x);
        free(all);
        free(one);
        free(w.data);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats), cmocka_unit_test(test_noise),    cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_inputs),  cmocka_unit_test(test_pack),     cmocka_unit_test(test_embed),
        cmocka_unit_test(test_product), cmocka_unit_test(test_extremes), cmocka_unit_test(test_row_alone),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
