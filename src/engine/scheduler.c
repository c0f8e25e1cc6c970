/* The scheduler (scheduler.h): the queue, admission, preemption, and the end of requests. */
#include "engine/scheduler.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct scheduler {
    struct scheduler_options options;
    struct engine *engine;
    struct kv_pool *pool;                         /* the engine's */
    struct prefix_cache *cache;                   /* NULL: none */
    struct prefix_key roots[MODEL_LOOPS_MAX + 1]; /* of the chains, by loops */
    struct sequence **places;                     /* [running_max]; requests[i] is the one that runs there, or NULL */
    struct request **requests;
    struct request *first, *last; /* waiting, in order of rank */
    int32_t number;               /* of the last submission */
    int64_t reserved;             /* blocks that the running requests may come to need */
    struct scheduler_counters counters;
};

static double now(const struct scheduler *s) {
    return s->options.now ? s->options.now() : clock_seconds();
}

/* ---- the queue -------------------------------------------------------------------------------------------------- */

static bool before(const struct request *a, const struct request *b) {
    if (a->options.priority != b->options.priority) return a->options.priority > b->options.priority;
    return a->number < b->number;
}

static void enqueue(struct scheduler *s, struct request *r) {
    struct request *after = s->last;
    while (after && before(r, after)) after = after->previous;
    r->previous = after;
    r->next = after ? after->next : s->first;
    *(r->next ? &r->next->previous : &s->last) = r;
    *(after ? &after->next : &s->first) = r;
    r->state = REQUEST_WAITING;
    r->queued = now(s);
    s->counters.waiting++;
}

static void dequeue(struct scheduler *s, struct request *r) {
    *(r->next ? &r->next->previous : &s->last) = r->previous;
    *(r->previous ? &r->previous->next : &s->first) = r->next;
    r->next = r->previous = NULL;
    r->counters.queue_s += now(s) - r->queued;
    s->counters.waiting--;
}

static int64_t blocks_for(const struct request *r, int32_t positions) {
    return (int64_t)((positions + KV_BLOCK - 1) / KV_BLOCK) * r->planes;
}

static struct sequence_options sequence_options_of(const struct scheduler *s, const struct request *r);

static int check_request(struct scheduler *s, struct request *r, looplm_error *err) {
    const struct model *model = engine_model(s->engine);
    CHECK_EQ(r->state, REQUEST_NEW);
    if (s->counters.waiting >= s->options.waiting_max)
        return error_set(err, LOOPLM_LIMIT, "%d requests are waiting, the limit; try again later", s->counters.waiting);
    if (r->capacity > s->options.context)
        return error_set(
            err, LOOPLM_LIMIT,
            "a prompt of %d tokens and %d to generate exceed the context of %d; raise --context or ask for "
            "fewer",
            r->options.n_prompt, r->options.tokens_max, s->options.context);
    for (int32_t i = 0; i < r->options.n_prompt; i++)
        if (r->ids[i] < 0 || r->ids[i] >= model->config.vocab)
            return error_set(err, LOOPLM_USAGE, "token id %d at index %d is outside the vocabulary of %d", r->ids[i], i,
                             model->config.vocab);
    struct sequence_options options = sequence_options_of(s, r);
    int status = sequence_options_check(s->engine, &options, &r->planes, err);
    if (!status && blocks_for(r, r->capacity) > s->pool->n_blocks)
        status = error_set(err, LOOPLM_LIMIT, "%d positions need %lld KV blocks, and the pool has %lld", r->capacity,
                           (long long)blocks_for(r, r->capacity), (long long)s->pool->n_blocks);
    return status;
}

int scheduler_submit(struct scheduler *s, struct request *r, looplm_error *err) {
    int status = check_request(s, r, err);
    if (status) return status;
    memset(r->targets, r->options.adaptive_prompt ? 0 : r->planes, (size_t)r->options.n_prompt);
    r->scheduler = s;
    r->number = ++s->number;
    r->submitted = now(s);
    enqueue(s, r);
    s->counters.submitted++;
    return 0;
}

/* Its ids that are to run: when generation is over, the last token is not, also where scored positions still owe loops.
 */
static int32_t ids_to_run(const struct request *r) {
    return r->n_ids - (r->reason != REQUEST_ENDED_NONE && request_made(r) > 0);
}

/* The record of a running request: where its ids left, or, for the last one, which runs again in any case, how it is to
 * leave. */
static void record(struct request *r) {
    const struct kv_sequence *kv = sequence_kv(r->sequence);
    const uint8_t *targets = sequence_targets(r->sequence);
    for (int32_t p = 0; p < ids_to_run(r); p++)
        r->targets[p] = p + 1 < r->n_ids && kv->left[p] ? kv->left[p] : targets[p];
}

int scheduler_fork(struct scheduler *s, struct request *parent, struct request *child, looplm_error *err) {
    if (parent->state != REQUEST_WAITING && parent->state != REQUEST_RUNNING)
        return error_set(err, LOOPLM_USAGE, "a request that is not being served cannot be forked");
    int status = check_request(s, child, err);
    if (status) return status;
    if (parent->options.n_prompt != child->options.n_prompt || parent->planes != child->planes ||
        memcmp(parent->ids, child->ids, (size_t)child->n_ids * sizeof *child->ids) != 0)
        return error_set(err, LOOPLM_USAGE, "a fork needs its parent's prompt, and as many loops");
    int32_t n = parent->n_ids, made = request_made(parent);
    if (made > 0 && n >= child->capacity)
        return error_set(err, LOOPLM_LIMIT, "the parent has %d tokens already, the fork may have %d", made,
                         child->options.tokens_max);
    status = scheduler_submit(s, child, err);
    if (status) return status;
    if (parent->state == REQUEST_RUNNING) record(parent);
    memcpy(child->ids, parent->ids, (size_t)n * sizeof *child->ids);
    memcpy(child->logprobs, parent->logprobs, (size_t)made * sizeof *child->logprobs);
    memcpy(child->loops, parent->loops, (size_t)made);
    /* The prompt and the last id run as the child's own options say; between them the tokens left where they did. */
    for (int32_t p = child->options.n_prompt; p < n; p++)
        child->targets[p] = p + 1 < n ? parent->targets[p] : child->options.depths ? child->options.depths[p] : 0;
    child->parent = parent;
    child->n_ids = n;
    s->counters.forks++;
    return 0;
}

/* ---- what a request takes over from the cache and from others ---------------------------------------------------- */

static const struct prefix_key *key_of(struct scheduler *s, struct request *r, int32_t block) {
    for (; r->n_keys <= block; r->n_keys++)
        r->keys[r->n_keys] = prefix_key_next(r->n_keys ? &r->keys[r->n_keys - 1] : &s->roots[r->planes],
                                             r->ids + (size_t)r->n_keys * KV_BLOCK);
    return &r->keys[block];
}

/* The cache holds planes that were all computed; so they must have been in the record. */
static bool all_planes(const struct request *r, int32_t block) {
    for (int32_t p = block * KV_BLOCK; p < (block + 1) * KV_BLOCK; p++)
        if (r->targets[p] != r->planes) return false;
    return true;
}

static int32_t adopt_cached(struct scheduler *s, struct request *r) {
    int32_t n = 0;
    if (!s->cache) return 0;
    /* With shared planes what was generated has read, and left, other keys and values than a prompt. */
    const int32_t end = kv_policy_shared(r->options.policy) ? r->options.n_prompt : r->n_ids;
    for (; (n + 1) * KV_BLOCK < end && all_planes(r, n); n++) {
        void *const *blocks = prefix_cache_find(s->cache, key_of(s, r, n));
        if (!blocks) break;
        sequence_adopt_block(r->sequence, blocks);
    }
    for (int32_t i = n; i-- > 0;) prefix_cache_touch(s->cache, key_of(s, r, i));
    return n * KV_BLOCK;
}

/* Positions of the parent's that are complete and as in the record. */
static int32_t shareable(const struct request *r) {
    const struct request *parent = r->parent;
    if (!parent || !parent->sequence || parent->options.policy != r->options.policy) return 0;
    const struct kv_sequence *kv = sequence_kv(parent->sequence);
    int32_t n = kv_complete(kv, r->n_ids - 1);
    for (int32_t p = 0; p < n; p++)
        if (r->targets[p] != kv->left[p] || r->ids[p] != sequence_ids(parent->sequence)[p]) n = p;
    /* The rest of a prompt needs planes that were given up when they were joined. */
    return kv_joined_blocks(kv) > 0 && n < r->options.n_prompt ? 0 : n;
}

/* Cached blocks that nobody uses go until so many are free, or none is left. */
static void evict_for(struct scheduler *s, struct request *r, int64_t blocks) {
    if (s->cache) r->counters.evictions += prefix_cache_evict(s->cache, blocks);
}

static void adopt(struct scheduler *s, struct request *r) {
    if (r->options.score) return; /* every position is to be predicted from */
    int32_t shared = shareable(r), cached = 0;
    if (shared % KV_BLOCK) evict_for(s, r, r->planes);
    if (shared > 0 && !sequence_adopt(r->sequence, r->parent->sequence, shared)) shared = 0;
    if (shared == 0) cached = adopt_cached(s, r);
    r->n_kept = cached / KV_BLOCK;
    r->counters.shared += shared;
    r->counters.cached += cached;
    s->counters.shared += shared;
    s->counters.cached += cached;
}

/* Blocks that have become complete go into the cache; where it has the same already, the request uses that one. Ids and
 * planes before the last certain id stay what they are. */
static void offer(struct scheduler *s, struct request *r) {
    struct kv_sequence *kv = sequence_kv_mutable(r->sequence);
    int32_t end = r->n_kept;
    if (!s->cache || (end + 1) * KV_BLOCK >= r->n_ids) return;
    end = kv_complete(kv, r->n_ids - 1) / KV_BLOCK;
    for (; r->n_kept < end; r->n_kept++) {
        void *mine[MODEL_LOOPS_MAX];
        const struct prefix_key *key = key_of(s, r, r->n_kept), *previous = r->n_kept ? key - 1 : NULL;
        void *const *blocks = prefix_cache_find(s->cache, key);
        bool computed = kv_block_computed(kv, r->n_kept);
        for (int32_t i = 0; i < r->planes; i++) mine[i] = kv_table(kv, i)[r->n_kept];
        if (computed && blocks) kv_replace(kv, r->n_kept, blocks);
        if (!computed || (!blocks && !prefix_cache_add(s->cache, key, previous, r->planes, mine))) {
            r->n_kept = r->capacity; /* the chain ends here */
            return;
        }
    }
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

/* The request has all the tokens it will get: its sequence begins nothing new, and the step's end finishes it. */
static void end(struct request *r, enum request_reason reason) {
    r->reason = reason;
    sequence_generate(r->sequence, false);
}

/* Nothing more will come of it. Scored positions may still be on their way when the last token is there. */
static bool ended(const struct request *r) {
    if (r->reason == REQUEST_ENDED_NONE && r->options.tokens_max > 0) return false;
    bool all = r->options.tokens_max > 0 && !r->options.score;
    return all || r->reason == REQUEST_ENDED_DAMAGED || sequence_idle(r->sequence);
}

static bool stops(const struct request *r, int32_t id) {
    for (int32_t i = 0; i < r->options.n_stops; i++)
        if (r->stops[i] == id) return true;
    return false;
}

static void take_token(struct request *r, const struct prediction *p) {
    int32_t i = request_made(r);
    CHECK_LT(r->n_ids, r->capacity);
    r->ids[r->n_ids++] = p->id;
    r->logprobs[i] = (float)p->logprob;
    r->loops[i] = (uint8_t)p->loops;
    r->counters.loops[p->loops - 1]++;
    if (i == 0) r->counters.first_token_s = now(r->scheduler) - r->submitted;
    if (stops(r, p->id))
        end(r, REQUEST_ENDED_STOP);
    else if (r->n_ids == r->capacity)
        end(r, REQUEST_ENDED_LENGTH);
}

static void take(void *context, struct sequence *sequence, const struct prediction *p) {
    struct request *r = context;
    (void)sequence;
    if (ended(r) && !r->options.score) return;
    if (!isfinite((double)p->lse)) {
        end(r, REQUEST_ENDED_DAMAGED);
        return;
    }
    if (p->id >= 0) take_token(r, p);
    bool first = p->id >= 0 || (r->scored && !r->scored[p->position]); /* not handed out before a preemption */
    if (r->scored) r->scored[p->position] = true;
    if (r->options.on_token && first) r->options.on_token(r->options.context, r, p);
}

static struct sequence_options sequence_options_of(const struct scheduler *s, const struct request *r) {
    const struct request_options *o = &r->options;
    return (struct sequence_options){.rule = o->rule,
                                     .policy = o->policy,
                                     .sampler = o->sampler,
                                     .capacity = r->capacity,
                                     .slots_max =
                                         s->options.prefill_rows ? s->options.prefill_rows + ENGINE_BACKLOG_MAX : 0,
                                     .priority = o->priority,
                                     .number = r->number,
                                     .adaptive_prompt = o->adaptive_prompt,
                                     .score = o->score,
                                     .speculate = o->speculate,
                                     .depths = o->depths,
                                     .on_prediction = take,
                                     .on_proposal = o->on_proposal,
                                     .context = (void *)(uintptr_t)r};
}

static int32_t free_place(const struct scheduler *s) {
    int32_t i = 0;
    while (i < s->options.running_max && s->requests[i]) i++;
    return i < s->options.running_max ? i : -1;
}

/* Puts a request, out of the queue, onto a free place. What it asks for was checked when it was submitted. */
static void place(struct scheduler *s, struct request *r, int32_t i) {
    struct sequence_options options = sequence_options_of(s, r);
    int status = sequence_reopen(s->places[i], &options, NULL);
    const int32_t prompt = r->options.n_prompt, made = ids_to_run(r) - prompt;
    if (!status) status = sequence_feed(s->places[i], r->ids, r->targets, prompt, NULL);
    if (!status) status = sequence_replay(s->places[i], r->ids + prompt, r->targets + prompt, made, NULL);
    CHECK_EQ(status, 0);
    sequence_generate(s->places[i], r->options.tokens_max > 0 && !r->reason);
    s->requests[i] = r;
    r->sequence = s->places[i];
    r->state = REQUEST_RUNNING;
    s->reserved += blocks_for(r, r->capacity);
    s->counters.running++;
}

static void add_counters(struct request *r) {
    const struct sequence_counters *c = sequence_counters(r->sequence);
    struct request_counters *sum = &r->counters;
    sum->passes += c->passes;
    sum->rows += c->rows;
    sum->dropped_rows += c->dropped_rows;
    sum->compute_s += c->compute_s;
    for (int i = 0; i < ENGINE_PROPOSALS; i++) {
        sum->proposals[i] += c->proposals[i];
        sum->accepted[i] += c->accepted[i];
    }
}

/* Takes a request off its place and gives its blocks back. */
static void displace(struct scheduler *s, struct request *r) {
    int32_t i = 0;
    while (s->requests[i] != r) i++;
    add_counters(r);
    sequence_release(r->sequence);
    s->requests[i] = NULL;
    r->sequence = NULL;
    s->reserved -= blocks_for(r, r->capacity);
    s->counters.running--;
}

static void finish(struct scheduler *s, struct request *r, enum request_reason reason) {
    if (r->state == REQUEST_RUNNING)
        displace(s, r);
    else
        dequeue(s, r);
    for (struct request *child = s->first; child; child = child->next)
        if (child->parent == r) child->parent = NULL;
    r->state = REQUEST_FINISHED;
    r->reason = reason;
    r->counters.total_s = now(s) - r->submitted;
    s->counters.finished[reason]++;
    s->counters.queue_s += r->counters.queue_s;
    if (r->counters.queue_s > s->counters.queue_s_max) s->counters.queue_s_max = r->counters.queue_s;
    if (r->options.on_finish) r->options.on_finish(r->options.context, r);
}

/* ---- preemption and admission ------------------------------------------------------------------------------------ */

/* Back into the queue. Its blocks go; the record brings them back. */
static void preempt(struct scheduler *s, struct request *r) {
    record(r);
    r->n_ran = sequence_run_length(r->sequence);
    if (r->n_ran > r->n_ids) r->n_ran = r->n_ids;
    displace(s, r);
    enqueue(s, r);
    r->counters.preemptions++;
    s->counters.preemptions++;
}

/* The running request that is last in rank, of those that go on. */
static struct request *last_in_rank(const struct scheduler *s) {
    struct request *last = NULL;
    for (int32_t i = 0; i < s->options.running_max; i++) {
        struct request *r = s->requests[i];
        if (r && !ended(r) && (!last || before(last, r))) last = r;
    }
    return last;
}

/* One that ended in this very step needs its blocks no more. */
static bool release_ended(struct scheduler *s) {
    for (int32_t i = 0; i < s->options.running_max; i++) {
        struct request *r = s->requests[i];
        if (!r || !ended(r) || sequence_kv(r->sequence)->positions == 0) continue;
        sequence_release(r->sequence);
        return true;
    }
    return false;
}

static struct request *request_of(const struct scheduler *s, const struct sequence *sequence) {
    int32_t i = 0;
    while (s->places[i] != sequence) i++;
    return s->requests[i];
}

/* reclaim_fn: cached blocks nobody uses go first, then the last in rank. */
static bool reclaim(void *context, struct sequence *sequence) {
    struct scheduler *s = context;
    int64_t available = kv_pool_available(s->pool);
    evict_for(s, request_of(s, sequence), available + sequence_kv(sequence)->loops);
    if (kv_pool_available(s->pool) > available || release_ended(s)) return true;
    struct request *last = last_in_rank(s);
    if (!last || last->sequence == sequence) return false;
    preempt(s, last);
    return true;
}

/* Blocks that are missing for a request that has just been placed: those of its ids that it did not take over, and, so
 * that nobody is preempted at once, a block at each loop for all that run. */
static int64_t missing(struct scheduler *s, struct request *r) {
    if (s->options.reserve_worst_case) return s->reserved - s->pool->n_blocks;
    int32_t want = r->n_ids < r->capacity ? r->n_ids + 1 : r->capacity;
    int64_t blocks = blocks_for(r, want) - blocks_for(r, sequence_kv(r->sequence)->positions);
    if (s->counters.running > 1) blocks += (int64_t)s->counters.running * s->options.planes;
    evict_for(s, r, blocks);
    return blocks - kv_pool_available(s->pool);
}

/* Blocks that requests of lower priority would give up. */
static int64_t lower_blocks(const struct scheduler *s, const struct request *r) {
    int64_t blocks = 0;
    for (int32_t i = 0; i < s->options.running_max; i++) {
        const struct request *other = s->requests[i];
        if (!other || other->options.priority >= r->options.priority) continue;
        blocks += s->options.reserve_worst_case ? blocks_for(other, other->capacity)
                                                : kv_blocks(sequence_kv(other->sequence));
    }
    return blocks;
}

static bool preempt_lower(struct scheduler *s, const struct request *r) {
    struct request *last = last_in_rank(s);
    if (!last || last->options.priority >= r->options.priority) return false;
    preempt(s, last);
    return true;
}

/* Back into the queue as if nothing had been tried. */
static void wait_on(struct scheduler *s, struct request *r, const struct request_counters *counters, double queued) {
    s->counters.shared -= r->counters.shared - counters->shared;
    s->counters.cached -= r->counters.cached - counters->cached;
    displace(s, r);
    enqueue(s, r);
    r->queued = queued;
    int64_t evictions = r->counters.evictions;
    r->counters = *counters;
    r->counters.evictions = evictions; /* what went is gone */
}

static void count_admission(struct scheduler *s, struct request *r, const struct request_counters *before) {
    int32_t shared = r->counters.shared - before->shared, cached = r->counters.cached - before->cached,
            again = r->n_ran > shared + cached ? r->n_ran - shared - cached : 0;
    r->counters.replayed += again;
    s->counters.replayed += again;
    s->counters.hits += cached > 0;
    s->counters.admitted++;
    s->counters.admitted_positions += r->n_ids;
    if (s->counters.running > s->counters.running_most) s->counters.running_most = s->counters.running;
}

/* Admits a waiting request if there is, or can be made, room for it. */
static bool admit(struct scheduler *s, struct request *r) {
    if (free_place(s) < 0 && !preempt_lower(s, r)) return false;
    struct request_counters counters = r->counters;
    double queued = r->queued;
    dequeue(s, r);
    place(s, r, free_place(s));
    adopt(s, r);
    int64_t lack = missing(s, r);
    if (lack > 0 && lower_blocks(s, r) >= lack)
        while (lack > 0 && preempt_lower(s, r)) lack = missing(s, r);
    if (lack > 0) {
        wait_on(s, r, &counters, queued);
        return false;
    }
    count_admission(s, r, &counters);
    r->parent = NULL;
    return true;
}

/* A fork waits until its parent has run the prompt that they share. */
static bool ready(const struct request *r) {
    const struct request *parent = r->parent;
    if (!parent || r->options.score) return true;
    return parent->state == REQUEST_RUNNING && !sequence_prefills(parent->sequence);
}

static void admit_all(struct scheduler *s) {
    struct request *r;
    do {
        r = s->first;
        while (r && !ready(r)) r = r->next;
    } while (r && admit(s, r));
}

/* ---- a step ----------------------------------------------------------------------------------------------------- */

static void finish_if_over(struct scheduler *s, struct request *r, double at) {
    if (atomic_load(&r->cancelled))
        finish(s, r, REQUEST_ENDED_CANCELLED);
    else if (r->options.deadline > 0 && at >= r->options.deadline)
        finish(s, r, REQUEST_ENDED_DEADLINE);
}

static void finish_all_over(struct scheduler *s) {
    double at = now(s);
    for (int32_t i = 0; i < s->options.running_max; i++)
        if (s->requests[i]) finish_if_over(s, s->requests[i], at);
    for (struct request *r = s->first, *next; r; r = next) {
        next = r->next;
        finish_if_over(s, r, at);
    }
}

static void finish_done(struct scheduler *s) {
    for (int32_t i = 0; i < s->options.running_max; i++) {
        struct request *r = s->requests[i];
        if (!r) continue;
        int32_t blocks = (int32_t)kv_blocks(sequence_kv(r->sequence));
        if (blocks > r->counters.blocks_max) r->counters.blocks_max = blocks;
        offer(s, r);
        if (ended(r)) finish(s, r, r->reason ? r->reason : REQUEST_ENDED_LENGTH);
    }
}

int scheduler_step(struct scheduler *s, bool *busy, looplm_error *err) {
    double begin = clock_seconds();
    bool ran = false;
    finish_all_over(s);
    admit_all(s);
    int status = s->counters.running > 0 ? engine_step(s->engine, &ran, err) : 0;
    int64_t used = s->pool->n_blocks - kv_pool_available(s->pool);
    if (used > s->counters.blocks_max) s->counters.blocks_max = used;
    if (!status) finish_done(s);
    *busy = s->counters.running > 0 || s->counters.waiting > 0;
    s->counters.step_s += clock_seconds() - begin;
    return status;
}

/* ---- opening, closing, counting ---------------------------------------------------------------------------------- */

static int open_places(struct scheduler *s, looplm_error *err) {
    s->places = calloc((size_t)s->options.running_max, sizeof *s->places);
    s->requests = calloc((size_t)s->options.running_max, sizeof *s->requests);
    if (!s->places || !s->requests) return error_set(err, LOOPLM_MEMORY, "out of memory");
    struct request any = {.capacity = s->options.context,
                          .options = {.rule = {.kind = EXIT_FULL},
                                      .sampler = {.top_p = 1, .repetition_penalty = 1},
                                      .speculate = SPECULATE_WAVEFRONT}};
    struct sequence_options options = sequence_options_of(s, &any);
    int status = 0;
    for (int32_t i = 0; i < s->options.running_max && !status; i++)
        status = sequence_open(&s->places[i], s->engine, &options, err);
    return status;
}

int scheduler_open(struct scheduler **out, struct model *model, const struct scheduler_options *options,
                   looplm_error *err) {
    *out = NULL;
    if (options->running_max < 1 || options->rows_max <= options->running_max)
        return error_set(err, LOOPLM_USAGE, "%d rows of a pass are too few for %d sequences; give at least %d",
                         options->rows_max, options->running_max, options->running_max + 1);
    struct scheduler *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, LOOPLM_MEMORY, "out of memory");
    s->options = *options;
    struct engine_options engine = {.rows_max = options->rows_max,
                                    .prefill_rows = options->prefill_rows,
                                    .sequences_max = options->running_max,
                                    .kv_positions = options->kv_positions,
                                    .planes = options->planes,
                                    .kv_type = options->kv_type,
                                    .poison = options->poison};
    int status = engine_open(&s->engine, model, &engine, err);
    if (!status) {
        s->pool = engine_pool(s->engine);
        engine_set_reclaim(s->engine, reclaim, s);
        for (int32_t r = 1; r <= options->planes; r++) s->roots[r] = prefix_key_root(model, options->kv_type, r, "");
        if (options->prefix_cache) status = prefix_cache_open(&s->cache, s->pool, options->planes, err);
    }
    if (!status) status = open_places(s, err);
    if (status) {
        scheduler_close(s);
        return status;
    }
    *out = s;
    return 0;
}

void scheduler_close(struct scheduler *s) {
    if (!s) return;
    for (int32_t i = 0; s->requests && i < s->options.running_max; i++)
        if (s->requests[i]) finish(s, s->requests[i], REQUEST_ENDED_CANCELLED);
    while (s->first) finish(s, s->first, REQUEST_ENDED_CANCELLED);
    for (int32_t i = 0; s->places && i < s->options.running_max; i++) sequence_close(s->places[i]);
    prefix_cache_close(s->cache);
    if (s->pool) CHECK_EQ(kv_pool_available(s->pool), s->pool->n_blocks); /* invariant 5: no block is lost */
    engine_close(s->engine);
    free(s->places);
    free(s->requests);
    free(s);
}

struct engine *scheduler_engine(struct scheduler *s) {
    return s->engine;
}

void scheduler_forget_prefixes(struct scheduler *s) {
    if (s->cache) prefix_cache_clear(s->cache);
}

struct scheduler_counters scheduler_counters(const struct scheduler *s) {
    struct scheduler_counters c = s->counters;
    c.blocks = s->pool->n_blocks;
    c.blocks_used = c.blocks - kv_pool_available(s->pool);
    if (s->cache) {
        struct prefix_cache_counters cache = prefix_cache_counters(s->cache);
        c.cache_blocks = cache.blocks;
        c.evictions = cache.evicted;
    }
    return c;
}
