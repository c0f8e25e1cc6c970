/* A small random looped model for tests, built in memory. */
#ifndef TESTS_TINY_H
#define TESTS_TINY_H

#include "model/model.h"
#include "model/params.h"

struct tiny {
    struct params params;
    struct backend *backend;
    struct model *model;
};

/* hidden 32, ffn 48 (64 where q8 or q4 want whole groups), 2 layers, 4 heads over 2 kv heads, vocabulary 67, R loops;
 * gate weights large enough that lambda varies. Aborts the test on failure. */
void tiny_open(struct tiny *tiny, int32_t loops, enum weight_type type, const char *table, int threads);
void tiny_close(struct tiny *tiny);

#endif
