/* exp, log and sigmoid as fixed sequences of IEEE operations, so that every compiler and machine gives the same bits;
 * libm gives no such promise. The vector kernels repeat these sequences lane by lane, operation for operation, which is
 * why they have no branch: `a < b ? a : b` is the vector minimum of (a, b), which passes b on when either is NaN.
 *
 * Rounding is to nearest even and denormals are kept (no flush to zero). Largest errors, measured over every float or a
 * dense sweep by tests/base/test_mathfn.c: exp and log 0.9 ulp, sigmoid 2.1 ulp above 2^-126. The coefficients are a
 * minimax fit of the relative error (Lawson's iteration on 4,000 Chebyshev nodes), rounded to float.
 */
#ifndef BASE_MATHFN_H
#define BASE_MATHFN_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Beyond these the result is infinite, or zero even as a denormal. */
#define MATH_EXP_MAX 89.0f
#define MATH_EXP_MIN (-104.0f)
#define MATH_LOG2_E 0x1.715476p+0f
/* ln 2 in two floats. */
#define MATH_LN2_HIGH 0x1.62e43p-1f
#define MATH_LN2_LOW (-0x1.05c61p-29f)
/* Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum. */
#define MATH_ROUND_MAGIC 0x1.8p+23f
/* exp(r) = 1 + r + r^2 (E2 + E3 r + ... + E6 r^4) for |r| <= ln(2)/2. */
#define MATH_EXP_E2 0x1.fffffcp-2f
#define MATH_EXP_E3 0x1.555492p-3f
#define MATH_EXP_E4 0x1.5558f2p-5f
#define MATH_EXP_E5 0x1.123a2p-7f
#define MATH_EXP_E6 0x1.6a23ccp-10f

static inline float math_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t math_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float math_exp(float x) {
    x = MATH_EXP_MAX < x ? MATH_EXP_MAX : x;
    x = MATH_EXP_MIN > x ? MATH_EXP_MIN : x;
    float rounded = fmaf(x, MATH_LOG2_E, MATH_ROUND_MAGIC);
    float n = rounded - MATH_ROUND_MAGIC;
    float r = fmaf(n, -MATH_LN2_HIGH, x);
    r = fmaf(n, -MATH_LN2_LOW, r);
    float p = fmaf(MATH_EXP_E6, r, MATH_EXP_E5);
    p = fmaf(p, r, MATH_EXP_E4);
    p = fmaf(p, r, MATH_EXP_E3);
    p = fmaf(p, r, MATH_EXP_E2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* 2^n in two halves: the first product is exact, so denormals are rounded once. A scalef instruction does the same.
     */
    int32_t i = (int32_t)(math_to_bits(rounded) - math_to_bits(MATH_ROUND_MAGIC));
    /* A NaN leaves arbitrary bits in i; it stays a NaN under any scale. */
    int32_t half = i >> 1, rest = i - half;
    float scale_half = math_from_bits((uint32_t)(half + 127) << 23);
    float scale_rest = math_from_bits((uint32_t)(rest + 127) << 23);
    return p * scale_half * scale_rest;
}

/* 1 / (1 + exp(-x)). Below about -88.7 exp overflows and the result is 0, which is off by less than 2^-127. */
static inline float math_sigmoid(float x) {
    return 1.0f / (1.0f + math_exp(-x));
}

/* log(1+f) = f - f^2/2 + f^3 (L3 + L4 f + ... + L10 f^7) for 1+f from sqrt(1/2) to sqrt(2). */
#define MATH_LOG_L3 0x1.555554p-2f
#define MATH_LOG_L4 (-0x1.000228p-2f)
#define MATH_LOG_L5 0x1.99a008p-3f
#define MATH_LOG_L6 (-0x1.547244p-3f)
#define MATH_LOG_L7 0x1.22da22p-3f
#define MATH_LOG_L8 (-0x1.0d8552p-3f)
#define MATH_LOG_L9 0x1.055b46p-3f
#define MATH_LOG_L10 (-0x1.38b4ccp-4f)
#define MATH_SQRT_HALF_BITS 0x3f3504f3u

/* 0 gives minus infinity, less than 0 gives NaN. */
static inline float math_log(float x) {
    /* A denormal is first scaled by 2^23, so that it has an exponent to read. */
    int tiny = x < 0x1p-126f;
    float scaled = tiny ? x * 0x1p+23f : x;
    uint32_t bits = math_to_bits(scaled) - MATH_SQRT_HALF_BITS;
    int32_t exponent = (int32_t)bits >> 23;
    float e = (float)(exponent - (tiny ? 23 : 0));
    float f = math_from_bits((bits & 0x7fffffu) + MATH_SQRT_HALF_BITS) - 1.0f;
    float p = fmaf(MATH_LOG_L10, f, MATH_LOG_L9);
    p = fmaf(p, f, MATH_LOG_L8);
    p = fmaf(p, f, MATH_LOG_L7);
    p = fmaf(p, f, MATH_LOG_L6);
    p = fmaf(p, f, MATH_LOG_L5);
    p = fmaf(p, f, MATH_LOG_L4);
    p = fmaf(p, f, MATH_LOG_L3);
    float square = f * f;
    float q = square * f * p;
    q = fmaf(e, MATH_LN2_LOW, q);
    q = fmaf(-0.5f, square, q);
    float y = fmaf(e, MATH_LN2_HIGH, f + q);
    y = x == INFINITY ? INFINITY : y;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x != x ? x : y;
}

/* The double build (gradient checks) needs accuracy, not the same bits everywhere. */
static inline double math_exp_d(double x) {
    return exp(x);
}
static inline double math_log_d(double x) {
    return log(x);
}
static inline double math_sigmoid_d(double x) {
    return 1.0 / (1.0 + exp(-x));
}

#endif
