/* Multi-hop questions over a small world: people, and relations that lead from each to another (SPEC section 8). */
#ifndef LAB_HOPS_H
#define LAB_HOPS_H

#include "lab/lab.h"

#define HOPS_PEOPLE_MAX 128
#define HOPS_RELATIONS_MAX 16
#define HOPS_HOPS_MAX 8
#define HOPS_HELD_OUT_FROM 2 /* hops: single facts must all be seen in training */

struct hops {
    int32_t people, relations;
    int32_t hops_min, hops_max;
    uint8_t to[HOPS_RELATIONS_MAX][HOPS_PEOPLE_MAX]; /* to[r][p]: who is the r of p; never p */
};

/* Checks the bounds and draws the world: person p's relations depend on the seed and the numbers of people. */
int hops_init(struct hops *hops, int32_t people, int32_t relations, int32_t hops_min, int32_t hops_max, uint64_t seed,
              looplm_error *err);
/* With equal weights; hops is borrowed. */
int hops_task(struct lab_task *task, const struct hops *hops, looplm_error *err);

const char *hops_person(int32_t person);
const char *hops_relation(int32_t relation);

#endif
