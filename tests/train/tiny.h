/* A tiny random model with everything that training needs, shared by the tests of this folder. Works in the double
 * build too. */
#ifndef TESTS_TRAIN_TINY_H
#define TESTS_TRAIN_TINY_H

#include "support/support.h"

#include "base/random.h"
#include "tensor/cpu/cpu.h"
#include "train/optimizer.h"
#include "train/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct tiny {
    struct backend *backend;
    struct params params;
    struct model *model;
    struct unit_workspace *ws;
    real *gradient;
};

static inline struct model_config tiny_config(int32_t loops) {
    return (struct model_config){.family = FAMILY_OURO,
                                 .layers = 2,
                                 .hidden = 16,
                                 .ffn = 32,
                                 .vocab = 23,
                                 .heads = 2,
                                 .kv_heads = 1,
                                 .head_dim = 16,
                                 .loops = loops,
                                 .max_positions = 256,
                                 .rope_theta = 100,
                                 .norm_eps = 1e-6,
                                 .initializer_range = 0.02,
                                 .branch_norms = true,
                                 .exit_gate = true,
                                 .exit_threshold = 1,
                                 .bos_id = -1,
                                 .pad_id = -1};
}

/* Large values, so that every part of the model matters: matrices of deviation 0.4, norms around 1. */
static inline void tiny_fill(struct params *params, uint64_t seed) {
    struct random random = {seed, 0};
    for (int32_t i = 0; i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        bool norm = spec->dims == 1 && spec->role != TENSOR_EXIT_BIAS;
        for (int64_t j = 0; j < spec->rows * spec->cols; j++)
            params->data[spec->offset + j] =
                norm ? 1 + (real)0.2f * (real)random_normal(&random) : (real)0.4f * (real)random_normal(&random);
    }
}

static inline void tiny_pack(struct tiny *t) {
    model_pack(t->model, &t->params);
    unit_pack(t->ws, &t->params);
}

/* On parameters that are there already (they become the tiny's own). */
static inline void tiny_open_as(struct tiny *t, enum weight_type type, struct params params, const char *table,
                                int threads, int32_t positions, bool recompute) {
    looplm_error err = {0};
    *t = (struct tiny){.params = params};
    if (cpu_open(&t->backend, threads, table, &err)) fail_msg("%s", err.message);
    if (model_alloc(&t->model, &params.config, t->backend, type, &err)) fail_msg("%s", err.message);
    model_pack(t->model, &t->params);
    struct unit_options options = {.positions_max = positions, .documents_max = 8, .recompute = recompute};
    if (unit_open(&t->ws, t->model, &options, &err)) fail_msg("%s", err.message);
    t->gradient = calloc((size_t)t->params.table.elements, sizeof(real));
    assert_non_null(t->gradient);
    tiny_pack(t);
}

static inline void tiny_open_with(struct tiny *t, struct params params, const char *table, int threads,
                                  int32_t positions, bool recompute) {
    tiny_open_as(t, WEIGHT_F32, params, table, threads, positions, recompute);
}

static inline void tiny_open(struct tiny *t, const struct model_config *config, uint64_t seed, const char *table,
                             int threads, int32_t positions, bool recompute) {
    looplm_error err = {0};
    struct params params;
    if (params_alloc(&params, config, &err)) fail_msg("%s", err.message);
    tiny_fill(&params, seed);
    tiny_open_with(t, params, table, threads, positions, recompute);
}

static inline void tiny_close(struct tiny *t) {
    free(t->gradient);
    unit_close(t->ws);
    model_close(t->model);
    t->backend->close(t->backend);
    params_free(&t->params);
}

static inline size_t tiny_size(const struct tiny *t) {
    return (size_t)t->params.table.elements * sizeof(real);
}

/* The unit's gradient in t->gradient, from zero. */
static inline struct unit_result tiny_gradient(struct tiny *t, const struct unit_input *input,
                                               const struct objective *objective) {
    struct unit_result result;
    memset(t->gradient, 0, tiny_size(t));
    unit_gradient(t->ws, input, objective, t->gradient, &result);
    return result;
}

static inline struct objective tiny_stage1(enum objective_prior prior) {
    return (struct objective){
        .kind = OBJECTIVE_STAGE1, .prior = prior, .beta = 0.1, .prior_exit = 0.3, .k = 50, .gamma = 0.005};
}

static inline struct objective tiny_stage2(void) {
    struct objective objective = tiny_stage1(PRIOR_UNIFORM);
    objective.kind = OBJECTIVE_STAGE2;
    return objective;
}

#define TINY_POSITIONS 80

/* A random sequence; the last position has no target, nor has any whose number is in `masked`. */
struct tiny_text {
    int32_t ids[TINY_POSITIONS], targets[TINY_POSITIONS];
    uint8_t depths[TINY_POSITIONS];
    struct unit_input input;
};

/* mask_every: every such position has no target (0: none); depths: forced ones, random in 1..loops. */
static inline void tiny_text(struct tiny_text *text, uint64_t seed, int32_t n, const struct model_config *config,
                             int32_t mask_every, bool depths) {
    struct random random = {seed, 0};
    for (int32_t i = 0; i < n; i++) {
        text->ids[i] = (int32_t)random_below(&random, (uint64_t)config->vocab);
        text->depths[i] = (uint8_t)(1 + random_below(&random, (uint64_t)config->loops));
    }
    for (int32_t i = 0; i < n; i++) {
        bool masked = i + 1 == n || (mask_every && i % mask_every == 0);
        text->targets[i] = masked ? -1 : text->ids[i + 1];
    }
    text->input =
        (struct unit_input){.ids = text->ids, .targets = text->targets, .depths = depths ? text->depths : NULL, .n = n};
}

#endif
