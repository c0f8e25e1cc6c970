/* A model directory as a source of tensors: its config, its tensor table and its mapped files, checked against each
 * other. */
#ifndef MODEL_SOURCE_H
#define MODEL_SOURCE_H

#include "model/safetensors.h"
#include "model/tensors.h"

struct model_source {
    struct model_config config;
    struct tensor_table table;
    struct safetensors files;
};

/* Opens the directory and checks that every tensor of the table is there, with its shape and a float type, and that no
 * other is (a tied model's copy of the head and old files' rotary frequencies are passed over). A packed model has its
 * matrices in their packed form instead (packed.h). */
int model_source_open(struct model_source *source, const char *directory, looplm_error *err);
void model_source_close(struct model_source *source);
/* Never NULL for a spec of the table of an open source; matrices of a packed model have none. */
const struct safetensors_entry *model_source_entry(const struct model_source *source, const struct tensor_spec *spec,
                                                   enum dtype *dtype);
/* LOOPLM_FORMAT: element `index` of the tensor is NaN or infinite. */
int model_source_nonfinite(const struct model_source *source, const struct tensor_spec *spec, int64_t index,
                           looplm_error *err);

#endif
