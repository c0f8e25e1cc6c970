/* Sixteen floats at a time: the one abstraction that vector kernels are written against, and the only file to extend
 * for another instruction set (NEON's share is simd_neon.h). A table file (table_SET.c) is compiled with that set's
 * flags and includes this header and the kernel text; here the compiler's own macros say which set it is.
 *
 * Every function is exact lane by lane: no approximations of divisions or roots, fused multiply-adds only where the
 * name says so, maximum as `a > b ? a : b`. So all sets give the same bits. Loads and stores need no alignment. */
#ifndef TENSOR_CPU_SIMD_H
#define TENSOR_CPU_SIMD_H

#include "base/mathfn.h"
#include "tensor/backend.h"
#include "tensor/convert.h"

#include <string.h>

#define SIMD_INLINE static inline __attribute__((always_inline, unused))

#if defined(__ARM_NEON)
#include "tensor/cpu/simd_neon.h"
#else
#include <immintrin.h>
#endif

/* What a set says of itself:
 *   SIMD_TILE_ROWS, SIMD_TILE_VECTORS(rows)  accumulators of a register tile: so many vectors of outputs for each of up
 *                                            to so many rows
 *   SIMD_SUMS_WIDE    1 where one row alone may take twice those vectors (kernels_tile.inc)
 *   SIMD_DOT          1 where v16i_dot(sum, u, s) adds the products of four bytes to each lane
 *   SIMD_DOT_SIGNED   1 where the bytes u that it takes are signed as s are, 0 where they are unsigned */

#if defined(__ARM_NEON)
/* All of it is there. */
#elif defined(__AVX512F__)

#define SIMD_TILE_ROWS 6
#define SIMD_TILE_VECTORS(rows) 4
#define SIMD_SUMS_WIDE 1

typedef __m512 v16;
typedef __m512i v16i; /* sixteen 32-bit integers */
/* The value is complete, and in a register, at this place among other instructions. */
#define SIMD_HOLD(v) __asm__ volatile("" : "+v"(v))

SIMD_INLINE v16 v16_zero(void) {
    return _mm512_setzero_ps();
}
SIMD_INLINE v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
SIMD_INLINE v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
SIMD_INLINE void v16_store(float *p, v16 x) {
    _mm512_storeu_ps(p, x);
}
SIMD_INLINE __mmask16 simd_mask(int n) {
    return (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}
/* The first n lanes; the others are 0 and their memory is not touched. */
SIMD_INLINE v16 v16_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps(simd_mask(n), p);
}
SIMD_INLINE void v16_store_n(float *p, v16 x, int n) {
    _mm512_mask_storeu_ps(p, simd_mask(n), x);
}
/* Lanes 0..n-1 of a, the rest of b. */
SIMD_INLINE v16 v16_first_n(v16 a, v16 b, int n) {
    return _mm512_mask_mov_ps(b, simd_mask(n), a);
}
SIMD_INLINE v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
SIMD_INLINE v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
SIMD_INLINE v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
SIMD_INLINE v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
SIMD_INLINE v16 v16_sqrt(v16 a) {
    return _mm512_sqrt_ps(a);
}
SIMD_INLINE v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
} /* a > b ? a : b */
SIMD_INLINE v16 v16_min(v16 a, v16 b) {
    return _mm512_min_ps(a, b);
} /* a < b ? a : b */
SIMD_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
} /* a b + c */
SIMD_INLINE v16 v16_fnma(v16 a, v16 b, v16 c) {
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a b */
SIMD_INLINE v16 v16_round(v16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Lane by lane: a < b ? x : y. False for NaN. */
SIMD_INLINE v16 v16_select_lt(v16 a, v16 b, v16 x, v16 y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
SIMD_INLINE v16i v16i_set1(int32_t x) {
    return _mm512_set1_epi32(x);
}
SIMD_INLINE v16i v16i_load(const void *p) {
    return _mm512_loadu_si512(p);
}
SIMD_INLINE void v16i_store(void *p, v16i x) {
    _mm512_storeu_si512(p, x);
}
/* Past the caches, for data that is not read again soon; p is 64-byte aligned. */
SIMD_INLINE void v16i_stream(void *p, v16i x) {
    _mm512_stream_si512(p, x);
}
SIMD_INLINE v16i v16i_add(v16i a, v16i b) {
    return _mm512_add_epi32(a, b);
}
SIMD_INLINE v16i v16i_sub(v16i a, v16i b) {
    return _mm512_sub_epi32(a, b);
}
SIMD_INLINE v16i v16i_and(v16i a, v16i b) {
    return _mm512_and_si512(a, b);
}
SIMD_INLINE v16i v16i_or(v16i a, v16i b) {
    return _mm512_or_si512(a, b);
}
SIMD_INLINE v16i v16i_xor(v16i a, v16i b) {
    return _mm512_xor_si512(a, b);
}
#define v16i_shl(a, bits) _mm512_slli_epi32(a, bits)
#define v16i_shr(a, bits) _mm512_srli_epi32(a, bits)
#define v16i_sar(a, bits) _mm512_srai_epi32(a, bits)
SIMD_INLINE v16i v16_to_int(v16 a) {
    return _mm512_cvtps_epi32(a);
} /* nearest even */
SIMD_INLINE v16 v16_from_int(v16i a) {
    return _mm512_cvtepi32_ps(a);
}
SIMD_INLINE v16i v16_bits(v16 a) {
    return _mm512_castps_si512(a);
}
SIMD_INLINE v16 v16_of_bits(v16i a) {
    return _mm512_castsi512_ps(a);
}
/* Lanes of x where a is a NaN, of y elsewhere. */
SIMD_INLINE v16i v16i_select_nan(v16 a, v16i x, v16i y) {
    return _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), x);
}
/* Sixteen 16-bit values, widened without sign; and the low halves of sixteen integers. */
SIMD_INLINE v16i v16i_load_u16(const void *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
}
/* Sixteen signed bytes. */
SIMD_INLINE v16i v16i_load_s8(const void *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(p));
}
SIMD_INLINE void v16i_store_u16(void *p, v16i x) {
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(x));
}
SIMD_INLINE v16 v16_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

/* The low bytes of sixteen integers; sums of integer products: of bytes (unsigned by signed) and of 16-bit halves. */
SIMD_INLINE void v16i_store_u8(void *p, v16i x) {
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(x));
}
SIMD_INLINE v16i v16i_max(v16i a, v16i b) {
    return _mm512_max_epi32(a, b);
}
SIMD_INLINE v16i v16i_add16(v16i a, v16i b) {
    return _mm512_add_epi16(a, b);
}
SIMD_INLINE v16i v16i_pairs_u8(v16i u, v16i s) {
    return _mm512_maddubs_epi16(u, s);
}
SIMD_INLINE v16i v16i_pairs_16(v16i a, v16i b) {
    return _mm512_madd_epi16(a, b);
}
#define v16i_shr16(a, bits) _mm512_srli_epi16(a, bits)
#if defined(__AVX512VNNI__)
#define SIMD_DOT 1
SIMD_INLINE v16i v16i_dot(v16i sum, v16i u, v16i s) {
    return _mm512_dpbusd_epi32(sum, u, s);
}
#endif
SIMD_INLINE __m256i simd_low(v16i x) {
    return _mm512_castsi512_si256(x);
}
SIMD_INLINE __m256i simd_high(v16i x) {
    return _mm512_extracti64x4_epi64(x, 1);
}

SIMD_INLINE __m256 simd_fold(v16 x) {
    __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(x), 1));
    return _mm256_add_ps(_mm512_castps512_ps256(x), high);
}
SIMD_INLINE __m256 simd_fold_max(v16 x) {
    __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(x), 1));
    return _mm256_max_ps(_mm512_castps512_ps256(x), high);
}

/* Lane j of register i becomes lane i of register j. */
SIMD_INLINE void v16i_transpose(v16i r[16]) {
    v16i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

#elif defined(__AVX2__)

#define SIMD_TILE_ROWS 6
#define SIMD_TILE_VECTORS(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)
#define SIMD_SUMS_WIDE 1

typedef struct {
    __m256 a, b; /* lanes 0..7 and 8..15 */
} v16;
typedef struct {
    __m256i a, b;
} v16i;
#define SIMD_HOLD(v) __asm__ volatile("" : "+x"((v).a), "+x"((v).b))

#define SIMD_PAIR(type, x, y) ((type){x, y})
SIMD_INLINE v16 v16_zero(void) {
    return SIMD_PAIR(v16, _mm256_setzero_ps(), _mm256_setzero_ps());
}
SIMD_INLINE v16 v16_set1(float x) {
    return SIMD_PAIR(v16, _mm256_set1_ps(x), _mm256_set1_ps(x));
}
SIMD_INLINE v16 v16_load(const float *p) {
    return SIMD_PAIR(v16, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
SIMD_INLINE void v16_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
SIMD_INLINE __m256i simd_mask8(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SIMD_INLINE v16 v16_load_n(const float *p, int n) {
    return SIMD_PAIR(v16, _mm256_maskload_ps(p, simd_mask8(n)), _mm256_maskload_ps(p + 8, simd_mask8(n - 8)));
}
SIMD_INLINE void v16_store_n(float *p, v16 x, int n) {
    _mm256_maskstore_ps(p, simd_mask8(n), x.a);
    _mm256_maskstore_ps(p + 8, simd_mask8(n - 8), x.b);
}
SIMD_INLINE v16 v16_first_n(v16 x, v16 y, int n) {
    return SIMD_PAIR(v16, _mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(simd_mask8(n))),
                     _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(simd_mask8(n - 8))));
}
SIMD_INLINE v16 v16_add(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_sub(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_mul(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_div(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_sqrt(v16 x) {
    return SIMD_PAIR(v16, _mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b));
}
SIMD_INLINE v16 v16_max(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_min(v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
SIMD_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return SIMD_PAIR(v16, _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
SIMD_INLINE v16 v16_fnma(v16 x, v16 y, v16 z) {
    return SIMD_PAIR(v16, _mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
#define SIMD_NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
SIMD_INLINE v16 v16_round(v16 x) {
    return SIMD_PAIR(v16, _mm256_round_ps(x.a, SIMD_NEAREST), _mm256_round_ps(x.b, SIMD_NEAREST));
}
SIMD_INLINE v16 v16_select_lt(v16 a, v16 b, v16 x, v16 y) {
    return SIMD_PAIR(v16, _mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                     _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ)));
}
SIMD_INLINE v16i v16i_set1(int32_t x) {
    return SIMD_PAIR(v16i, _mm256_set1_epi32(x), _mm256_set1_epi32(x));
}
SIMD_INLINE v16i v16i_load(const void *p) {
    return SIMD_PAIR(v16i, _mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1));
}
SIMD_INLINE void v16i_store(void *p, v16i x) {
    _mm256_storeu_si256(p, x.a);
    _mm256_storeu_si256((__m256i *)p + 1, x.b);
}
SIMD_INLINE void v16i_stream(void *p, v16i x) {
    _mm256_stream_si256(p, x.a);
    _mm256_stream_si256((__m256i *)p + 1, x.b);
}
SIMD_INLINE v16i v16i_add(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b));
}
SIMD_INLINE v16i v16i_sub(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b));
}
SIMD_INLINE v16i v16i_and(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b));
}
SIMD_INLINE v16i v16i_or(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b));
}
SIMD_INLINE v16i v16i_xor(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b));
}
#define v16i_shl(x, bits) SIMD_PAIR(v16i, _mm256_slli_epi32((x).a, bits), _mm256_slli_epi32((x).b, bits))
#define v16i_shr(x, bits) SIMD_PAIR(v16i, _mm256_srli_epi32((x).a, bits), _mm256_srli_epi32((x).b, bits))
#define v16i_sar(x, bits) SIMD_PAIR(v16i, _mm256_srai_epi32((x).a, bits), _mm256_srai_epi32((x).b, bits))
SIMD_INLINE v16i v16_to_int(v16 x) {
    return SIMD_PAIR(v16i, _mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
}
SIMD_INLINE v16 v16_from_int(v16i x) {
    return SIMD_PAIR(v16, _mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b));
}
SIMD_INLINE v16i v16_bits(v16 x) {
    return SIMD_PAIR(v16i, _mm256_castps_si256(x.a), _mm256_castps_si256(x.b));
}
SIMD_INLINE v16 v16_of_bits(v16i x) {
    return SIMD_PAIR(v16, _mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b));
}
SIMD_INLINE v16i v16i_select_nan(v16 n, v16i x, v16i y) {
    __m256i a = _mm256_castps_si256(_mm256_cmp_ps(n.a, n.a, _CMP_UNORD_Q));
    __m256i b = _mm256_castps_si256(_mm256_cmp_ps(n.b, n.b, _CMP_UNORD_Q));
    return SIMD_PAIR(v16i, _mm256_blendv_epi8(y.a, x.a, a), _mm256_blendv_epi8(y.b, x.b, b));
}
SIMD_INLINE v16i v16i_load_s8(const void *p) {
    return SIMD_PAIR(v16i, _mm256_cvtepi8_epi32(_mm_loadl_epi64(p)),
                     _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const char *)p + 8))));
}
SIMD_INLINE v16i v16i_load_u16(const void *p) {
    return SIMD_PAIR(v16i, _mm256_cvtepu16_epi32(_mm_loadu_si128(p)),
                     _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + 1)));
}
SIMD_INLINE void v16i_store_u16(void *p, v16i x) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    __m256i packed = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    _mm256_storeu_si256(p, _mm256_permute4x64_epi64(packed, 0xd8));
}
SIMD_INLINE v16 v16_load_f16(const void *p) {
    return SIMD_PAIR(v16, _mm256_cvtph_ps(_mm_loadu_si128(p)),
                     _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1)));
}
SIMD_INLINE void v16i_store_u8(void *p, v16i x) {
    const __m256i low = _mm256_set1_epi32(0xff);
    __m256i half = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    half = _mm256_permute4x64_epi64(half, 0xd8);
    _mm_storeu_si128(p, _mm_packus_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
SIMD_INLINE v16i v16i_max(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b));
}
SIMD_INLINE v16i v16i_add16(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b));
}
SIMD_INLINE v16i v16i_pairs_u8(v16i u, v16i s) {
    return SIMD_PAIR(v16i, _mm256_maddubs_epi16(u.a, s.a), _mm256_maddubs_epi16(u.b, s.b));
}
SIMD_INLINE v16i v16i_pairs_16(v16i x, v16i y) {
    return SIMD_PAIR(v16i, _mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b));
}
#define v16i_shr16(x, bits) SIMD_PAIR(v16i, _mm256_srli_epi16((x).a, bits), _mm256_srli_epi16((x).b, bits))
SIMD_INLINE __m256i simd_low(v16i x) {
    return x.a;
}
SIMD_INLINE __m256i simd_high(v16i x) {
    return x.b;
}
SIMD_INLINE __m256 simd_fold(v16 x) {
    return _mm256_add_ps(x.a, x.b);
}
SIMD_INLINE __m256 simd_fold_max(v16 x) {
    return _mm256_max_ps(x.a, x.b);
}

/* Transposes 8 x 8 in place. */
SIMD_INLINE void simd_transpose8(__m256i r[8]) {
    __m256i t[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}
SIMD_INLINE void v16i_transpose(v16i r[16]) {
    __m256i q[4][8]; /* quarters: rows 0-7 and 8-15, lanes 0-7 and 8-15 */
    for (int i = 0; i < 8; i++) {
        q[0][i] = r[i].a;
        q[1][i] = r[i].b;
        q[2][i] = r[i + 8].a;
        q[3][i] = r[i + 8].b;
    }
    for (int i = 0; i < 4; i++) simd_transpose8(q[i]);
    for (int i = 0; i < 8; i++) {
        r[i] = SIMD_PAIR(v16i, q[0][i], q[2][i]);
        r[i + 8] = SIMD_PAIR(v16i, q[1][i], q[3][i]);
    }
}

#else
#error "no vector instruction set for this table"
#endif

/* ---- built from the above ---------------------------------------------------------------------------------------- */

#ifndef SIMD_DOT
#define SIMD_DOT 0
#endif
#ifndef SIMD_DOT_SIGNED
#define SIMD_DOT_SIGNED 0
#endif

#if !defined(__ARM_NEON)

/* The sum of the lanes by the contract's tree: lane j += lane j+8, then j+4, j+2, j+1. */
SIMD_INLINE float v16_hsum(v16 x) {
    __m256 f = simd_fold(x);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
SIMD_INLINE float v16_hmax(v16 x) {
    __m256 f = simd_fold_max(x);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
SIMD_INLINE int32_t v16i_hsum(v16i x) {
    __m256i f = _mm256_add_epi32(simd_low(x), simd_high(x));
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(f), _mm256_extracti128_si256(f, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
SIMD_INLINE int32_t v16i_hmax(v16i x) {
    __m256i f = _mm256_max_epi32(simd_low(x), simd_high(x));
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(f), _mm256_extracti128_si256(f, 1));
    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}

/* The nibbles of bytes. */
SIMD_INLINE v16i v16i_low_nibbles(v16i x) {
    return v16i_and(x, v16i_set1(0x0f0f0f0f));
}
SIMD_INLINE v16i v16i_high_nibbles(v16i x) {
    return v16i_and(v16i_shr16(x, 4), v16i_set1(0x0f0f0f0f));
}
SIMD_INLINE v16 v16_load_bf16(const uint16_t *p) {
    return v16_of_bits(v16i_shl(v16i_load_u16(p), 16));
}

SIMD_INLINE void simd_prefetch(const void *p) {
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}
/* To the second-level cache. */
SIMD_INLINE void simd_prefetch_far(const void *p) {
    _mm_prefetch((const char *)p, _MM_HINT_T1);
}
/* The same, at this place among other instructions: compilers gather prefetches. What is read through the pointer
 * returned, which is `then`, is read after. */
SIMD_INLINE const int32_t *simd_prefetch_before(const unsigned char *p, const int32_t *then) {
    __asm__ volatile("prefetcht1 %1" : "+r"(then) : "m"(*p));
    return then;
}
/* After v16i_stream, before other threads read what it wrote. */
SIMD_INLINE void simd_fence(void) {
    _mm_sfence();
}
#endif

/* The bf16 of each lane (nearest even, NaN stays a quiet NaN) in its low 16 bits; see bf16_from_float. */
SIMD_INLINE v16i v16_to_bf16(v16 x) {
    v16i bits = v16_bits(x);
    v16i odd = v16i_and(v16i_shr(bits, 16), v16i_set1(1));
    v16i rounded = v16i_add(bits, v16i_add(odd, v16i_set1(0x7fff)));
    v16i nan = v16i_or(bits, v16i_set1(0x00400000));
    return v16i_shr(v16i_select_nan(x, nan, rounded), 16);
}
SIMD_INLINE void v16_store_bf16(uint16_t *p, v16 x) {
    v16i_store_u16(p, v16_to_bf16(x));
}
/* Rounded to bf16 and back. */
SIMD_INLINE v16 v16_round_bf16(v16 x) {
    return v16_of_bits(v16i_shl(v16_to_bf16(x), 16));
}

#include "tensor/cpu/simd_math.h"

#endif
