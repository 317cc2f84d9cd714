/* avx2.h: the kernels of AVX2+FMA+F16C, and the vector helpers that its files share. */
#ifndef PMX_AVX2_H
#define PMX_AVX2_H

#include <immintrin.h>

#include "../../blocks.h"
#include "../../kernels.h"

/* Everything between the two is compiled for the instruction set, whatever the compiler's own
 * target is. */
#if defined(__clang__)
#define PMX_AVX2_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define PMX_AVX2_END _Pragma("clang attribute pop")
#else
#define PMX_AVX2_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define PMX_AVX2_END _Pragma("GCC pop_options")
#endif

void pmx_avx2_rms_norm(float *y, const float *x, const float *w, int64_t n, float eps);
int pmx_avx2_quantize32(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
int pmx_avx2_quantize256(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
void pmx_avx2_exp(float *y, const float *x, int64_t n);
void pmx_avx2_silu_mul(float *y, const float *gate, const float *up, int64_t n);
void pmx_avx2_axpy(float *y, float a, const float *x, int64_t n);
void pmx_avx2_add_rows(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n);
void pmx_avx2_rope(float *x, const float *cosines, const float *sines, int64_t n_pairs);
void pmx_avx2_narrow(uint16_t *y, const float *x, int64_t n);
void pmx_avx2_widen(float *y, const uint16_t *x, int64_t n);
pmx_attend_kernel pmx_avx2_attend_f32, pmx_avx2_attend_f16, pmx_avx2_attend_q8_0;
void pmx_avx2_combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim);

pmx_search pmx_avx2_search;

/* matmul_float.c, matmul32.c, kquants_vec.c, kquants_mat.c; blocks of 256 are dequantized by the
 * scalar kernels */
#define PMX_AVX2_PRODUCTS(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avx2_vec_##T, pmx_avx2_mat_##T;
#define PMX_AVX2_DEQUANTIZE(NAME, T, FORM, ELEMENTS) pmx_dequantize pmx_avx2_dequantize_##T;
PMX_TYPES(PMX_AVX2_PRODUCTS)
PMX_TYPES_F32(PMX_AVX2_DEQUANTIZE)
PMX_TYPES_Q32(PMX_AVX2_DEQUANTIZE)

/* few32.c */
#define PMX_AVX2_FEW32(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avx2_few_##T;
PMX_TYPES_Q32(PMX_AVX2_FEW32)

/* The operations that all x86 tables take from here. */
#define PMX_AVX2_OPERATIONS                                                                                            \
    .rms_norm = pmx_avx2_rms_norm, .quantize32 = pmx_avx2_quantize32, .quantize256 = pmx_avx2_quantize256,             \
    .exp = pmx_avx2_exp, .silu_mul = pmx_avx2_silu_mul, .axpy = pmx_avx2_axpy, .add_rows = pmx_avx2_add_rows,          \
    .rope = pmx_avx2_rope, .narrow = pmx_avx2_narrow, .widen = pmx_avx2_widen, .combine = pmx_avx2_combine

/* Into L2. Spread over the unpacking of a strip, the reading of the next one hides behind it: all
 * at once, or between the tiles, where few tokens leave no room, it does not. */
PMX_INLINE void prefetch_bytes(const uint8_t *p, int64_t n) {
    for (int64_t line = 0; line < n; line += 64) __builtin_prefetch(p + line, 0, 2);
}

PMX_AVX2_BEGIN

/* Lanes 0 .. n-1 set. */
PMX_INLINE __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The contract's tree over eight partial sums. */
PMX_INLINE float sum8_tree(__m256 s) {
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

PMX_INLINE __m256 exp8(__m256 x) {
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(PMX_EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(PMX_EXP_LN2_HI), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(PMX_EXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(PMX_EXP_C7);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PMX_EXP_C6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PMX_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PMX_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PMX_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PMX_EXP_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const __m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
    const __m256 huge = _mm256_cmp_ps(x, _mm256_set1_ps(PMX_EXP_HI), _CMP_GT_OQ);
    const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(PMX_EXP_LO), _CMP_LT_OQ);
    return _mm256_andnot_ps(tiny, _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), huge));
}

PMX_AVX2_END

#endif
