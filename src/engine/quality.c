/* Owns the comparison of two models (quality.h): both run as `looplm forward` runs them (study.h), then their heads are
 * read a few rows at a time. */
#include "engine/quality.h"

#include "base/mathfn.h"
#include "engine/study.h"
#include "model/exit.h"
#include "model/loop.h"
#include "model/model_place.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_ROWS 32

int quality_check(const struct quality_options *o, looplm_error *err) {
    const struct model_config *a = &o->reference->config, *b = &o->model->config;
    if (a->vocab == b->vocab && a->loops == b->loops && a->hidden == b->hidden && a->exit_gate == b->exit_gate)
        return LOOPLM_OK;
    return error_set(err, LOOPLM_MISMATCH,
                     "the models differ: the reference has a vocabulary of %d, %d loops, hidden size %d, the other %d, "
                     "%d, %d; expected one model in two types",
                     a->vocab, a->loops, a->hidden, b->vocab, b->loops, b->hidden);
}

/* ---- one row ---------------------------------------------------------------------------------------------------- */

struct row {
    const real *logits;
    real lse;
    int32_t best;
};

static int32_t likeliest(const real *logits, int32_t vocab) {
    int32_t best = 0;
    for (int32_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best]) best = v;
    return best;
}

static double divergence(const struct row *reference, const struct row *model, int32_t vocab) {
    double sum = 0;
    for (int32_t v = 0; v < vocab; v++) {
        real p = reference->logits[v] - reference->lse, q = model->logits[v] - model->lse;
        sum += (double)math_exp((float)p) * (double)(p - q);
    }
    return sum;
}

static double hidden_error(const real *reference, const real *model, int32_t width) {
    double difference = 0, size = 0;
    for (int32_t i = 0; i < width; i++) {
        double d = (double)model[i] - (double)reference[i];
        difference += d * d;
        size += (double)reference[i] * (double)reference[i];
    }
    return size > 0 ? sqrt(difference / size) : 0;
}

/* ---- a piece ---------------------------------------------------------------------------------------------------- */

/* Logits of HEAD_ROWS rows of each model. */
struct heads {
    struct pass pass;
    real *logits[2], *lse[2];
};

static int heads_init(struct heads *h, int32_t vocab) {
    *h = (struct heads){0};
    for (int i = 0; i < 2; i++) {
        h->logits[i] = malloc(HEAD_ROWS * (size_t)vocab * sizeof(real));
        h->lse[i] = malloc(HEAD_ROWS * sizeof(real));
    }
    return h->logits[0] && h->logits[1] && h->lse[0] && h->lse[1] ? 0 : -1;
}

static void heads_free(struct heads *h) {
    for (int i = 0; i < 2; i++) {
        free(h->logits[i]);
        free(h->lse[i]);
    }
    pass_free(&h->pass);
}

static void read_heads(struct heads *h, int which, const struct study *s, size_t row, int32_t rows) {
    const struct model_config *c = &s->model->config;
    pass_clear(&h->pass);
    loop_record_head(&h->pass, s->model, s->hidden + row * (size_t)c->hidden, rows, h->logits[which]);
    pass_add(
        &h->pass,
        (struct op){
            .kind = OP_CROSS_ENTROPY,
            .cross_entropy = {
                .logits = h->logits[which], .ld = c->vocab, .lse = h->lse[which], .rows = rows, .vocab = c->vocab}});
    s->model->backend->execute(s->model->backend, &h->pass);
}

static void add_rows(struct quality_loop *to, const struct heads *h, const struct study *s, size_t row,
                     const int32_t *next, int32_t rows) {
    int32_t vocab = s[0].model->config.vocab, width = s[0].model->config.hidden;
    for (int32_t i = 0; i < rows; i++) {
        struct row r[2];
        for (int m = 0; m < 2; m++) {
            r[m].logits = h->logits[m] + (size_t)i * (size_t)vocab;
            r[m].lse = h->lse[m][i];
            r[m].best = likeliest(r[m].logits, vocab);
        }
        size_t at = (row + (size_t)i) * (size_t)width;
        to->divergence += divergence(&r[0], &r[1], vocab);
        to->agree += r[0].best == r[1].best;
        to->hidden += hidden_error(s[0].hidden + at, s[1].hidden + at, width);
        to->reference_loss += (double)(r[0].lse - r[0].logits[next[i]]);
        to->loss += (double)(r[1].lse - r[1].logits[next[i]]);
    }
}

static int32_t depth_of(const struct study *s, int32_t position, float q) {
    struct exit_rule rule = {.kind = EXIT_Q, .threshold = q, .min = 1, .max = s->loops};
    struct exit_evidence nothing = {0};
    struct exit_state state = exit_begin();
    do exit_advance(&state, s->gate[(size_t)state.step * (size_t)s->n + (size_t)position], state.step + 1 == s->loops);
    while (!exit_decide(&rule, &state, &nothing, s->loops));
    return state.step;
}

/* s[0] is the reference's. */
static void add_piece(struct quality *q, struct heads *h, const struct study *s, const struct piece *piece,
                      float threshold) {
    int32_t asked = piece->n - 1 - piece->from;
    for (int32_t r = 0; r < s->loops; r++)
        for (int32_t i = 0; i < asked; i += HEAD_ROWS) {
            int32_t rows = asked - i < HEAD_ROWS ? asked - i : HEAD_ROWS;
            size_t row = (size_t)r * (size_t)s->n + (size_t)(piece->from + i);
            read_heads(h, 0, &s[0], row, rows);
            read_heads(h, 1, &s[1], row, rows);
            add_rows(&q->at[r], h, s, row, piece->ids + piece->from + i + 1, rows);
        }
    for (int32_t i = piece->from; s[0].gate && i + 1 < piece->n; i++) {
        int32_t reference = depth_of(&s[0], i, threshold), depth = depth_of(&s[1], i, threshold);
        q->exit_agree += reference == depth;
        q->reference_depth += reference;
        q->depth += depth;
    }
    q->positions += asked;
}

int quality_add(struct quality *q, const struct quality_options *o, const struct pieces *pieces, looplm_error *err) {
    struct heads heads;
    int status = 0;
    q->loops = o->reference->config.loops;
    if (heads_init(&heads, o->reference->config.vocab))
        status = error_set(err, LOOPLM_MEMORY, "no memory for two models' logits");
    for (int32_t i = 0; !status && i < pieces->count; i++) {
        const struct piece *piece = &pieces->items[i];
        struct study s[2] = {0};
        status = study_run(&s[0], o->reference, piece->ids, piece->n, 0, o->reference_kv, err);
        if (!status) status = study_run(&s[1], o->model, piece->ids, piece->n, 0, o->model_kv, err);
        if (!status) add_piece(q, &heads, s, piece, o->q);
        study_free(&s[0]);
        study_free(&s[1]);
    }
    heads_free(&heads);
    return status;
}

/* ---- one class of tensors --------------------------------------------------------------------------------------- */

/* Element (n, k) of packed f32 panels. */
static real *element(const struct weight *w, int64_t n, int64_t k) {
    int64_t first = n / PANEL * PANEL;
    return (real *)w->data + first * w->k + k * quant_width(w, first) + (n - first);
}

static void round_rows(const struct weight *w, int64_t row, int64_t rows, enum weight_type type) {
    for (int64_t n = row; n < row + rows; n++)
        for (int64_t k = 0; k < w->k; k += QUANT_GROUP) {
            float x[QUANT_GROUP];
            int8_t q[QUANT_GROUP];
            uint16_t scale;
            for (int i = 0; i < QUANT_GROUP; i++) x[i] = (float)*element(w, n, k + i);
            quant_weight_group(type, x, q, &scale);
            for (int i = 0; i < QUANT_GROUP; i++) *element(w, n, k + i) = (real)((float)q[i] * bf16_to_float(scale));
        }
}

int quality_round(struct model *model, uint32_t roles, enum weight_type type, looplm_error *err) {
    struct tensor_table table;
    int status = model_check_groups(&model->config, type, err);
    if (!status && (model->mapped || model->weight_type != WEIGHT_F32))
        status = error_set(err, LOOPLM_USAGE,
                           "one class of tensors is rounded in f32 weights that are not packed; give the original");
    if (!status) status = tensor_table_init(&table, &model->config, err);
    if (status) return status;
    for (int32_t i = 0; i < table.count; i++) {
        const struct tensor_spec *spec = &table.specs[i];
        int64_t row;
        if (!(roles >> spec->role & 1) || !tensor_is_matrix(spec)) continue;
        const struct weight *w = model_matrix(model, spec->role, spec->layer, &row);
        round_rows(w, row, spec->rows, type);
    }
    tensor_table_free(&table);
    return LOOPLM_OK;
}
