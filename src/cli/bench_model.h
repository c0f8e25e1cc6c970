/* The measurements of `looplm bench`: prompts and decoding rows, pass by pass, each pass beside probes. */
#ifndef CLI_BENCH_MODEL_H
#define CLI_BENCH_MODEL_H

#include "base/team.h"
#include "engine/engine.h"

#include <jansson.h>

#define BENCH_ROWS_MAX 64
#define BENCH_SLICES_MAX 1000

/* What is held while a model is measured. */
struct bench_setting {
    struct model *model;
    enum kv_type kv_type;
    const char *kv_name;
    int32_t loops, slices;
    struct team *team;       /* of the probes */
    const void *probe_bytes; /* read by the bandwidth probe, probe_size of them */
    size_t probe_size;
    bool quiet;      /* print nothing */
    json_t *results; /* objects are appended */
};

/* Passes of a prompt of n ids, in chunks of at most 512 rows. */
int bench_prefill(const struct bench_setting *b, int32_t n, looplm_error *err);
/* Passes of `rows` sequences that decode together, each with `context` positions behind it. What needs more keys and
 * values than this machine has memory for is left out, and said to be. */
int bench_decode(const struct bench_setting *b, int32_t rows, int32_t context, looplm_error *err);

#endif
