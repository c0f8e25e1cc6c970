/* Random numbers that are a function of what they are for: a keyed hash of (seed, a, b), and a stream made of it. The
 * same arguments give the same bits on every machine; nothing is carried from one number to the next but a counter. */
#ifndef BASE_RANDOM_H
#define BASE_RANDOM_H

#include <stdint.h>

/* 64 well-mixed bits of the three arguments. Not for secrets. */
uint64_t random_hash(uint64_t seed, uint64_t a, uint64_t b);

/* The hash as a number of the open interval (0,1): an odd multiple of 2^-24, so neither log(u) nor log(1-u) is
 * infinite. */
static inline float random_unit(uint64_t hash) {
    return (float)((hash >> 41 << 1) | 1) * 0x1p-24f;
}

/* A stream: two words that can be stored and resumed. */
struct random {
    uint64_t seed, counter;
};
uint64_t random_next(struct random *random);
/* Uniform in 0..n-1 without bias; n > 0. */
uint64_t random_below(struct random *random, uint64_t n);
/* Normal with mean 0 and deviation 1, from our own logarithm, so with the same bits everywhere. */
float random_normal(struct random *random);

#endif
