/* Owns the factor of H and the rounding from it (gptq.h). The bulk of both, products of matrices, is OP_MATMUL_DW; what
 * is done here is a block of columns, or a group of elements, against each other.
 *
 * A group's scale is searched as quant.h does, but for the error that counts here: each candidate rounds the whole
 * group, element by element, and the least sum of D[l] (t[l] - v[l])^2 stays. */
#include "model/gptq.h"

#include "base/team.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FACTOR_BLOCK 64
#define ROWS 16 /* rounded together, a lane each */

int gptq_init(struct gptq *g, struct backend *backend, looplm_error *err) {
    *g = (struct gptq){.backend = backend};
    return team_open(&g->team, backend->threads, err);
}

void gptq_free(struct gptq *g) {
    team_close(g->team);
    pass_free(&g->pass);
}

/* target[n, k] += sum over `rows` rows of dy[., n] x[., k]. */
static void add_product(struct gptq *g, const real *dy, int64_t lddy, const real *x, int32_t rows, real *target,
                        int64_t n, int64_t k) {
    pass_clear(&g->pass);
    pass_add(&g->pass, (struct op){.kind = OP_MATMUL_DW,
                                   .matmul_dw = {.dy = dy,
                                                 .lddy = lddy,
                                                 .x = x,
                                                 .ldx = k,
                                                 .dweight = target,
                                                 .rows = rows,
                                                 .n = (int32_t)n,
                                                 .k = (int32_t)k}});
    g->backend->execute(g->backend, &g->pass);
}

/* ---- the factor ------------------------------------------------------------------------------------------------- */

/* Columns [first, end) of M, last to first. Row m of H holds column m of what is left of it, which is symmetric; it
 * becomes column m of M, and taken[m - first] minus D[m] times it. */
static bool factor_block(real *h, int64_t k, int64_t first, int64_t end, real *taken) {
    for (int64_t m = end - 1; m >= first; m--) {
        real *row = h + m * k, *t = taken + (m - first) * k, d = row[m];
        if (!(d > 0) || !(d < (real)INFINITY)) return false;
        for (int64_t l = 0; l < m; l++) {
            t[l] = -row[l];
            row[l] = row[l] / d;
        }
        for (int64_t i = first; i < m; i++)
            for (int64_t l = 0; l < m; l++) h[i * k + l] += t[i] * row[l];
        memset(t + m, 0, (size_t)(k - m) * sizeof *t);
    }
    return true;
}

static void mirror_lower(real *h, int64_t k) {
    for (int64_t m = 0; m < k; m++)
        for (int64_t l = 0; l < m; l++) h[l * k + m] = h[m * k + l];
}

int gptq_factor(struct gptq *g, real *h, int64_t k, double damping, looplm_error *err) {
    double trace = 0;
    bool positive = true;
    real *taken = malloc(FACTOR_BLOCK * (size_t)k * sizeof *taken);
    if (!taken)
        return error_set(err, LOOPLM_MEMORY, "no memory to calibrate a matrix of inner dimension %lld", (long long)k);
    for (int64_t i = 0; i < k; i++) trace += (double)h[i * k + i];
    for (int64_t i = 0; i < k; i++) h[i * k + i] += (real)(damping * trace / (double)k);
    for (int64_t end = k; positive && end > 0;) {
        int64_t first = end > FACTOR_BLOCK ? (end - 1) / FACTOR_BLOCK * FACTOR_BLOCK : 0;
        positive = factor_block(h, k, first, end, taken);
        /* What lies right of column `first` of these rows is no longer read. */
        if (positive && first > 0) add_product(g, taken, k, h + first * k, (int32_t)(end - first), h, first, k);
        end = first;
    }
    free(taken);
    if (!positive)
        return error_set(err, LOOPLM_FORMAT,
                         "the inputs on the calibration text are not finite, or all zero; give other text");
    mirror_lower(h, k);
    return LOOPLM_OK;
}

/* ---- rounding --------------------------------------------------------------------------------------------------- */

struct rounding {
    const real *factor, *rows; /* M and D; w [n, k] */
    real *targets;             /* t [n, k] */
    real *moved;               /* w - v [QUANT_GROUP, n] of the group at hand */
    const struct weight *weight;
    int64_t group;
};

/* A group of ROWS rows: x[element][row]. */
typedef float lanes[ROWS];

/* The nearest integer, ties to even: |x| is far below 2^22, and adding 1.5 2^23 leaves no bits for fractions. */
static inline float nearest(float x) {
    const float big = 0x1.8p23f;
    return (x + big) - big;
}

/* Rounds with these scales: the integers, what they moved, and each row's share of the error. `factor`: the group's
 * block. */
static void round_group(const lanes *target, const lanes *original, const float *scale, const real *factor, int64_t k,
                        lanes *q, lanes *moved, float *error) {
    lanes inverse, t[QUANT_GROUP];
    memcpy(t, target, sizeof t);
    for (int r = 0; r < ROWS; r++) {
        inverse[r] = quant_factor(scale[r]);
        error[r] = 0;
    }
    for (int i = 0; i < QUANT_GROUP; i++) {
        const real *row = factor + i * k;
        float d = (float)row[i];
        for (int r = 0; r < ROWS; r++) {
            float x = t[i][r] * inverse[r];
            x = x < 7 ? x : 7;
            x = x > -8 ? x : -8;
            q[i][r] = nearest(x);
            float value = q[i][r] * scale[r], miss = t[i][r] - value;
            error[r] += d * miss * miss;
            moved[i][r] = original[i][r] - value;
        }
        for (int j = i + 1; j < QUANT_GROUP; j++) {
            float m = (float)row[j];
            for (int r = 0; r < ROWS; r++) t[j][r] += moved[i][r] * m;
        }
    }
}

/* The element of largest magnitude of each row. */
static void extremes(const lanes *target, float *extreme) {
    memcpy(extreme, target[0], sizeof(lanes));
    for (int i = 1; i < QUANT_GROUP; i++)
        for (int r = 0; r < ROWS; r++) extreme[r] = fabsf(target[i][r]) > fabsf(extreme[r]) ? target[i][r] : extreme[r];
}

static void candidate_scales(const float *extreme, int candidate, float *scale) {
    for (int r = 0; r < ROWS; r++) {
        scale[r] = bf16_to_float(bf16_from_float(extreme[r] * quant_candidate(candidate)));
    }
}

/* The best scales of one group of ROWS rows, its integers, and what it moved. */
static void search_group(const lanes *target, const lanes *original, const real *factor, int64_t k, lanes *q,
                         lanes *moved, float *scale) {
    lanes extreme, tried, error, least, q_tried[QUANT_GROUP], moved_tried[QUANT_GROUP];
    extremes(target, extreme);
    candidate_scales(extreme, 0, scale);
    round_group(target, original, scale, factor, k, q, moved, least);
    for (int c = 1; c < QUANT_CANDIDATES; c++) {
        candidate_scales(extreme, c, tried);
        round_group(target, original, tried, factor, k, q_tried, moved_tried, error);
        for (int r = 0; r < ROWS; r++) {
            if (!(error[r] < least[r])) continue;
            least[r] = error[r];
            scale[r] = tried[r];
            for (int i = 0; i < QUANT_GROUP; i++) {
                q[i][r] = q_tried[i][r];
                moved[i][r] = moved_tried[i][r];
            }
        }
    }
}

static void round_rows(struct rounding *a, int64_t first, int64_t count) {
    const struct weight *w = a->weight;
    int64_t at = a->group * QUANT_GROUP;
    lanes target[QUANT_GROUP] = {0}, original[QUANT_GROUP] = {0}, q[QUANT_GROUP], moved[QUANT_GROUP];
    float scale[ROWS];
    for (int i = 0; i < QUANT_GROUP; i++)
        for (int64_t r = 0; r < count; r++) {
            target[i][r] = (float)a->targets[(first + r) * w->k + at + i];
            original[i][r] = (float)a->rows[(first + r) * w->k + at + i];
        }
    search_group((const lanes *)target, (const lanes *)original, a->factor + at * w->k + at, w->k, q, moved, scale);
    for (int64_t r = 0; r < count; r++) {
        int8_t integers[QUANT_GROUP];
        for (int i = 0; i < QUANT_GROUP; i++) {
            integers[i] = (int8_t)q[i][r];
            a->moved[i * w->n + first + r] = moved[i][r];
        }
        quant_set(w, first + r, a->group, integers, bf16_from_float(scale[r]));
    }
}

static void round_share(void *context, int worker, int workers) {
    struct rounding *a = context;
    int64_t begin, end;
    team_share(a->weight->n, ROWS, worker, workers, &begin, &end);
    for (int64_t n = begin; n < end; n += ROWS) round_rows(a, n, end - n < ROWS ? end - n : ROWS);
}

int gptq_round(struct gptq *g, const real *factor, const real *rows, const struct weight *w, looplm_error *err) {
    size_t size = (size_t)w->n * (size_t)w->k * sizeof(real);
    CHECK_EQ(w->type, WEIGHT_Q4);
    struct rounding a = {.factor = factor, .rows = rows, .weight = w};
    a.targets = malloc(size);
    a.moved = malloc(QUANT_GROUP * (size_t)w->n * sizeof(real));
    int status = a.targets && a.moved
                     ? LOOPLM_OK
                     : error_set(err, LOOPLM_MEMORY, "no memory to round a matrix of %d x %d", w->n, w->k);
    if (!status) memcpy(a.targets, rows, size);
    for (a.group = 0; !status && a.group < w->k / QUANT_GROUP; a.group++) {
        team_run(g->team, round_share, &a);
        /* Columns up to this group's are moved too, by whatever lies left of M's diagonal; they are no longer read. */
        add_product(g, a.moved, w->n, factor + a.group * QUANT_GROUP * w->k, QUANT_GROUP, a.targets, w->n, w->k);
    }
    free(a.targets);
    free(a.moved);
    return status;
}
