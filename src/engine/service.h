/* A scheduler with a thread of its own, for callers on any thread (a server).
 *
 * One thread owns the scheduler; all others send messages through a bounded queue. Requests come back through their
 * callbacks (request.h), which run on the service's thread and must not block it.
 */
#ifndef ENGINE_SERVICE_H
#define ENGINE_SERVICE_H

#include "engine/scheduler.h"

#define SERVICE_MESSAGES_MAX 1024

struct service;

/* Opens a scheduler and starts its thread. */
int service_open(struct service **service, struct model *model, const struct scheduler_options *options,
                 looplm_error *err);
/* Cancels what is left, with its callbacks, and ends the thread. Nobody may send any more. NULL is allowed. */
void service_close(struct service *service);

/* Sends n new requests as one message: requests[1..] fork requests[0], before it has made anything (n > 1, best-of,
 * groups). LOOPLM_LIMIT when the queue is full: then none was taken. What the scheduler refuses afterwards ends at
 * once, as REQUEST_ENDED_REFUSED. */
int service_submit(struct service *service, struct request *const *requests, int32_t n, looplm_error *err);
/* The same for one fork in mid-flight. The parent must not be closed before the child has finished; one that has ended
 * meanwhile refuses the child. */
int service_fork(struct service *service, struct request *parent, struct request *child, looplm_error *err);
/* Counters as of the last step. */
struct scheduler_counters service_counters(struct service *service);

#endif
