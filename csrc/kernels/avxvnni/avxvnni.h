/* avxvnni.h: the kernels of AVX2 with VNNI in 256-bit registers (Intel's desktop processors since
 * 2021). What is not here is avx2's. */
#ifndef PMX_AVXVNNI_H
#define PMX_AVXVNNI_H

#include "../avx2/avx2.h"

#if defined(__clang__)
#define PMX_AVXVNNI_BEGIN                                                                                              \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avxvnni\"))), apply_to = function)")
#define PMX_AVXVNNI_END _Pragma("clang attribute pop")
#else
#define PMX_AVXVNNI_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,avxvnni\")")
#define PMX_AVXVNNI_END _Pragma("GCC pop_options")
#endif

/* matmul32.c, kquants_mat.c */
#define PMX_AVXVNNI_MAT(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avxvnni_mat_##T;
PMX_TYPES_Q32(PMX_AVXVNNI_MAT)
PMX_TYPES_Q256(PMX_AVXVNNI_MAT)

/* few32.c */
#define PMX_AVXVNNI_FEW32(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_avxvnni_few_##T;
PMX_TYPES_Q32(PMX_AVXVNNI_FEW32)

#endif
