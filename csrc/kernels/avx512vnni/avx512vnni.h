/* avx512vnni.h: the kernels of AVX-512 F, BW, DQ, VL and VNNI. What is not here is avx2's: the
 * lanes of the contract are eight. */
#ifndef PMX_AVX512VNNI_H
#define PMX_AVX512VNNI_H

#include "../avx2/avx2.h"

#if defined(__clang__)
/* One literal: clang takes no other. These bring avx512f, avx2, fma and f16c. */
#define PMX_AVX512VNNI_BEGIN                                                                                           \
    _Pragma(                                                                                                           \
        "clang attribute push(__attribute__((target(\"avx512bw,avx512dq,avx512vl,avx512vnni\"))), apply_to=function)")
#define PMX_AVX512VNNI_END _Pragma("clang attribute pop")
#else
#define PMX_AVX512VNNI_BEGIN                                                                                           \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni\")")
#define PMX_AVX512VNNI_END _Pragma("GCC pop_options")
#endif

/* matmul_float.c, matmul32.c, vec4_types.c, matmul256.c */
#define PMX_AVX512VNNI_PRODUCTS(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avx512vnni_vec_##T, pmx_avx512vnni_mat_##T;
PMX_TYPES(PMX_AVX512VNNI_PRODUCTS)

/* few32.c */
#define PMX_AVX512VNNI_FEW32(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avx512vnni_few_##T;
PMX_TYPES_Q32(PMX_AVX512VNNI_FEW32)

pmx_attend_kernel pmx_avx512vnni_attend_f32, pmx_avx512vnni_attend_f16, pmx_avx512vnni_attend_q8_0;

pmx_search pmx_avx512vnni_search;

/* From so many tokens on mat is faster. That of floats and of blocks of 256 needs no strip for few
 * tokens. Of blocks of 32 few has all that it can take: from memory, two threads, 8 tokens take 0.59 to
 * 0.70 of mat's time (q5_1 0.53, mxfp4 0.77), 12 take 0.62 to 0.88, 16 take 0.75 to 0.92 (mxfp4 1.05).
 * Within the caches mat is as fast at 12, and 1.15 times as fast at 16. */
enum { PMX_AVX512VNNI_MIN_TOKENS = 2, PMX_AVX512VNNI_MIN_TOKENS32 = PMX_FEW_TOKENS + 1 };

/* Types in a table. ISA is that of vec: avx512vbmi has some of its own. */
#define PMX_AVX512VNNI_FLOATS(NAME, T, FORM, ELEMENTS)                                                                 \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_avx2_dequantize_##T},
#define PMX_AVX512VNNI_BLOCKS32(NAME, T, FORM, ISA)                                                                    \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_##ISA##_vec_##T,                                                                               \
                    pmx_avx512vnni_few_##T,                                                                            \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS32,                                                                       \
                    pmx_avx2_dequantize_##T},
#define PMX_AVX512VNNI_BLOCKS256(NAME, T, FORM, ISA)                                                                   \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_##ISA##_vec_##T,                                                                               \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_scalar_dequantize_##T},

/* What is no product. */
#define PMX_AVX512VNNI_OPERATIONS                                                                                      \
    PMX_AVX2_OPERATIONS, .attend_f32 = pmx_avx512vnni_attend_f32, .attend_f16 = pmx_avx512vnni_attend_f16,             \
        .attend_q8_0 = pmx_avx512vnni_attend_q8_0, .search = pmx_avx512vnni_search

PMX_AVX512VNNI_BEGIN

/* 64 bytes of weights. The compiler would load them again at each use, and a load that crosses a line takes
 * three times as long as one that does not. */
PMX_INLINE __m512i load_once(const uint8_t *p) {
    __m512i v = _mm512_loadu_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

/* p[i]: 8 partial sums of row i, then of row i + 4. Returns the sums of rows 0..7. */
PMX_INLINE __m256i reduce8(const __m512i p[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xb1));
    return _mm512_castsi512_si256(_mm512_shuffle_i32x4(d, d, 0x08));
}

/* Words 8*i + j are j plus a, b, c, d for i = 0, 1, 2, 3. */
PMX_INLINE __m512i word_pattern(const int a, const int b, const int c, const int d) {
    const __m128i j = _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i out = _mm512_castsi128_si512(_mm_add_epi16(j, _mm_set1_epi16((int16_t)a)));
    out = _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)b)), 1);
    out = _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)c)), 2);
    return _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)d)), 3);
}

/* Transposes 4 x 4 lanes of 128 bits. */
PMX_INLINE void transpose_lanes(__m512i v[4]) {
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

PMX_AVX512VNNI_END

#endif
