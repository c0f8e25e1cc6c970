/* Owns the formulas of the schedules. The run's length is train.steps; a resumed run with another length goes on with
 * the new plan. */
#include "train/schedule.h"

#include <math.h>

#define PI 3.14159265358979323846

static double line(double from, double to, double share) {
    return from + (to - from) * share;
}

/* 0 at step `begin`, 1 at the last step of the run. */
static double share_of(int64_t begin, int64_t steps, int64_t step) {
    if (step <= begin || steps - 1 <= begin) return step > begin ? 1 : 0;
    double share = (double)(step - begin) / (double)(steps - 1 - begin);
    return share < 1 ? share : 1;
}

double schedule_lr(const struct recipe_options *o, int64_t step) {
    if (step < o->train_warmup) return o->train_lr * (double)(step + 1) / (double)o->train_warmup;
    double last = o->train_lr * o->train_final_lr;
    if (o->train_schedule == RECIPE_SCHEDULE_CONSTANT) return o->train_lr;
    if (o->train_schedule == RECIPE_SCHEDULE_COSINE) {
        double share = share_of(o->train_warmup, o->train_steps, step);
        return line(last, o->train_lr, (1 + cos(PI * share)) / 2);
    }
    int64_t decay = (int64_t)(o->train_decay * (double)o->train_steps), begin = o->train_steps - 1 - decay;
    if (begin < o->train_warmup) begin = o->train_warmup;
    return line(o->train_lr, last, decay ? share_of(begin, o->train_steps, step) : 0);
}

double schedule_beta(const struct recipe_options *o, int64_t step) {
    if (o->objective_beta_final < 0) return o->objective_beta;
    return line(o->objective_beta, o->objective_beta_final, share_of(0, o->train_steps, step));
}

int32_t schedule_loops(const struct recipe_options *o, int32_t loops, int64_t step) {
    double warmup = o->train_loops_warmup * (double)o->train_steps;
    int32_t from = o->train_loops_from ? (int32_t)o->train_loops_from : loops;
    if (from >= loops || (double)step >= warmup) return loops;
    return from + (int32_t)((double)step / warmup * (loops - from));
}
