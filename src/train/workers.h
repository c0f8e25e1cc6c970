/* The units of a step, several at once: each worker has its own thread, workspace and gradients. The result has the
 * same bits for any number of workers, since the sums form the one tree of optimizer.h. */
#ifndef TRAIN_WORKERS_H
#define TRAIN_WORKERS_H

#include "train/optimizer.h"
#include "train/unit.h"

/* Models up to this size are small enough that one op is too little work for all threads. */
#define WORKERS_AUTO_ELEMENTS ((int64_t)32 << 20)

struct workers_options {
    int workers;         /* 0: one per thread for small models, else one that has all threads */
    const char *kernels; /* as for cpu_open */
    int64_t batch;       /* units at once, at most */
    struct unit_options unit;
};

/* A place for one unit; ids, targets and starts hold positions_max items. */
struct unit_slot {
    int32_t *ids, *targets, *starts;
    int32_t n, n_documents;
    double weight; /* of its gradient */
    struct unit_result result;
};

struct workers;
/* model: packed, and it outlives the workers; its backend's threads are divided among them. */
int workers_open(struct workers **workers, struct model *model, const struct params *params,
                 const struct workers_options *options, looplm_error *err);
void workers_close(struct workers *workers);
int workers_count(const struct workers *workers);
/* Bytes of all workspaces and gradients. */
size_t workers_memory(const struct workers *workers);
/* After the parameters changed (and the model was packed again). */
void workers_pack(struct workers *workers, const struct params *params);
/* Slot i < batch, for the caller to fill. */
struct unit_slot *workers_slot(struct workers *workers, int64_t i);
/* Runs slots 0..n-1 and leaves each result in its slot. loops: how many every position runs. The sum of the gradients
 * is valid until the next call. */
const real *workers_gradient(struct workers *workers, int64_t n, int32_t loops, const struct objective *objective);
void workers_evaluate(struct workers *workers, int64_t n, const struct objective *objective);

#endif
