/* Owns the mixture of sources and the order of their pieces. What a piece is, is corpus.c's.
 *
 * Invariants: the source of sample j depends on (seed, j, which sources are in use) alone; the piece on (seed, source,
 * how many were drawn from it before); within an epoch of a source no piece comes twice.
 */
#include "train/data.h"

#include "base/json.h"
#include "base/random.h"

#include <string.h>

#define CHOICE_STREAM 0x636f696365u /* sets the draws of sources apart from other uses of the seed */
#define ORDER_STREAM 0x6f72646572u
#define FEISTEL_ROUNDS 6

int data_open(struct data *data, const struct recipe *recipe, const struct corpus_options *options, looplm_error *err) {
    memset(data, 0, sizeof *data);
    data->seed = (uint64_t)recipe->options.train_seed;
    for (int i = 0; i < recipe->n_sources; i++) {
        data->sources[i] = recipe->sources[i];
        int status = corpus_open(&data->corpora[i], recipe->sources[i].path, options, err);
        if (status) {
            data_close(data);
            return status;
        }
        data->n_sources++;
    }
    return 0;
}

void data_close(struct data *data) {
    for (int i = 0; i < data->n_sources; i++) corpus_close(&data->corpora[i]);
    data->n_sources = 0;
}

/* A permutation of 0..n-1 without memory: a Feistel network on the next power of four, walked until it lands inside. */
static int64_t permute(uint64_t key, int64_t n, int64_t i) {
    int half = 1;
    while ((int64_t)1 << (2 * half) < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
            uint64_t next = left ^ (random_hash(key, round, right) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

int64_t data_piece(uint64_t seed, int source, int64_t pieces, int64_t drawn) {
    uint64_t key = random_hash(seed ^ ORDER_STREAM, (uint64_t)source, (uint64_t)(drawn / pieces));
    return permute(key, pieces, drawn % pieces);
}

static double weight_at(const struct recipe_source *s, double fraction) {
    return fraction >= s->from && fraction < s->until ? s->weight : 0;
}

/* The recipe was checked: at every fraction of the run some source has a weight. */
static int choose_source(const struct data *data, double fraction) {
    double total = 0;
    int last = 0;
    for (int i = 0; i < data->n_sources; i++) total += weight_at(&data->sources[i], fraction);
    uint64_t hash = random_hash(data->seed ^ CHOICE_STREAM, (uint64_t)data->cursor.sample, 0);
    double left = (double)(hash >> 11) * 0x1p-53 * total;
    for (int i = 0; i < data->n_sources; i++) {
        double weight = weight_at(&data->sources[i], fraction);
        if (!(weight > 0)) continue;
        last = i;
        if (left < weight) return i;
        left -= weight;
    }
    return last;
}

void data_next(struct data *data, double fraction, struct data_unit *unit) {
    int source = choose_source(data, fraction);
    const struct corpus *corpus = &data->corpora[source];
    unit->n = unit->n_documents = 0;
    unit->weight = data->sources[source].loss_weight;
    data->cursor.sample++;
    while (unit->n_documents < DATA_DOCUMENTS_MAX) {
        int64_t piece = data_piece(data->seed, source, corpus->pieces, data->cursor.drawn[source]);
        if (unit->n + corpus_piece_length(corpus, piece) > corpus->sequence) return;
        unit->starts[unit->n_documents++] = unit->n;
        unit->n += corpus_piece(corpus, piece, unit->ids + unit->n, unit->targets + unit->n);
        data->cursor.drawn[source]++;
    }
}

json_t *data_state(const struct data *data) {
    json_t *sources = json_array();
    for (int i = 0; i < data->n_sources; i++) {
        const struct corpus *c = &data->corpora[i];
        json_array_append_new(sources, json_pack("{s:I, s:I, s:I, s:s}", "drawn", (json_int_t)data->cursor.drawn[i],
                                                 "documents", (json_int_t)c->documents, "tokens", (json_int_t)c->tokens,
                                                 "lengths_sha256", c->hash));
    }
    return json_pack("{s:I, s:o}", "sample", (json_int_t)data->cursor.sample, "sources", sources);
}

static int restore_source(struct data *data, int i, const json_t *entry, const char *origin, looplm_error *err) {
    struct json_at at = {entry, origin, "data.sources"};
    int64_t documents, tokens;
    const char *hash;
    int status = json_need_int(at, "drawn", 0, INT64_MAX, &data->cursor.drawn[i], err);
    if (!status) status = json_need_int(at, "documents", 0, INT64_MAX, &documents, err);
    if (!status) status = json_need_int(at, "tokens", 0, INT64_MAX, &tokens, err);
    if (!status) status = json_need_string(at, "lengths_sha256", &hash, err);
    if (status) return status;
    const struct corpus *c = &data->corpora[i];
    if (documents == c->documents && tokens == c->tokens && strcmp(hash, c->hash) == 0) return 0;
    return error_set(err, LOOPLM_MISMATCH,
                     "%s: the run began with %lld documents and %lld tokens, and now there are %lld and %lld; restore "
                     "the file, or choose another run.directory",
                     data->sources[i].path, (long long)documents, (long long)tokens, (long long)c->documents,
                     (long long)c->tokens);
}

int data_restore(struct data *data, const json_t *state, const char *origin, looplm_error *err) {
    struct json_at at = {state, origin, "data"};
    const json_t *sources;
    int status = json_need_int(at, "sample", 0, INT64_MAX, &data->cursor.sample, err);
    if (!status) status = json_need_array(at, "sources", &sources, err);
    if (status) return status;
    if ((int)json_array_size(sources) != data->n_sources)
        return error_set(err, LOOPLM_MISMATCH, "%s: the run began with %d sources, and the recipe now has %d", origin,
                         (int)json_array_size(sources), data->n_sources);
    for (int i = 0; i < data->n_sources && !status; i++)
        status = restore_source(data, i, json_array_get(sources, (size_t)i), origin, err);
    return status;
}
