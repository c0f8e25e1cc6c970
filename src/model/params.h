/* Parameters: the unpacked master copy of a model's tensors in one flat buffer of reals, as training needs it.
 * (Inference packs straight from the file: model.h.) */
#ifndef MODEL_PARAMS_H
#define MODEL_PARAMS_H

#include "model/tensors.h"
#include "tensor/backend.h"

struct params {
    struct model_config config;
    struct tensor_table table;
    real *data; /* [table.elements]; padding is zero */
};

int params_alloc(struct params *params, const struct model_config *config, looplm_error *err);
/* Reads a model directory, any stored type, into reals. */
int params_load(struct params *params, const char *directory, looplm_error *err);
/* Fresh values: normal(0, initializer_range) for matrices, branches that write the residual stream (o, down) as the
 * others; norms 1; exit gate weight 0 and bias `exit_bias`. A tensor's values depend on (seed, tensor name, element)
 * alone. */
int params_init(struct params *params, const struct model_config *config, uint64_t seed, double exit_bias,
                looplm_error *err);
/* Writes DIR/config.json and DIR/model.safetensors (atomically each), as f32 or bf16. */
int params_save(const struct params *params, const char *directory, enum dtype dtype, looplm_error *err);
void params_free(struct params *params);
static inline real *params_at(const struct params *params, enum tensor_role role, int32_t layer) {
    const struct tensor_spec *spec = tensor_find(&params->table, role, layer);
    return spec ? params->data + spec->offset : NULL;
}

#endif
