/* avx512vbmi.h: the kernels of AVX-512-VNNI with VBMI (Intel's servers since 2021, AMD's since 2022):
 * vpermi2b finds 64 bytes at once among 128. What is not here is avx512vnni's. */
#ifndef PMX_AVX512VBMI_H
#define PMX_AVX512VBMI_H

#include "../avx512vnni/avx512vnni.h"

#if defined(__clang__)
/* One literal: clang takes no other. These bring avx512bw and what avx512vnni's bring. */
/* clang-format off */
#define PMX_AVX512VBMI_BEGIN \
    _Pragma("clang attribute push(__attribute__((target(\"avx512dq,avx512vl,avx512vnni,avx512vbmi\"))), apply_to=function)")
/* clang-format on */
#define PMX_AVX512VBMI_END _Pragma("clang attribute pop")
#else
#define PMX_AVX512VBMI_BEGIN                                                                                           \
    _Pragma("GCC push_options")                                                                                        \
        _Pragma("GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi\")")
#define PMX_AVX512VBMI_END _Pragma("GCC pop_options")
#endif

/* lattices_vec.c, mxfp4_vec.c */
#define PMX_AVX512VBMI_VEC(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avx512vbmi_vec_##T;
PMX_TYPES_LATTICES(PMX_AVX512VBMI_VEC)
PMX_TYPES_POWERS32(PMX_AVX512VBMI_VEC)

#endif
