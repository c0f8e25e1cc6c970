/* Every loop of every position, for study: what `looplm forward` writes. */
#ifndef ENGINE_STUDY_H
#define ENGINE_STUDY_H

#include "model/kv.h"
#include "model/model.h"

struct study {
    struct model *model;
    int32_t n, loops;
    real *hidden;       /* [R, n, D], owned */
    float *gate, *exit; /* [R, n] lambda and p, owned; NULL for a model without an exit gate */
};

/* Runs ids[n] through `loops` loops (0: the model's own), all at full depth, in chunks. */
int study_run(struct study *study, struct model *model, const int32_t *ids, int32_t n, int32_t loops,
              enum kv_type kv_type, looplm_error *err);
void study_free(struct study *study);
/* Writes `logits` [R,n,V], `hidden` [R,n,D], and with a gate `gate` [R,n], `exit` [R,n], all f32, as safetensors.
 * Logits are made chunk by chunk. */
int study_write(const struct study *study, const char *path, looplm_error *err);

#endif
