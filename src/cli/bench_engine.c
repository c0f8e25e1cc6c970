/* The engine beside its bounds (bench_engine.h).
 *
 * Both ways serve the same requests, by turns of a tenth of a second, so that what a shared machine's memory gives at
 * the time it gives to both; whichever has made fewer tokens goes on. With w the time of a pass over the stack with a
 * row of every stream and h of a head read (both measured), R loops and d the mean depth of the tokens served, the
 * plain engine needs R w + h for a token of every stream, the other w + h a pass:
 *      refill       bound (R w + h) / (d (w + h))                        each pass has rows that leave
 *      wavefront    bound (R w + h) / ((1 + (R - 1)(1 - a)) (w + h))     one stream; a right proposal makes a pass a
 * token
 * Neither counts the rows of prompts, but for the last of each, which is that of its first token. */
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
#define TURN_S 0.1

/* A request of every slice: its recorded exits by position, and the ids that the first slice gave: speculation must
 * repeat those of plain decoding, at other depths they are others. */
struct job;
struct task {
    struct job *job;
    int32_t number, known; /* known: ids that are there */
    uint8_t *depths;
    int32_t *ids;
};

/* One of the two ways, in one slice. */
struct side {
    struct job *job;
    struct task *tasks;
    struct request **requests;
    struct scheduler *scheduler;
    bool recorded_depths, speculates;
    bool begun, over; /* the window that is measured */
    double seconds, first_step_s;
    struct engine_counters first, counters;
    struct scheduler_counters scheduled;
    struct request_counters *served; /* [requests] those that finished in the last slice, in order of submission */
    int32_t n_served;
};

struct job {
    struct model *model;
    const struct bench_engine_options *options;
    struct side plain, other;
    int32_t wrong;
    int32_t loops;
};

static void take(void *context, struct request *r, const struct prediction *p) {
    struct task *t = context;
    int32_t i = request_made(r) - 1;
    if (i == t->known) t->ids[t->known++] = p->id;
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

static int submit_task(struct side *side, int32_t i, looplm_error *err) {
    const struct job *j = side->job;
    const struct bench_engine_options *o = j->options;
    struct task *t = &side->tasks[i];
    int32_t prompt[64];
    for (int32_t k = 0; k < o->prompt; k++)
        prompt[k] = (int32_t)(random_hash(3, (uint64_t)t->number, (uint64_t)k) % (uint64_t)j->model->config.vocab);
    struct request_options options = {.prompt = prompt,
                                      .n_prompt = o->prompt,
                                      .tokens_max = o->tokens,
                                      .rule = {.kind = EXIT_LOOPS, .loops = j->loops},
                                      .sampler = {0, 1, 0, 0, 1, 0},
                                      .depths = side->recorded_depths ? t->depths : NULL,
                                      .speculate = side->speculates ? SPECULATE_WAVEFRONT : SPECULATE_OFF,
                                      .on_token = take,
                                      .on_proposal = side->speculates ? force : NULL,
                                      .context = t};
    int status = request_open(&side->requests[i], &options, err);
    return status ? status : scheduler_submit(side->scheduler, side->requests[i], err);
}

/* Memory that nobody has touched yet costs the first pass that does as much as a pass takes; a server has that behind
 * it after its first requests. */
static void touch_pool(const struct kv_pool *pool) {
    memset(pool->memory, 0, pool->block_size * (size_t)pool->n_blocks);
}

static int open_side(struct side *side, looplm_error *err) {
    const struct job *j = side->job;
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
    int status = scheduler_open(&side->scheduler, j->model, &options, err);
    if (!status) touch_pool(engine_pool(scheduler_engine(side->scheduler)));
    for (int32_t i = 0; i < o->requests && !status; i++) status = submit_task(side, i, err);
    return status;
}

static void close_side(struct side *side) {
    scheduler_close(side->scheduler);
    side->scheduler = NULL;
    side->n_served = 0;
    for (int32_t i = 0; i < side->job->options->requests; i++) {
        const struct request *r = side->requests[i];
        if (r && r->state == REQUEST_FINISHED && r->reason == REQUEST_ENDED_LENGTH)
            side->served[side->n_served++] = r->counters;
        request_close(side->requests[i]);
        side->requests[i] = NULL;
    }
    side->begun = side->over = false;
    side->seconds = 0;
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

static const struct engine_counters *counters_of(const struct side *side) {
    return engine_counters(scheduler_engine(side->scheduler));
}

/* From when every stream has begun to when the last request is taken up (or to the end, with as many streams as
 * requests), so that neither filling nor draining is measured. total_s is that of the scheduler's steps. */
static int step_side(struct side *side, looplm_error *err) {
    const struct bench_engine_options *o = side->job->options;
    bool busy;
    double start = clock_seconds();
    int status = scheduler_step(side->scheduler, &busy, err);
    if (side->begun) side->seconds += clock_seconds() - start;
    side->scheduled = scheduler_counters(side->scheduler);
    if (!side->begun && counters_of(side)->predictions >= o->streams) {
        side->begun = true;
        side->first = *counters_of(side);
        side->first_step_s = side->scheduled.step_s;
    }
    bool draining = side->scheduled.admitted == o->requests && o->requests > o->streams;
    if (!draining && busy) return status;
    side->over = true;
    side->counters = since(*counters_of(side), &side->first);
    side->counters.total_s = side->scheduled.step_s - side->first_step_s;
    return status;
}

static int take_turn(struct side *side, looplm_error *err) {
    int status = 0;
    double begin = clock_seconds();
    while (!side->over && !status && clock_seconds() - begin < TURN_S) status = step_side(side, err);
    return status;
}

/* Both by turns, until their windows are over. */
static int serve(struct side *first, struct side *second, looplm_error *err) {
    int status = 0;
    while (!status && !(first->over && second->over)) {
        bool behind = counters_of(second)->predictions < counters_of(first)->predictions;
        status = take_turn(first->over || (behind && !second->over) ? second : first, err);
    }
    return status;
}

/* The ids of plain decoding, which the proposals of the measured slices are made of. */
static int record_ids(struct job *j, looplm_error *err) {
    int status = open_side(&j->plain, err);
    while (!status && !j->plain.over) status = step_side(&j->plain, err);
    bool busy = true;
    while (!status && busy) status = scheduler_step(j->plain.scheduler, &busy, err);
    close_side(&j->plain);
    return status;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

struct way {
    double rate[SLICES_MAX], pass[SLICES_MAX], head[SLICES_MAX], lending[SLICES_MAX], scheduling[SLICES_MAX];
    struct engine_counters counters; /* of the last slice */
    struct scheduler_counters scheduled;
    int64_t tokens;
};

static void take_slice(struct way *w, int slice, const struct side *side) {
    const struct engine_counters *c = &side->counters;
    const int32_t streams = side->job->options->streams;
    const bool full = streams < ENGINE_ROWS_COUNTED && c->passes_of[streams];
    w->counters = *c;
    w->scheduled = side->scheduled;
    w->tokens = c->predictions;
    w->rate[slice] = (double)w->tokens / side->seconds;
    w->pass[slice] = full ? c->pass_s_of[streams] / (double)c->passes_of[streams] : c->pass_s / (double)c->passes;
    w->head[slice] = c->heads ? c->head_s / (double)c->heads : 0;
    w->lending[slice] = c->lend_s / c->total_s;
    w->scheduling[slice] = (c->total_s - c->pass_s - c->head_s) / c->total_s;
}

static int run_slice(struct job *j, struct way *plain, struct way *other, int slice, looplm_error *err) {
    struct trace *trace = NULL;
    int status = open_side(&j->plain, err);
    if (!status) status = open_side(&j->other, err);
    if (!status && j->options->trace) status = trace_open(&trace, j->options->trace, err);
    if (!status) {
        engine_set_trace(scheduler_engine(j->other.scheduler), trace);
        status = slice % 2 ? serve(&j->other, &j->plain, err) : serve(&j->plain, &j->other, err);
    }
    if (!status) {
        take_slice(plain, slice, &j->plain);
        take_slice(other, slice, &j->other);
    }
    close_side(&j->plain);
    close_side(&j->other);
    looplm_error ignored;
    int closed = trace_close(trace, status ? &ignored : err);
    return status ? status : closed;
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

/* What each request took, as median and quartiles of those that finished in the last slice. */
static void print_served(const struct side *side) {
    static const char *const names[] = {"passes",   "rows",       "tokens a pass", "KV blocks", "s to its first token",
                                        "s queued", "s computed", "s in all"};
    const int32_t n = side->n_served;
    double *values = n ? malloc((size_t)n * sizeof *values) : NULL;
    if (!values) return;
    printf("  each of %d requests, median (quartiles):", n);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int32_t k = 0; k < n; k++) {
            const struct request_counters *c = &side->served[k];
            const double all[] = {
                (double)c->passes, (double)c->rows,  (double)side->job->options->tokens / (double)c->passes,
                c->blocks_max,     c->first_token_s, c->queue_s,
                c->compute_s,      c->total_s};
            values[k] = all[i];
        }
        struct spread spread = spread_of(values, n);
        printf("%s %.4g (%.4g..%.4g) %s", i ? "," : "", spread.median, spread.low, spread.high, names[i]);
    }
    printf("\n");
    free(values);
}

static json_t *served_json(const struct side *side, int32_t loops) {
    json_t *each = json_array();
    for (int32_t k = 0; k < side->n_served; k++) {
        const struct request_counters *c = &side->served[k];
        json_t *left = json_array(), *proposals = json_array();
        for (int32_t r = 0; r < loops; r++) json_array_append_new(left, json_integer(c->loops[r]));
        for (int i = 0; i < ENGINE_PROPOSALS && i + 1 < loops; i++)
            json_array_append_new(proposals,
                                  json_pack("{s:i, s:I, s:I}", "loop", i + 1, "made", (json_int_t)c->proposals[i],
                                            "right", (json_int_t)c->accepted[i]));
        json_array_append_new(
            each,
            json_pack("{s:I, s:I, s:I, s:o, s:o, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:f, s:f, s:f}", "passes",
                      (json_int_t)c->passes, "rows", (json_int_t)c->rows, "dropped_rows", (json_int_t)c->dropped_rows,
                      "tokens_by_loops", left, "proposals", proposals, "cached_positions", c->cached,
                      "shared_positions", c->shared, "replayed_positions", c->replayed, "preempted", c->preemptions,
                      "kv_blocks_most", c->blocks_max, "cache_evictions", (json_int_t)c->evictions, "queue_s",
                      c->queue_s, "compute_s", c->compute_s, "first_token_s", c->first_token_s, "total_s", c->total_s));
    }
    return each;
}

/* What print_counters prints, of the last slice. */
static json_t *counters_json(const struct way *w, const struct side *side, int32_t loops) {
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
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}",
        "tokens", (json_int_t)w->tokens, "passes", (json_int_t)c->passes, "rows", (json_int_t)c->rows, "head_reads",
        (json_int_t)c->heads, "head_rows", (json_int_t)c->head_rows, "lends", (json_int_t)c->lends, "tokens_by_loops",
        left, "passes_by_rows", passes, "proposals", proposals, "admitted", (json_int_t)s->admitted, "preempted",
        (json_int_t)s->preemptions, "kv_blocks_most", (json_int_t)s->blocks_max, "kv_blocks", (json_int_t)s->blocks,
        "cached_positions", (json_int_t)s->cached, "cache_hits", (json_int_t)s->hits, "cache_evictions",
        (json_int_t)s->evictions, "replayed_positions", (json_int_t)s->replayed, "queue_s", s->queue_s, "queue_s_most",
        s->queue_s_max, "requests", served_json(side, loops));
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
    double depth = 0;
    for (int32_t l = 0; l < j->loops; l++) depth += (l + 1) * (double)other->counters.loops[l] / (double)other->tokens;
    double passes = wavefront ? 1 + (loops - 1) * (1 - o->acceptance) : depth;
    double bound = wavefront && o->streams > 1 ? 0 : (loops * w.median + h.median) / (passes * (w.median + h.median));
    json_array_append_new(
        results,
        json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:o, s:o}",
                  "kind", wavefront ? "wavefront" : "refill", "streams", o->streams, "requests", o->requests, "tokens",
                  o->tokens, "mean_depth", depth, "plain_tokens_per_s", plain_rate.median, "tokens_per_s", rate.median,
                  "ratio", r.median, "ratio_low", r.low, "ratio_high", r.high, "bound", bound, "share_of_bound",
                  bound > 0 ? r.median / bound : 0, "pass_s", w.median, "head_s", h.median, "lending_share",
                  lending.median, "scheduling_share", scheduling.median, "different_ids", j->wrong, "plain",
                  counters_json(plain, &j->plain, j->loops), "other", counters_json(other, &j->other, j->loops)));
    if (o->quiet) return;
    print_counters("plain", plain, j->loops);
    print_served(&j->plain);
    print_counters(wavefront ? "wavefront" : "refill", other, j->loops);
    print_served(&j->other);
    if (wavefront)
        printf("one stream of %d, proposals right with probability %.2f\n", o->streams, o->acceptance);
    else
        printf("%d streams, mean depth %.3f, %.2f rows a token\n", o->streams, depth,
               (double)other->counters.rows / (double)other->tokens);
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

static int make_side(struct job *j, struct side *side, looplm_error *err) {
    const struct bench_engine_options *o = j->options;
    side->job = j;
    side->tasks = calloc((size_t)o->requests, sizeof *side->tasks);
    side->requests = calloc((size_t)o->requests, sizeof(struct request *));
    side->served = calloc((size_t)o->requests, sizeof *side->served);
    if (!side->tasks || !side->requests || !side->served) return error_set(err, LOOPLM_MEMORY, "out of memory");
    for (int32_t i = 0; i < o->requests; i++) {
        struct task *t = &side->tasks[i];
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

static void free_side(struct side *side) {
    for (int32_t i = 0; side->tasks && i < side->job->options->requests; i++) {
        free(side->tasks[i].depths);
        free(side->tasks[i].ids);
    }
    free(side->tasks);
    free(side->requests);
    free(side->served);
}

/* What the plain side gave is what speculation must give. */
static void copy_ids(struct job *j) {
    for (int32_t i = 0; i < j->options->requests; i++) {
        const struct task *from = &j->plain.tasks[i];
        struct task *to = &j->other.tasks[i];
        memcpy(to->ids, from->ids, (size_t)j->options->tokens * sizeof *to->ids);
        to->known = from->known;
    }
}

int bench_engine(struct model *model, const struct bench_engine_options *o, json_t *results, looplm_error *err) {
    static struct way plain, other;
    struct job j = {.model = model, .options = o, .loops = model->config.loops};
    j.other.speculates = o->acceptance >= 0;
    j.other.recorded_depths = !j.other.speculates;
    int status = make_side(&j, &j.plain, err);
    if (!status) status = make_side(&j, &j.other, err);
    if (!status && j.other.speculates) status = record_ids(&j, err);
    if (!status && j.other.speculates) copy_ids(&j);
    for (int i = 0; i < o->slices && !status; i++) status = run_slice(&j, &plain, &other, i, err);
    if (!status) report(&j, &plain, &other, results);
    free_side(&j.plain);
    free_side(&j.other);
    return status;
}
