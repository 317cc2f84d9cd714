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

pmx_attend_kernel pmx_avx512vnni_attend_f32, pmx_avx512vnni_attend_f16, pmx_avx512vnni_attend_q8_0;

pmx_search pmx_avx512vnni_search;

/* From so many tokens on mat is faster. That of floats and of blocks of 256 needs no strip for few
 * tokens. Products of one token of q8_0, and of the types of vec4.h, come near the speed of memory. */
#define PMX_AVX512VNNI_MIN_TOKENS(TYPE)                                                                                \
    ((TYPE) == PMX_Q8_0                                                                        ? 4                     \
     : (TYPE) == PMX_Q4_0 || (TYPE) == PMX_Q4_1 || (TYPE) == PMX_IQ4_NL || (TYPE) == PMX_MXFP4 ? 3                     \
                                                                                               : 2)

/* What is no product. */
#define PMX_AVX512VNNI_OPERATIONS                                                                                      \
    PMX_AVX2_OPERATIONS, .attend_f32 = pmx_avx512vnni_attend_f32, .attend_f16 = pmx_avx512vnni_attend_f16,             \
        .attend_q8_0 = pmx_avx512vnni_attend_q8_0, .search = pmx_avx512vnni_search

PMX_AVX512VNNI_BEGIN

/* p[i]: 8 partial sums of row i, then of row i + 4. Returns the sums of rows 0..7. */
PMX_INLINE __m256i reduce8(const __m512i p[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xb1));
    return _mm512_castsi512_si256(_mm512_shuffle_i32x4(d, d, 0x08));
}

PMX_AVX512VNNI_END

#endif
