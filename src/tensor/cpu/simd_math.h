/* exp and sigmoid of sixteen floats: base/mathfn.h operation for operation, so the same bits. Included by simd.h. */
#ifndef TENSOR_CPU_SIMD_MATH_H
#define TENSOR_CPU_SIMD_MATH_H

#if defined(__AVX512F__)
/* p 2^n for an integer n that is still shifted by MATH_ROUND_MAGIC; rounded once. */
SIMD_INLINE v16 v16_scale(v16 p, v16 shifted) {
    return _mm512_scalef_ps(p, v16_sub(shifted, v16_set1(MATH_ROUND_MAGIC)));
}
#else
SIMD_INLINE v16 v16_scale(v16 p, v16 shifted) {
    v16i n = v16i_sub(v16_bits(shifted), v16_bits(v16_set1(MATH_ROUND_MAGIC)));
    v16i half = v16i_sar(n, 1), rest = v16i_sub(n, half), bias = v16i_set1(127);
    v16i scale_half = v16i_add(half, bias), scale_rest = v16i_add(rest, bias);
    p = v16_mul(p, v16_of_bits(v16i_shl(scale_half, 23)));
    return v16_mul(p, v16_of_bits(v16i_shl(scale_rest, 23)));
}
#endif

SIMD_INLINE v16 v16_exp(v16 x) {
    x = v16_min(v16_set1(MATH_EXP_MAX), x);
    x = v16_max(v16_set1(MATH_EXP_MIN), x);
    v16 magic = v16_set1(MATH_ROUND_MAGIC), one = v16_set1(1.0f);
    v16 shifted = v16_fma(x, v16_set1(MATH_LOG2_E), magic);
    v16 n = v16_sub(shifted, magic);
    v16 r = v16_fma(n, v16_set1(-MATH_LN2_HIGH), x);
    r = v16_fma(n, v16_set1(-MATH_LN2_LOW), r);
    v16 p = v16_fma(v16_set1(MATH_EXP_E6), r, v16_set1(MATH_EXP_E5));
    p = v16_fma(p, r, v16_set1(MATH_EXP_E4));
    p = v16_fma(p, r, v16_set1(MATH_EXP_E3));
    p = v16_fma(p, r, v16_set1(MATH_EXP_E2));
    p = v16_fma(p, r, one);
    p = v16_fma(p, r, one);
    return v16_scale(p, shifted);
}

SIMD_INLINE v16 v16_sigmoid(v16 x) {
    v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_sub(v16_zero(), x))));
}

#endif
