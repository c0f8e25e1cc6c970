/* Mano: modular arithmetic in prefix form, of a chosen number of operations (SPEC section 8). */
#ifndef LAB_MANO_H
#define LAB_MANO_H

#include "lab/lab.h"

#define MANO_OPERATIONS_MAX LAB_LEVELS_MAX
#define MANO_MODULUS_MIN 2
#define MANO_MODULUS_MAX 1000
#define MANO_HELD_OUT_FROM 3 /* operations */

struct mano {
    int32_t modulus;
    int32_t operations_min, operations_max;
};

/* Checks the bounds and makes the task, with equal weights; mano is borrowed. */
int mano_task(struct lab_task *task, const struct mano *mano, looplm_error *err);

#endif
