/* The scheduler: which requests run, and what becomes of their KV blocks. It owns an engine with a bounded number of
 * places, each a sequence that serves one request after another, a queue of waiting requests, and the prefix cache.
 *
 *                    scheduler_submit, scheduler_fork
 *                                  |
 *                                  v      admit: a place and blocks are there
 *                               WAITING ------------------------------------> RUNNING
 *                                |   ^                                         |   |
 *       cancel, deadline: finish |   |   preempt: blocks ran out, or a higher  |   | take: stop id, length, damaged
 *                                |   +---- priority needs the place -----------+   | cancel, deadline: finish
 *                                v                                                 v
 *                            FINISHED <--------------------------------------------+
 *
 * A step is: finish what was cancelled or is late; admit; one pass of the engine; offer new blocks to the cache; finish
 * what is done. So a place that a request leaves in one pass serves another in the next.
 *
 * Rank: requests go by priority, higher first, then by number of submission. A preempted request keeps its number.
 *
 * Invariants.
 *   1. Any one request fits into the pool alone (scheduler_submit refuses others), so the first in rank always gets on,
 *      if need be by preempting all others.
 *   2. Waiting requests are admitted in order of rank; nobody overtakes a request that waits for blocks or a place.
 * Only a fork whose parent has not run its prompt yet is passed over, until it has.
 *   3. A running request never loses blocks to one behind it in rank.
 *   4. A waiting request owns no block. What it needs to go on is in its record: ids and the loops at which each left;
 *      replayed at those depths they give the same planes, bit for bit.
 *   5. Every block of the pool is free, or owned by running requests and the prefix cache.
 *   6. With worst-case reservation the blocks that all running requests may come to need fit into the pool: none of
 * them is preempted for blocks.
 *   7. What a request gives (tokens, log-probabilities, loops) depends on its own options and record alone.
 * After scheduler_open nothing is allocated (a request's memory is had by request_open). One thread owns a scheduler;
 * service.h gives it a thread and takes requests from others.
 */
#ifndef ENGINE_SCHEDULER_H
#define ENGINE_SCHEDULER_H

#include "engine/request.h"

struct scheduler_options {
    int32_t running_max;  /* places */
    int32_t waiting_max;  /* requests in the queue */
    int32_t context;      /* positions of one request at most */
    int64_t kv_positions; /* as in engine_options, with planes and kv_type */
    int32_t planes;
    enum kv_type kv_type;
    int32_t rows_max;     /* of a pass; more than running_max */
    int32_t prefill_rows; /* of them for prompts at most; 0: what running_max leaves */
    bool prefix_cache;
    bool reserve_worst_case;
    bool poison;         /* tests: freed blocks are filled with NaN */
    double (*now)(void); /* NULL: clock_seconds; tests bring their own */
};
int scheduler_open(struct scheduler **scheduler, struct model *model, const struct scheduler_options *options,
                   looplm_error *err);
void scheduler_close(struct scheduler *scheduler); /* cancels what is left; NULL is allowed */
struct engine *scheduler_engine(struct scheduler *scheduler);

/* Puts a new request into the queue. What can never run, and a full queue, are errors; the request stays new then. */
int scheduler_submit(struct scheduler *scheduler, struct request *request, looplm_error *err);
/* Submits `child`, a new request with the parent's prompt, as a continuation of what the parent (waiting or running)
 * has so far, and shares the blocks of their past. Several children of a parent that has just been submitted are the n
 * > 1, best-of and rollout groups: the prompt runs once. A parent that has finished is an error. */
int scheduler_fork(struct scheduler *scheduler, struct request *parent, struct request *child, looplm_error *err);

/* One step. busy: there is more to do; otherwise every request has finished. */
int scheduler_step(struct scheduler *scheduler, bool *busy, looplm_error *err);
/* Drops the prefix cache's entries: blocks nobody runs on are free. */
void scheduler_forget_prefixes(struct scheduler *scheduler);

struct scheduler_counters {
    int64_t submitted, admitted, forks, finished[REQUEST_REASONS];
    int64_t preemptions, replayed;           /* replayed: positions that ran again */
    int64_t admitted_positions;              /* ids of admitted requests */
    int64_t cached, shared;                  /* of them taken from the cache, from other requests */
    int64_t hits;                            /* admissions that took any from the cache */
    int64_t cache_blocks, evictions;         /* blocks of the cache now; entries evicted so far */
    int64_t blocks, blocks_used, blocks_max; /* of the pool; in use now, and at most so far */
    int32_t waiting, running, running_most;
    double queue_s, queue_s_max; /* of finished requests */
    double step_s;               /* in scheduler_step, the engine's part included */
};
struct scheduler_counters scheduler_counters(const struct scheduler *scheduler);

#endif
