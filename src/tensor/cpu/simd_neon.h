/* Sixteen floats at a time for AArch64's NEON: four registers of four lanes. Included by simd.h, which says what each
 * function is; here is only how. Plain NEON (ARMv8.0) suffices but for v16i_dot, which is one instruction with the dot
 * product extension (FEAT_DotProd) and four without.
 *
 * Two things differ from x86. FMAX and FMIN propagate NaN, so maxima are a comparison and a selection, as the contract
 * words them. And there is no product of unsigned by signed bytes: v16i_dot takes signed ones (SIMD_DOT_SIGNED). */
#ifndef TENSOR_CPU_SIMD_NEON_H
#define TENSOR_CPU_SIMD_NEON_H

#include <arm_neon.h>

/* Of the 32 registers 16 to 24 hold sums, four or eight a step's weights, and the rest inputs. */
#define SIMD_TILE_ROWS 6
#define SIMD_TILE_VECTORS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define SIMD_SUMS_WIDE 0

typedef struct {
    float32x4_t a, b, c, d; /* lanes 0..3, 4..7, 8..11, 12..15 */
} v16;
typedef struct {
    int32x4_t a, b, c, d;
} v16i;
/* The value is complete, and in registers, at this place among other instructions. */
#define SIMD_HOLD(v) __asm__ volatile("" : "+w"((v).a), "+w"((v).b), "+w"((v).c), "+w"((v).d))

/* f over the four registers of one, two or three vectors. */
#define SIMD_EACH1(type, f, x) ((type){f((x).a), f((x).b), f((x).c), f((x).d)})
#define SIMD_EACH2(type, f, x, y) ((type){f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)})
#define SIMD_EACH3(type, f, x, y, z) \
    ((type){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d)})

SIMD_INLINE v16 v16_set1(float x) {
    float32x4_t q = vdupq_n_f32(x);
    return (v16){q, q, q, q};
}
SIMD_INLINE v16 v16_zero(void) {
    return v16_set1(0);
}
SIMD_INLINE v16 v16_load(const float *p) {
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
SIMD_INLINE void v16_store(float *p, v16 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
/* There are no masked loads and stores; what is not whole goes through memory. */
SIMD_INLINE v16 v16_load_n(const float *p, int n) {
    if (n >= 16) return v16_load(p);
    float part[16] = {0};
    for (int i = 0; i < n; i++) part[i] = p[i];
    return v16_load(part);
}
SIMD_INLINE void v16_store_n(float *p, v16 x, int n) {
    if (n >= 16) {
        v16_store(p, x);
        return;
    }
    float part[16];
    v16_store(part, x);
    for (int i = 0; i < n; i++) p[i] = part[i];
}
SIMD_INLINE v16 v16_add(v16 x, v16 y) {
    return SIMD_EACH2(v16, vaddq_f32, x, y);
}
SIMD_INLINE v16 v16_sub(v16 x, v16 y) {
    return SIMD_EACH2(v16, vsubq_f32, x, y);
}
SIMD_INLINE v16 v16_mul(v16 x, v16 y) {
    return SIMD_EACH2(v16, vmulq_f32, x, y);
}
SIMD_INLINE v16 v16_div(v16 x, v16 y) {
    return SIMD_EACH2(v16, vdivq_f32, x, y);
}
SIMD_INLINE v16 v16_sqrt(v16 x) {
    return SIMD_EACH1(v16, vsqrtq_f32, x);
}
SIMD_INLINE float32x4_t simd_max4(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(x, y), x, y);
}
SIMD_INLINE float32x4_t simd_min4(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcltq_f32(x, y), x, y);
}
SIMD_INLINE v16 v16_max(v16 x, v16 y) {
    return SIMD_EACH2(v16, simd_max4, x, y);
}
SIMD_INLINE v16 v16_min(v16 x, v16 y) {
    return SIMD_EACH2(v16, simd_min4, x, y);
}
SIMD_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return SIMD_EACH3(v16, vfmaq_f32, z, x, y);
}
SIMD_INLINE v16 v16_fnma(v16 x, v16 y, v16 z) {
    return SIMD_EACH3(v16, vfmsq_f32, z, x, y);
}
SIMD_INLINE v16 v16_round(v16 x) {
    return SIMD_EACH1(v16, vrndnq_f32, x);
}
SIMD_INLINE v16 v16_select_lt(v16 a, v16 b, v16 x, v16 y) {
    return (v16){vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
                 vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}
SIMD_INLINE v16i v16i_set1(int32_t x) {
    int32x4_t q = vdupq_n_s32(x);
    return (v16i){q, q, q, q};
}
/* Lanes 0..n-1 of x, the rest of y. */
SIMD_INLINE v16 v16_first_n(v16 x, v16 y, int n) {
    const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32x4_t end = vdupq_n_s32(n);
    return (v16){vbslq_f32(vcltq_s32(vld1q_s32(lanes), end), x.a, y.a),
                 vbslq_f32(vcltq_s32(vld1q_s32(lanes + 4), end), x.b, y.b),
                 vbslq_f32(vcltq_s32(vld1q_s32(lanes + 8), end), x.c, y.c),
                 vbslq_f32(vcltq_s32(vld1q_s32(lanes + 12), end), x.d, y.d)};
}
SIMD_INLINE int32x4_t simd_load4(const void *p) {
    return vreinterpretq_s32_u8(vld1q_u8(p));
}
SIMD_INLINE v16i v16i_load(const void *p) {
    const char *q = p;
    return (v16i){simd_load4(q), simd_load4(q + 16), simd_load4(q + 32), simd_load4(q + 48)};
}
SIMD_INLINE void v16i_store(void *p, v16i x) {
    unsigned char *q = p;
    vst1q_u8(q, vreinterpretq_u8_s32(x.a));
    vst1q_u8(q + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8(q + 32, vreinterpretq_u8_s32(x.c));
    vst1q_u8(q + 48, vreinterpretq_u8_s32(x.d));
}
/* There is no store past the caches that intrinsics reach. */
SIMD_INLINE void v16i_stream(void *p, v16i x) {
    v16i_store(p, x);
}
SIMD_INLINE void simd_fence(void) {}
SIMD_INLINE v16i v16i_add(v16i x, v16i y) {
    return SIMD_EACH2(v16i, vaddq_s32, x, y);
}
SIMD_INLINE v16i v16i_sub(v16i x, v16i y) {
    return SIMD_EACH2(v16i, vsubq_s32, x, y);
}
SIMD_INLINE v16i v16i_and(v16i x, v16i y) {
    return SIMD_EACH2(v16i, vandq_s32, x, y);
}
SIMD_INLINE v16i v16i_or(v16i x, v16i y) {
    return SIMD_EACH2(v16i, vorrq_s32, x, y);
}
SIMD_INLINE v16i v16i_xor(v16i x, v16i y) {
    return SIMD_EACH2(v16i, veorq_s32, x, y);
}
SIMD_INLINE v16i v16i_max(v16i x, v16i y) {
    return SIMD_EACH2(v16i, vmaxq_s32, x, y);
}
/* Shifts by the operators of vectors, since the intrinsics take only literal constants. */
SIMD_INLINE v16i v16i_shl(v16i x, const int bits) {
    return (v16i){x.a << bits, x.b << bits, x.c << bits, x.d << bits};
}
SIMD_INLINE v16i v16i_sar(v16i x, const int bits) {
    return (v16i){x.a >> bits, x.b >> bits, x.c >> bits, x.d >> bits};
}
SIMD_INLINE v16i v16i_shr(v16i x, const int bits) {
    return (v16i){(int32x4_t)((uint32x4_t)x.a >> (unsigned)bits), (int32x4_t)((uint32x4_t)x.b >> (unsigned)bits),
                  (int32x4_t)((uint32x4_t)x.c >> (unsigned)bits), (int32x4_t)((uint32x4_t)x.d >> (unsigned)bits)};
}
SIMD_INLINE v16i v16_to_int(v16 x) {
    return SIMD_EACH1(v16i, vcvtnq_s32_f32, x);
}
SIMD_INLINE v16 v16_from_int(v16i x) {
    return SIMD_EACH1(v16, vcvtq_f32_s32, x);
}
SIMD_INLINE v16i v16_bits(v16 x) {
    return SIMD_EACH1(v16i, vreinterpretq_s32_f32, x);
}
SIMD_INLINE v16 v16_of_bits(v16i x) {
    return SIMD_EACH1(v16, vreinterpretq_f32_s32, x);
}
SIMD_INLINE int32x4_t simd_select_nan4(float32x4_t n, int32x4_t x, int32x4_t y) {
    return vbslq_s32(vceqq_f32(n, n), y, x);
}
SIMD_INLINE v16i v16i_select_nan(v16 n, v16i x, v16i y) {
    return SIMD_EACH3(v16i, simd_select_nan4, n, x, y);
}

/* ---- narrower elements ------------------------------------------------------------------------------------------- */

SIMD_INLINE v16i v16i_load_s8(const void *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return (v16i){vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                  vmovl_high_s16(high)};
}
SIMD_INLINE v16i v16i_load_u16(const void *p) {
    const uint16x8_t low = vreinterpretq_u16_s32(simd_load4(p)),
                     high = vreinterpretq_u16_s32(simd_load4((const char *)p + 16));
    return (v16i){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
                  vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))};
}
SIMD_INLINE v16 v16_load_bf16(const uint16_t *p) {
    const uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8);
    return (v16){
        vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(low), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(low, 16)),
        vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(high), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(high, 16))};
}
SIMD_INLINE v16 v16_load_f16(const void *p) {
    const float16x8_t low = vreinterpretq_f16_s32(simd_load4(p)),
                      high = vreinterpretq_f16_s32(simd_load4((const char *)p + 16));
    return (v16){vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
                 vcvt_high_f32_f16(high)};
}
/* The low halves of the lanes of two registers. */
SIMD_INLINE int16x8_t simd_low_halves(int32x4_t x, int32x4_t y) {
    return vuzp1q_s16(vreinterpretq_s16_s32(x), vreinterpretq_s16_s32(y));
}
SIMD_INLINE void v16i_store_u16(void *p, v16i x) {
    unsigned char *q = p;
    vst1q_u8(q, vreinterpretq_u8_s16(simd_low_halves(x.a, x.b)));
    vst1q_u8(q + 16, vreinterpretq_u8_s16(simd_low_halves(x.c, x.d)));
}
SIMD_INLINE void v16i_store_u8(void *p, v16i x) {
    const int16x8_t low = simd_low_halves(x.a, x.b), high = simd_low_halves(x.c, x.d);
    vst1q_u8(p, vuzp1q_u8(vreinterpretq_u8_s16(low), vreinterpretq_u8_s16(high)));
}

/* ---- products of bytes ------------------------------------------------------------------------------------------- */

#define SIMD_DOT 1
#define SIMD_DOT_SIGNED 1
SIMD_INLINE int32x4_t simd_dot4(int32x4_t sum, int32x4_t x, int32x4_t y) {
    const int8x16_t u = vreinterpretq_s8_s32(x), s = vreinterpretq_s8_s32(y);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, u, s);
#else
    /* Two products of bytes of at most 128 x 127 stay in 16 bits. */
    int16x8_t low = vmull_s8(vget_low_s8(u), vget_low_s8(s)), high = vmull_high_s8(u, s);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}
SIMD_INLINE v16i v16i_dot(v16i sum, v16i x, v16i y) {
    return SIMD_EACH3(v16i, simd_dot4, sum, x, y);
}
SIMD_INLINE int32x4_t simd_low_nibbles4(int32x4_t x) {
    return vandq_s32(x, vdupq_n_s32(0x0f0f0f0f));
}
SIMD_INLINE int32x4_t simd_high_nibbles4(int32x4_t x) {
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4));
}
SIMD_INLINE v16i v16i_low_nibbles(v16i x) {
    return SIMD_EACH1(v16i, simd_low_nibbles4, x);
}
SIMD_INLINE v16i v16i_high_nibbles(v16i x) {
    return SIMD_EACH1(v16i, simd_high_nibbles4, x);
}

/* ---- across lanes ------------------------------------------------------------------------------------------------ */

SIMD_INLINE float v16_hsum(v16 x) {
    float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    return vpadds_f32(vadd_f32(vget_low_f32(q), vget_high_f32(q)));
}
SIMD_INLINE float v16_hmax(v16 x) {
    float32x4_t q = simd_max4(simd_max4(x.a, x.c), simd_max4(x.b, x.d));
    q = simd_max4(q, vextq_f32(q, q, 2));
    return vgetq_lane_f32(simd_max4(q, vdupq_laneq_f32(q, 1)), 0);
}
SIMD_INLINE int32_t v16i_hsum(v16i x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.c), vaddq_s32(x.b, x.d)));
}
SIMD_INLINE int32_t v16i_hmax(v16i x) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.c), vmaxq_s32(x.b, x.d)));
}

/* Transposes four lanes of four registers. */
SIMD_INLINE void simd_transpose4(int32x4_t *w, int32x4_t *x, int32x4_t *y, int32x4_t *z) {
    int64x2_t wx = vreinterpretq_s64_s32(vtrn1q_s32(*w, *x)), wx_odd = vreinterpretq_s64_s32(vtrn2q_s32(*w, *x));
    int64x2_t yz = vreinterpretq_s64_s32(vtrn1q_s32(*y, *z)), yz_odd = vreinterpretq_s64_s32(vtrn2q_s32(*y, *z));
    *w = vreinterpretq_s32_s64(vtrn1q_s64(wx, yz));
    *x = vreinterpretq_s32_s64(vtrn1q_s64(wx_odd, yz_odd));
    *y = vreinterpretq_s32_s64(vtrn2q_s64(wx, yz));
    *z = vreinterpretq_s32_s64(vtrn2q_s64(wx_odd, yz_odd));
}
/* Squares of four by four: each in place, then squares across the diagonal change places. */
SIMD_INLINE void v16i_transpose(v16i r[16]) {
    int32x4_t q[4][16]; /* by columns of squares */
    for (int i = 0; i < 16; i++) {
        q[0][i] = r[i].a;
        q[1][i] = r[i].b;
        q[2][i] = r[i].c;
        q[3][i] = r[i].d;
    }
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 16; i += 4) simd_transpose4(&q[c][i], &q[c][i + 1], &q[c][i + 2], &q[c][i + 3]);
    for (int i = 0; i < 16; i++)
        r[i] = (v16i){q[i / 4][i % 4], q[i / 4][i % 4 + 4], q[i / 4][i % 4 + 8], q[i / 4][i % 4 + 12]};
}

SIMD_INLINE void simd_prefetch(const void *p) {
    __builtin_prefetch(p, 0, 3);
}
SIMD_INLINE void simd_prefetch_far(const void *p) {
    __builtin_prefetch(p, 0, 2);
}
SIMD_INLINE const int32_t *simd_prefetch_before(const unsigned char *p, const int32_t *then) {
    __asm__ volatile("prfm pldl2keep, %1" : "+r"(then) : "Q"(*p));
    return then;
}

#endif
