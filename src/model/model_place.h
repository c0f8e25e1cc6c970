/* For those who fill a model: where each tensor of the table goes. */
#ifndef MODEL_MODEL_PLACE_H
#define MODEL_MODEL_PLACE_H

#include "model/model.h"
#include "model/tensors.h"

/* model_alloc without memory for the matrices: they have their shapes, and the model's type. */
int model_alloc_unmapped(struct model **model, const struct model_config *config, struct backend *backend,
                         enum weight_type type, looplm_error *err);
/* Quantised weights come in whole groups of the inner dimension: LOOPLM_UNSUPPORTED where that cannot be. */
int model_check_groups(const struct model_config *config, enum weight_type type, looplm_error *err);
/* The packed matrix that a tensor belongs to and its first row there, or NULL for a vector. */
struct weight *model_matrix(struct model *model, enum tensor_role role, int32_t layer, int64_t *row);
/* The place of a vector, or NULL for a matrix. */
real *model_vector(struct model *model, enum tensor_role role, int32_t layer);

#endif
