/* The scalar table: the small ops of the forward pass. They are the oracle: each is the loop that backend.h describes
 * and no more. Products, packing and embeddings are in naive_matmul.c, attention in naive_attention.c, the backward
 * pass in naive_grad.c. */
#include "tensor/cpu/naive.h"

void naive_rmsnorm(const struct op *op, const struct worker *worker) {
    const struct op_rmsnorm *o = &op->rmsnorm;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        const real *x = o->x + b * o->dim;
        real rstd = 1 / real_sqrt(lanes_dot(x, x, o->dim) / (real)o->dim + o->eps);
        for (int64_t i = 0; i < o->dim; i++) {
            real y = x[i] * rstd * o->weight[i];
            o->out[b * o->dim + i] = o->residual ? o->residual[b * o->dim + i] + y : y;
        }
        if (o->rstd) o->rstd[b] = rstd;
    }
}

void naive_add(const struct op *op, const struct worker *worker) {
    const struct op_add *o = &op->add;
    int64_t begin, end;
    worker_share(worker, o->n, LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) o->out[i] = o->a[i] + o->b[i];
}

/* The double functions of the C library, rounded once: their last bit can differ between libraries, the rounded
 * float practically not. Angles are few (rows x K/2 a pass), so every table uses this function. */
void naive_rope_table(const struct op *op, const struct worker *worker) {
    const struct op_rope_table *o = &op->rope_table;
    int64_t begin, end;
    int half = o->head_dim / 2;
    worker_share(worker, runs_rows(o->runs, o->n_runs), 1, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        int32_t offset;
        const struct run *run = runs_find(o->runs, row, &offset);
        real *table = o->table + (int64_t)(run->row + offset) * o->head_dim;
        for (int i = 0; i < half; i++) {
            float angle = (float)(run->first + offset) * o->inverse_frequency[i];
            table[i] = (real)cos(angle);
            table[half + i] = (real)sin(angle);
        }
    }
}

void naive_silu_mul(const struct op *op, const struct worker *worker) {
    const struct op_silu_mul *o = &op->silu_mul;
    int64_t begin, end, ffn = o->ffn;
    worker_share(worker, o->rows * ffn, LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const real *gate = o->gate_up + i / ffn * 2 * ffn + i % ffn;
        o->out[i] = gate[0] * real_sigmoid(gate[0]) * gate[ffn];
    }
}

void naive_gate(const struct op *op, const struct worker *worker) {
    const struct op_gate *o = &op->gate;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        real logit = lanes_dot(o->weight, o->h + b * o->dim, o->dim) + o->bias[0];
        if (o->logit) o->logit[b] = logit;
        if (o->lambda) o->lambda[b] = real_sigmoid(logit);
    }
}

void naive_distance(const struct op *op, const struct worker *worker) {
    const struct op_distance *o = &op->distance;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const real *a = o->a + row * o->dim, *b = o->b + row * o->dim;
        real lane[LANES] = {0};
        for (int64_t i = 0; i < o->dim; i++) lane[i % LANES] = real_fma(a[i] - b[i], a[i] - b[i], lane[i % LANES]);
        o->distance[row] = real_sqrt(lanes_sum(lane)) / real_sqrt(lanes_dot(b, b, o->dim));
    }
}

void naive_gather(const struct op *op, const struct worker *worker) {
    const struct op_rows *o = &op->rows;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        for (int64_t d = 0; d < o->dim; d++) {
            real x = o->src[o->index[i] * (int64_t)o->dim + d], *y = &o->dst[i * o->dim + d];
            *y = o->accumulate ? *y + x : x;
        }
    }
}

void naive_scatter(const struct op *op, const struct worker *worker) {
    const struct op_rows *o = &op->rows;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        for (int64_t d = 0; d < o->dim; d++) {
            real x = o->src[i * o->dim + d], *y = &o->dst[o->index[i] * (int64_t)o->dim + d];
            *y = o->accumulate ? *y + x : x;
        }
    }
}

/* The maximum of a row, with a zero made positive so that the order of comparing +0 and -0 cannot show. */
static real row_max(const real *x, int64_t n) {
    real max = x[0];
    for (int64_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    return max + 0;
}

void naive_cross_entropy(const struct op *op, const struct worker *worker) {
    const struct op_cross_entropy *o = &op->cross_entropy;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        const real *logits = o->logits + b * o->ld;
        real max = row_max(logits, o->vocab), lane[LANES] = {0};
        for (int64_t v = 0; v < o->vocab; v++) lane[v % LANES] += real_exp(logits[v] - max);
        real lse = max + real_log(lanes_sum(lane));
        if (o->lse) o->lse[b] = lse;
        if (o->max) o->max[b] = max;
        if (o->ce) o->ce[b] = o->targets[b] < 0 ? 0 : lse - logits[o->targets[b]];
    }
}

void naive_cross_entropy_grad(const struct op *op, const struct worker *worker) {
    const struct op_cross_entropy_grad *o = &op->cross_entropy_grad;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        real *logits = o->logits + b * o->ld;
        for (int64_t v = 0; v < o->vocab; v++) {
            real p = real_exp(logits[v] - o->lse[b]);
            logits[v] = o->targets[b] < 0 ? 0 : o->weight[b] * (v == o->targets[b] ? p - 1 : p);
        }
    }
}

void naive_row_axpy(const struct op *op, const struct worker *worker) {
    const struct op_row_axpy *o = &op->row_axpy;
    int64_t begin, end;
    worker_share(worker, o->rows * o->dim, LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) o->y[i] = real_fma(o->scale[i / o->dim], o->x[i], o->y[i]);
}

void naive_zero(const struct op *op, const struct worker *worker) {
    int64_t begin, end;
    worker_share(worker, (int64_t)op->zero.size, 4096, &begin, &end);
    if (end > begin) memset((char *)op->zero.data + begin, 0, (size_t)(end - begin));
}
