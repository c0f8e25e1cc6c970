/* Owns the loop over held-out text. */
#include "train/evaluate.h"

#include "train/runlog.h"

void evaluate_corpus(struct workers *workers, int64_t batch, const struct corpus *corpus,
                     const struct objective *objective, int64_t sequences_max, struct unit_result *sums) {
    int64_t pieces = corpus->pieces < sequences_max ? corpus->pieces : sequences_max;
    *sums = (struct unit_result){0};
    for (int64_t first = 0; first < pieces; first += batch) {
        int64_t n = pieces - first < batch ? pieces - first : batch;
        for (int64_t i = 0; i < n; i++) {
            struct unit_slot *slot = workers_slot(workers, i);
            slot->n = corpus_piece(corpus, first + i, slot->ids, slot->targets);
            slot->n_documents = 1;
            slot->starts[0] = 0;
        }
        workers_evaluate(workers, n, objective);
        for (int64_t i = 0; i < n; i++) runlog_add(sums, &workers_slot(workers, i)->result);
    }
}
