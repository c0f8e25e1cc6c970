/* The order in which a run reads its sources: a function of the seed and a few counters, so that the cursor is those
 * counters alone. */
#ifndef TRAIN_DATA_H
#define TRAIN_DATA_H

#include "train/corpus.h"
#include "train/recipe.h"

struct data_cursor {
    int64_t sample;                    /* sequences read so far */
    int64_t drawn[RECIPE_SOURCES_MAX]; /* of them, from each source */
};

struct data {
    struct corpus corpora[RECIPE_SOURCES_MAX];
    struct recipe_source sources[RECIPE_SOURCES_MAX];
    int n_sources;
    uint64_t seed;
    struct data_cursor cursor;
};

/* Opens every source of the recipe, which must outlive the data. */
int data_open(struct data *data, const struct recipe *recipe, const struct corpus_options *options, looplm_error *err);
void data_close(struct data *data);
/* The next sequence, at this fraction of the run; returns its number of positions. */
int32_t data_next(struct data *data, double fraction, int32_t *ids, int32_t *targets);

/* Piece number `drawn` of a source: each epoch is a permutation of all pieces of its own. */
int64_t data_piece(uint64_t seed, int source, int64_t pieces, int64_t drawn);

/* For checkpoints: the cursor, and what identifies each source. Restoring compares the latter: LOOPLM_MISMATCH when a
 * source is not the text that the run began with. */
json_t *data_state(const struct data *data);
int data_restore(struct data *data, const json_t *state, const char *origin, looplm_error *err);

#endif
