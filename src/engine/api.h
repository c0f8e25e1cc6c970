/* The public model handle (looplm.h), as the library's own clients see it. */
#ifndef ENGINE_API_H
#define ENGINE_API_H

#include "engine/engine.h"
#include "text/tokenizer.h"

#include <pthread.h>

struct looplm_model {
    struct backend *backend;
    struct model *model;
    struct tokenizer *tokenizer; /* NULL when the directory has none */
    looplm_model_info info;
    pthread_mutex_t running; /* sessions of one model share its backend: one pass at a time */
};

/* LOOPLM_USAGE that names what the command needs when the model has no tokenizer. */
int model_need_tokenizer(const looplm_model *model, looplm_error *err);

#endif
