/* Owns the hash behind sampling noise, initial weights and shuffles. */
#include "base/random.h"

#include "base/error.h"
#include "base/mathfn.h"

/* The increment and finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators"
 * (OOPSLA 2014), with the constants of Stafford's variant 13. */
#define GOLDEN_GAMMA 0x9e3779b97f4a7c15u

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t random_hash(uint64_t seed, uint64_t a, uint64_t b) {
    uint64_t h = mix(seed + GOLDEN_GAMMA);
    h = mix((h ^ a) + GOLDEN_GAMMA);
    return mix((h ^ b) + GOLDEN_GAMMA);
}

uint64_t random_next(struct random *random) {
    return random_hash(random->seed, random->counter++, 0);
}

/* Lemire, "Fast random integer generation in an interval" (2019): the high word of a product, with the few low words
 * that would favour some results drawn again. */
uint64_t random_below(struct random *random, uint64_t n) {
    CHECK_EQ(n == 0, 0);
    unsigned __int128 product = (unsigned __int128)random_next(random) * n;
    if ((uint64_t)product < n) {
        uint64_t floor = -n % n;
        while ((uint64_t)product < floor) product = (unsigned __int128)random_next(random) * n;
    }
    return (uint64_t)(product >> 64);
}

/* Marsaglia's polar method: it needs a logarithm and a square root, both exact in their bits, and no sine. */
float random_normal(struct random *random) {
    for (;;) {
        uint64_t bits = random_next(random);
        float x = 2.0f * random_unit(bits) - 1.0f, y = 2.0f * random_unit(bits << 32) - 1.0f;
        float s = x * x + y * y;
        if (s < 1.0f) return x * sqrtf(-2.0f * math_log(s) / s);
    }
}
