/* `looplm bench --engine`: the engine beside its bounds. */
#ifndef CLI_BENCH_ENGINE_H
#define CLI_BENCH_ENGINE_H

#include "engine/api.h"

#include <jansson.h>

struct bench_engine_options {
    enum kv_type kv_type;
    int32_t streams, requests, prompt, tokens, slices;
    double mean_depth; /* of the recorded exits; the loops themselves for full depth */
    double acceptance; /* of forced proposals; < 0: no speculation */
    const char *trace; /* a file, or NULL */
    bool quiet;        /* print nothing */
};
/* Serves the same random requests once by the plain engine (every token at full depth, no speculation) and once with
 * recorded exits, or with speculation whose proposals are right with the given probability, by turns;
 * prints counters and shares of the bounds, and appends an object to results. */
int bench_engine(struct model *model, const struct bench_engine_options *options, json_t *results, looplm_error *err);

#endif
