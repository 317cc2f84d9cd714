/* neon_i8mm.h: the kernels that 8-bit matrix products (smmla) make faster; the rest is neon's. */
#ifndef PMX_NEON_I8MM_H
#define PMX_NEON_I8MM_H

#include "../neon/neon.h"

#if defined(__clang__)
#define PMX_NEON_I8MM_BEGIN                                                                                            \
    _Pragma("clang attribute push(__attribute__((target(\"dotprod,i8mm\"))), apply_to = function)")
#define PMX_NEON_I8MM_END _Pragma("clang attribute pop")
#else
#define PMX_NEON_I8MM_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod+i8mm\")")
#define PMX_NEON_I8MM_END _Pragma("GCC pop_options")
#endif

#define PMX_NEON_I8MM_MAT(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_neon_i8mm_mat_##T;
PMX_TYPES_Q32(PMX_NEON_I8MM_MAT)
PMX_TYPES_Q256(PMX_NEON_I8MM_MAT)

#endif
