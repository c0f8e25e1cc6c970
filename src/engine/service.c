/* The service (service.h): a ring of messages under a mutex, and the loop of the thread that owns the scheduler. */
#include "engine/service.h"

#include <pthread.h>
#include <stdlib.h>

struct message {
    struct request *parent, *request; /* parent NULL: submit, else fork */
};

struct service {
    struct scheduler *scheduler; /* the thread's alone */
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t arrived;
    struct message messages[SERVICE_MESSAGES_MAX];
    int32_t first, n;
    bool closing;
    struct scheduler_counters counters;
};

static void refuse(struct request *r) {
    r->state = REQUEST_FINISHED;
    r->reason = REQUEST_ENDED_REFUSED;
    if (r->options.on_finish) r->options.on_finish(r->options.context, r);
}

static void handle(struct service *s, const struct message *m) {
    int status = m->parent ? scheduler_fork(s->scheduler, m->parent, m->request, NULL)
                           : scheduler_submit(s->scheduler, m->request, NULL);
    if (status) refuse(m->request);
}

/* Takes all messages that are there; waits for one while there is nothing to do. False when the service closes. */
static bool receive(struct service *s, bool busy) {
    struct message m;
    pthread_mutex_lock(&s->lock);
    s->counters = scheduler_counters(s->scheduler);
    while (!busy && s->n == 0 && !s->closing) pthread_cond_wait(&s->arrived, &s->lock);
    while (s->n > 0) {
        m = s->messages[s->first];
        s->first = (s->first + 1) % SERVICE_MESSAGES_MAX;
        s->n--;
        pthread_mutex_unlock(&s->lock);
        handle(s, &m);
        pthread_mutex_lock(&s->lock);
    }
    bool closing = s->closing;
    pthread_mutex_unlock(&s->lock);
    return !closing;
}

static void *run(void *context) {
    struct service *s = context;
    bool busy = false;
    while (receive(s, busy)) {
        int status = scheduler_step(s->scheduler, &busy, NULL);
        CHECK_EQ(status, 0); /* any one request fits into the pool alone: a step has nothing to fail of */
    }
    scheduler_close(s->scheduler);
    return NULL;
}

int service_open(struct service **out, struct model *model, const struct scheduler_options *options,
                 looplm_error *err) {
    *out = NULL;
    struct service *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, LOOPLM_MEMORY, "out of memory");
    int status = scheduler_open(&s->scheduler, model, options, err);
    if (status) {
        free(s);
        return status;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->arrived, NULL);
    if (pthread_create(&s->thread, NULL, run, s)) {
        scheduler_close(s->scheduler);
        free(s);
        return error_set(err, LOOPLM_MEMORY, "the engine's thread could not be started");
    }
    *out = s;
    return 0;
}

void service_close(struct service *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_signal(&s->arrived);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->arrived);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static int send(struct service *s, struct request *parent, struct request *const *requests, int32_t n,
                looplm_error *err) {
    int status = 0;
    pthread_mutex_lock(&s->lock);
    if (n > SERVICE_MESSAGES_MAX - s->n)
        status = error_set(err, LOOPLM_LIMIT, "%d requests are on their way to the engine, the limit; try again later",
                           s->n);
    for (int32_t i = 0; i < n && !status; i++) {
        struct message *m = &s->messages[(s->first + s->n++) % SERVICE_MESSAGES_MAX];
        *m = (struct message){parent ? parent : i > 0 ? requests[0] : NULL, requests[i]};
    }
    pthread_cond_signal(&s->arrived);
    pthread_mutex_unlock(&s->lock);
    return status;
}

int service_submit(struct service *s, struct request *const *requests, int32_t n, looplm_error *err) {
    return send(s, NULL, requests, n, err);
}

int service_fork(struct service *s, struct request *parent, struct request *child, looplm_error *err) {
    return send(s, parent, &child, 1, err);
}

struct scheduler_counters service_counters(struct service *s) {
    pthread_mutex_lock(&s->lock);
    struct scheduler_counters counters = s->counters;
    pthread_mutex_unlock(&s->lock);
    return counters;
}
