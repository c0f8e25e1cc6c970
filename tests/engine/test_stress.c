/* Two hundred requests at a time from four threads, prompts of 16 to 1024 ids, cancelled at random, some of them
 * forked: what the sanitizers are to see. Every request ends, those that are not cancelled with all their tokens, and
 * no block is lost.
 *
 * LOOPLM_STRESS_S says for how many seconds (2 without it; 600 for the long run). */
#include "base/clock.h"
#include "base/random.h"
#include "engine/service.h"
#include "support/support.h"
#include "support/tiny.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define CLIENTS 4
#define ALIVE 50 /* requests of one client at a time */
#define PROMPT_MAX 1024
#define GROUP 4

struct client;
struct item {
    struct client *client;
    struct request *request;
    bool done;
};

/* A thread and its requests; `done` and `left` under the lock, the rest its own. */
struct client {
    struct service *service;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    struct random random;
    struct item items[ALIVE];
    int64_t finished, cancelled, refused, tokens;
    double until;
};

static int32_t below(struct client *c, int32_t n) {
    return (int32_t)random_below(&c->random, (uint64_t)n);
}

static void on_finish(void *context, struct request *request) {
    struct item *item = context;
    struct client *c = item->client;
    (void)request;
    pthread_mutex_lock(&c->lock);
    item->done = true;
    pthread_cond_signal(&c->ended);
    pthread_mutex_unlock(&c->lock);
}

static struct item *free_item(struct client *c) {
    for (int i = 0; i < ALIVE; i++)
        if (!c->items[i].request) return &c->items[i];
    return NULL;
}

/* Opens up to `n` requests with one prompt. */
static int32_t open_group(struct client *c, struct request **group, int32_t n) {
    static const char *const rules[] = {"full", "q=0.5", "diff=0.6", "loops=2", "conf=0.2"};
    int32_t prompt[PROMPT_MAX], length = 16 + below(c, below(c, 4) ? 100 : PROMPT_MAX - 15), opened = 0;
    int32_t text = below(c, 4), common = below(c, length + 1);
    for (int32_t i = 0; i < length; i++)
        prompt[i] = i < common ? (int32_t)(random_hash(9, (uint64_t)text, (uint64_t)i) % 67) : below(c, 67);
    struct request_options o = {.prompt = prompt,
                                .n_prompt = length,
                                .tokens_max = 1 + below(c, 24),
                                .priority = below(c, 3),
                                .deadline = below(c, 10) ? 0 : clock_seconds() + 0.05,
                                .policy = below(c, 3) ? KV_POLICY_LAST_EXITED : KV_POLICY_FULL,
                                .speculate = below(c, 3) ? SPECULATE_OFF : SPECULATE_ALWAYS,
                                .on_finish = on_finish};
    looplm_error err;
    assert_int_equal(exit_rule_parse(&o.rule, rules[below(c, 5)], &err), 0);
    for (struct item *item; opened < n && (item = free_item(c)); opened++) {
        o.sampler = (struct sampler_options){1, 1, 0, 0, 1, (uint64_t)below(c, 1 << 20)};
        o.context = item;
        *item = (struct item){.client = c};
        if (request_open(&item->request, &o, &err)) fail_msg("%s", err.message);
        group[opened] = item->request;
    }
    return opened;
}

static void submit(struct client *c) {
    struct request *group[GROUP];
    looplm_error err;
    int32_t n = open_group(c, group, below(c, 4) ? 1 : GROUP);
    if (n == 0 || !service_submit(c->service, group, n, &err)) return;
    assert_int_equal(err.status, LOOPLM_LIMIT); /* the queue was full */
    for (int i = 0; i < ALIVE; i++)
        for (int32_t k = 0; k < n; k++)
            if (c->items[i].request == group[k]) c->items[i].request = NULL;
    for (int32_t k = 0; k < n; k++) request_close(group[k]);
}

static void close_done(struct client *c) {
    for (int i = 0; i < ALIVE; i++) {
        struct item *item = &c->items[i];
        if (!item->request || !item->done) continue;
        struct request *r = item->request;
        bool whole = r->reason == REQUEST_ENDED_LENGTH;
        c->finished++;
        c->cancelled += r->reason == REQUEST_ENDED_CANCELLED;
        c->refused += r->reason == REQUEST_ENDED_REFUSED;
        c->tokens += request_made(r);
        if (whole ? request_made(r) != r->options.tokens_max : r->reason == REQUEST_ENDED_DAMAGED)
            fail_msg("a request ended as '%s' with %d tokens", request_reason_name(r->reason), request_made(r));
        request_close(r);
        item->request = NULL;
    }
}

static void *live(void *context) {
    struct client *c = context;
    while (clock_seconds() < c->until) {
        while (free_item(c)) submit(c);
        struct item *item = &c->items[below(c, ALIVE)];
        if (item->request && below(c, 3) == 0) request_cancel(item->request);
        pthread_mutex_lock(&c->lock);
        bool any = false;
        for (int i = 0; i < ALIVE; i++) any |= c->items[i].request && c->items[i].done;
        if (!any) pthread_cond_wait(&c->ended, &c->lock);
        close_done(c);
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

static void start(struct client *clients, struct service *service, double until) {
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.service = service, .random = {(uint64_t)i, 0}, .until = until};
        pthread_mutex_init(&clients[i].lock, NULL);
        pthread_cond_init(&clients[i].ended, NULL);
    }
    for (int i = 0; i < CLIENTS; i++) assert_int_equal(pthread_create(&clients[i].thread, NULL, live, &clients[i]), 0);
}

static void test_stress(void **state) {
    (void)state;
    static struct client clients[CLIENTS];
    struct tiny tiny;
    struct service *service;
    looplm_error err;
    const char *seconds = getenv("LOOPLM_STRESS_S");
    tiny_open(&tiny, 3, WEIGHT_F32, NULL, 1);
    struct scheduler_options options = {.running_max = 32,
                                        .waiting_max = CLIENTS * ALIVE,
                                        .context = 1100,
                                        .kv_positions = 4096,
                                        .planes = 3,
                                        .kv_type = KV_F32,
                                        .rows_max = 128,
                                        .prefill_rows = 64,
                                        .prefix_cache = true,
                                        .poison = true};
    assert_int_equal(service_open(&service, tiny.model, &options, &err), 0);
    start(clients, service, clock_seconds() + (seconds ? strtod(seconds, NULL) : 2));
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i].thread, NULL);
    struct scheduler_counters counters = service_counters(service);
    service_close(service); /* a lost block would stop the pool from being freed: scheduler_close checks */
    int64_t finished = 0, cancelled = 0, refused = 0, tokens = 0;
    for (int i = 0; i < CLIENTS; i++) {
        close_done(&clients[i]);
        for (int k = 0; k < ALIVE; k++) assert_null(clients[i].items[k].request);
        finished += clients[i].finished;
        cancelled += clients[i].cancelled;
        refused += clients[i].refused;
        tokens += clients[i].tokens;
        pthread_mutex_destroy(&clients[i].lock);
        pthread_cond_destroy(&clients[i].ended);
    }
    printf("%lld requests, %lld cancelled, %lld refused, %lld tokens; %lld preemptions, %lld positions from the cache, "
           "%lld shared, %lld evictions\n",
           (long long)finished, (long long)cancelled, (long long)refused, (long long)tokens,
           (long long)counters.preemptions, (long long)counters.cached, (long long)counters.shared,
           (long long)counters.evictions);
    assert_true(finished > CLIENTS * ALIVE && cancelled > 0 && tokens > 0);
    assert_int_equal(refused, 0);
    tiny_close(&tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stress)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
