/* The oracle of products, packing and the embedding: plain loops that say what each op computes. They do their worker's
 * share, split over outputs, and are nowhere clever. */
#include "tensor/convert.h"
#include "tensor/cpu/naive.h"
#include "tensor/quant.h"

/* Where element (n, k) of a packed weight is, counted in elements. */
static int64_t packed_index(const struct weight *w, int64_t n, int64_t k) {
    int64_t outputs = (w->n + LANES - 1) / LANES * LANES, first = n / PANEL * PANEL;
    int64_t width = outputs - first < PANEL ? outputs - first : PANEL;
    if (w->type == WEIGHT_F32) return first * w->k + k * width + (n - first);
    CHECK_EQ(w->type, WEIGHT_BF16);
    return first * 2 * ((w->k + 1) / 2) + k / 2 * width * 2 + (n - first) * 2 + k % 2;
}

static real weight_get(const struct weight *w, int64_t n, int64_t k) {
    int64_t i = packed_index(w, n, k);
    return w->type == WEIGHT_F32 ? ((const real *)w->data)[i] : (real)bf16_to_float(((const uint16_t *)w->data)[i]);
}

static void weight_set(const struct weight *w, int64_t n, int64_t k, real value) {
    int64_t i = packed_index(w, n, k);
    if (w->type == WEIGHT_F32) {
        ((real *)w->data)[i] = value;
    } else {
        ((uint16_t *)w->data)[i] = bf16_from_float((float)value);
    }
}

static void quant_embed_row(const struct weight *w, int64_t id, real *out) {
    for (int64_t g = 0; g < w->k / QUANT_GROUP; g++) {
        int8_t q[QUANT_GROUP];
        float scale = quant_get(w, id, g, q);
        for (int i = 0; i < QUANT_GROUP; i++) out[g * QUANT_GROUP + i] = (float)q[i] * scale;
    }
}

void naive_embed(const struct op *o, const struct worker *worker) {
    const struct op_embed *op = &o->embed;
    int64_t dim = op->table->k, begin, end;
    worker_share(worker, op->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end && quant_type(op->table->type); b++) {
        quant_embed_row(op->table, op->ids[b], op->out + b * dim);
    }
    for (int64_t b = begin; b < end && !quant_type(op->table->type); b++)
        for (int64_t d = 0; d < dim; d++) op->out[b * dim + d] = weight_get(op->table, op->ids[b], d);
}

void naive_embed_grad(const struct op *o, const struct worker *worker) {
    const struct op_embed_grad *op = &o->embed_grad;
    int64_t begin, end;
    worker_share(worker, op->dim, LANES, &begin, &end);
    for (int64_t b = 0; b < op->rows; b++)
        for (int64_t d = begin; d < end; d++) {
            op->dtable[(int64_t)op->ids[b] * op->dim + d] += op->dout[b * op->dim + d];
        }
}

/* One output of 8- or 4-bit weights: exact sums by group, one float chain over the groups. */
static real quant_dot(const struct weight *w, int64_t n, const real *x, real sum) {
    for (int64_t g = 0; g < w->k / QUANT_GROUP; g++) {
        int8_t weights[QUANT_GROUP], inputs[QUANT_GROUP];
        float weight_scale = quant_get(w, n, g, weights), input_scale;
        quant_input_group(x + g * QUANT_GROUP, inputs, &input_scale);
        int32_t exact = 0;
        for (int i = 0; i < QUANT_GROUP; i++) exact += weights[i] * inputs[i];
        sum = real_fma((real)exact, weight_scale * input_scale, sum);
    }
    return sum;
}

void naive_matmul(const struct op *o, const struct worker *worker) {
    const struct op_matmul *op = &o->matmul;
    const struct weight *w = op->weight;
    bool round = w->type == WEIGHT_BF16;
    int64_t begin, end;
    worker_share(worker, w->n, PANEL, &begin, &end);
    for (int64_t b = 0; b < op->rows; b++)
        for (int64_t n = begin; n < end; n++) {
            real sum = op->accumulate ? op->y[b * op->ldy + n] : 0;
            if (quant_type(w->type)) {
                op->y[b * op->ldy + n] = quant_dot(w, n, op->x + b * op->ldx, sum);
                continue;
            }
            for (int64_t k = 0; k < w->k; k++) {
                real x = op->x[b * op->ldx + k];
                sum = real_fma(round ? bf16_round(x) : x, weight_get(w, n, k), sum);
            }
            op->y[b * op->ldy + n] = sum;
        }
}

void naive_matmul_dw(const struct op *o, const struct worker *worker) {
    const struct op_matmul_dw *op = &o->matmul_dw;
    bool round = op->type == WEIGHT_BF16;
    int64_t begin, end;
    CHECK_LE(op->type, WEIGHT_BF16);
    worker_share(worker, op->n, 1, &begin, &end);
    for (int64_t n = begin; n < end; n++)
        for (int64_t k = 0; k < op->k; k++) {
            real *dweight = &op->dweight[n * op->k + k], sum = op->mode == DW_ACCUMULATE ? *dweight : 0;
            for (int64_t b = 0; b < op->rows; b++) {
                real dy = op->dy[b * op->lddy + n], x = op->x[b * op->ldx + k];
                if (op->rstd) x = x * op->rstd[b] * op->norm[k];
                sum = round ? real_fma(bf16_round(dy), bf16_round(x), sum) : real_fma(dy, x, sum);
            }
            *dweight = op->mode == DW_ADD ? *dweight + sum : sum;
        }
}

/* The outputs that only fill up the last panel, and the odd inner element of bf16. */
static void zero_padding(const struct weight *w, int64_t begin, int64_t end) {
    int64_t inner = w->type == WEIGHT_BF16 ? (w->k + 1) / 2 * 2 : w->k;
    for (int64_t n = begin; n < end; n++)
        for (int64_t k = n < w->n ? w->k : 0; k < inner; k++) weight_set(w, n, k, 0);
}

static void pack_element(const struct op_pack *op, int64_t row, int64_t k) {
    const struct weight *w = op->weight;
    int64_t from = row * w->k + k;
    if (w->type == WEIGHT_BF16 && op->dtype == DTYPE_BF16) { /* bits as they are, NaN included */
        memcpy((uint16_t *)w->data + packed_index(w, op->row + row, k), (const char *)op->source + 2 * from, 2);
    } else {
        weight_set(w, op->row + row, k, dtype_load(op->source, op->dtype, from));
    }
}

void naive_pack(const struct op *o, const struct worker *worker) {
    const struct op_pack *op = &o->pack;
    const struct weight *w = op->weight;
    bool last = op->row + op->rows == w->n;
    int64_t padded = last ? (w->n + LANES - 1) / LANES * LANES : op->row + op->rows, begin, end;
    worker_share(worker, padded - op->row, 1, &begin, &end);
    if (op->rows == 0) return;
    if (quant_type(w->type)) {
        for (int64_t i = begin; i < end; i++)
            for (int64_t g = 0; g < w->k / QUANT_GROUP; g++) {
                quant_pack_group(w, op->row + i, g, op->source, op->dtype, i < op->rows ? i : -1);
            }
        return;
    }
    for (int64_t i = begin; i < end && i < op->rows; i++)
        for (int64_t k = 0; k < w->k; k++) pack_element(op, i, k);
    zero_padding(w, op->row + begin, op->row + end);
}

void naive_pack_transposed(const struct op *o, const struct worker *worker) {
    const struct op_pack_transposed *op = &o->pack_transposed;
    const struct weight *w = op->weight;
    CHECK_LE(w->type, WEIGHT_BF16); /* 8 and 4 bits are not for training */
    int64_t padded = (w->n + LANES - 1) / LANES * LANES, begin, end;
    worker_share(worker, padded, 1, &begin, &end);
    for (int64_t n = begin; n < end && n < w->n; n++)
        for (int64_t k = 0; k < w->k; k++) weight_set(w, n, k, op->source[k * w->n + n]);
    zero_padding(w, begin, end);
}
