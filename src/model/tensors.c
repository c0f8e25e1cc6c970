/* Owns the published names and shapes of a model's tensors and their places in the flat parameter buffer. Leaves to
 * others how values are read, made or packed.
 *
 * Invariants: the table is in order of offset; offsets are multiples of TENSOR_ALIGN elements; the tensors of one layer
 * follow each other, every layer has the same ones, and q, k, v and gate, up leave no gap between them. */
#include "model/tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSOR_ALIGN 16

enum place { OUTSIDE, LAYER };

/* What is known of a role before the numbers are; %d in a name is the layer. */
struct role_fact {
    const char *name;
    enum place place;
    int32_t dims;
};
static const struct role_fact facts[TENSOR_ROLES] = {
    [TENSOR_EMBED] = {"model.embed_tokens.weight", OUTSIDE, 2},
    [TENSOR_INPUT_NORM] = {"model.layers.%d.input_layernorm.weight", LAYER, 1},
    [TENSOR_INPUT_NORM_2] = {"model.layers.%d.input_layernorm_2.weight", LAYER, 1},
    [TENSOR_Q] = {"model.layers.%d.self_attn.q_proj.weight", LAYER, 2},
    [TENSOR_K] = {"model.layers.%d.self_attn.k_proj.weight", LAYER, 2},
    [TENSOR_V] = {"model.layers.%d.self_attn.v_proj.weight", LAYER, 2},
    [TENSOR_Q_NORM] = {"model.layers.%d.self_attn.q_norm.weight", LAYER, 1},
    [TENSOR_K_NORM] = {"model.layers.%d.self_attn.k_norm.weight", LAYER, 1},
    [TENSOR_O] = {"model.layers.%d.self_attn.o_proj.weight", LAYER, 2},
    [TENSOR_POST_NORM] = {"model.layers.%d.post_attention_layernorm.weight", LAYER, 1},
    [TENSOR_POST_NORM_2] = {"model.layers.%d.post_attention_layernorm_2.weight", LAYER, 1},
    [TENSOR_GATE] = {"model.layers.%d.mlp.gate_proj.weight", LAYER, 2},
    [TENSOR_UP] = {"model.layers.%d.mlp.up_proj.weight", LAYER, 2},
    [TENSOR_DOWN] = {"model.layers.%d.mlp.down_proj.weight", LAYER, 2},
    [TENSOR_NORM] = {"model.norm.weight", OUTSIDE, 1},
    [TENSOR_EXIT_WEIGHT] = {"model.early_exit_gate.weight", OUTSIDE, 2},
    [TENSOR_EXIT_BIAS] = {"model.early_exit_gate.bias", OUTSIDE, 1},
    [TENSOR_HEAD] = {"lm_head.weight", OUTSIDE, 2},
};

static bool role_present(enum tensor_role role, const struct model_config *c) {
    switch (role) {
    case TENSOR_INPUT_NORM_2:
    case TENSOR_POST_NORM_2:
        return c->branch_norms;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM:
        return c->qk_norm;
    case TENSOR_EXIT_WEIGHT:
    case TENSOR_EXIT_BIAS:
        return c->exit_gate;
    case TENSOR_HEAD:
        return !c->tied;
    default:
        return true;
    }
}

/* Linear weights are [out, in]. */
static void role_shape(enum tensor_role role, const struct model_config *c, int64_t *rows, int64_t *cols) {
    int64_t d = c->hidden, f = c->ffn, k = c->head_dim;
    *rows = 1;
    *cols = d;
    switch (role) {
    case TENSOR_EMBED:
    case TENSOR_HEAD:
        *rows = c->vocab;
        break;
    case TENSOR_Q:
        *rows = c->heads * k;
        break;
    case TENSOR_K:
    case TENSOR_V:
        *rows = c->kv_heads * k;
        break;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM:
        *cols = k;
        break;
    case TENSOR_O:
        *rows = d, *cols = c->heads * k;
        break;
    case TENSOR_GATE:
    case TENSOR_UP:
        *rows = f;
        break;
    case TENSOR_DOWN:
        *rows = d, *cols = f;
        break;
    case TENSOR_EXIT_BIAS:
        *cols = 1;
        break;
    default:
        break;
    }
}

/* The roles of one place that this model has, in the order of the table. */
static int32_t roles_present(const struct model_config *c, enum place place, enum tensor_role *out) {
    int32_t n = 0;
    for (int role = 0; role < TENSOR_ROLES; role++) {
        if (facts[role].place == place && role_present((enum tensor_role)role, c)) out[n++] = (enum tensor_role)role;
    }
    return n;
}

static void table_add(struct tensor_table *table, const struct model_config *c, enum tensor_role role, int32_t layer) {
    struct tensor_spec *spec = &table->specs[table->count];
    spec->role = role;
    spec->layer = layer;
    spec->dims = facts[role].dims;
    role_shape(role, c, &spec->rows, &spec->cols);
    if (facts[role].place == LAYER) {
        const char *number = strstr(facts[role].name, "%d");
        snprintf(spec->name, sizeof spec->name, "%.*s%d%s", (int)(number - facts[role].name), facts[role].name, layer,
                 number + 2);
    } else {
        snprintf(spec->name, sizeof spec->name, "%s", facts[role].name);
    }
    spec->offset = table->elements;
    spec->decayed = tensor_is_matrix(spec);
    if (layer <= 0) table->first[role] = table->count;
    int64_t n = spec->rows * spec->cols;
    table->parameters += n;
    table->elements += (n + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
    table->count++;
}

int tensor_table_init(struct tensor_table *table, const struct model_config *config, looplm_error *err) {
    *table = (struct tensor_table){0};
    enum tensor_role outside[TENSOR_ROLES], inside[TENSOR_ROLES];
    int32_t n_outside = roles_present(config, OUTSIDE, outside);
    table->per_layer = roles_present(config, LAYER, inside);
    size_t total = (size_t)n_outside + (size_t)table->per_layer * (size_t)config->layers;
    table->specs = calloc(total, sizeof *table->specs);
    if (!table->specs) return error_set(err, LOOPLM_MEMORY, "no memory for a table of %zu tensors", total);
    for (int role = 0; role < TENSOR_ROLES; role++) table->first[role] = -1;
    int32_t next = 0;
    while (next < n_outside && outside[next] < inside[0]) table_add(table, config, outside[next++], -1);
    for (int32_t layer = 0; layer < config->layers; layer++) {
        for (int32_t i = 0; i < table->per_layer; i++) table_add(table, config, inside[i], layer);
    }
    while (next < n_outside) table_add(table, config, outside[next++], -1);
    CHECK_EQ(table->count, total);
    return LOOPLM_OK;
}

void tensor_table_free(struct tensor_table *table) {
    free(table->specs);
    *table = (struct tensor_table){0};
}

const struct tensor_spec *tensor_find(const struct tensor_table *table, enum tensor_role role, int32_t layer) {
    if (table->first[role] < 0) return NULL;
    if (facts[role].place == OUTSIDE) return &table->specs[table->first[role]];
    int64_t index = table->first[role] + (int64_t)layer * table->per_layer;
    if (layer < 0 || index >= table->count || table->specs[index].role != role) return NULL;
    return &table->specs[index];
}

const struct tensor_spec *tensor_find_name(const struct tensor_table *table, const char *name) {
    for (int32_t i = 0; i < table->count; i++) {
        if (strcmp(table->specs[i].name, name) == 0) return &table->specs[i];
    }
    return NULL;
}
