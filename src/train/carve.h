/* One allocation cut into aligned pieces: the same function walks the pieces twice, first without memory to measure,
 * then to bind. */
#ifndef TRAIN_CARVE_H
#define TRAIN_CARVE_H

#include <stddef.h>
#include <stdint.h>

#define CARVE_ALIGN ((size_t)64)

struct carve {
    unsigned char *base; /* NULL while measuring */
    size_t used;
};

/* The next `count` elements of `size` bytes; NULL while measuring. */
static inline void *carve_take(struct carve *carve, int64_t count, size_t size) {
    size_t bytes = ((size_t)count * size + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    unsigned char *piece = carve->base ? carve->base + carve->used : NULL;
    carve->used += bytes;
    return piece;
}

#endif
