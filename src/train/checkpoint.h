/* Checkpoints: everything that a run needs to go on with the same bits, in a directory that appears whole or not at
 * all.
 *
 *     RUN/checkpoint-000123/   config.json, model.safetensors   parameters, f32
 *                              optimizer.safetensors            m.NAME and v.NAME, f32
 *                              state.json                       counters, data cursor, seed, recipe
 *     RUN/latest               the name of the newest
 */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include "train/optimizer.h"

#include <jansson.h>

#define CHECKPOINT_FORMAT 1
#define CHECKPOINT_STATE_BYTES_MAX ((size_t)4 << 20)

struct checkpoint_state {
    int64_t step, tokens; /* done so far */
    int64_t log_bytes;    /* length of the run log at that moment */
    double seconds;       /* of training */
    int64_t seed;
    const char *stage; /* "stage1", "stage2" */
    json_t *data;      /* data_state; owned */
    json_t *recipe;    /* the record of the options; owned */
    int64_t optimizer_step;
};
void checkpoint_state_free(struct checkpoint_state *state);

/* Writes RUN/checkpoint-STEP beside and renames it, moves the pointer, then deletes all but the newest `keep`. After an
 * error the checkpoints that were there still are. */
int checkpoint_save(const char *run, const struct checkpoint_state *state, const struct params *params,
                    const struct optimizer *optimizer, int64_t keep, looplm_error *err);
/* The newest checkpoint's directory, fresh, or NULL when the run has none. */
int checkpoint_find(const char *run, char **directory, looplm_error *err);
/* Deletes what a killed process left half-written in the run directory, whose lock is held. */
void checkpoint_clean(const char *run);

/* The state alone; then, once the optimizer exists for the parameters (params_load of the directory), its moments. The
 * stage is "stage1" or "stage2". */
int checkpoint_read_state(const char *directory, struct checkpoint_state *state, looplm_error *err);
int checkpoint_read_optimizer(const char *directory, struct optimizer *optimizer, looplm_error *err);

#endif
