/* Rounding for given inputs: against a naive implementation in double, the same bits at any thread count, and a smaller
 * error in the products than rounding to the nearest. */
#include "base/random.h"
#include "model/gptq.h"
#include "support/support.h"
#include "tensor/cpu/cpu.h"
#include "tensor/quant.h"

#include <stdlib.h>

#define K 96
#define N 21 /* a whole block of rows, and a part of one */

struct problem {
    real h[K * K], rows[N * K];
    double h_double[K * K];
};

/* Inputs of which neighbours are alike: what is lost on one element can be made good on the next. `inputs` fewer than K
 * leave H singular. */
static void make_problem(struct problem *p, int inputs, uint64_t seed) {
    struct random random = {seed, 0};
    *p = (struct problem){0};
    for (int b = 0; b < inputs; b++) {
        double x[K], last = 0;
        for (int i = 0; i < K; i++) x[i] = last = 0.9 * last + random_normal(&random);
        for (int i = 0; i < K; i++)
            for (int j = 0; j < K; j++) p->h_double[i * K + j] += x[i] * x[j];
    }
    for (int i = 0; i < K * K; i++) p->h[i] = (real)p->h_double[i];
    for (int i = 0; i < N * K; i++) p->rows[i] = (real)(0.02 * random_normal(&random));
}

static struct gptq open_gptq(struct backend **backend, const char *table, int threads) {
    struct gptq gptq;
    looplm_error err;
    if (cpu_open(backend, threads, table, &err)) fail_msg("%s", err.message);
    if (gptq_init(&gptq, *backend, &err)) fail_msg("%s", err.message);
    return gptq;
}

/* Factors a copy of H and rounds; returns the weight's bytes, fresh. */
static struct weight round_problem(const struct problem *p, const char *table, int threads) {
    struct backend *backend;
    struct gptq gptq = open_gptq(&backend, table, threads);
    struct weight w = {WEIGHT_Q4, N, K, calloc(1, weight_size(WEIGHT_Q4, N, K))};
    real *h = malloc(sizeof p->h);
    looplm_error err;
    memcpy(h, p->h, sizeof p->h);
    if (gptq_factor(&gptq, h, K, 0.01, &err)) fail_msg("%s", err.message);
    if (gptq_round(&gptq, h, p->rows, &w, &err)) fail_msg("%s", err.message);
    free(h);
    gptq_free(&gptq);
    backend->close(backend);
    return w;
}

/* ---- the naive one ---------------------------------------------------------------------------------------------- */

/* The Cholesky factor of H from its last element: H = R R^T, R upper triangular. */
static void naive_factor(const struct problem *p, double damping, double r[K][K]) {
    double mean = 0;
    for (int i = 0; i < K; i++) mean += p->h_double[i * K + i] / K;
    memset(r, 0, K * sizeof *r);
    for (int j = K - 1; j >= 0; j--)
        for (int i = j; i >= 0; i--) {
            double sum = p->h_double[i * K + j] + (i == j ? damping * mean : 0);
            for (int m = j + 1; m < K; m++) sum -= r[i][m] * r[j][m];
            r[i][j] = i == j ? sqrt(sum) : sum / r[j][j];
        }
}

/* Rounds elements [at, at + 32) of a row with one scale; returns their share of the error. */
static double naive_group(const double r[K][K], const real *w, double *d, int at, double scale, int8_t *q) {
    double error = 0;
    for (int l = at; l < at + QUANT_GROUP; l++) {
        double target = w[l];
        for (int i = 0; i < l; i++) target += d[i] * r[i][l] / r[l][l];
        double x = scale == 0 ? 0 : nearbyint(target / scale);
        x = x < -8 ? -8 : x > 7 ? 7 : x;
        q[l - at] = (int8_t)x;
        d[l] = w[l] - x * scale;
        error += (target - x * scale) * (target - x * scale) * r[l][l] * r[l][l];
    }
    return error;
}

static double naive_extreme(const double r[K][K], const real *w, const double *d, int at) {
    double extreme = 0;
    for (int l = at; l < at + QUANT_GROUP; l++) {
        double target = w[l];
        for (int i = 0; i < at; i++) target += d[i] * r[i][l] / r[l][l];
        if (fabs(target) > fabs(extreme)) extreme = target;
    }
    return extreme;
}

static void check_row(const double r[K][K], const real *row, const struct weight *w, int n) {
    double d[K] = {0};
    for (int g = 0; g < K / QUANT_GROUP; g++) {
        int at = g * QUANT_GROUP;
        double extreme = naive_extreme(r, row, d, at), least = INFINITY, best = 0;
        int8_t q[QUANT_GROUP], found[QUANT_GROUP];
        for (int c = 0; c < QUANT_CANDIDATES; c++) {
            double scale = (double)bf16_to_float(bf16_from_float((float)extreme * quant_candidate(c)));
            double error = naive_group(r, row, d, at, scale, q);
            if (error < least) best = scale;
            if (error < least) least = error;
        }
        naive_group(r, row, d, at, best, q);
        assert_true((double)quant_get(w, n, g, found) == best);
        assert_memory_equal(found, q, sizeof q);
    }
}

static void test_naive(void **state) {
    (void)state;
    static struct problem p;
    static double r[K][K];
    make_problem(&p, 3 * K, 7);
    naive_factor(&p, 0.01, r);
    struct weight w = round_problem(&p, NULL, 2);
    for (int n = 0; n < N; n++) check_row((const double(*)[K])r, p.rows + n * K, &w, n);
    free(w.data);
}

/* ---- properties ------------------------------------------------------------------------------------------------- */

static void test_same_bits(void **state) {
    (void)state;
    static struct problem p;
    make_problem(&p, K / 2, 3); /* H has half its rank: the damping makes up for it */
    struct weight expected = round_problem(&p, "scalar", 1);
    size_t size = weight_size(WEIGHT_Q4, N, K);
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++)
        for (int threads = 1; (*t)->supported() && threads <= 3; threads++) {
            struct weight w = round_problem(&p, (*t)->name, threads);
            if (memcmp(w.data, expected.data, size) != 0) fail_msg("%s, %d threads: other bits", (*t)->name, threads);
            free(w.data);
        }
    free(expected.data);
}

/* Of all products: sum over rows of (w - v)^T H (w - v). */
static double products_error(const struct problem *p, const struct weight *w) {
    double error = 0;
    for (int n = 0; n < N; n++) {
        double d[K];
        for (int g = 0; g < K / QUANT_GROUP; g++) {
            int8_t q[QUANT_GROUP];
            double scale = quant_get(w, n, g, q);
            for (int i = 0; i < QUANT_GROUP; i++)
                d[g * QUANT_GROUP + i] = p->rows[n * K + g * QUANT_GROUP + i] - q[i] * scale;
        }
        for (int i = 0; i < K; i++)
            for (int j = 0; j < K; j++) error += d[i] * p->h_double[i * K + j] * d[j];
    }
    return error;
}

static void test_smaller_error(void **state) {
    (void)state;
    static struct problem p;
    make_problem(&p, 3 * K, 5);
    struct weight rounded = round_problem(&p, NULL, 2);
    struct weight nearest = {WEIGHT_Q4, N, K, calloc(1, weight_size(WEIGHT_Q4, N, K))};
    for (int n = 0; n < N; n++)
        for (int g = 0; g < K / QUANT_GROUP; g++) quant_pack_group(&nearest, n, g, p.rows, DTYPE_REAL, n);
    double ratio = products_error(&p, &rounded) / products_error(&p, &nearest);
    if (!(ratio < 0.4)) fail_msg("the error of the products is %.3f of that of the nearest", ratio);
    free(rounded.data);
    free(nearest.data);
}

static void test_not_finite(void **state) {
    (void)state;
    struct backend *backend;
    struct gptq gptq = open_gptq(&backend, NULL, 2);
    looplm_error err = {0};
    real h[32 * 32] = {0};
    assert_int_equal(gptq_factor(&gptq, h, 32, 0.01, &err), LOOPLM_FORMAT); /* no input at all */
    for (int i = 0; i < 32; i++) h[33 * i] = 1;
    h[5] = h[5 * 32] = NAN;
    assert_int_equal(gptq_factor(&gptq, h, 32, 0.01, &err), LOOPLM_FORMAT);
    assert_non_null(strstr(err.message, "not finite"));
    gptq_free(&gptq);
    backend->close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_naive), cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_smaller_error), cmocka_unit_test(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
