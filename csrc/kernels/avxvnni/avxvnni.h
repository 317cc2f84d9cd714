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

/* Declares the matrix kernel of a weight type. */
#define PMX_AVXVNNI_TYPE(T) pmx_multiply pmx_avxvnni_mat_##T;

PMX_AVXVNNI_TYPE(q4_0)
PMX_AVXVNNI_TYPE(q4_1)
PMX_AVXVNNI_TYPE(q5_0)
PMX_AVXVNNI_TYPE(q5_1)
PMX_AVXVNNI_TYPE(q8_0)
PMX_AVXVNNI_TYPE(iq4_nl)
PMX_AVXVNNI_TYPE(q2_k)
PMX_AVXVNNI_TYPE(q3_k)
PMX_AVXVNNI_TYPE(q4_k)
PMX_AVXVNNI_TYPE(q5_k)
PMX_AVXVNNI_TYPE(q6_k)
PMX_AVXVNNI_TYPE(iq4_xs)

#endif
