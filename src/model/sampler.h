/* The sampler: the Gumbel race of DESIGN.md over the allowed set. The choice depends on logits, options, seed, position
 * and token ids alone. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H

#include "base/error.h"
#include "tensor/real.h"

#include <stdint.h>

struct sampler_options {
    float temperature;        /* 0: greedy */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off; relative to the largest probability */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 1: off; over prompt and generated tokens, as the reference does */
    uint64_t seed;
};
int sampler_options_check(const struct sampler_options *options, looplm_error *err);

struct sampler; /* scratch for one vocabulary; not shared between threads */
int sampler_open(struct sampler **sampler, int32_t vocab, looplm_error *err);
void sampler_close(struct sampler *sampler);
/* Picks the token at `position` from logits[V] (not changed). seen: the ids so far, for the penalty. Ties go to the
 * lower id. */
int32_t sampler_pick(struct sampler *sampler, const struct sampler_options *options, const real *logits,
                     int64_t position, const int32_t *seen, int64_t n_seen);

#endif
