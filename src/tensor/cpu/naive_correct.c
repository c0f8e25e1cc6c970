/* Owns the count of right predictions: shared by every table, since only rows whose target ties with the largest logit
 * are walked. */
#include "tensor/cpu/naive.h"

void naive_correct(const struct op *op, const struct worker *worker) {
    const struct op_correct *o = &op->correct;
    int64_t begin, end;
    worker_share(worker, o->rows, 1, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        const real *logits = o->logits + b * o->ld;
        int32_t target = o->targets[b];
        int lower = 0;
        bool hit = target >= 0 && logits[target] == o->max[b];
        for (int32_t v = 0; hit && v < target; v++) lower |= logits[v] == o->max[b];
        o->correct[b] = hit && !lower;
    }
}
