/* A model ready to run: packed weights on a backend. Read-only after it is opened, shared by any number of sequences;
 * the trainer remakes its packing each step. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "model/config.h"
#include "tensor/backend.h"

#include <math.h>

struct params;
struct safetensors;

struct layer {
    const real *input_norm, *post_norm;     /* [D], before attention and before the MLP */
    const real *input_norm_2, *post_norm_2; /* [D], on the branches; NULL without branch norms */
    const real *q_norm, *k_norm;            /* [K] or NULL */
    struct weight qkv;                      /* [(H + 2G) K, D]: q, k, v */
    struct weight o;                        /* [D, H K] */
    struct weight gate_up;                  /* [2F, D]: gate, up */
    struct weight down;                     /* [D, F] */
};

struct model {
    struct model_config config;
    struct backend *backend;             /* borrowed */
    enum weight_type weight_type;        /* of the stack; the narrowest where they are mixed */
    struct layer *layers;                /* [L] */
    struct weight embed, head;           /* [V, D]; the same data when tied */
    const real *norm;                    /* [D], the final norm, inside the loop */
    const real *exit_weight, *exit_bias; /* [D], [1]; NULL without a gate */
    float *inverse_frequency;            /* [K/2] of the rotary embedding */
    /* One allocation per class: packed matrices, and vectors; sizes in bytes. Those of a packed file are where it is
     * mapped instead, read-only and shared with every process that maps it. */
    struct safetensors *mapped; /* owned, or NULL */
    void *memory;
    size_t memory_size;
    real *vectors;
    size_t vectors_size;
    struct pass pack_pass; /* of model_pack, kept so that remaking the packing allocates nothing */
};

/* How the file's tensors become weights. */
struct model_options {
    bool type_given;
    enum weight_type weight_type; /* when given; otherwise as stored: bf16 for bf16 files, else f32 */
    void (*progress)(void *context, int64_t bytes_done, int64_t bytes_total); /* may be NULL */
    void *progress_context;
};

/* Opens a Hugging Face directory: maps the safetensors, packs tensor by tensor on the backend's threads, gives the
 * pages back at once. Weights that hold NaN or infinity are refused, by name. A packed directory (packed.h) is used
 * where it is mapped, unread; options may not ask for another type than its own. */
int model_open(struct model **model, const char *directory, struct backend *backend,
               const struct model_options *options, looplm_error *err);
/* A model with its memory but no values yet; model_pack fills it from master parameters. */
int model_alloc(struct model **model, const struct model_config *config, struct backend *backend, enum weight_type type,
                looplm_error *err);
void model_pack(struct model *model, const struct params *params);
void model_close(struct model *model); /* NULL is allowed */
/* A number that tells models apart: a hash over the norms and the exit gate, which every training step changes. */
uint64_t model_fingerprint(const struct model *model);
const char *model_weight_type_name(enum weight_type type);

/* K^-0.5, the factor of attention scores. */
static inline real model_attention_scale(const struct model *model) {
    return (real)(1.0 / sqrt((double)model->config.head_dim));
}

#endif
