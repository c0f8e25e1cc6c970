/* Owns the threads of a compute team and how they wait.
 *
 * A gate is a counter that somebody waits to see change: first by spinning, since the others are usually a microsecond
 * away, then asleep on a condition variable, since machines are shared and a spinner may be holding the very core that
 * the others need. The start of a run is one gate; a barrier is an arrival count and another gate; a run ends with a
 * barrier.
 *
 * Invariants.
 * 1. A gate's value changes only by gate_open, by one thread at a time (the caller, or the last to arrive).
 * 2. A sleeper is counted before it looks at the value for the last time, and an opener changes the value before it
 * looks at the count; both are sequentially consistent, so a wake-up is never lost.
 * 3. `arrived` is 0 whenever the barrier's gate opens.
 */
#include "base/team.h"

#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A pause takes 40 to 140 cycles, so this is 25 to 100 microseconds: more than the imbalance of an op, less than what a
 * descheduled neighbour takes. */
#define SPINS_MAX 2000
#define CACHE_LINE 64

struct gate {
    alignas(CACHE_LINE) atomic_uint value;
    alignas(CACHE_LINE) atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

struct team {
    int size;
    int threads_started; /* besides the caller */
    struct worker *workers;
    team_fn *fn;
    void *context;
    bool stop;
    atomic_flag running; /* catches a run inside a run */
    struct gate start;
    struct gate meeting; /* the barrier's */
    alignas(CACHE_LINE) atomic_int arrived;
};

struct worker {
    struct team *team;
    pthread_t thread;
    int index;
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void gate_init(struct gate *gate) {
    atomic_init(&gate->value, 0);
    atomic_init(&gate->sleepers, 0);
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

static void gate_free(struct gate *gate) {
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
}

static void gate_wait(struct gate *gate, unsigned old) {
    for (int i = 0; i < SPINS_MAX; i++) {
        if (atomic_load_explicit(&gate->value, memory_order_acquire) != old) return;
        pause_briefly();
    }
    pthread_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->value) == old) pthread_cond_wait(&gate->changed, &gate->mutex);
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->mutex);
}

static void gate_open(struct gate *gate) {
    atomic_fetch_add(&gate->value, 1);
    if (atomic_load(&gate->sleepers) == 0) return;
    pthread_mutex_lock(&gate->mutex);
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void team_barrier(struct team *team) {
    if (team->size == 1) return;
    unsigned old = atomic_load_explicit(&team->meeting.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        gate_open(&team->meeting);
    } else {
        gate_wait(&team->meeting, old);
    }
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct team *team = worker->team;
    for (unsigned seen = 0;; seen++) {
        gate_wait(&team->start, seen);
        if (team->stop) return NULL;
        team->fn(team->context, worker->index, team->size);
        team_barrier(team);
    }
}

static int available_processors(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > TEAM_THREADS_MAX ? TEAM_THREADS_MAX : n;
}

int team_open(struct team **out, int n_threads, looplm_error *err) {
    *out = NULL;
    if (n_threads < 0 || n_threads > TEAM_THREADS_MAX) {
        return error_set(err, LOOPLM_USAGE, "threads: found %d, expected 0 (all processors) to %d", n_threads,
                         TEAM_THREADS_MAX);
    }
    if (n_threads == 0) n_threads = available_processors();
    struct team *team = aligned_alloc(CACHE_LINE, sizeof *team);
    if (!team) return error_set(err, LOOPLM_MEMORY, "threads: no memory for a team of %d", n_threads);
    memset(team, 0, sizeof *team);
    team->size = n_threads;
    gate_init(&team->start);
    gate_init(&team->meeting);
    atomic_init(&team->arrived, 0);
    atomic_flag_clear(&team->running);
    team->workers = calloc((size_t)n_threads, sizeof *team->workers);
    if (!team->workers) {
        team_close(team);
        return error_set(err, LOOPLM_MEMORY, "threads: no memory for a team of %d", n_threads);
    }
    for (int i = 1; i < n_threads; i++) {
        struct worker *worker = &team->workers[i];
        *worker = (struct worker){.team = team, .index = i};
        int code = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (code != 0) {
            team_close(team);
            return error_set(err, LOOPLM_MEMORY, "threads: only %d of %d could be started (%s); ask for fewer", i,
                             n_threads, strerror(code));
        }
        team->threads_started++;
    }
    *out = team;
    return LOOPLM_OK;
}

void team_close(struct team *team) {
    if (!team) return;
    team->stop = true;
    gate_open(&team->start);
    for (int i = 1; i <= team->threads_started; i++) pthread_join(team->workers[i].thread, NULL);
    gate_free(&team->start);
    gate_free(&team->meeting);
    free(team->workers);
    free(team);
}

int team_size(const struct team *team) {
    return team->size;
}

void team_run(struct team *team, team_fn *fn, void *context) {
    bool nested = atomic_flag_test_and_set(&team->running);
    CHECK_EQ(nested, false);
    if (team->size > 1) {
        team->fn = fn;
        team->context = context;
        gate_open(&team->start);
    }
    fn(context, 0, team->size);
    team_barrier(team);
    atomic_flag_clear(&team->running);
}

void team_share(int64_t n, int64_t unit, int worker, int workers, int64_t *begin, int64_t *end) {
    int64_t units = (n + unit - 1) / unit, each = units / workers, more = units % workers;
    int64_t first = worker * each + (worker < more ? worker : more);
    int64_t last = first + each + (worker < more);
    *begin = first * unit < n ? first * unit : n;
    *end = last * unit < n ? last * unit : n;
}
