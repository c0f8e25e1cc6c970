/* The order in which a run reads its sources: a function of the seed and a few counters, so that the cursor is those
 * counters alone. */
#ifndef TRAIN_DATA_H
#define TRAIN_DATA_H

#include "train/corpus.h"
#include "train/recipe.h"

#define DATA_DOCUMENTS_MAX 64

struct data_cursor {
    int64_t sample;                    /* units read so far */
    int64_t drawn[RECIPE_SOURCES_MAX]; /* pieces read from each source */
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
/* The next unit, at this fraction of the run: pieces of one source, as many as fit into `sequence` positions (at most
 * DATA_DOCUMENTS_MAX), each a document of its own. */
struct data_unit {
    int32_t *ids, *targets, *starts; /* the caller's, [sequence] each */
    int32_t n, n_documents;
    double weight; /* the source's loss_weight */
};
void data_next(struct data *data, double fraction, struct data_unit *unit);

/* Piece number `drawn` of a source: each epoch is a permutation of all pieces of its own. */
int64_t data_piece(uint64_t seed, int source, int64_t pieces, int64_t drawn);

/* For checkpoints: the cursor, and what identifies each source. Restoring compares the latter: LOOPLM_MISMATCH when a
 * source is not the text that the run began with. */
json_t *data_state(const struct data *data);
int data_restore(struct data *data, const json_t *state, const char *origin, looplm_error *err);

#endif
