/* The tensor table: every tensor of a model with its published name and shape, in one order, walked for load, save,
 * init, inspect and training.
 *
 * The order is also the layout of the flat parameter buffer (params.h): q, k, v and gate, up are adjacent, so that each
 * fused matrix is a view. */
#ifndef MODEL_TENSORS_H
#define MODEL_TENSORS_H

#include "model/config.h"

#define TENSOR_NAME_MAX 96

/* clang-format off */
#define TENSOR_ROLE_MAP(X)                                                                                            \
    X(EMBED)                                                                                                          \
    X(INPUT_NORM)                                                                                                     \
    X(INPUT_NORM_2) X(Q) X(K) X(V) X(Q_NORM) X(K_NORM) X(O) X(POST_NORM) X(POST_NORM_2) X(GATE) X(UP) X(DOWN) X(NORM) \
        X(EXIT_WEIGHT) X(EXIT_BIAS) X(HEAD)
/* clang-format on */
enum tensor_role {
#define X(code) TENSOR_##code,
    TENSOR_ROLE_MAP(X)
#undef X
        TENSOR_ROLES
};

struct tensor_spec {
    char name[TENSOR_NAME_MAX];
    enum tensor_role role;
    int32_t layer;      /* -1 outside the stack */
    int32_t dims;       /* 1 or 2 */
    int64_t rows, cols; /* [rows, cols]; a vector is [1, cols] */
    int64_t offset;     /* in elements, in the flat parameter buffer; a multiple of 16 */
    bool decayed;       /* weight decay acts on it: matrices, not vectors nor the exit gate */
};

struct tensor_table {
    struct tensor_spec *specs;
    int32_t count;
    int64_t elements;   /* of the flat buffer, padding included */
    int64_t parameters; /* exactly, without padding */
    /* For tensor_find: where a role stands first (-1: not in this model), and how many tensors a layer has. */
    int32_t first[TENSOR_ROLES];
    int32_t per_layer;
};

/* A matrix is packed and may be quantised; vectors, and the gate's single row, are f32 always. */
static inline bool tensor_is_matrix(const struct tensor_spec *spec) {
    return spec->dims == 2 && spec->role != TENSOR_EXIT_WEIGHT;
}

/* The config must be valid (model_config_validate). */
int tensor_table_init(struct tensor_table *table, const struct model_config *config, looplm_error *err);
void tensor_table_free(struct tensor_table *table);
/* NULL when the model has no such tensor. The layer is ignored for a role outside the stack. */
const struct tensor_spec *tensor_find(const struct tensor_table *table, enum tensor_role role, int32_t layer);
/* By published name, or NULL. */
const struct tensor_spec *tensor_find_name(const struct tensor_table *table, const char *name);

#endif
