/* How far a model is from a reference, loop by loop: what rounding its weights costs where an error is fed back. */
#ifndef ENGINE_QUALITY_H
#define ENGINE_QUALITY_H

#include "model/kv.h"
#include "model/model.h"
#include "model/tensors.h"
#include "text/pieces.h"

/* Sums over the positions asked, at one loop. */
struct quality_loop {
    double divergence;           /* KL(reference || model) of the predictions, nats */
    double agree;                /* positions whose likeliest token is the same */
    double hidden;               /* ||h - h_ref|| / ||h_ref|| */
    double loss, reference_loss; /* of the token that follows */
};

struct quality {
    int32_t loops;
    int64_t positions;
    struct quality_loop at[MODEL_LOOPS_MAX];
    /* Of models with an exit gate, under Q-exit: positions that leave at the same loop; sums of depths. */
    double exit_agree, depth, reference_depth;
};

struct quality_options {
    struct model *reference, *model; /* of one shape */
    enum kv_type reference_kv, model_kv;
    float q;
};

/* LOOPLM_MISMATCH where the models cannot be compared. */
int quality_check(const struct quality_options *options, looplm_error *err);
/* Runs the pieces through both models at full depth and adds to the sums. */
int quality_add(struct quality *quality, const struct quality_options *options, const struct pieces *pieces,
                looplm_error *err);

/* For the study of one class of tensors: rounds the matrices of these roles (bit i: role i) of an f32 model to `type`,
 * q8 or q4, and back. Inputs of products stay as they are. */
int quality_round(struct model *model, uint32_t roles, enum weight_type type, looplm_error *err);

#endif
