/* A packed model: safetensors whose matrices are the panels of memory (tensor/backend.h), so that they are used where
 * they are mapped. What is fused in memory is one tensor: q, k, v; gate, up; a tied head is the embedding.
 *
 * Each matrix is one U8 tensor [bytes], named after its type ("model.layers.0.mlp.down_proj.weight.q4"), at a multiple
 * of 64 bytes in the file, its end padded with zeros to another. Vectors keep their published names, as F32.
 * config.json holds {"quant_method": "looplm", "format": 1, "weights": TYPE} as its quantization_config, TYPE the
 * narrowest of the stack's. */
#ifndef MODEL_PACKED_H
#define MODEL_PACKED_H

#include "model/model.h"
#include "model/safetensors.h"
#include "model/tensors.h"

#define PACKED_METHOD "looplm"
#define PACKED_FORMAT 1 /* another layout of panels or groups is another format */
#define PACKED_ALIGN 64

struct packed_matrix {
    char name[TENSOR_NAME_MAX]; /* without its type */
    enum tensor_role role;      /* of the first tensor fused in it, */
    int32_t layer;              /* as model_matrix takes them */
    int64_t n, k;
};

/* The matrices of a model, in the order of the file. */
int32_t packed_count(const struct model_config *config);
struct packed_matrix packed_get(const struct model_config *config, int32_t index);
/* The entry of a matrix and its type; fails where it is missing, or its size or place is not that of its panels. */
int packed_find(const struct safetensors *files, const struct packed_matrix *matrix,
                const struct safetensors_entry **entry, enum weight_type *type, looplm_error *err);
/* Finds every matrix of a packed config, and that their types are what it says. */
int packed_check(const struct safetensors *files, const struct model_config *config, looplm_error *err);
/* Whether a matrix of the model, of whatever type, has this name. */
bool packed_is_matrix(const struct model_config *config, const char *name);

/* Writes the weights of a model in memory, atomically. */
int packed_write(struct model *model, const char *path, looplm_error *err);

#endif
