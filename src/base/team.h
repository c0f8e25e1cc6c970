/* A thread team: a fixed set of workers that run one function together and meet at barriers inside it. */
#ifndef BASE_TEAM_H
#define BASE_TEAM_H

#include "base/error.h"

#define TEAM_THREADS_MAX 256

struct team;

/* n_threads counts the caller; 0 means as many as there are processors that this process may use. */
int team_open(struct team **team, int n_threads, looplm_error *err);
/* Ends and frees the team; NULL is allowed. No run may be going on. */
void team_close(struct team *team);
int team_size(const struct team *team);

/* worker is 0..workers-1; the caller of team_run is worker 0. */
typedef void team_fn(void *context, int worker, int workers);

/* Runs fn once on every worker and returns when all have ended. What the caller wrote before is seen by the workers,
 * and what they wrote is seen by the caller after. One thread at a time may call it, and never from inside a run. */
void team_run(struct team *team, team_fn *fn, void *context);

/* Only inside a run, by every worker: nobody passes before all have come, and what was written before is seen after. */
void team_barrier(struct team *team);

/* The part [*begin, *end) of n items that belongs to a worker: whole multiples of `unit` items, in order. */
void team_share(int64_t n, int64_t unit, int worker, int workers, int64_t *begin, int64_t *end);

#endif
