/* The result of a run as a model directory that other programs load: weights, config, tokenizer, generation config. */
#ifndef TRAIN_PUBLISH_H
#define TRAIN_PUBLISH_H

#include "model/params.h"

#define PUBLISH_FILE_BYTES_MAX ((size_t)64 << 20)

/* Writes RUN/model, each file atomically. tokenizer: a directory whose tokenizer files are copied, or a tokenizer.json;
 * NULL: none. */
int publish_model(const char *run, const struct params *params, enum dtype dtype, const char *tokenizer,
                  looplm_error *err);
/* Copies the tokenizer files and the generation_config.json that one model directory has into another. */
int publish_copy_texts(const char *from, const char *directory, looplm_error *err);
/* Whether a directory holds a tokenizer. */
bool publish_has_tokenizer(const char *directory);

#endif
