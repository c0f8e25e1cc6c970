/* The bits promise across requests: five rows of tokens, three loops, all 243 vectors of forced depths, both KV
 * policies, each generated alone and then preempted after every one of its tokens, forked in mid-flight after every
 * one, on a prompt that the cache holds, and with speculation; ids, loops, log-probabilities and logits are the same.
 * And the scheduler's edges: pools and passes of the least size, cancellation in every state, deadlines in the queue,
 * limits.
 */
#include "engine/engine_internal.h"
#include "engine/scheduler.h"
#include "support/support.h"
#include "support/tiny.h"

#include <string.h>

#define R 3
#define V 67
#define N 6       /* the row of the last is not run: five have a depth */
#define PROMPT 65 /* a whole block, and what follows it */

static struct tiny tiny;
static int32_t prompt[PROMPT];

struct made {
    int32_t ids[N], loops[N], n;
    float logprob[N];
    real logits[N][V];
    int32_t finished;
};

struct watch {
    struct made *made;
    int32_t act_at; /* tokens after which `act` is called, -1 never */
    void (*act)(struct watch *watch, struct request *request);
    struct scheduler *scheduler;
    struct request *other;
};

static void on_token(void *context, struct request *r, const struct prediction *p) {
    struct watch *w = context;
    int32_t i = request_made(r) - 1;
    w->made->ids[i] = p->id;
    w->made->loops[i] = p->loops;
    w->made->logprob[i] = (float)p->logprob;
    memcpy(w->made->logits[i], p->logits, sizeof w->made->logits[i]);
    w->made->n++;
    if (w->act && request_made(r) == w->act_at) w->act(w, r);
}

static void on_finish(void *context, struct request *r) {
    struct watch *w = context;
    (void)r;
    w->made->finished++;
}

static struct scheduler *open_scheduler(int32_t running_max, int64_t positions, int32_t rows_max, bool cache) {
    struct scheduler *s;
    looplm_error err;
    struct scheduler_options o = {.running_max = running_max,
                                  .waiting_max = 8,
                                  .context = 256,
                                  .kv_positions = positions,
                                  .planes = R,
                                  .kv_type = KV_F32,
                                  .rows_max = rows_max,
                                  .prefix_cache = cache,
                                  .poison = true};
    if (scheduler_open(&s, tiny.model, &o, &err)) fail_msg("%s", err.message);
    return s;
}

static struct request_options options_of(struct watch *w, const uint8_t *depths, enum kv_policy policy) {
    memset(w->made, 0, sizeof *w->made);
    return (struct request_options){.prompt = prompt,
                                    .n_prompt = PROMPT,
                                    .tokens_max = N,
                                    .policy = policy,
                                    .sampler = {0.7f, 1, 0, 0, 1, 3},
                                    .depths = depths,
                                    .on_token = on_token,
                                    .on_finish = on_finish,
                                    .context = w};
}

static struct request *submit(struct scheduler *s, const struct request_options *o) {
    struct request *r;
    looplm_error err;
    if (request_open(&r, o, &err) || scheduler_submit(s, r, &err)) fail_msg("%s", err.message);
    return r;
}

static void run(struct scheduler *s) {
    looplm_error err;
    bool busy = true;
    for (int n = 0; busy; n++) {
        if (scheduler_step(s, &busy, &err)) fail_msg("%s", err.message);
        assert_true(n < 10000);
    }
}

/* A request of higher priority comes: with one place it takes that of the other. */
static void intrude(struct watch *w, struct request *r) {
    static struct made ignored;
    static struct watch other = {.made = &ignored};
    struct request_options o = options_of(&other, NULL, KV_POLICY_LAST_EXITED);
    o.n_prompt = 3;
    o.tokens_max = 1;
    o.priority = 1;
    w->other = submit(w->scheduler, &o);
    (void)r;
}

static void fork_now(struct watch *w, struct request *r) {
    static struct watch child;
    looplm_error err;
    struct made *made = w->made + 1;
    child = (struct watch){.made = made};
    struct request_options o = options_of(&child, r->options.depths, r->options.policy);
    *made = *w->made;
    made->finished = 0;
    if (request_open(&w->other, &o, &err) || scheduler_fork(w->scheduler, r, w->other, &err))
        fail_msg("%s", err.message);
}

static void assert_same(const char *how, int v, int at, const struct made *want, const struct made *got) {
    if (got->n == N && got->finished == 1 && !memcmp(want->ids, got->ids, sizeof want->ids) &&
        !memcmp(want->loops, got->loops, sizeof want->loops) &&
        !memcmp(want->logprob, got->logprob, sizeof want->logprob) &&
        !memcmp(want->logits, got->logits, sizeof want->logits))
        return;
    fail_msg("%s after %d tokens: depths %d differ", how, at, v);
}

static void play(struct scheduler *s, const struct request_options *o, struct watch *w) {
    w->scheduler = s;
    w->other = NULL;
    struct request *r = submit(s, o);
    run(s);
    request_close(r);
    request_close(w->other);
}

static void every_way(struct scheduler *plain, struct scheduler *one, struct scheduler *cached, int v,
                      enum kv_policy policy) {
    static struct made want, got[2];
    uint8_t depths[PROMPT + N];
    for (int i = 0, d = v; i<PROMPT + N; i++, d = i> PROMPT ? d / 3 : v) depths[i] = (uint8_t)(d % 3 + 1);
    struct watch w = {.made = &want};
    struct request_options o = options_of(&w, depths, policy);
    play(plain, &o, &w);
    assert_int_equal(want.n, N);
    for (int at = 1; at < N; at++) {
        w = (struct watch){.made = got, .act_at = at, .act = intrude};
        o = options_of(&w, depths, policy);
        int64_t before = scheduler_counters(one).preemptions;
        play(one, &o, &w);
        assert_int_equal(scheduler_counters(one).preemptions, before + 1);
        assert_same("preempted", v, at, &want, got);
        w = (struct watch){.made = got, .act_at = at, .act = fork_now};
        o = options_of(&w, depths, policy);
        before = scheduler_counters(plain).shared;
        play(plain, &o, &w);
        assert_true(scheduler_counters(plain).shared >= before + KV_BLOCK);
        assert_same("forked: the parent", v, at, &want, got);
        assert_same("forked: the child", v, at, &want, got + 1);
    }
    w = (struct watch){.made = got};
    o = options_of(&w, depths, policy);
    int64_t before = scheduler_counters(cached).cached;
    play(cached, &o, &w);
    assert_true(v == 0 || scheduler_counters(cached).cached == before + KV_BLOCK);
    assert_same("on cached blocks", v, 0, &want, got);
    if (kv_policy_shared(policy)) return; /* which refuse speculation */
    o = options_of(&w, depths, policy);
    o.speculate = SPECULATE_ALWAYS;
    play(cached, &o, &w);
    assert_same("on cached blocks, with speculation", v, 0, &want, got);
}

static void test_every_depth_vector(void **state) {
    (void)state;
    struct scheduler *plain = open_scheduler(2, 512, 200, false), *one = open_scheduler(1, 256, 200, false),
                     *cached = open_scheduler(1, 256, 200, true);
    for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_SHARED_FIRST; policy++)
        for (int v = 0; v < 243; v += THIN(5)) every_way(plain, one, cached, v, (enum kv_policy)policy);
    scheduler_close(plain);
    scheduler_close(one);
    scheduler_close(cached);
}

/* Where every depth is the last: the passes and rows of the fixed-depth engine. */
static void test_fixed_depth(void **state) {
    (void)state;
    struct engine_counters counters[2];
    uint8_t depths[PROMPT + N];
    memset(depths, R, sizeof depths);
    for (int k = 0; k < 2; k++) {
        struct scheduler *s = open_scheduler(3, 2048, 128, false);
        static struct made made[6];
        struct watch w[6];
        struct request *r[6];
        for (int i = 0; i < 6; i++) {
            w[i] = (struct watch){.made = &made[i]};
            struct request_options o = options_of(&w[i], k ? depths : NULL, KV_POLICY_LAST_EXITED);
            o.n_prompt = 10 * (i + 1);
            r[i] = submit(s, &o);
        }
        run(s);
        for (int i = 0; i < 6; i++) request_close(r[i]);
        counters[k] = *engine_counters(scheduler_engine(s));
        scheduler_close(s);
    }
    assert_int_equal(counters[0].passes, counters[1].passes);
    assert_int_equal(counters[0].rows, counters[1].rows);
    assert_memory_equal(counters[0].passes_of, counters[1].passes_of, sizeof counters[0].passes_of);
    assert_int_equal(counters[0].rows, (10 + 20 + 30 + 40 + 50 + 60 + 6 * (N - 1)) * R);
}

/* A place that is left in one pass serves another request in the very next. */
static void test_refill(void **state) {
    (void)state;
    struct scheduler *s = open_scheduler(1, 256, 16, false);
    static struct made made[3];
    struct watch w[3];
    struct request *r[3];
    for (int i = 0; i < 3; i++) {
        w[i] = (struct watch){.made = &made[i]};
        struct request_options o = options_of(&w[i], NULL, KV_POLICY_LAST_EXITED);
        o.n_prompt = 4;
        o.tokens_max = 1;
        r[i] = submit(s, &o);
    }
    run(s);
    assert_int_equal(engine_counters(scheduler_engine(s))->passes, 3 * R);
    for (int i = 0; i < 3; i++) request_close(r[i]);
    scheduler_close(s);
}

static double time_now;
static double told_time(void) {
    return time_now;
}

/* In the queue, while the prompt runs, after preemption: cancelled and late requests end, and their forks go on. */
static void test_ends(void **state) {
    (void)state;
    struct scheduler *s;
    looplm_error err;
    struct scheduler_options so = {.running_max = 1,
                                   .waiting_max = 4,
                                   .context = 256,
                                   .kv_positions = 256,
                                   .planes = R,
                                   .kv_type = KV_F32,
                                   .rows_max = 2,
                                   .prefill_rows = 1,
                                   .poison = true,
                                   .now = told_time};
    time_now = 1;
    assert_int_equal(scheduler_open(&s, tiny.model, &so, &err), 0);
    static struct made made[4];
    struct watch w[4];
    struct request *r[4];
    for (int i = 0; i < 4; i++) {
        w[i] = (struct watch){.made = &made[i]};
        struct request_options o = options_of(&w[i], NULL, KV_POLICY_LAST_EXITED);
        o.deadline = i == 1 ? 5 : 0;
        assert_int_equal(request_open(&r[i], &o, &err), 0);
        assert_int_equal(i == 3 ? scheduler_fork(s, r[0], r[3], &err) : scheduler_submit(s, r[i], &err), 0);
    }
    struct request *more;
    static struct made unused;
    struct watch extra = {.made = &unused};
    struct request_options o = options_of(&extra, NULL, KV_POLICY_LAST_EXITED);
    assert_int_equal(request_open(&more, &o, &err), 0);
    assert_int_equal(scheduler_submit(s, more, &err), LOOPLM_LIMIT); /* the queue is full */
    request_close(more);
    bool busy;
    for (int i = 0; i < 4; i++) assert_int_equal(scheduler_step(s, &busy, &err), 0);
    assert_int_equal(r[0]->state, REQUEST_RUNNING);
    request_cancel(r[0]); /* in its prompt */
    request_cancel(r[2]); /* in the queue */
    time_now = 5;         /* r[1] is late in the queue */
    assert_int_equal(scheduler_step(s, &busy, &err), 0);
    assert_int_equal(r[0]->reason, REQUEST_ENDED_CANCELLED);
    assert_int_equal(r[1]->reason, REQUEST_ENDED_DEADLINE);
    assert_int_equal(r[2]->reason, REQUEST_ENDED_CANCELLED);
    assert_int_equal(scheduler_fork(s, r[0], r[1], &err), LOOPLM_USAGE);
    run(s);
    assert_int_equal(r[3]->reason, REQUEST_ENDED_LENGTH);
    assert_int_equal(made[3].n, N);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(made[i].finished, 1);
        request_close(r[i]);
    }
    assert_int_equal(scheduler_counters(s).blocks_used, 0);
    scheduler_close(s);
}

/* What can never run is refused at once; the largest that can does. */
static void test_least_pool(void **state) {
    (void)state;
    struct scheduler *s = open_scheduler(1, 64, 2, true); /* 128 positions */
    static struct made made;
    struct watch w = {.made = &made};
    looplm_error err;
    int32_t ids[129] = {0};
    struct request_options o = options_of(&w, NULL, KV_POLICY_FULL);
    o.prompt = ids;
    o.n_prompt = 120;
    o.tokens_max = 9;
    struct request *r;
    assert_int_equal(request_open(&r, &o, &err), 0);
    assert_int_equal(scheduler_submit(s, r, &err), LOOPLM_LIMIT);
    request_close(r);
    o.tokens_max = 5;
    for (int i = 0; i < 3; i++) { /* the cache gives its blocks up */
        ids[0] = i;
        made.n = 0;
        r = submit(s, &o);
        run(s);
        assert_int_equal(r->reason, REQUEST_ENDED_LENGTH);
        request_close(r);
    }
    assert_true(scheduler_counters(s).evictions > 0);
    ids[3] = V;
    assert_int_equal(request_open(&r, &o, &err), 0);
    assert_int_equal(scheduler_submit(s, r, &err), LOOPLM_USAGE);
    request_close(r);
    scheduler_close(s);
}

static void count_predictions(void *context, struct request *r, const struct prediction *p) {
    int32_t *counts = context;
    (void)r;
    counts[p->position]++;
}

/* A scored request has its last token while its rows still owe loops; preempted then, the token is not run for that. */
static void test_preempted_owing_loops(void **state) {
    (void)state;
    looplm_error err;
    struct scheduler *s = open_scheduler(1, KV_BLOCK, 8, false);
    struct made made;
    struct watch watch = {.made = &made, .act_at = -1};
    int32_t counts[4] = {0};
    struct request_options o = options_of(&watch, NULL, KV_POLICY_FULL), urgent = o;
    o.n_prompt = 2;
    o.tokens_max = 1;
    o.score = true;
    o.on_token = count_predictions;
    o.on_finish = NULL;
    o.context = counts;
    if (exit_rule_parse(&o.rule, "diff=0.1,max=2", &err)) fail_msg("%s", err.message);
    urgent.n_prompt = urgent.tokens_max = 1;
    urgent.priority = 1;
    struct request *scored = submit(s, &o), *other;
    for (bool busy; request_made(scored) == 0;) assert_int_equal(scheduler_step(s, &busy, &err), 0);
    assert_int_equal(scored->state, REQUEST_RUNNING);
    other = submit(s, &urgent);
    run(s);
    assert_int_equal(scheduler_counters(s).preemptions, 1);
    assert_int_equal(scored->reason, REQUEST_ENDED_LENGTH);
    for (int32_t i = 0; i < 4; i++) assert_int_equal(counts[i], i < 2);
    request_close(scored);
    request_close(other);
    scheduler_close(s);
}

static int open_model(void **state) {
    (void)state;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    for (int i = 0; i < PROMPT; i++) prompt[i] = (i * i + 3) % V;
    return 0;
}
static int close_model(void **state) {
    (void)state;
    tiny_close(&tiny);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_depth_vector),
                                       cmocka_unit_test(test_fixed_depth),
                                       cmocka_unit_test(test_refill),
                                       cmocka_unit_test(test_ends),
                                       cmocka_unit_test(test_least_pool),
                                       cmocka_unit_test(test_preempted_owing_loops)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
