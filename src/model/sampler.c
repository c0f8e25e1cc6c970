/* The sampler (sampler.h). Filters are applied in the reference's order: repetition penalty, temperature, top-k, top-p,
 * min-p; then the Gumbel race picks argmax(logit / T + g), g = -ln(-ln u), u a hash of (seed, position, id). The race
 * draws from the softmax over the allowed set. */
#include "model/sampler.h"

#include "base/mathfn.h"
#include "base/random.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* u has 24 bits, so u <= 1 - 2^-25 and no noise exceeds -ln(-ln u) = 17.33: the race may skip whoever is further
 * behind. */
#define GUMBEL_MAX 17.5f
#define STRETCH 256 /* of logits */

struct candidate {
    float logit;
    int32_t id;
};

struct sampler {
    int32_t vocab;
    float *logits;
    struct candidate *candidates;
    uint8_t *seen;
};

int sampler_options_check(const struct sampler_options *o, looplm_error *err) {
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return error_set(err, LOOPLM_USAGE, "temperature %g is outside 0 to 100", (double)o->temperature);
    if (!(o->top_p > 0 && o->top_p <= 1))
        return error_set(err, LOOPLM_USAGE, "top-p %g is outside 0 (excluded) to 1", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return error_set(err, LOOPLM_USAGE, "min-p %g is outside 0 to 1", (double)o->min_p);
    if (o->top_k < 0) return error_set(err, LOOPLM_USAGE, "top-k %d is negative; 0 switches it off", o->top_k);
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 100))
        return error_set(err, LOOPLM_USAGE, "repetition penalty %g is outside 0 (excluded) to 100",
                         (double)o->repetition_penalty);
    return 0;
}

int sampler_open(struct sampler **out, int32_t vocab, looplm_error *err) {
    struct sampler *s = calloc(1, sizeof *s);
    *out = s;
    if (s) {
        s->vocab = vocab;
        s->logits = malloc((size_t)vocab * sizeof *s->logits);
        s->candidates = malloc((size_t)vocab * sizeof *s->candidates);
        s->seen = calloc((size_t)vocab, 1);
        if (s->logits && s->candidates && s->seen) return 0;
    }
    sampler_close(s);
    *out = NULL;
    return error_set(err, LOOPLM_MEMORY, "sampler over %d ids: memory could not be had", vocab);
}

void sampler_close(struct sampler *s) {
    if (!s) return;
    free(s->logits);
    free(s->candidates);
    free(s->seen);
    free(s);
}

static void apply_penalty(struct sampler *s, float penalty, const int32_t *seen, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int32_t id = seen[i];
        if (id < 0 || id >= s->vocab || s->seen[id]) continue;
        s->seen[id] = 1;
        float x = s->logits[id];
        s->logits[id] = x > 0 ? x / penalty : x * penalty;
    }
    for (int64_t i = 0; i < n; i++)
        if (seen[i] >= 0 && seen[i] < s->vocab) s->seen[seen[i]] = 0;
}

/* The largest's lowest index. Few stretches hold one that is larger than all before: the others go by in vectors. */
static int32_t argmax(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t first = 0; first < n; first += STRETCH) {
        const int32_t end = n - first < STRETCH ? n : first + STRETCH;
        const float most = logits[best];
        int32_t larger = 0;
        for (int32_t i = first; i < end; i++) larger |= logits[i] > most;
        for (int32_t i = first; i < end && larger; i++)
            if (logits[i] > logits[best]) best = i;
    }
    return best;
}

/* Largest logit first, then lowest id. */
static int by_logit(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t collect(const struct sampler *s, float floor) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->vocab; i++)
        if (s->logits[i] >= floor) s->candidates[n++] = (struct candidate){s->logits[i], i};
    return n;
}

/* The allowed set as a sorted prefix of candidates. Only a window of logits below the maximum is sorted; it grows until
 * it must hold the whole set. */
static int32_t filter(struct sampler *s, const struct sampler_options *o, float max) {
    int32_t want = o->top_k > 0 && o->top_k < s->vocab ? o->top_k : s->vocab;
    double total = 0;
    if (o->top_p < 1 && want == s->vocab)
        for (int32_t i = 0; i < s->vocab; i++) total += (double)math_exp(s->logits[i] - max);
    for (float window = 4;; window *= 2) {
        int32_t n = collect(s, max - window);
        /* A NaN is never collected. What lies below the window is dropped by min-p too once exp(-window) is; but top-p
         * within top-k needs the sum over all of top-k first. */
        bool dropped = math_exp(-window) < o->min_p && (o->top_p >= 1 || want == s->vocab);
        bool whole = n == s->vocab || isinf(window) || dropped;
        qsort(s->candidates, (size_t)n, sizeof *s->candidates, by_logit);
        if (n < want && !whole && (want < s->vocab || o->top_p >= 1)) continue;
        if (n > want) n = want;
        int32_t kept = n;
        if (o->top_p < 1) {
            double sum = total, seen = 0;
            if (want < s->vocab) {
                sum = 0;
                for (int32_t i = 0; i < n; i++) sum += (double)math_exp(s->candidates[i].logit - max);
            }
            kept = 0;
            while (kept < n && (kept == 0 || seen < (double)o->top_p * sum))
                seen += (double)math_exp(s->candidates[kept++].logit - max);
            if (seen < (double)o->top_p * sum && n < want && !whole) continue;
        }
        if (o->min_p > 0)
            while (kept > 1 && math_exp(s->candidates[kept - 1].logit - max) < o->min_p) kept--;
        return kept;
    }
}

static float race_time(const struct sampler_options *o, int64_t position, int32_t id, float logit) {
    float u = random_unit(random_hash(o->seed, (uint64_t)position, (uint64_t)id));
    return logit - math_log(-math_log(u));
}

int32_t sampler_pick(struct sampler *s, const struct sampler_options *o, const real *logits, int64_t position,
                     const int32_t *seen, int64_t n_seen) {
#ifndef LOOPLM_REAL_DOUBLE
    if (o->temperature <= 0 && o->repetition_penalty == 1.0f) return argmax(logits, s->vocab);
#endif
    for (int32_t i = 0; i < s->vocab; i++) s->logits[i] = (float)logits[i];
    if (o->repetition_penalty != 1.0f) apply_penalty(s, o->repetition_penalty, seen, n_seen);
    int32_t best = argmax(s->logits, s->vocab);
    if (o->temperature <= 0) return best;
    for (int32_t i = 0; i < s->vocab; i++) s->logits[i] /= o->temperature;
    float max = s->logits[best];
    if (!isfinite(max)) return best; /* so cold that the division overflowed: greedy */
    bool filtered = o->top_p < 1 || o->min_p > 0 || (o->top_k > 0 && o->top_k < s->vocab);
    int32_t n = filtered ? filter(s, o, max) : s->vocab;
    float best_time = race_time(o, position, best, max);
    for (int32_t i = 0; i < n; i++) {
        int32_t id = filtered ? s->candidates[i].id : i;
        float logit = filtered ? s->candidates[i].logit : s->logits[i];
        if (logit + GUMBEL_MAX < best_time) continue;
        float time = race_time(o, position, id, logit);
        if (time > best_time || (time == best_time && id < best)) {
            best = id;
            best_time = time;
        }
    }
    return best;
}
