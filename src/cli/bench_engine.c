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
#include "engine/scheduler.h"
#include "engine/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLICES_MAX 1000

/* A request of every slice: its recorded exits by position, and the ids that plain decoding gave at those depths. */
struct job;
struct task {
    struct job *job;
    int32_t number;
    uint8_t *depths;
    int32_t *ids;
    bool recorded;
    struct request *request; /* of this slice */
};

struct job {
    struct model *model;
    const struct bench_engine_options *options;
    struct task *tasks;
    struct scheduler *scheduler;
    int32_t wrong;
    int32_t loops;
    bool recorded_depths, speculates;
};

static void take(void *context, struct request *r, const struct prediction *p) {
    struct task *t = context;
    int32_t i = request_made(r) - 1;
    if (!t->recorded) t->ids[i] = p->id;
    t->job->wrong += t->ids[i] != p->id;
}

/* Right with the probability asked for, the same at every loop. */
static int32_t force(void *context, struct sequence *s, int32_t position, int32_t loops, int32_t id) {
    (void)s;
    (void)loops;
    (void)id;
    const struct request *r = context;
    const struct task *t = r->options.context;
    const struct bench_engine_options *o = t->job->options;
    int32_t n = position - o->prompt, vocab = t->job->model->config.vocab;
    int32_t right = n < o->tokens ? t->ids[n] : 0;
    bool hit = random_unit(random_hash(17, (uint64_t)t->number, (uint64_t)n)) < (float)o->acceptance;
    return hit ? right : (right + 1) % vocab;
}

/* ---- serving ---------------------------------------------------------------------------------------------------- */

static int submit_task(struct job *j, struct task *t, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    int32_t prompt[64];
    for (int32_t i = 0; i < o->prompt; i++)
        prompt[i] = (int32_t)(random_hash(3, (uint64_t)t->number, (uint64_t)i) % (uint64_t)j->model->config.vocab);
    struct request_options options = {.prompt = prompt,
                                      .n_prompt = o->prompt,
                                      .tokens_max = o->tokens,
                                      .rule = {.kind = EXIT_LOOPS, .loops = j->loops},
                                      .sampler = {0, 1, 0, 0, 1, 0},
                                      .depths = j->recorded_depths ? t->depths : NULL,
                                      .speculate = j->speculates ? SPECULATE_WAVEFRONT : SPECULATE_OFF,
                                      .on_token = take,
                                      .on_proposal = j->speculates ? force : NULL,
                                      .context = t};
    int status = request_open(&t->request, &options, err);
    return status ? status : scheduler_submit(j->scheduler, t->request, err);
}

static int open_scheduler(struct job *j, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    struct scheduler_options options = {.running_max = o->streams,
                                        .waiting_max = o->requests,
                                        .context = o->prompt + o->tokens,
                                        .kv_positions = (int64_t)o->streams * (o->prompt + o->tokens + KV_BLOCK),
                                        .planes = j->loops,
                                        .kv_type = o->kv_type,
                                        .rows_max = o->streams + 512,
                                        .prefill_rows = 512,
                                        .prefix_cache = true};
    int status = scheduler_open(&j->scheduler, j->model, &options, err);
    for (int32_t i = 0; i < o->requests && !status; i++) status = submit_task(j, &j->tasks[i], err);
    return status;
}

/* What was counted since `first`. */
static struct engine_counters since(struct engine_counters now, const struct engine_counters *first) {
    struct engine_counters *c = &now;
    int64_t *const whole[] = {&c->passes,      &c->rows,         &c->heads,    &c->head_rows,   &c->lends,
                              &c->predictions, &c->guessed_rows, &c->replaced, &c->dropped_rows};
    const int64_t whole_first[] = {first->passes,       first->rows,     first->heads,
                                   first->head_rows,    first->lends,    first->predictions,
                                   first->guessed_rows, first->replaced, first->dropped_rows};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) *whole[i] -= whole_first[i];
    for (int i = 0; i < ENGINE_PROPOSALS; i++) {
        c->proposals[i] -= first->proposals[i];
        c->verified[i] -= first->verified[i];
        c->accepted[i] -= first->accepted[i];
    }
    for (int i = 0; i < MODEL_LOOPS_MAX; i++) c->loops[i] -= first->loops[i];
    for (int i = 0; i < ENGINE_ROWS_COUNTED; i++) {
        c->passes_of[i] -= first->passes_of[i];
        c->pass_s_of[i] -= first->pass_s_of[i];
    }
    c->guessed_used -= first->guessed_used;
    c->pass_s -= first->pass_s;
    c->head_s -= first->head_s;
    c->lend_s -= first->lend_s;
    return now;
}

/* From when every stream has begun to when the last request is taken up (or to the end, with as many streams as
 * requests), so that neither filling nor draining is measured. total_s is that of the scheduler's steps. */
static int measure(struct job *j, double *seconds, struct engine_counters *counters, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    const struct engine_counters *c = engine_counters(scheduler_engine(j->scheduler));
    double begin = 0, end = 0, steps = 0;
    struct engine_counters first = {0};
    int status = 0;
    for (bool busy = true; busy && !status;) {
        status = scheduler_step(j->scheduler, &busy, err);
        struct scheduler_counters s = scheduler_counters(j->scheduler);
        if (begin == 0 && c->predictions >= o->streams) {
            begin = clock_seconds();
            first = *c;
            steps = s.step_s;
        }
        bool draining = s.admitted == o->requests && o->requests > o->streams;
        if (end > 0 || !(draining || !busy)) continue;
        end = clock_seconds();
        *counters = since(*c, &first);
        counters->total_s = s.step_s - steps;
    }
    *seconds = end - begin;
    return status;
}

static int serve(struct job *j, double *seconds, struct engine_counters *counters, struct scheduler_counters *scheduled,
                 looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    struct trace *trace = NULL;
    int status = open_scheduler(j, err);
    if (!status && o->trace && (j->recorded_depths || j->speculates)) status = trace_open(&trace, o->trace, err);
    if (!status) {
        engine_set_trace(scheduler_engine(j->scheduler), trace);
        status = measure(j, seconds, counters, err);
    }
    if (!status) *scheduled = scheduler_counters(j->scheduler);
    scheduler_close(j->scheduler);
    for (int32_t i = 0; i < o->requests; i++) {
        j->tasks[i].recorded = true;
        request_close(j->tasks[i].request);
        j->tasks[i].request = NULL;
    }
    looplm_error ignored;
    int closed = trace_close(trace, status ? &ignored : err);
    return status ? status : closed;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

struct way {
    double rate[SLICES_MAX], pass[SLICES_MAX], head[SLICES_MAX], lending[SLICES_MAX], scheduling[SLICES_MAX];
    struct engine_counters counters; /* of the last slice */
    struct scheduler_counters scheduled;
    int64_t tokens;
};

static int run_slice(struct job *j, struct way *w, int slice, bool plain, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    double seconds;
    j->speculates = !plain && o->acceptance >= 0;
    j->recorded_depths = !plain && o->acceptance < 0;
    /* Speculation must repeat the plain ids; at other depths they are others. */
    if (!j->speculates)
        for (int32_t i = 0; i < o->requests; i++) j->tasks[i].recorded = false;
    int status = serve(j, &seconds, &w->counters, &w->scheduled, err);
    if (status) return status;
    w->tokens = w->counters.predictions;
    const struct engine_counters *c = &w->counters;
    w->rate[slice] = (double)w->tokens / seconds;
    w->pass[slice] = c->pass_s / (double)c->passes;
    w->head[slice] = c->heads ? c->head_s / (double)c->heads : 0;
    w->lending[slice] = c->lend_s / c->total_s;
    w->scheduling[slice] = (c->total_s - c->pass_s - c->head_s - c->lend_s) / c->total_s;
    return 0;
}

static void print_counters(const char *name, const struct way *w, int32_t loops) {
    const struct engine_counters *c = &w->counters;
    printf("%s: %lld tokens, %lld passes, %.2f rows a pass, %lld head reads of %.2f rows, %lld lends\n", name,
           (long long)w->tokens, (long long)c->passes, (double)c->rows / (double)c->passes, (long long)c->heads,
           c->heads ? (double)c->head_rows / (double)c->heads : 0, (long long)c->lends);
    printf("  tokens by loops:");
    for (int32_t r = 0; r < loops; r++) printf("  %d: %lld", r + 1, (long long)c->loops[r]);
    printf("\n  passes by rows, and a pass:");
    for (int n = 1; n < ENGINE_ROWS_COUNTED; n++)
        if (c->passes_of[n])
            printf("  %d%s: %lld, %.2f ms", n, n + 1 == ENGINE_ROWS_COUNTED ? "+" : "", (long long)c->passes_of[n],
                   1e3 * c->pass_s_of[n] / (double)c->passes_of[n]);
    const struct scheduler_counters *s = &w->scheduled;
    printf("\n  requests: %lld admitted, %lld preempted, %d at once; queue %.2f s on average, %.2f at most\n",
           (long long)s->admitted, (long long)s->preemptions, s->running_most,
           s->admitted ? s->queue_s / (double)s->admitted : 0, s->queue_s_max);
    printf("  KV blocks: %lld of %lld at most; positions: %lld from the prefix cache (%lld hits, %lld evictions), "
           "%lld shared, %lld replayed\n",
           (long long)s->blocks_max, (long long)s->blocks, (long long)s->cached, (long long)s->hits,
           (long long)s->evictions, (long long)s->shared, (long long)s->replayed);
    if (c->proposals[0] + c->proposals[1] + c->proposals[2] == 0) return;
    printf("  proposals");
    for (int i = 0; i < ENGINE_PROPOSALS && i + 1 < loops; i++)
        printf("%s after loop %d: %lld, right %lld of %lld", i ? ";" : "", i + 1, (long long)c->proposals[i],
               (long long)c->accepted[i], (long long)c->verified[i]);
    printf("; %lld replaced\n  guessed rows: %lld, %.0f expected to be used, %lld used, %lld dropped\n",
           (long long)c->replaced, (long long)c->guessed_rows, c->guessed_used,
           (long long)(c->guessed_rows - c->dropped_rows), (long long)c->dropped_rows);
}

/* What print_counters prints, of the last slice. */
static json_t *counters_json(const struct way *w, int32_t loops) {
    const struct engine_counters *c = &w->counters;
    const struct scheduler_counters *s = &w->scheduled;
    json_t *left = json_array(), *passes = json_array(), *proposals = json_array();
    for (int32_t r = 0; r < loops; r++) json_array_append_new(left, json_integer(c->loops[r]));
    for (int n = 1; n < ENGINE_ROWS_COUNTED; n++)
        if (c->passes_of[n])
            json_array_append_new(passes, json_pack("{s:i, s:I, s:f}", "rows", n, "passes", (json_int_t)c->passes_of[n],
                                                    "pass_s", c->pass_s_of[n] / (double)c->passes_of[n]));
    for (int i = 0; i < ENGINE_PROPOSALS && i + 1 < loops; i++)
        json_array_append_new(proposals,
                              json_pack("{s:i, s:I, s:I, s:I}", "loop", i + 1, "made", (json_int_t)c->proposals[i],
                                        "verified", (json_int_t)c->verified[i], "right", (json_int_t)c->accepted[i]));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}",
                     "tokens", (json_int_t)w->tokens, "passes", (json_int_t)c->passes, "rows", (json_int_t)c->rows,
                     "head_reads", (json_int_t)c->heads, "head_rows", (json_int_t)c->head_rows, "lends",
                     (json_int_t)c->lends, "tokens_by_loops", left, "passes_by_rows", passes, "proposals", proposals,
                     "admitted", (json_int_t)s->admitted, "preempted", (json_int_t)s->preemptions, "kv_blocks_most",
                     (json_int_t)s->blocks_max, "kv_blocks", (json_int_t)s->blocks, "cached_positions",
                     (json_int_t)s->cached, "cache_hits", (json_int_t)s->hits, "cache_evictions",
                     (json_int_t)s->evictions, "replayed_positions", (json_int_t)s->replayed, "queue_s", s->queue_s,
                     "queue_s_most", s->queue_s_max);
}

static void report(const struct job *j, struct way *plain, struct way *other, json_t *results) {
    const struct bench_engine_options *o = j->options;
    double ratio[SLICES_MAX], loops = j->loops;
    for (int i = 0; i < o->slices; i++) ratio[i] = other->rate[i] / plain->rate[i];
    struct spread r = spread_of(ratio, o->slices), scheduling = spread_of(other->scheduling, o->slices),
                  lending = spread_of(other->lending, o->slices), w = spread_of(plain->pass, o->slices),
                  h = spread_of(plain->head, o->slices), plain_rate = spread_of(plain->rate, o->slices),
                  rate = spread_of(other->rate, o->slices);
    bool wavefront = o->acceptance >= 0;
    double depth = (double)other->counters.rows / (double)other->tokens;
    double passes = wavefront ? 1 + (loops - 1) * (1 - o->acceptance) : o->mean_depth;
    double bound = wavefront && o->streams > 1 ? 0 : (loops * w.median + h.median) / (passes * (w.median + h.median));
    json_array_append_new(
        results, json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:o, s:o}",
                           "kind", wavefront ? "wavefront" : "refill", "streams", o->streams, "requests", o->requests,
                           "tokens", o->tokens, "plain_tokens_per_s", plain_rate.median, "tokens_per_s", rate.median,
                           "ratio", r.median, "ratio_low", r.low, "ratio_high", r.high, "bound", bound,
                           "share_of_bound", bound > 0 ? r.median / bound : 0, "pass_s", w.median, "head_s", h.median,
                           "lending_share", lending.median, "scheduling_share", scheduling.median, "different_ids",
                           j->wrong, "plain", counters_json(plain, j->loops), "other", counters_json(other, j->loops)));
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
    printf("; planes of loops not run %.2f %%, scheduling %.2f %%; %d ids differ\n", 100 * lending.median,
           100 * scheduling.median, j->wrong);
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

static int make_tasks(struct job *j, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    j->tasks = calloc((size_t)o->requests, sizeof *j->tasks);
    if (!j->tasks) return error_set(err, LOOPLM_MEMORY, "out of memory");
    for (int32_t i = 0; i < o->requests; i++) {
        struct task *t = &j->tasks[i];
        size_t capacity = (size_t)(o->prompt + o->tokens);
        *t = (struct task){.job = j, .number = i};
        t->depths = malloc(capacity);
        t->ids = calloc((size_t)o->tokens, sizeof(int32_t));
        if (!t->depths || !t->ids) return error_set(err, LOOPLM_MEMORY, "out of memory");
        for (size_t p = 0; p < capacity; p++)
            t->depths[p] =
                o->mean_depth >= j->loops ? (uint8_t)j->loops : depth_of(o->mean_depth, j->loops, i, (int32_t)p);
    }
    return 0;
}

int bench_engine(struct model *model, const struct bench_engine_options *o, json_t *results, looplm_error *err) {
    static struct way plain, other;
    struct job j = {.model = model, .options = o, .loops = model->config.loops};
    int status = make_tasks(&j, err);
    for (int i = 0; i < o->slices && !status; i++) {
        bool other_first = i % 2 && o->acceptance >= 0;
        if (!other_first) status = run_slice(&j, &plain, i, true, err);
        if (!status) status = run_slice(&j, &other, i, false, err);
        if (!status && other_first) status = run_slice(&j, &plain, i, true, err);
    }
    if (!status) report(&j, &plain, &other, results);
    for (int32_t i = 0; j.tasks && i < o->requests; i++) {
        free(j.tasks[i].depths);
        free(j.tasks[i].ids);
    }
    free(j.tasks);
    return status;
}
