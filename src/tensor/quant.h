/* The 8- and 4-bit formats, one group at a time: what a group of weights becomes, a group of a product's inputs, and a
 * key or value.
 * This is the definition; vector kernels (cpu/kernels_quant.inc) do the same operations lane by lane, with the same
 * bits.
 *
 * A group is QUANT_GROUP consecutive inner elements of one output: integers q and one bf16 scale s, element = q s.
 *   q8: q in -127..127, stored as the byte q + 128: 8.5 bits a weight; s = bf16(largest magnitude / 127).
 *   q4: q in -8..7, stored as the nibble q + 8: 4.5 bits a weight; s has the sign that takes the element of largest
 * magnitude to about -8, and its size is searched for the least squared error. A panel of w outputs (backend.h) is [k /
 * QUANT_GROUP] blocks, a block w scales, then the integers: q8 [8][w][4] bytes, byte j of step i is element 4i + j; q4
 * [4][w][4] bytes, byte j of step i holds element 8i + j in its low nibble and 8i + 4 + j in the high one.
 *
 * Keys and values in q8 are rounded as weights are, one scale for the K elements of a position and head.
 *
 * Inputs of a product are quantised by row and group: q in -127..127, scale amax / 127. The integers of the weights are
 * kept unsigned, since the processors' byte products are unsigned by signed; the offset is taken off the exact integer
 * sum. */
#ifndef TENSOR_QUANT_H
#define TENSOR_QUANT_H

#include "base/mathfn.h"
#include "tensor/convert.h"

#include <math.h>

#define QUANT_GROUP 32
#define QUANT_STEPS (QUANT_GROUP / 4) /* 32-bit words of a group's bytes */
#define QUANT_AMAX_MIN 0x1p-100f      /* a group of smaller magnitudes is zero: its reciprocal might be infinite */

static inline bool quant_type(enum weight_type type) {
    return type == WEIGHT_Q8 || type == WEIGHT_Q4;
}

/* What is added to an integer of a weight to store it. */
static inline int quant_offset(enum weight_type type) {
    return type == WEIGHT_Q8 ? 128 : 8;
}

/* Bytes of one output's group, its scale included. */
static inline int64_t quant_group_size(enum weight_type type) {
    return 2 + (type == WEIGHT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2);
}

/* Outputs of the panel that starts at output `first`; where its blocks start. */
static inline int64_t quant_width(const struct weight *w, int64_t first) {
    int64_t outputs = (w->n + LANES - 1) / LANES * LANES;
    return outputs - first < PANEL ? outputs - first : PANEL;
}
static inline unsigned char *quant_panel(const struct weight *w, int64_t first) {
    return (unsigned char *)w->data + first * (w->k / QUANT_GROUP) * quant_group_size(w->type);
}

/* ---- inputs --------------------------------------------------------------------------------------------------------
 */

/* Of a group whose largest magnitude has these bits (larger than every number for infinity and NaN): the scale, and the
 * factor that takes an input to its integer. Not finite: the scale is NaN, so that the product is; near zero: both are
 * 0. */
static inline void quant_input_scale(int32_t amax_bits, float *scale, float *factor) {
    float amax = math_from_bits((uint32_t)amax_bits);
    *scale = *factor = 0;
    if (amax_bits >= 0x7f800000) {
        *scale = NAN;
    } else if (amax >= QUANT_AMAX_MIN) {
        *scale = amax / 127.0f;
        *factor = 127.0f / amax;
    }
}

static inline void quant_input_group(const real *x, int8_t q[QUANT_GROUP], float *scale) {
    int32_t amax_bits = 0;
    float factor;
    for (int i = 0; i < QUANT_GROUP; i++) {
        int32_t bits = (int32_t)(math_to_bits((float)x[i]) & 0x7fffffffu);
        if (bits > amax_bits) amax_bits = bits;
    }
    quant_input_scale(amax_bits, scale, &factor);
    for (int i = 0; i < QUANT_GROUP; i++) q[i] = factor == 0 ? 0 : (int8_t)lrintf((float)x[i] * factor);
}

/* ---- weights -------------------------------------------------------------------------------------------------------
 */

/* The scales tried take the extreme element to minus these. The search takes a tenth off the squared error that -8
 * alone leaves on normal weights, a finer or wider one less than a hundredth more. -8 comes first: it stays where
 * errors are beyond a float's range. */
#define QUANT_CANDIDATES 9
static inline float quant_candidate(int i) {
    static const float extremes[QUANT_CANDIDATES] = {8, 7, 7.25f, 7.5f, 7.75f, 8.25f, 8.5f, 8.75f, 9};
    return -1.0f / extremes[i];
}

/* x / s as the nearest integer of the type; `factor` is 1 / s, or 0 for a group of zeros. A NaN becomes the largest. */
static inline float quant_round(float x, float factor, float low, float high) {
    float q = x * factor;
    q = q < high ? q : high;
    q = q > low ? q : low;
    return rintf(q);
}
static inline float quant_factor(float scale) {
    return fabsf(scale) < QUANT_AMAX_MIN ? 0 : 1 / scale;
}

/* Squared error of a group, one chain in order. */
static inline float quant_error(const float *x, float scale) {
    float error = 0, factor = quant_factor(scale);
    for (int i = 0; i < QUANT_GROUP; i++) {
        float difference = fmaf(-quant_round(x[i], factor, -8, 7), scale, x[i]);
        error = fmaf(difference, difference, error);
    }
    return error;
}

static inline uint16_t quant_scale(enum weight_type type, const float *x) {
    float amax = 0, extreme = 0;
    for (int i = 0; i < QUANT_GROUP; i++)
        if (amax < fabsf(x[i])) {
            amax = fabsf(x[i]);
            extreme = x[i];
        }
    if (type == WEIGHT_Q8) return bf16_from_float(amax * (1 / 127.0f));
    uint16_t best = bf16_from_float(extreme * quant_candidate(0));
    float least = quant_error(x, bf16_to_float(best));
    for (int i = 1; i < QUANT_CANDIDATES; i++) {
        uint16_t scale = bf16_from_float(extreme * quant_candidate(i));
        float error = quant_error(x, bf16_to_float(scale));
        if (error < least) {
            best = scale;
            least = error;
        }
    }
    return best;
}

/* The integers of a group of weights, and its scale as bf16. */
static inline void quant_weight_group(enum weight_type type, const float *x, int8_t q[QUANT_GROUP], uint16_t *scale) {
    *scale = quant_scale(type, x);
    float factor = quant_factor(bf16_to_float(*scale));
    for (int i = 0; i < QUANT_GROUP; i++) {
        q[i] = (int8_t)(type == WEIGHT_Q8 ? quant_round(x[i], factor, -127, 127) : quant_round(x[i], factor, -8, 7));
    }
}

/* ---- keys and values -----------------------------------------------------------------------------------------------
 */

/* One key, or value, of a head becomes bytes -127..127 (quant_round) and one scale, as weights in q8 do. From the bits
 * of its largest magnitude (larger than every number's for infinity and NaN): the scale, and the factor that takes an
 * element to its byte. Not finite: the scale is NaN, so that scores and outputs are. */
static inline void quant_kv_scale(int32_t amax_bits, uint16_t *scale, float *factor) {
    *scale = 0x7fc0;
    *factor = 0;
    if (amax_bits >= 0x7f800000) return;
    *scale = bf16_from_float(math_from_bits((uint32_t)amax_bits) * (1 / 127.0f));
    *factor = quant_factor(bf16_to_float(*scale));
}

/* ---- a group in its panel ------------------------------------------------------------------------------------------
 */

/* The integers and the scale of group `group` of output n. */
static inline float quant_get(const struct weight *w, int64_t n, int64_t group, int8_t q[QUANT_GROUP]) {
    int64_t first = n / PANEL * PANEL, width = quant_width(w, first);
    const unsigned char *block = quant_panel(w, first) + group * width * quant_group_size(w->type);
    const unsigned char *from = block + 2 * width + 4 * (n - first);
    uint16_t scale;
    memcpy(&scale, block + 2 * (n - first), sizeof scale);
    for (int i = 0; i < QUANT_GROUP; i++) {
        if (w->type == WEIGHT_Q8) {
            q[i] = (int8_t)(from[i / 4 * width * 4 + i % 4] - 128);
        } else {
            q[i] = (int8_t)((from[i / 8 * width * 4 + i % 4] >> (i / 4 % 2 * 4) & 15) - 8);
        }
    }
    return bf16_to_float(scale);
}

static inline void quant_set(const struct weight *w, int64_t n, int64_t group, const int8_t q[QUANT_GROUP],
                             uint16_t scale) {
    int64_t first = n / PANEL * PANEL, width = quant_width(w, first);
    unsigned char *block = quant_panel(w, first) + group * width * quant_group_size(w->type);
    unsigned char *to = block + 2 * width + 4 * (n - first);
    memcpy(block + 2 * (n - first), &scale, sizeof scale);
    for (int i = 0; i < QUANT_GROUP; i++) {
        if (w->type == WEIGHT_Q8) {
            to[i / 4 * width * 4 + i % 4] = (unsigned char)(q[i] + 128);
        } else if (i / 4 % 2 == 0) {
            to[i / 8 * width * 4 + i % 4] = (unsigned char)((q[i] + 8) | (q[i + 4] + 8) << 4);
        }
    }
}

/* One group of a source row, quantised into its place; row < 0 stores zeros. */
static inline void quant_pack_group(const struct weight *w, int64_t n, int64_t group, const void *source,
                                    enum dtype dtype, int64_t row) {
    int8_t q[QUANT_GROUP] = {0};
    uint16_t scale = 0;
    if (row >= 0) {
        float x[QUANT_GROUP];
        for (int i = 0; i < QUANT_GROUP; i++)
            x[i] = (float)dtype_load(source, dtype, row * w->k + group * QUANT_GROUP + i);
        quant_weight_group(w->type, x, q, &scale);
    }
    quant_set(w, n, group, q, scale);
}

#endif
