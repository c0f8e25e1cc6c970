/* The CPU backend: kernel tables per instruction set, chosen at start, run by one thread team. */
#ifndef TENSOR_CPU_H
#define TENSOR_CPU_H

#include "tensor/backend.h"

#include <stdalign.h>
#include <stdatomic.h>

struct team;

/* How much of a worker's share of an op has been taken from its front (low half) and from its end (high half). Alone in
 * the two lines that processors fetch together: each worker counts up its own at every unit. */
struct worker_taken {
    alignas(128) _Atomic uint64_t units;
};

/* What a kernel knows of the thread it runs on: it does its share `index` of `count`. */
struct worker {
    int index, count;
    void *scratch;              /* CPU_SCRATCH bytes of its own, 64-byte aligned, contents undefined */
    struct worker_taken *taken; /* [count] of the op at hand, zero before it */
};
#define CPU_SCRATCH ((size_t)4 << 20)

typedef void op_fn(const struct op *op, const struct worker *worker);

/* One function per op; every table is complete (a table may share another's functions). */
struct cpu_table {
    const char *name;
    bool (*supported)(void);
    op_fn *ops[OP_COUNT];
};

/* The tables of this build, the plainest first; NULL ends the list. "scalar" is the oracle and stays naive. */
const struct cpu_table *const *cpu_tables(void);

/* Opens the CPU with n_threads (0: all that are online) and the named table (NULL: the best that this processor
 * supports). */
int cpu_open(struct backend **backend, int n_threads, const char *table, looplm_error *err);

/* [begin, end) of this worker's share of n units, in multiples of `grain` (but for the last). */
void worker_share(const struct worker *worker, int64_t n, int64_t grain, int64_t *begin, int64_t *end);
/* One after the other, the units of this worker's share of n in order, then those that others have left, from their
 * ends; -1 when all n are taken. So a core that is slower, or that other programs hold, delays nobody for longer than a
 * unit. An op uses it for one list of units at most, and every worker with the same n. */
int64_t worker_take(const struct worker *worker, int64_t n);

#endif
