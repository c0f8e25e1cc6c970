/* What a model is: the facts of its config.json, apart from how it is run. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "base/error.h"
#include "tensor/backend.h"

#include <stdbool.h>
#include <stdint.h>

#define MODEL_LOOPS_MAX 64
#define MODEL_LAYERS_MAX 1024
#define MODEL_STOP_IDS_MAX 8
#define MODEL_WIDTH_MAX (1 << 20) /* of hidden, ffn and heads * head_dim */
#define MODEL_VOCAB_MAX (1 << 24)
#define MODEL_POSITIONS_MAX (1 << 28)
#define MODEL_CONFIG_BYTES_MAX ((size_t)4 << 20)

#define MODEL_FAMILY_MAP(X) X(OURO, "ouro") X(LLAMA, "llama") X(QWEN3, "qwen3")
enum model_family {
#define X(code, name) FAMILY_##code,
    MODEL_FAMILY_MAP(X)
#undef X
};

struct model_config {
    enum model_family family;
    int32_t layers;   /* L, in the shared stack */
    int32_t hidden;   /* D */
    int32_t ffn;      /* F */
    int32_t vocab;    /* V */
    int32_t heads;    /* H */
    int32_t kv_heads; /* G, divides H */
    int32_t head_dim; /* K */
    int32_t loops;    /* R: total_ut_steps; 1 for the dense families */
    int32_t max_positions;
    double rope_theta, norm_eps;
    double initializer_range; /* 0: not given, which only matters to who makes fresh values */
    bool tied;                /* the head is the embedding */
    bool branch_norms;        /* sandwich: a norm acts on each branch before the residual add */
    bool qk_norm;             /* RMS norm over each query and key head */
    bool exit_gate;           /* has model.early_exit_gate */
    double exit_threshold;    /* q of Q-exit; 1: always the last loop */
    int32_t bos_id, pad_id;   /* -1: none */
    int32_t eos_ids[MODEL_STOP_IDS_MAX];
    int32_t n_eos;
    bool packed;                  /* the weights are panels already (packed.h), */
    enum weight_type packed_type; /* of this type */
};

/* Reads and validates DIR/config.json (or a path to a .json file): every missing or contradictory key is named with
 * file, found, expected. The eos ids of a generation_config.json in the same directory are added. */
int model_config_read(struct model_config *config, const char *path, looplm_error *err);
/* The same from memory, without a generation_config; `origin` names the source in messages. */
int model_config_parse(struct model_config *config, const char *text, size_t size, const char *origin,
                       looplm_error *err);
/* The checks alone (also for configs made by recipes): D, F, K multiples of 16, K <= HEAD_DIM_MAX, G | H, 1 <= R <=
 * MODEL_LOOPS_MAX, ... `origin` names the source. */
int model_config_validate(const struct model_config *config, const char *origin, looplm_error *err);
/* Writes DIR/config.json in the form that the reference implementation reads (OuroForCausalLM, LlamaForCausalLM,
 * Qwen3ForCausalLM). dtype: "float32" or "bfloat16". */
int model_config_write(const struct model_config *config, const char *directory, const char *dtype, looplm_error *err);

const char *model_family_name(enum model_family family);
/* What the family fixes: branch norms, q/k norms, the exit gate; and one loop where it does not loop. */
void model_config_set_family(struct model_config *config, enum model_family family);

#endif
