/* bf16 and f16 to and from float, one value at a time; vector kernels mirror these bit for bit (cpu/simd.h). */
#ifndef TENSOR_CONVERT_H
#define TENSOR_CONVERT_H

#include "tensor/backend.h"

#include <string.h>

static inline float bf16_to_float(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Nearest even; a NaN stays one (made quiet), too large becomes infinite. */
static inline uint16_t bf16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)((bits | 0x00400000u) >> 16);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline real bf16_round(real x) {
    return bf16_to_float(bf16_from_float((float)x));
}

static inline float f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu, bits;
    if (exponent == 31) {
        bits = 0x7f800000u | fraction << 13 | (fraction ? 0x00400000u : 0u);
    } else if (exponent) {
        bits = (exponent + 112) << 23 | fraction << 13;
    } else {
        float x = (float)fraction * 0x1p-24f; /* subnormal: exact in float */
        memcpy(&bits, &x, sizeof bits);
    }
    bits |= sign;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Element i of an unpacked source. */
static inline real dtype_load(const void *source, enum dtype dtype, int64_t i) {
    uint16_t half;
    switch (dtype) {
    case DTYPE_F32: {
        float x;
        memcpy(&x, (const char *)source + 4 * i, sizeof x);
        return x;
    }
    case DTYPE_F64: {
        double x;
        memcpy(&x, (const char *)source + 8 * i, sizeof x);
        return (real)x;
    }
    case DTYPE_BF16:
        memcpy(&half, (const char *)source + 2 * i, sizeof half);
        return bf16_to_float(half);
    default:
        memcpy(&half, (const char *)source + 2 * i, sizeof half);
        return f16_to_float(half);
    }
}

/* The type of a `real`. */
#define DTYPE_REAL (sizeof(real) == sizeof(double) ? DTYPE_F64 : DTYPE_F32)

#endif
