/* A request: a prompt to continue, under its own exit rule, KV policy and sampling; and the record of what came of it,
 * which is also what it is taken up from after a preemption. Served by a scheduler (scheduler.h).
 *
 * Whoever opens a request owns its memory and closes it, at the earliest in its on_finish; between submission and
 * on_finish it belongs to the scheduler's thread, and only request_cancel may be called from others.
 */
#ifndef ENGINE_REQUEST_H
#define ENGINE_REQUEST_H

#include "engine/engine.h"
#include "engine/prefix_cache.h"

#include <stdatomic.h>

#define REQUEST_STOPS_MAX 16 /* ids that end a request */

struct scheduler;
struct request;

#define REQUEST_STATE_MAP(X) X(NEW, "new") X(WAITING, "waiting") X(RUNNING, "running") X(FINISHED, "finished")
enum request_state {
#define X(code, name) REQUEST_##code,
    REQUEST_STATE_MAP(X)
#undef X
};

/* Why it ended. */
#define REQUEST_REASON_MAP(X)                                                                             \
    X(NONE, "none") /* it has not */                                                                      \
    X(STOP, "stop") /* one of its stop ids came, the last of its tokens */                                \
    X(LENGTH, "length")                                                                                   \
    X(CANCELLED, "cancelled")                                                                             \
    X(DEADLINE, "deadline")                                                                               \
    X(DAMAGED, "damaged") /* logits that are not finite: the model is damaged or its training diverged */ \
    X(REFUSED, "refused") /* by the scheduler, after a service had taken it */
enum request_reason {
#define X(code, name) REQUEST_ENDED_##code,
    REQUEST_REASON_MAP(X)
#undef X
        REQUEST_REASONS
};
const char *request_reason_name(enum request_reason reason);

/* Both on the scheduler's thread. They may cancel requests and open, submit or fork others, and on_finish may close its
 * own; nothing else of the scheduler may be called. */
typedef void request_token_fn(void *context, struct request *request, const struct prediction *prediction);
typedef void request_finish_fn(void *context, struct request *request);

struct request_options {
    const int32_t *prompt; /* copied */
    int32_t n_prompt;
    int32_t tokens_max;   /* to generate; 0: the prompt is only run (and scored) */
    const int32_t *stops; /* [n_stops] ids, copied */
    int32_t n_stops;
    int32_t priority; /* higher goes first */
    double deadline;  /* clock_seconds() at which it ends; 0: none */
    struct exit_rule rule;
    enum kv_policy policy;
    struct sampler_options sampler;
    bool adaptive_prompt, score; /* as in sequence_options */
    enum speculate speculate;
    const uint8_t *depths;        /* [n_prompt + tokens_max] or NULL, as in sequence_options; the caller's */
    request_token_fn *on_token;   /* each generated token, or with score each position; may be NULL */
    request_finish_fn *on_finish; /* may be NULL */
    propose_fn *on_proposal;      /* measurements that force the acceptance; its context is the request */
    void *context;
};

struct request_counters {
    int64_t passes, rows, dropped_rows;
    int64_t proposals[ENGINE_PROPOSALS], accepted[ENGINE_PROPOSALS];
    int64_t loops[MODEL_LOOPS_MAX]; /* its tokens by their loops, from 1 */
    int32_t cached, shared;         /* positions that came from the prefix cache, from another request's blocks */
    int32_t replayed;               /* positions that had run before a preemption and ran again */
    int32_t preemptions, blocks_max;
    int64_t evictions;             /* entries that the prefix cache gave up to make room for it */
    double queue_s, compute_s;     /* waiting in all; its rows' share of passes and head reads */
    double first_token_s, total_s; /* from submission */
};

struct request {
    struct request_options options;
    int32_t number;   /* of submission, from 1 */
    int32_t capacity; /* n_prompt + tokens_max */
    int32_t planes;
    enum request_state state;
    enum request_reason reason;
    /* the record */
    int32_t *ids; /* [capacity] */
    int32_t n_ids;
    uint8_t *targets; /* [capacity] loops after which each left, or is to leave; 0: as the rule decides */
    float *logprobs;  /* [tokens_max] of ids[n_prompt + i] */
    uint8_t *loops;   /* [tokens_max] loops of the row that predicted it */
    struct request_counters counters;
    /* the scheduler's */
    atomic_bool cancelled;
    struct request *next, *previous; /* in the waiting list */
    struct request *parent;          /* whose blocks it may share, while both wait or run */
    struct sequence *sequence;       /* while it runs */
    struct scheduler *scheduler;
    struct prefix_key *keys; /* [capacity / KV_BLOCK] of its blocks, the first n_keys known */
    int32_t n_keys, n_kept;  /* blocks that the cache has been offered */
    bool *scored;            /* [capacity] with score: its prediction was handed out */
    int32_t n_ran;           /* positions that had run when it was preempted */
    double submitted, queued;
    int32_t stops[REQUEST_STOPS_MAX];
};

int request_open(struct request **request, const struct request_options *options, looplm_error *err);
void request_close(struct request *request); /* NULL is allowed */
/* From any thread, until it is closed: it finishes, at the latest before the next pass but one. */
void request_cancel(struct request *request);

static inline int32_t request_made(const struct request *request) {
    return request->n_ids - request->options.n_prompt;
}

#endif
