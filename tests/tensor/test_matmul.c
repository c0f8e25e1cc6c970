/* Products, packing and the embedding: every table against the scalar one (equal bits in f32; bf16 within the rounding
 * of the BF16 instructions), any number of threads and rows, and the scalar one against plain sums in double. */
#include "support/ops.h"
#include "support/support.h"
#include "tensor/convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int rows_tried[] = {0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 33, 40, 64};
static const struct shape {
    int n, k;
} shapes[] = {{1, 1},   {1, 16},  {15, 3},   {16, 16},  {17, 33},  {48, 64},  {63, 31},   {64, 64},
              {65, 17}, {80, 80}, {113, 48}, {128, 96}, {130, 65}, {192, 32}, {100, 520}, {64, 1040}};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* The BF16 instructions add pairs of products, or sixteen even and sixteen odd ones, and flush subnormals: these tables
 * round differently. */
static bool exact(const char *table, enum weight_type type) {
    return type == WEIGHT_F32 || (strcmp(table, "avx512bf16") != 0 && strcmp(table, "avx512amx") != 0);
}

struct product {
    struct weight weight;
    real *source, *x, *y0;
    int rows, n, k;
    int64_t ldx, ldy;
};

static struct product product_make(uint64_t *seed, enum weight_type type, int rows, int n, int k) {
    struct product p = {.rows = rows, .n = n, .k = k};
    p.ldx = k + (int)ops_random_below(seed, 3) * 5;
    p.ldy = n + (int)ops_random_below(seed, 3) * 7;
    p.weight = ops_weight(seed, type, n, k, 1, &p.source);
    p.x = ops_reals(seed, (size_t)(rows * p.ldx), 1);
    p.y0 = ops_reals(seed, (size_t)(rows * p.ldy), 1);
    return p;
}

static void product_free(struct product *p) {
    free(p->weight.data);
    free(p->source);
    free(p->x);
    free(p->y0);
}

static size_t product_size(const struct product *p) {
    return (size_t)(p->rows * p->ldy);
}

/* The whole output, gaps between rows included, so that a write outside a row is seen. */
static real *product_run(const struct product *p, const char *table, int threads, bool accumulate) {
    real *y = ops_copy(p->y0, product_size(p));
    struct op op = {.kind = OP_MATMUL, .matmul = {p->x, p->ldx, &p->weight, y, p->ldy, p->rows, accumulate}};
    ops_run(table, threads, &op, 1);
    return y;
}

/* Plain sums in double, and how far k roundings to float may take a sum from them. */
static void assert_product(const struct product *p, const char *table, const real *y, bool accumulate) {
    double *want = ops_alloc(product_size(p) * sizeof *want),
           *tolerance = ops_alloc(product_size(p) * sizeof *tolerance);
    for (size_t i = 0; i < product_size(p); i++) want[i] = p->y0[i];
    for (int b = 0; b < p->rows; b++)
        for (int n = 0; n < p->n; n++) {
            double sum = accumulate ? p->y0[b * p->ldy + n] : 0, size = fabs(sum);
            for (int k = 0; k < p->k; k++) {
                real x = p->x[b * p->ldx + k];
                double term = (double)(p->weight.type == WEIGHT_BF16 ? bf16_round(x) : x) * p->source[n * p->k + k];
                sum += term;
                size += fabs(term);
            }
            want[b * p->ldy + n] = sum;
            tolerance[b * p->ldy + n] = (p->k + 2) * size * 0x1p-24;
        }
    ops_assert_close("matmul", table, y, want, product_size(p), tolerance);
    free(want);
    free(tolerance);
}

static void test_product(enum weight_type type) {
    uint64_t seed = 1;
    for (int s = 0; s < COUNT(shapes); s++)
        for (int r = s % THIN(4); r < COUNT(rows_tried); r += THIN(4)) {
            struct product p = product_make(&seed, type, rows_tried[r], shapes[s].n, shapes[s].k);
            bool accumulate = (s + r) % 2;
            real *oracle = product_run(&p, "scalar", 1, accumulate);
            assert_product(&p, "scalar", oracle, accumulate);
            for (int i = 0; ops_table(i); i++) {
                const char *table = ops_table(i);
                real *y = product_run(&p, table, 1, accumulate);
                if (exact(table, type)) {
                    ops_assert_equal("matmul", table, y, oracle, product_size(&p));
                } else {
                    assert_product(&p, table, y, accumulate);
                }
                for (int threads = 2; threads <= 4; threads++) {
                    real *again = product_run(&p, table, threads, accumulate);
                    ops_assert_equal("matmul with more threads", table, again, y, product_size(&p));
                    free(again);
                }
                free(y);
            }
            free(oracle);
            product_free(&p);
        }
}

static void test_product_f32(void **state) {
    (void)state;
    test_product(WEIGHT_F32);
}
static void test_product_bf16(void **state) {
    (void)state;
    test_product(WEIGHT_BF16);
}

/* A row gives the same bits alone as in any batch, also past the blocks of rows and of the inner dimension. */
static void test_row_alone(void **state) {
    (void)state;
    uint64_t seed = 2;
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int i = 0; ops_table(i); i++) {
            struct product p = product_make(&seed, type, 401, 70, 1100);
            real *all = product_run(&p, ops_table(i), 3, false);
            for (int b = 0; b < p.rows; b += 37) {
                struct product one = p;
                one.rows = 1;
                one.x += b * p.ldx;
                one.y0 += b * p.ldy;
                real *y = product_run(&one, ops_table(i), 2, false);
                ops_assert_equal("a row alone", ops_table(i), y, all + b * p.ldy, (size_t)p.n);
                free(y);
            }
            free(all);
            product_free(&p);
        }
}

struct dw {
    enum weight_type type;
    int rows, n, k;
    int64_t lddy, ldx;
    real *dy, *x, *start;
    enum dw_mode mode;
    const real *rstd, *norm;
};

static size_t dw_size(const struct dw *d) {
    return (size_t)d->n * (size_t)d->k;
}

static real *dw_run(const struct dw *d, const char *table, int threads) {
    real *dweight = ops_copy(d->start, dw_size(d));
    struct op op = {
        .kind = OP_MATMUL_DW,
        .matmul_dw = {d->type, d->dy, d->lddy, d->x, d->ldx, dweight, d->rows, d->n, d->k, d->mode, d->rstd, d->norm}};
    ops_run(table, threads, &op, 1);
    return dweight;
}

static void assert_dw(const struct dw *d, const char *table, const real *got) {
    double *want = ops_alloc(dw_size(d) * sizeof *want), *tolerance = ops_alloc(dw_size(d) * sizeof *tolerance);
    for (int i = 0; i < d->n * d->k; i++) {
        double sum = d->mode == DW_SET ? 0 : d->start[i], total = fabs(sum);
        for (int b = 0; b < d->rows; b++) {
            real dy = d->dy[b * d->lddy + i / d->k], x = d->x[b * d->ldx + i % d->k];
            if (d->rstd) x = x * d->rstd[b] * d->norm[i % d->k];
            double term = d->type == WEIGHT_BF16 ? (double)bf16_round(dy) * bf16_round(x) : (double)dy * x;
            sum += term;
            total += fabs(term);
        }
        want[i] = sum;
        tolerance[i] = (d->rows + 1) * total * 0x1p-24;
    }
    ops_assert_close("matmul_dw", table, got, want, dw_size(d), tolerance);
    free(want);
    free(tolerance);
}

static void check_dw(const struct dw *d) {
    real *oracle = dw_run(d, "scalar", 1);
    assert_dw(d, "scalar", oracle);
    for (int i = 0; ops_table(i); i++) {
        const char *table = ops_table(i);
        real *one = dw_run(d, table, 1);
        if (exact(table, d->type)) {
            ops_assert_equal("matmul_dw", table, one, oracle, dw_size(d));
        } else {
            assert_dw(d, table, one);
        }
        for (int threads = 2; threads <= 3; threads++) {
            real *again = dw_run(d, table, threads);
            ops_assert_equal("matmul_dw with more threads", table, again, one, dw_size(d));
            free(again);
        }
        free(one);
    }
    free(oracle);
}

static void test_dw(enum weight_type type) {
    static const int dw_rows[] = {0, 1, 2, 5, 16, 33, 64, 257};
    uint64_t seed = 3;
    for (int s = 0; s < COUNT(shapes); s++)
        for (int r = s % THIN(3); r < COUNT(dw_rows); r += THIN(3)) {
            struct dw d = {.type = type, .rows = dw_rows[r], .n = shapes[s].n, .k = shapes[s].k, .mode = (s + r) % 3};
            d.lddy = d.n + s % 3;
            d.ldx = d.k + s % 2 * 3;
            d.dy = ops_reals(&seed, (size_t)(d.rows * d.lddy), 1);
            d.x = ops_reals(&seed, (size_t)(d.rows * d.ldx), 1);
            d.start = ops_reals(&seed, dw_size(&d), 1);
            check_dw(&d);
            real *rstd = ops_reals(&seed, (size_t)d.rows, 1), *norm = ops_reals(&seed, (size_t)d.k, 1);
            d.rstd = rstd, d.norm = norm;
            check_dw(&d);
            free(rstd);
            free(norm);
            free(d.dy);
            free(d.x);
            free(d.start);
        }
}

/* More rows than are summed before the gradient is touched, outputs and columns past the blocks of them. */
static void test_dw_long(void **state) {
    (void)state;
    static const struct dw long_ones[] = {{.type = WEIGHT_F32, .rows = 1100, .n = 200, .k = 70, .mode = DW_SET},
                                          {.type = WEIGHT_F32, .rows = 1024, .n = 30, .k = 840, .mode = DW_ADD},
                                          {.type = WEIGHT_F32, .rows = 1300, .n = 7, .k = 70},
                                          {.type = WEIGHT_BF16, .rows = 1100, .n = 530, .k = 70, .mode = DW_SET},
                                          {.type = WEIGHT_BF16, .rows = 1024, .n = 30, .k = 1500, .mode = DW_ADD},
                                          {.type = WEIGHT_BF16, .rows = 1300, .n = 20, .k = 70}};
    uint64_t seed = 7;
    for (int i = 0; i < COUNT(long_ones); i++) {
        struct dw d = long_ones[i];
        d.lddy = d.n;
        d.ldx = d.k + 1;
        d.dy = ops_reals(&seed, (size_t)(d.rows * d.lddy), 1);
        d.x = ops_reals(&seed, (size_t)(d.rows * d.ldx), 1);
        d.start = ops_reals(&seed, dw_size(&d), 1);
        check_dw(&d);
        free(d.dy);
        free(d.x);
        free(d.start);
    }
}

static void test_dw_f32(void **state) {
    (void)state;
    test_dw(WEIGHT_F32);
}
static void test_dw_bf16(void **state) {
    (void)state;
    test_dw(WEIGHT_BF16);
}

/* An even number of rows that are added in two calls gives the bits of one call, in every table. */
static void test_dw_in_parts(void **state) {
    (void)state;
    uint64_t seed = 4;
    struct dw d = {.rows = 320, .n = 70, .k = 96, .lddy = 70, .ldx = 96};
    d.dy = ops_reals(&seed, (size_t)(d.rows * d.lddy), 1);
    d.x = ops_reals(&seed, (size_t)(d.rows * d.ldx), 1);
    d.start = ops_reals(&seed, dw_size(&d), 1);
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int i = 0; ops_table(i); i++) {
            d.type = (enum weight_type)type;
            struct dw first = d, second = d;
            first.rows = 64;
            second.rows -= 64;
            second.dy += 64 * d.lddy;
            second.x += 64 * d.ldx;
            real *whole = dw_run(&d, ops_table(i), 2);
            second.start = dw_run(&first, ops_table(i), 2);
            real *parts = dw_run(&second, ops_table(i), 2);
            ops_assert_equal("matmul_dw in parts", ops_table(i), parts, whole, dw_size(&d));
            free(whole);
            free(second.start);
            free(parts);
        }
    free(d.dy);
    free(d.x);
    free(d.start);
}

/* A source of `n` elements of any type, of values that f16 and bf16 hold inexactly, with the special ones among them.
 */
static void *source_make(uint64_t *seed, enum dtype dtype, size_t n) {
    unsigned char *source = ops_alloc(n * dtype_size(dtype) + 64);
    for (size_t i = 0; i < n; i++) {
        float f = ops_random(seed, ops_random_below(seed, 8) ? 1 : 1e-39f);
        if (ops_random_below(seed, 50) == 0) f = INFINITY;
        if (ops_random_below(seed, 50) == 0) f = NAN;
        uint16_t half = (uint16_t)ops_random_below(seed, 65536); /* every bit pattern of the 16-bit types */
        double d = f;
        const void *value = dtype == DTYPE_F32 ? (const void *)&f : dtype == DTYPE_F64 ? (const void *)&d : &half;
        memcpy(source + i * dtype_size(dtype), value, dtype_size(dtype));
    }
    return source;
}

/* In two parts that meet inside a group of outputs, from a source that is not aligned. */
static struct weight pack_run(const char *table, int threads, enum weight_type type, const void *source,
                              enum dtype dtype, struct shape shape) {
    struct weight w = {type, shape.n, shape.k, ops_alloc(weight_size(type, shape.n, shape.k))};
    memset(w.data, 0xa5, weight_size(type, shape.n, shape.k));
    int64_t split = shape.n / 3;
    const char *rest = (const char *)source + (size_t)(split * shape.k) * dtype_size(dtype);
    struct op ops[] = {{.kind = OP_PACK, .pack = {&w, 0, split, source, dtype}},
                       {.kind = OP_PACK, .pack = {&w, split, shape.n - split, rest, dtype}}};
    ops_run(table, threads, ops, 2);
    return w;
}

static void test_pack(void **state) {
    (void)state;
    uint64_t seed = 4;
    for (int s = 0; s < COUNT(shapes); s++)
        for (int dtype = DTYPE_F32; dtype <= DTYPE_F64; dtype++)
            for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++) {
                size_t size = weight_size(type, shapes[s].n, shapes[s].k);
                unsigned char *source = source_make(&seed, dtype, (size_t)(shapes[s].n * shapes[s].k) + 1);
                const void *from = source + dtype_size(dtype); /* not aligned to a vector */
                struct weight oracle = pack_run("scalar", 1, type, from, dtype, shapes[s]);
                for (int i = 1; ops_table(i); i++)
                    for (int threads = 1; threads <= 3; threads++) {
                        struct weight w = pack_run(ops_table(i), threads, type, from, dtype, shapes[s]);
                        if (memcmp(w.data, oracle.data, size)) {
                            fail_msg("pack: table %s, %d threads, [%d, %d] from dtype %d to type %d", ops_table(i),
                                     threads, shapes[s].n, shapes[s].k, dtype, type);
                        }
                        free(w.data);
                    }
                free(oracle.data);
                free(source);
            }
}

/* A transposed packing is the packing of the transposed matrix. */
static void test_pack_transposed(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int s = 0; s < COUNT(shapes); s++)
        for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++) {
            int n = shapes[s].n, k = shapes[s].k; /* the source; the weight is [k, n] */
            real *source = ops_reals(&seed, (size_t)(n * k), 1),
                 *transposed = ops_alloc((size_t)(n * k) * sizeof(real));
            for (int i = 0; i < n * k; i++) transposed[i % k * n + i / k] = source[i];
            struct weight oracle = pack_run("scalar", 1, type, transposed, DTYPE_REAL, (struct shape){k, n});
            for (int i = 0; ops_table(i); i++)
                for (int threads = 1; threads <= 3; threads++) {
                    struct weight w = {type, k, n, ops_alloc(weight_size(type, k, n))};
                    memset(w.data, 0xa5, weight_size(type, k, n));
                    struct op op = {.kind = OP_PACK_TRANSPOSED, .pack_transposed = {&w, source}};
                    ops_run(ops_table(i), threads, &op, 1);
                    if (memcmp(w.data, oracle.data, weight_size(type, k, n))) {
                        fail_msg("pack_transposed: table %s, %d threads, source [%d, %d], type %d", ops_table(i),
                                 threads, n, k, type);
                    }
                    free(w.data);
                }
            free(oracle.data);
            free(source);
            free(transposed);
        }
}

static void test_embed(void **state) {
    (void)state;
    static const int32_t ids[] = {0, 112, 64, 63, 5, 5, 111};
    uint64_t seed = 6;
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++)
        for (int k = 16; k <= 80; k += 32)
            for (int rows = 0; rows <= COUNT(ids); rows++) {
                real *source, *out = ops_alloc((size_t)(COUNT(ids) * k) * sizeof *out);
                struct weight w = ops_weight(&seed, type, 113, k, 1, &source);
                real *want = ops_alloc((size_t)(COUNT(ids) * k) * sizeof *want);
                for (int b = 0; b < rows; b++) memcpy(want + b * k, source + ids[b] * k, (size_t)k * sizeof *want);
                for (int i = 0; ops_table(i); i++)
                    for (int threads = 1; threads <= 3; threads++) {
                        memset(out, 0, (size_t)(COUNT(ids) * k) * sizeof *out);
                        struct op op = {.kind = OP_EMBED, .embed = {&w, ids, out, rows}};
                        ops_run(ops_table(i), threads, &op, 1);
                        ops_assert_equal("embed", ops_table(i), out, want, (size_t)(COUNT(ids) * k));
                    }
                free(out);
                free(want);
                free(source);
                free(w.data);
            }
}

static void test_embed_grad(void **state) {
    (void)state;
    static const int32_t ids[] = {3, 0, 3, 3, 8};
    enum { DIM = 48, TABLE = 9 };
    uint64_t seed = 7;
    real *dout = ops_reals(&seed, COUNT(ids) * DIM, 1), *start = ops_reals(&seed, TABLE * DIM, 1);
    real *want = ops_copy(start, TABLE * DIM);
    for (int b = 0; b < COUNT(ids); b++)
        for (int d = 0; d < DIM; d++) want[ids[b] * DIM + d] += dout[b * DIM + d];
    for (int i = 0; ops_table(i); i++)
        for (int threads = 1; threads <= 4; threads++) {
            real *table = ops_copy(start, TABLE * DIM);
            struct op op = {.kind = OP_EMBED_GRAD, .embed_grad = {ids, dout, table, COUNT(ids), DIM}};
            ops_run(ops_table(i), threads, &op, 1);
            ops_assert_equal("embed_grad", ops_table(i), table, want, TABLE * DIM);
            free(table);
        }
    free(dout);
    free(start);
    free(want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_product_f32), cmocka_unit_test(test_product_bf16), cmocka_unit_test(test_row_alone),
        cmocka_unit_test(test_dw_long),     cmocka_unit_test(test_dw_f32),       cmocka_unit_test(test_dw_bf16),
        cmocka_unit_test(test_dw_in_parts), cmocka_unit_test(test_pack),         cmocka_unit_test(test_pack_transposed),
        cmocka_unit_test(test_embed),       cmocka_unit_test(test_embed_grad),
    };
    return cmocka_run_group_tests(tests, NULL, ops_close_all);
}
