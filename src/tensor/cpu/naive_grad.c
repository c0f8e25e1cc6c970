/* The scalar table: the small ops of the backward pass and the optimizer. They are the oracle: each is the loop that
 * backend.h describes. A sum over rows starts at what the gradient holds and walks the rows in order. */
#include "tensor/cpu/naive.h"

static void naive_rmsnorm_grad_row(const struct op_rmsnorm_grad *o, int64_t b) {
    const real *x = o->x + b * o->dim, *dy = o->dy + b * o->dim;
    real *dx = o->dx + b * o->dim, rstd = o->rstd[b], lane[LANES] = {0};
    for (int64_t i = 0; i < o->dim; i++) lane[i % LANES] = real_fma(o->weight[i] * dy[i], x[i] * rstd, lane[i % LANES]);
    real mean = lanes_sum(lane) / (real)o->dim;
    for (int64_t i = 0; i < o->dim; i++) {
        real t = real_fma(-(x[i] * rstd), mean, o->weight[i] * dy[i]);
        dx[i] = o->accumulate ? real_fma(rstd, t, dx[i]) : rstd * t;
    }
}

/* With dweight, dx must not overlap x or dy: other workers still read them. */
void naive_rmsnorm_grad(const struct op *op, const struct worker *worker) {
    const struct op_rmsnorm_grad *o = &op->rmsnorm_grad;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; o->dx && b < end; b++) naive_rmsnorm_grad_row(o, b);
    if (!o->dweight) return;
    worker_share(worker, o->dim, LANES, &begin, &end);
    for (int64_t d = begin; d < end; d++) {
        for (int64_t b = 0; b < o->rows; b++) {
            real n = o->x[b * o->dim + d] * o->rstd[b];
            o->dweight[d] = real_fma(o->dy[b * o->dim + d], n, o->dweight[d]);
        }
    }
}

void naive_silu_mul_grad(const struct op *op, const struct worker *worker) {
    const struct op_silu_mul_grad *o = &op->silu_mul_grad;
    int64_t begin, end, ffn = o->ffn;
    worker_share(worker, o->rows * ffn, LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i / ffn * 2 * ffn + i % ffn;
        real g = o->gate_up[at], up = o->gate_up[at + ffn], s = real_sigmoid(g);
        o->dgate_up[at + ffn] = o->dout[i] * (g * s);
        o->dgate_up[at] = o->dout[i] * up * s * real_fma(g, 1 - s, 1);
    }
}

void naive_gate_grad(const struct op *op, const struct worker *worker) {
    const struct op_gate_grad *o = &op->gate_grad;
    int64_t begin, end;
    worker_share(worker, o->dim, LANES, &begin, &end);
    for (int64_t d = begin; d < end; d++) {
        for (int64_t b = 0; b < o->rows; b++) {
            real *dh = o->dh ? &o->dh[b * o->dim + d] : NULL;
            o->dweight[d] = real_fma(o->dlogit[b], o->h[b * o->dim + d], o->dweight[d]);
            if (dh) *dh = real_fma(o->dlogit[b], o->weight[d], *dh);
        }
    }
    if (worker->index == 0)
        for (int64_t b = 0; b < o->rows; b++) o->dbias[0] += o->dlogit[b];
}

void naive_sum_squares(const struct op *op, const struct worker *worker) {
    const struct op_sum_squares *o = &op->sum_squares;
    int64_t begin, end;
    worker_share(worker, (o->n + SUM_SQUARES_BLOCK - 1) / SUM_SQUARES_BLOCK, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        double lane[LANES] = {0};
        for (int64_t j = i * SUM_SQUARES_BLOCK; j < o->n && j < (i + 1) * SUM_SQUARES_BLOCK; j++)
            lane[j % LANES] = fma((double)o->x[j], (double)o->x[j], lane[j % LANES]);
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int j = 0; j < half; j++) lane[j] += lane[j + half];
        o->partial[i] = lane[0];
    }
}

void naive_adamw(const struct op *op, const struct worker *worker) {
    const struct op_adamw *o = &op->adamw;
    int64_t begin, end;
    worker_share(worker, o->n, LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        real g = o->grad[i] * o->grad_scale;
        real m = real_fma(o->beta1, o->m[i], (1 - o->beta1) * g);
        real v = real_fma(o->beta2, o->v[i], (1 - o->beta2) * g * g);
        real step = m / o->correction1 / (real_sqrt(v / o->correction2) + o->eps);
        o->m[i] = m;
        o->v[i] = v;
        o->param[i] = real_fma(-o->lr, real_fma(o->decay, o->param[i], step), o->param[i]);
    }
}
