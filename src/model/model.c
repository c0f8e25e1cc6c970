/* Owns a model's memory: which tensor becomes which packed matrix or vector, and where it lies. Values come from a file
 * (model_open, in model_load.c) or from master parameters (model_pack).
 *
 * Invariants: q, k, v are rows 0.., H K.., (H + G) K.. of one matrix, gate and up rows 0.. and F.. of another; every
 * matrix and vector starts at a multiple of 64 bytes; the head of a tied model is the embedding's own packing. */
#include "model/model.h"

#include "base/random.h"
#include "model/model_place.h"
#include "model/params.h"
#include "model/safetensors.h"
#include "tensor/convert.h"
#include "tensor/quant.h"

#include <stdlib.h>
#include <string.h>

#define CACHE_LINE 64

uint64_t model_fingerprint(const struct model *m) {
    uint64_t hash = random_hash((uint64_t)m->weight_type, (uint64_t)m->config.hidden, (uint64_t)m->config.layers);
    const unsigned char *bytes = (const unsigned char *)m->vectors;
    for (size_t i = 0; i + 8 <= m->vectors_size; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = random_hash(hash, word, i);
    }
    return hash;
}

const char *model_weight_type_name(enum weight_type type) {
    static const char *const names[] = {
#define X(code, name) name,
        WEIGHT_TYPE_MAP(X)
#undef X
    };
    return names[type];
}

/* ---- memory: walked once to measure (base NULL), once to bind --------------------------------------------------- */

struct placing {
    unsigned char *base;
    size_t used;
};

static void *take(struct placing *p, size_t size) {
    void *at = p->base ? p->base + p->used : NULL;
    p->used += (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return at;
}

static void take_matrix(struct placing *p, struct weight *w, enum weight_type type, int64_t n, int64_t k) {
    *w = (struct weight){type, (int32_t)n, (int32_t)k, take(p, weight_size(type, n, k))};
}

/* The embedding and the head, which a token passes once, keep 8 bits where the stack has 4. */
static enum weight_type vocabulary_type(const struct model *m) {
    return m->weight_type == WEIGHT_Q4 ? WEIGHT_Q8 : m->weight_type;
}

/* Bytes of all packed matrices. */
static size_t place_matrices(struct model *m, void *base) {
    const struct model_config *c = &m->config;
    struct placing p = {base, 0};
    int64_t d = c->hidden, k = c->head_dim, heads = c->heads, all_heads = heads + 2 * c->kv_heads;
    take_matrix(&p, &m->embed, vocabulary_type(m), c->vocab, d);
    for (int32_t i = 0; i < c->layers; i++) {
        struct layer *l = &m->layers[i];
        take_matrix(&p, &l->qkv, m->weight_type, all_heads * k, d);
        take_matrix(&p, &l->o, m->weight_type, d, heads * k);
        take_matrix(&p, &l->gate_up, m->weight_type, 2 * (int64_t)c->ffn, d);
        take_matrix(&p, &l->down, m->weight_type, d, c->ffn);
    }
    m->head = m->embed;
    if (!c->tied) take_matrix(&p, &m->head, vocabulary_type(m), c->vocab, d);
    return p.used;
}

/* Bytes of all vectors. */
static size_t place_vectors(struct model *m, void *base) {
    const struct model_config *c = &m->config;
    struct placing p = {base, 0};
    size_t d = (size_t)c->hidden * sizeof(real), k = (size_t)c->head_dim * sizeof(real);
    for (int32_t i = 0; i < c->layers; i++) {
        struct layer *l = &m->layers[i];
        l->input_norm = take(&p, d);
        l->post_norm = take(&p, d);
        l->input_norm_2 = c->branch_norms ? take(&p, d) : NULL;
        l->post_norm_2 = c->branch_norms ? take(&p, d) : NULL;
        l->q_norm = c->qk_norm ? take(&p, k) : NULL;
        l->k_norm = c->qk_norm ? take(&p, k) : NULL;
    }
    m->norm = take(&p, d);
    m->exit_weight = c->exit_gate ? take(&p, d) : NULL;
    m->exit_bias = c->exit_gate ? take(&p, sizeof(real)) : NULL;
    m->inverse_frequency = take(&p, (size_t)c->head_dim / 2 * sizeof(float));
    return p.used;
}

/* theta^(-2i/K) in the reference's own float steps: the power rounded, then its reciprocal. */
static void fill_inverse_frequency(struct model *m) {
    for (int32_t i = 0; i < m->config.head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)m->config.head_dim;
        m->inverse_frequency[i] = 1.0f / (float)pow(m->config.rope_theta, (double)exponent);
    }
}

static int no_memory(const struct model *m, looplm_error *err) {
    return error_set(
        err, LOOPLM_MEMORY,
        "no memory for the model's weights: %zu MiB as %s; take a smaller type (--weights) or a larger machine",
        (m->memory_size + m->vectors_size) >> 20, model_weight_type_name(m->weight_type));
}

int model_check_groups(const struct model_config *c, enum weight_type type, looplm_error *err) {
    const struct {
        const char *what;
        int64_t size;
    } inner[] = {
        {"hidden size", c->hidden}, {"ffn size", c->ffn}, {"heads x head_dim", (int64_t)c->heads * c->head_dim}};
    for (int i = 0; quant_type(type) && i < 3; i++)
        if (inner[i].size % QUANT_GROUP) {
            return error_set(err, LOOPLM_UNSUPPORTED,
                             "%s weights need a %s that is a multiple of %d, found %lld; choose f32 or bf16",
                             model_weight_type_name(type), inner[i].what, QUANT_GROUP, (long long)inner[i].size);
        }
    return LOOPLM_OK;
}

int model_alloc_unmapped(struct model **out, const struct model_config *config, struct backend *backend,
                         enum weight_type type, looplm_error *err) {
    *out = NULL;
    int bad = model_check_groups(config, type, err);
    if (bad) return bad;
    struct model *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, LOOPLM_MEMORY, "no memory for a model");
    *m = (struct model){.config = *config, .backend = backend, .weight_type = type};
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    if (!m->layers) {
        model_close(m);
        return error_set(err, LOOPLM_MEMORY, "no memory for a model of %d layers", config->layers);
    }
    place_matrices(m, NULL);
    m->vectors_size = place_vectors(m, NULL);
    m->vectors = backend->alloc(backend, m->vectors_size);
    if (!m->vectors) {
        int status = no_memory(m, err);
        model_close(m);
        return status;
    }
    place_vectors(m, m->vectors);
    fill_inverse_frequency(m);
    *out = m;
    return LOOPLM_OK;
}

int model_alloc(struct model **out, const struct model_config *config, struct backend *backend, enum weight_type type,
                looplm_error *err) {
    struct model *m;
    int status = model_alloc_unmapped(&m, config, backend, type, err);
    *out = m;
    if (status) return status;
    m->memory_size = place_matrices(m, NULL);
    m->memory = backend->alloc(backend, m->memory_size);
    if (!m->memory) {
        status = no_memory(m, err);
        model_close(m);
        *out = NULL;
        return status;
    }
    place_matrices(m, m->memory);
    return LOOPLM_OK;
}

void model_close(struct model *m) {
    if (!m) return;
    if (m->mapped) safetensors_close(m->mapped);
    free(m->mapped);
    if (m->memory) m->backend->release(m->backend, m->memory, m->memory_size);
    if (m->vectors) m->backend->release(m->backend, m->vectors, m->vectors_size);
    pass_free(&m->pack_pass);
    free(m->layers);
    free(m);
}

/* ---- which tensor goes where ------------------------------------------------------------------------------------ */

struct weight *model_matrix(struct model *m, enum tensor_role role, int32_t layer, int64_t *row) {
    const struct model_config *c = &m->config;
    struct layer *l = layer < 0 ? NULL : &m->layers[layer];
    *row = 0;
    switch (role) {
    case TENSOR_EMBED:
        return &m->embed;
    case TENSOR_HEAD:
        return &m->head;
    case TENSOR_Q:
        return &l->qkv;
    case TENSOR_K:
        *row = (int64_t)c->heads * c->head_dim;
        return &l->qkv;
    case TENSOR_V:
        *row = (int64_t)(c->heads + c->kv_heads) * c->head_dim;
        return &l->qkv;
    case TENSOR_O:
        return &l->o;
    case TENSOR_GATE:
        return &l->gate_up;
    case TENSOR_UP:
        *row = c->ffn;
        return &l->gate_up;
    case TENSOR_DOWN:
        return &l->down;
    default:
        return NULL;
    }
}

real *model_vector(struct model *m, enum tensor_role role, int32_t layer) {
    const struct layer *l = layer < 0 ? NULL : &m->layers[layer];
    const real *at = NULL;
    switch (role) {
    case TENSOR_INPUT_NORM:
        at = l->input_norm;
        break;
    case TENSOR_INPUT_NORM_2:
        at = l->input_norm_2;
        break;
    case TENSOR_POST_NORM:
        at = l->post_norm;
        break;
    case TENSOR_POST_NORM_2:
        at = l->post_norm_2;
        break;
    case TENSOR_Q_NORM:
        at = l->q_norm;
        break;
    case TENSOR_K_NORM:
        at = l->k_norm;
        break;
    case TENSOR_NORM:
        at = m->norm;
        break;
    case TENSOR_EXIT_WEIGHT:
        at = m->exit_weight;
        break;
    case TENSOR_EXIT_BIAS:
        at = m->exit_bias;
        break;
    default:
        break;
    }
    return (real *)(uintptr_t)at; /* const for all who only run the model */
}

void model_pack(struct model *m, const struct params *params) {
    CHECK_EQ(m->mapped == NULL, true);
    CHECK_EQ(m->config.layers, params->config.layers);
    CHECK_EQ(m->config.hidden, params->config.hidden);
    CHECK_EQ(m->config.vocab, params->config.vocab);
    pass_clear(&m->pack_pass);
    for (int32_t i = 0; i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        const real *source = params->data + spec->offset;
        int64_t row;
        struct weight *matrix = model_matrix(m, spec->role, spec->layer, &row);
        if (matrix) {
            pass_add(&m->pack_pass,
                     (struct op){.kind = OP_PACK, .pack = {matrix, row, spec->rows, source, DTYPE_REAL}});
        } else {
            memcpy(model_vector(m, spec->role, spec->layer), source, (size_t)spec->cols * sizeof *source);
        }
    }
    m->backend->execute(m->backend, &m->pack_pass);
}
