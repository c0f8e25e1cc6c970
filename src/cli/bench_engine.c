/* The engine beside its bounds (bench_engine.h).
 *
 * Both ways serve the same requests. With w the time of a pass over the stack and h of a head read (both measured, of
 * the passes that were full), R loops and mean depth d, the plain engine needs R w + h for a token of every stream, the
 * other w + h a pass:
 *      refill       bound (R w + h) / (d (w + h))                        each pass has rows that leave
 *      wavefront    bound (R w + h) / ((1 + (R - 1)(1 - a)) (w + h))     one stream; a right proposal makes a pass a
 * token */
#include "cli/bench_engine.h"

#include "base/clock.h"
#include "base/random.h"
#include "base/spread.h"
#include "engine/engine.h"
#include "engine/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLICES_MAX 1000

/* A request: its recorded exits by position, and the ids that plain decoding gave at those depths. */
struct request {
    uint8_t *depths;
    int32_t *ids;
    int32_t made;
    bool recorded;
};

struct job {
    struct model *model;
    const struct bench_engine_options *options;
    struct request *requests;
    struct engine *engine;
    struct sequence **streams;
    int32_t *serves; /* [streams] the request of each, -1 none */
    int32_t next, done, wrong;
    int32_t loops;
    bool recorded_depths, speculates;
};

struct context {
    struct job *job;
    int32_t request;
};

static void take(void *context, struct sequence *s, const struct prediction *p) {
    struct context *c = context;
    struct request *r = &c->job->requests[c->request];
    if (p->id < 0) return;
    if (!r->recorded) r->ids[r->made] = p->id;
    c->job->wrong += r->ids[r->made] != p->id;
    if (++r->made == c->job->options->tokens) sequence_generate(s, false);
}

/* Right with the probability asked for, the same at every loop. */
static int32_t force(void *context, struct sequence *s, int32_t position, int32_t loops, int32_t id) {
    (void)s;
    (void)loops;
    (void)id;
    const struct context *c = context;
    int32_t n = position - c->job->options->prompt, vocab = c->job->model->config.vocab;
    int32_t right = n < c->job->options->tokens ? c->job->requests[c->request].ids[n] : 0;
    bool hit = random_unit(random_hash(17, (uint64_t)c->request, (uint64_t)n)) < (float)c->job->options->acceptance;
    return hit ? right : (right + 1) % vocab;
}

/* ---- serving ---------------------------------------------------------------------------------------------------- */

static int begin_request(struct job *j, int32_t stream, struct context *contexts, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    int32_t request = j->next++, prompt[64];
    contexts[stream] = (struct context){j, request};
    j->serves[stream] = request;
    struct request *r = &j->requests[request];
    r->made = 0;
    struct sequence_options options = {.rule = {.kind = EXIT_LOOPS, .loops = j->loops},
                                       .capacity = o->prompt + o->tokens + 1,
                                       .sampler = {0, 1, 0, 0, 1, 0},
                                       .depths = j->recorded_depths ? r->depths : NULL,
                                       .speculate = j->speculates ? SPECULATE_WAVEFRONT : SPECULATE_OFF,
                                       .on_prediction = take,
                                       .on_proposal = j->speculates ? force : NULL,
                                       .context = &contexts[stream]};
    int status = sequence_open(&j->streams[stream], j->engine, &options, err);
    if (status) return status;
    for (int32_t i = 0; i < o->prompt; i++)
        prompt[i] = (int32_t)(random_hash(3, (uint64_t)request, (uint64_t)i) % (uint64_t)j->model->config.vocab);
    sequence_generate(j->streams[stream], true);
    return sequence_feed(j->streams[stream], prompt, NULL, o->prompt, err);
}

static void end_request(struct job *j, int32_t stream) {
    j->requests[j->serves[stream]].recorded = true;
    sequence_close(j->streams[stream]);
    j->streams[stream] = NULL;
    j->serves[stream] = -1;
    j->done++;
}

/* Serves all requests. `seconds` and `tokens` count from when every stream has begun to when the last request is taken
 * up (or to the end, with as many streams as requests), so that neither filling nor draining is measured. */
static int serve(struct job *j, double *seconds, int64_t *tokens, struct engine_counters *counters, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    struct context *contexts = calloc((size_t)o->streams, sizeof *contexts);
    int status = contexts ? 0 : error_set(err, LOOPLM_MEMORY, "out of memory");
    struct engine_options options = {.rows_max = 512,
                                     .sequences_max = o->streams,
                                     .kv_positions = (int64_t)o->streams * (o->prompt + o->tokens + KV_BLOCK),
                                     .planes = j->loops,
                                     .kv_type = o->kv_type};
    if (!status) status = engine_open(&j->engine, j->model, &options, err);
    struct trace *trace = NULL;
    if (!status && o->trace && (j->recorded_depths || j->speculates)) status = trace_open(&trace, o->trace, err);
    if (!status) engine_set_trace(j->engine, trace);
    for (int32_t i = 0; i < o->streams; i++) j->serves[i] = -1;
    j->next = j->done = 0;
    double begin = 0, end = 0;
    struct engine_counters first = {0};
    while (!status && j->done < o->requests) {
        for (int32_t i = 0; i < o->streams && !status; i++)
            if (j->serves[i] < 0 && j->next < o->requests) status = begin_request(j, i, contexts, err);
        bool ran;
        if (!status) status = engine_step(j->engine, &ran, err);
        if (status) break;
        if (begin == 0 && engine_counters(j->engine)->predictions >= o->streams) {
            begin = clock_seconds();
            first = *engine_counters(j->engine);
        }
        bool draining = j->next == o->requests && o->requests > o->streams;
        if (end == 0 && draining) {
            end = clock_seconds();
            *counters = *engine_counters(j->engine);
        }
        for (int32_t i = 0; i < o->streams; i++)
            if (j->serves[i] >= 0 && j->requests[j->serves[i]].made == o->tokens) end_request(j, i);
    }
    if (!status && end == 0) {
        end = clock_seconds();
        *counters = *engine_counters(j->engine);
    }
    for (int32_t i = 0; i < o->streams; i++) sequence_close(j->streams[i]);
    memset(j->streams, 0, (size_t)o->streams * sizeof *j->streams);
    engine_close(j->engine);
    looplm_error ignored;
    int closed = trace_close(trace, status ? &ignored : err);
    free(contexts);
    if (status || closed) return status ? status : closed;
    *seconds = end - begin;
    *tokens = counters->predictions - first.predictions;
    counters->passes -= first.passes;
    counters->rows -= first.rows;
    counters->heads -= first.heads;
    counters->head_rows -= first.head_rows;
    counters->pass_s -= first.pass_s;
    counters->head_s -= first.head_s;
    counters->total_s -= first.total_s;
    return 0;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

struct way {
    double rate[SLICES_MAX], pass[SLICES_MAX], head[SLICES_MAX], scheduling[SLICES_MAX];
    struct engine_counters counters; /* of the last slice */
    int64_t tokens;
};

static int run_slice(struct job *j, struct way *w, int slice, bool plain, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    double seconds;
    j->speculates = !plain && o->acceptance >= 0;
    j->recorded_depths = !plain && o->acceptance < 0;
    /* Speculation must repeat the plain ids; at other depths they are others. */
    if (!j->speculates)
        for (int32_t i = 0; i < o->requests; i++) j->requests[i].recorded = false;
    int status = serve(j, &seconds, &w->tokens, &w->counters, err);
    if (status) return status;
    const struct engine_counters *c = &w->counters;
    w->rate[slice] = (double)w->tokens / seconds;
    w->pass[slice] = c->pass_s / (double)c->passes;
    w->head[slice] = c->heads ? c->head_s / (double)c->heads : 0;
    w->scheduling[slice] = (c->total_s - c->pass_s - c->head_s) / c->total_s;
    return 0;
}

static void print_counters(const char *name, const struct way *w, int32_t loops) {
    const struct engine_counters *c = &w->counters;
    printf("%s: %lld tokens, %lld passes, %.2f rows a pass, %lld head reads of %.2f rows, %lld lends\n", name,
           (long long)w->tokens, (long long)c->passes, (double)c->rows / (double)c->passes, (long long)c->heads,
           c->heads ? (double)c->head_rows / (double)c->heads : 0, (long long)c->lends);
    printf("  tokens by loops:");
    for (int32_t r = 0; r < loops; r++) printf("  %d: %lld", r + 1, (long long)c->loops[r]);
    printf("\n  passes by rows:");
    for (int n = 1; n < ENGINE_ROWS_COUNTED; n++)
        if (c->passes_of[n])
            printf("  %d%s: %lld", n, n + 1 == ENGINE_ROWS_COUNTED ? "+" : "", (long long)c->passes_of[n]);
    printf("\n");
    if (c->proposals[0] + c->proposals[1] == 0) return;
    printf("  proposals");
    for (int i = 0; i < ENGINE_PROPOSALS && i + 1 < loops; i++)
        printf("%s after loop %d: %lld, right %lld", i ? ";" : "", i + 1, (long long)c->proposals[i],
               (long long)c->accepted[i]);
    printf("; %lld replaced, %lld rows dropped\n", (long long)c->replaced, (long long)c->dropped_rows);
}

static void report(const struct job *j, struct way *plain, struct way *other, json_t *results) {
    const struct bench_engine_options *o = j->options;
    double ratio[SLICES_MAX], loops = j->loops;
    for (int i = 0; i < o->slices; i++) ratio[i] = other->rate[i] / plain->rate[i];
    struct spread r = spread_of(ratio, o->slices), scheduling = spread_of(other->scheduling, o->slices),
                  w = spread_of(plain->pass, o->slices), h = spread_of(plain->head, o->slices),
                  plain_rate = spread_of(plain->rate, o->slices), rate = spread_of(other->rate, o->slices);
    bool wavefront = o->acceptance >= 0;
    double depth = (double)other->counters.rows / (double)other->tokens;
    double passes = wavefront ? 1 + (loops - 1) * (1 - o->acceptance) : o->mean_depth;
    double bound = wavefront && o->streams > 1 ? 0 : (loops * w.median + h.median) / (passes * (w.median + h.median));
    json_array_append_new(
        results, json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "kind",
                           wavefront ? "wavefront" : "refill", "streams", o->streams, "requests", o->requests, "tokens",
                           o->tokens, "plain_tokens_per_s", plain_rate.median, "tokens_per_s", rate.median, "ratio",
                           r.median, "ratio_low", r.low, "ratio_high", r.high, "bound", bound, "share_of_bound",
                           bound > 0 ? r.median / bound : 0, "pass_s", w.median, "head_s", h.median, "scheduling_share",
                           scheduling.median, "different_ids", j->wrong));
    if (o->quiet) return;
    print_counters("plain", plain, j->loops);
    print_counters(wavefront ? "wavefront" : "refill", other, j->loops);
    if (wavefront)
        printf("one stream of %d, proposals right with probability %.2f\n", o->streams, o->acceptance);
    else
        printf("%d streams, %.2f rows a token\n", o->streams, depth);
    printf("w %.2f ms, h %.2f ms; %.2f against %.2f tokens/s: %.3fx (%.3f..%.3f)", 1e3 * w.median, 1e3 * h.median,
           rate.median, plain_rate.median, r.median, r.low, r.high);
    if (bound > 0) printf(", bound %.3fx, %.1f %% of it", bound, 100 * r.median / bound);
    printf("; scheduling %.2f %%; %d ids differ\n", 100 * scheduling.median, j->wrong);
}

/* Recorded exits: uniform over the two or more depths around the mean that a loop count allows, by a hash. */
static uint8_t depth_of(double mean, int32_t loops, int32_t request, int32_t position) {
    double u = (double)random_unit(random_hash(29, (uint64_t)request, (uint64_t)position));
    /* Over 1..R with linear weights 1 + s x, x = (r - c) / c', whose mean is `mean`; the middle is uniform. */
    double centre = (loops + 1) / 2.0, variance = ((double)loops * loops - 1) / 12.0,
           slope = (mean - centre) / variance, sum = 0;
    for (int32_t r = 1; r < loops; r++) {
        double p = (1 + slope * (r - centre)) / loops;
        sum += p > 0 ? p : 0;
        if (u < sum) return (uint8_t)r;
    }
    return (uint8_t)loops;
}

static int make_requests(struct job *j, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    j->requests = calloc((size_t)o->requests, sizeof *j->requests);
    j->streams = calloc((size_t)o->streams, sizeof(struct sequence *));
    j->serves = malloc((size_t)o->streams * sizeof *j->serves);
    if (!j->requests || !j->streams || !j->serves) return error_set(err, LOOPLM_MEMORY, "out of memory");
    for (int32_t i = 0; i < o->requests; i++) {
        size_t capacity = (size_t)(o->prompt + o->tokens + 1);
        j->requests[i].depths = malloc(capacity);
        j->requests[i].ids = calloc((size_t)o->tokens, sizeof(int32_t));
        if (!j->requests[i].depths || !j->requests[i].ids) return error_set(err, LOOPLM_MEMORY, "out of memory");
        for (size_t p = 0; p < capacity; p++)
            j->requests[i].depths[p] =
                o->mean_depth >= j->loops ? (uint8_t)j->loops : depth_of(o->mean_depth, j->loops, i, (int32_t)p);
    }
    return 0;
}

int bench_engine(struct model *model, const struct bench_engine_options *o, json_t *results, looplm_error *err) {
    static struct way plain, other;
    struct job j = {.model = model, .options = o, .loops = model->config.loops};
    int status = make_requests(&j, err);
    for (int i = 0; i < o->slices && !status; i++) {
        bool other_first = i % 2 && o->acceptance >= 0;
        if (!other_first) status = run_slice(&j, &plain, i, true, err);
        if (!status) status = run_slice(&j, &other, i, false, err);
        if (!status && other_first) status = run_slice(&j, &plain, i, true, err);
    }
    if (!status) report(&j, &plain, &other, results);
    for (int32_t i = 0; j.requests && i < o->requests; i++) {
        free(j.requests[i].depths);
        free(j.requests[i].ids);
    }
    free(j.requests);
    free(j.streams);
    free(j.serves);
    return status;
}
