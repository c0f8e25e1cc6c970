/* Random schedules: requests of every kind arrive, are cancelled, forked, preempted and late, in pools and passes of
 * every size, and each gives what it gives alone.
 *
 * LOOPLM_SCHEDULES says how many (1000 without it; ./check --all plays 20,000), LOOPLM_SCHEDULE plays one alone. After
 * each no block is lost: all are free but the cache's, and those too when it is cleared. */
#include "base/random.h"
#include "engine/scheduler.h"
#include "support/support.h"
#include "support/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define R 3
#define V 67
#define POSITIONS 224 /* of a request at most */
#define REQUESTS 24
#define STEPS_MAX 20000

static struct tiny tiny;
static struct engine *alone; /* plays the reference */
static double clock_now;

static double fake_clock(void) {
    return clock_now;
}

/* What came of a request, or should: tokens, and with score the positions of the prompt. */
struct made {
    bool have[POSITIONS];
    int32_t ids[POSITIONS], loops[POSITIONS], n;
    float logprob[POSITIONS], lse[POSITIONS], probs[POSITIONS][R];
};

struct play {
    struct request_options options;
    int32_t prompt[POSITIONS], stops[2];
    uint8_t depths[POSITIONS];
    struct request *request;
    struct made made;        /* by the scheduler */
    int32_t past[POSITIONS]; /* of a fork: the tokens it was given */
    uint8_t past_depths[POSITIONS];
    int32_t n_past;
    int32_t cancel_at; /* tokens after which it cancels itself, -1 */
    bool submitted, finished;
};

struct schedule {
    struct random random;
    uint64_t number;
    struct scheduler *scheduler;
    struct scheduler_options options;
    struct play plays[REQUESTS];
    int32_t n_plays, priorities;
    int64_t step;
};

static int32_t below(struct schedule *s, int32_t n) {
    return (int32_t)random_below(&s->random, (uint64_t)n);
}
static bool chance(struct schedule *s, int32_t percent) {
    return below(s, 100) < percent;
}

/* ---- the reference ---------------------------------------------------------------------------------------------- */

/* With score by position, otherwise by token. */
static void take_prediction(struct made *m, const struct request_options *o, const struct prediction *p) {
    int32_t i = o->score ? p->position : m->n;
    if (i >= POSITIONS || m->have[i]) fail_msg("prediction %d is one too many", i);
    m->have[i] = true;
    m->n++;
    m->ids[i] = p->id;
    m->loops[i] = p->loops;
    m->lse[i] = (float)p->lse;
    memcpy(m->probs[i], p->exit_probs, (size_t)p->loops * sizeof(float));
    m->logprob[i] = p->id < 0 ? 0 : (float)p->logprob;
}

struct lonely {
    const struct play *play;
    struct made *made;
    int32_t n;
};

static void take_alone(void *context, struct sequence *sequence, const struct prediction *p) {
    struct lonely *l = context;
    const struct request_options *o = &l->play->options;
    if (p->id < 0 && !o->score) return;
    take_prediction(l->made, o, p);
    if (p->id < 0) return;
    l->n++;
    bool stop = l->n == o->tokens_max;
    for (int32_t i = 0; i < o->n_stops; i++) stop |= p->id == l->play->stops[i];
    if (stop) sequence_generate(sequence, false);
}

/* The request by itself, one token at a time, without speculation. A fork's past is replayed as it was recorded. */
static void play_alone(const struct play *play, struct made *made) {
    const struct request_options *o = &play->options;
    struct lonely lonely = {play, made, play->n_past};
    looplm_error err;
    struct sequence *s = NULL;
    struct sequence_options options = {.rule = o->rule,
                                       .policy = o->policy,
                                       .capacity = o->n_prompt + o->tokens_max,
                                       .sampler = o->sampler,
                                       .adaptive_prompt = o->adaptive_prompt,
                                       .score = o->score,
                                       .depths = o->depths,
                                       .on_prediction = take_alone,
                                       .context = &lonely};
    memset(made, 0, sizeof *made);
    if (sequence_open(&s, alone, &options, &err) || sequence_feed(s, play->prompt, NULL, o->n_prompt, &err) ||
        (play->n_past && sequence_replay(s, play->past, play->past_depths, play->n_past, &err)))
        fail_msg("%s", err.message);
    sequence_generate(s, o->tokens_max > 0);
    for (bool ran = true; ran;)
        if (engine_step(alone, &ran, &err)) fail_msg("%s", err.message);
    sequence_close(s);
}

/* ---- a schedule ------------------------------------------------------------------------------------------------- */

static const char *const rules[] = {"full",    "q=0.6",   "q=0.4", "diff=0.6",    "conf=0.2",
                                    "loops=2", "loops=1", "mix",   "q=0.8,min=2", "diff=0.5,max=2"};

static void on_token(void *context, struct request *request, const struct prediction *p) {
    struct play *play = context;
    take_prediction(&play->made, &play->options, p);
    if (play->cancel_at >= 0 && play->made.n >= play->cancel_at) request_cancel(request);
}

static void assert_same(const struct schedule *s, const struct play *play, const char *what, bool same) {
    if (!same)
        fail_msg("schedule %llu, request %d (%s): %s differ from the request's alone", (unsigned long long)s->number,
                 play->request->number, request_reason_name(play->request->reason), what);
}

static void on_finish(void *context, struct request *request) {
    struct play *play = context;
    play->finished = true;
    assert_ptr_equal(request, play->request);
}

/* A request that ended by itself gave everything, any other a part. */
static void assert_exact(const struct schedule *s, const struct play *play) {
    static struct made want;
    const struct request *r = play->request;
    const struct made *got = &play->made;
    bool whole = r->reason == REQUEST_ENDED_STOP || r->reason == REQUEST_ENDED_LENGTH;
    play_alone(play, &want);
    assert_same(s, play, "numbers of predictions", whole ? got->n == want.n : got->n <= want.n);
    for (int32_t i = 0; i < POSITIONS; i++) {
        if (!got->have[i]) continue;
        assert_same(s, play, "ids", want.have[i] && got->ids[i] == want.ids[i]);
        assert_same(s, play, "loops", got->loops[i] == want.loops[i]);
        assert_same(s, play, "log-probabilities", got->logprob[i] == want.logprob[i] && got->lse[i] == want.lse[i]);
        assert_same(s, play, "exit probabilities",
                    !memcmp(got->probs[i], want.probs[i], (size_t)want.loops[i] * sizeof(float)));
    }
    /* The record says the same. */
    for (int32_t i = play->n_past; i < request_made(r); i++) {
        int32_t k = r->options.score ? r->options.n_prompt + i - 1 : i - play->n_past;
        assert_same(s, play, "records",
                    got->have[k] && r->ids[r->options.n_prompt + i] == got->ids[k] && r->loops[i] == got->loops[k] &&
                        r->logprobs[i] == got->logprob[k]);
    }
}

/* Prompts begin with pieces of three texts, so that some share blocks. */
static void make_prompt(struct schedule *s, struct play *play, int32_t n) {
    int32_t text = below(s, 3), common = chance(s, 70) ? n : below(s, n + 1);
    for (int32_t i = 0; i < n; i++)
        play->prompt[i] = (int32_t)(random_hash(5, (uint64_t)(i < common ? text : 100 + s->n_plays), (uint64_t)i) % V);
    play->options.prompt = play->prompt;
    play->options.n_prompt = n;
}

static void make_options(struct schedule *s, struct play *play) {
    struct request_options *o = &play->options;
    looplm_error err;
    if (exit_rule_parse(&o->rule, rules[below(s, 10)], &err)) fail_msg("%s", err.message);
    o->policy = chance(s, 50)   ? KV_POLICY_LAST_EXITED
                : chance(s, 50) ? KV_POLICY_FULL
                : chance(s, 40) ? KV_POLICY_SHARED_LAST
                : chance(s, 70) ? KV_POLICY_SHARED_MEAN
                                : KV_POLICY_SHARED_FIRST;
    o->sampler = (struct sampler_options){chance(s, 50) ? 0 : 0.8f,   1, 0, 0, chance(s, 20) ? 1.2f : 1,
                                          (uint64_t)below(s, 1 << 16)};
    o->adaptive_prompt = o->policy == KV_POLICY_LAST_EXITED && chance(s, 10);
    o->speculate = chance(s, 60) || kv_policy_shared(o->policy) ? SPECULATE_OFF
                   : chance(s, 60)                              ? SPECULATE_ALWAYS
                                                                : SPECULATE_WAVEFRONT;
    o->priority = s->priorities > 1 ? below(s, s->priorities) - 1 : 0;
    if (chance(s, 10) && o->rule.kind != EXIT_MIX) {
        o->score = true;
        o->speculate = SPECULATE_OFF;
    }
    if (chance(s, 20)) {
        o->n_stops = 2;
        o->stops = play->stops;
        for (int i = 0; i < 2; i++) play->stops[i] = below(s, V);
    }
    if (chance(s, 25) && o->rule.kind == EXIT_FULL) {
        o->depths = play->depths;
        for (int32_t i = 0; i < POSITIONS; i++) play->depths[i] = (uint8_t)(1 + below(s, R));
    }
    if (chance(s, 8)) o->deadline = clock_now + 1 + below(s, 120);
    play->cancel_at = chance(s, 8) ? below(s, 12) : -1;
    o->on_token = on_token;
    o->on_finish = on_finish;
    o->context = play;
}

static struct play *next_play(struct schedule *s) {
    struct play *play = &s->plays[s->n_plays];
    memset(play, 0, sizeof *play);
    return play;
}

static void open_play(struct schedule *s, struct play *play) {
    looplm_error err;
    (void)s;
    if (request_open(&play->request, &play->options, &err)) fail_msg("%s", err.message);
}

/* A fork of a running or waiting request, with options of its own but for what the planes depend on. */
static void fork_play(struct schedule *s, struct play *parent) {
    if (s->n_plays == REQUESTS) return;
    struct play *play = next_play(s);
    struct request *from = parent->request;
    looplm_error err;
    make_prompt(s, play, parent->options.n_prompt);
    memcpy(play->prompt, parent->prompt, sizeof play->prompt);
    make_options(s, play);
    play->options.rule = parent->options.rule;
    if (play->options.rule.kind != EXIT_FULL) play->options.depths = NULL;
    if (play->options.rule.kind == EXIT_MIX) play->options.score = false;
    if (chance(s, 80)) {
        play->options.policy = parent->options.policy;
        play->options.adaptive_prompt &= play->options.policy == KV_POLICY_LAST_EXITED;
        if (kv_policy_shared(play->options.policy)) play->options.speculate = SPECULATE_OFF;
    }
    play->options.tokens_max = request_made(from) + 1 + below(s, 8);
    if (play->options.n_prompt + play->options.tokens_max > s->options.context)
        play->options.tokens_max = s->options.context - play->options.n_prompt;
    open_play(s, play);
    int status = scheduler_fork(s->scheduler, from, play->request, &err);
    if (status) {
        assert_int_equal(status, LOOPLM_LIMIT);
        request_close(play->request);
        return;
    }
    play->n_past = request_made(from);
    for (int32_t i = 0; i < play->n_past; i++) {
        play->past[i] = from->ids[from->options.n_prompt + i];
        /* The loops of the row of token i are those of the prediction after it; the last one's are the child's. */
        int32_t position = from->options.n_prompt + i;
        play->past_depths[i] = i + 1 < play->n_past   ? from->loops[i + 1]
                               : play->options.depths ? play->options.depths[position]
                                                      : 0;
    }
    play->submitted = true;
    s->n_plays++;
}

static void submit_play(struct schedule *s) {
    struct play *play = next_play(s);
    looplm_error err;
    static const int32_t lengths[] = {1, 2, 5, 12, 30, 62, 63, 64, 65, 70, 127, 128, 129, 150, 195};
    make_prompt(s, play, lengths[below(s, chance(s, 50) ? 6 : 15)]);
    make_options(s, play);
    play->options.tokens_max = play->options.score && chance(s, 50) ? 0 : 1 + below(s, chance(s, 80) ? 8 : 28);
    open_play(s, play);
    int status = scheduler_submit(s->scheduler, play->request, &err);
    if (status) { /* too long for this pool, or the queue is full */
        assert_int_equal(status, LOOPLM_LIMIT);
        request_close(play->request);
        return;
    }
    play->submitted = true;
    s->n_plays++;
    if (chance(s, 15))
        for (int32_t n = 1 + below(s, 4); n > 0; n--) fork_play(s, play);
}

static void disturb(struct schedule *s) {
    struct play *play = s->n_plays ? &s->plays[below(s, s->n_plays)] : NULL;
    bool full = s->n_plays == REQUESTS;
    if (!full && chance(s, s->step < 4 ? 80 : 12)) submit_play(s);
    if (!play || play->finished) return;
    if (chance(s, 2)) request_cancel(play->request);
    if (chance(s, 4)) fork_play(s, play);
}

static void make_schedule(struct schedule *s, uint64_t number) {
    looplm_error err;
    memset(s, 0, sizeof *s);
    s->number = number;
    s->random = (struct random){number, 0};
    clock_now = 1000;
    s->options = (struct scheduler_options){.running_max = 1 + below(s, chance(s, 50) ? 3 : 8),
                                            .waiting_max = 1 + below(s, 20),
                                            .context = POSITIONS,
                                            .kv_positions = KV_BLOCK * below(s, chance(s, 60) ? 5 : 16),
                                            .planes = R,
                                            .prefix_cache = chance(s, 70),
                                            .reserve_worst_case = chance(s, 15),
                                            .poison = true,
                                            .now = fake_clock};
    static const int32_t prefill[] = {0, 0, 1, 3, 16, 40};
    s->options.prefill_rows = prefill[below(s, 6)];
    s->options.rows_max = s->options.running_max + 1 + below(s, chance(s, 30) ? 3 : 60);
    s->priorities = chance(s, 50) ? 1 : 3;
    if (scheduler_open(&s->scheduler, tiny.model, &s->options, &err)) fail_msg("%s", err.message);
}

static void assert_bounds(const struct schedule *s) {
    struct scheduler_counters c = scheduler_counters(s->scheduler);
    assert_true(c.running <= s->options.running_max);
    assert_true(c.blocks_used <= c.blocks);
    if (s->options.reserve_worst_case && s->priorities == 1) assert_int_equal(c.preemptions, 0);
}

static void end_schedule(struct schedule *s, struct scheduler_counters *totals) {
    struct scheduler_counters c = scheduler_counters(s->scheduler);
    int64_t finished = 0;
    for (int i = 0; i < REQUEST_REASONS; i++) finished += c.finished[i];
    assert_int_equal(finished, c.submitted);
    assert_int_equal(finished, s->n_plays);
    assert_int_equal(c.running, 0);
    assert_int_equal(c.waiting, 0);
    assert_int_equal(c.blocks_used, c.cache_blocks);
    scheduler_forget_prefixes(s->scheduler);
    assert_int_equal(scheduler_counters(s->scheduler).blocks_used, 0);
    int64_t preemptions = 0, evictions = 0, replayed = 0, cached = 0, shared = 0;
    for (int32_t i = 0; i < s->n_plays; i++) {
        const struct request_counters *r = &s->plays[i].request->counters;
        assert_true(s->plays[i].finished);
        assert_exact(s, &s->plays[i]);
        preemptions += r->preemptions;
        evictions += r->evictions;
        replayed += r->replayed;
        cached += r->cached;
        shared += r->shared;
        request_close(s->plays[i].request);
    }
    assert_true(preemptions == c.preemptions && evictions == c.evictions && replayed == c.replayed);
    assert_true(cached == c.cached && shared == c.shared);
    totals->submitted += c.submitted;
    totals->preemptions += c.preemptions;
    totals->replayed += c.replayed;
    totals->cached += c.cached;
    totals->shared += c.shared;
    totals->evictions += c.evictions;
    totals->forks += c.forks;
    for (int i = 0; i < REQUEST_REASONS; i++) totals->finished[i] += c.finished[i];
    scheduler_close(s->scheduler);
}

static void play_schedule(uint64_t number, struct scheduler_counters *totals) {
    static struct schedule s;
    looplm_error err;
    make_schedule(&s, number);
    int64_t arrivals = 5 + below(&s, 60);
    for (bool busy = true; busy || s.step < arrivals; s.step++) {
        if (s.step < arrivals) disturb(&s);
        clock_now += 1;
        if (scheduler_step(s.scheduler, &busy, &err))
            fail_msg("schedule %llu: %s", (unsigned long long)number, err.message);
        assert_bounds(&s);
        if (s.step > STEPS_MAX) fail_msg("schedule %llu does not end", (unsigned long long)number);
    }
    end_schedule(&s, totals);
}

static void open_model(void) {
    looplm_error err;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine_options options = {.rows_max = 64 + ENGINE_BACKLOG_MAX,
                                     .sequences_max = 1,
                                     .kv_positions = 2 * POSITIONS,
                                     .planes = R,
                                     .kv_type = KV_F32,
                                     .poison = true};
    if (engine_open(&alone, tiny.model, &options, &err)) fail_msg("%s", err.message);
}

static void test_schedules(void **state) {
    (void)state;
    const char *count = getenv("LOOPLM_SCHEDULES"), *one = getenv("LOOPLM_SCHEDULE");
    uint64_t n = count ? strtoull(count, NULL, 10) : 1000 / THIN(10), first = one ? strtoull(one, NULL, 10) : 0;
    struct scheduler_counters totals = {0};
    open_model();
    if (one) n = 1;
    for (uint64_t i = first; i < first + n; i++) play_schedule(i, &totals);
    printf("%llu schedules: %lld requests (%lld stopped, %lld full, %lld cancelled, %lld late), %lld forks, "
           "%lld preemptions, positions %lld replayed, %lld from the cache, %lld shared; %lld evictions\n",
           (unsigned long long)n, (long long)totals.submitted, (long long)totals.finished[REQUEST_ENDED_STOP],
           (long long)totals.finished[REQUEST_ENDED_LENGTH], (long long)totals.finished[REQUEST_ENDED_CANCELLED],
           (long long)totals.finished[REQUEST_ENDED_DEADLINE], (long long)totals.forks, (long long)totals.preemptions,
           (long long)totals.replayed, (long long)totals.cached, (long long)totals.shared, (long long)totals.evictions);
    if (n >= 50) { /* every mechanism had its turn */
        assert_true(totals.preemptions > 0 && totals.replayed > 0 && totals.cached > 0 && totals.shared > 0);
        assert_true(totals.evictions > 0 && totals.forks > 0);
        for (int i = REQUEST_ENDED_STOP; i < REQUEST_ENDED_DAMAGED; i++) assert_true(totals.finished[i] > 0);
    }
    engine_close(alone);
    tiny_close(&tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
