/* neon.h: the kernels of ARMv8.2 with the dot product instructions, and the vector helpers that its
 * files share. */
#ifndef PMX_NEON_H
#define PMX_NEON_H

#include <arm_neon.h>

#include "../../blocks.h"
#include "../../kernels.h"

/* Everything between the two is compiled for the instruction set, whatever the compiler's own
 * target is. */
#if defined(__clang__)
#if __clang_major__ < 15 || (__clang_major__ == 15 && !defined(__apple_build_version__))
#error "the arm_neon.h of this clang hides sdot and smmla behind -march: build with gcc, clang 16 or Xcode 15, or newer"
#endif
#define PMX_NEON_BEGIN _Pragma("clang attribute push(__attribute__((target(\"dotprod\"))), apply_to = function)")
#define PMX_NEON_END _Pragma("clang attribute pop")
#else
#define PMX_NEON_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod\")")
#define PMX_NEON_END _Pragma("GCC pop_options")
#endif

void pmx_neon_rms_norm(float *y, const float *x, const float *w, int64_t n, float eps);
int pmx_neon_quantize32(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
int pmx_neon_quantize256(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
void pmx_neon_exp(float *y, const float *x, int64_t n);
void pmx_neon_silu_mul(float *y, const float *gate, const float *up, int64_t n);
void pmx_neon_axpy(float *y, float a, const float *x, int64_t n);
void pmx_neon_add_rows(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n);
void pmx_neon_rope(float *x, const float *cosines, const float *sines, int64_t n_pairs);
void pmx_neon_narrow(uint16_t *y, const float *x, int64_t n);
void pmx_neon_widen(float *y, const uint16_t *x, int64_t n);
pmx_attend_kernel pmx_neon_attend_f32, pmx_neon_attend_f16, pmx_neon_attend_q8_0;
void pmx_neon_combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim);

/* matmul_float.c, matmul_int.c; all types are dequantized by the scalar kernels: only rows of the
 * embedding are */
#define PMX_NEON_PRODUCTS(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_neon_vec_##T, pmx_neon_mat_##T;
PMX_TYPES(PMX_NEON_PRODUCTS)

/* few32.c */
#define PMX_NEON_FEW32(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_neon_few_##T;
PMX_TYPES_Q32(PMX_NEON_FEW32)

/* Both ARM tables have these: i8mm helps matrix products only. */
#define PMX_NEON_OPERATIONS                                                                                            \
    .rms_norm = pmx_neon_rms_norm, .quantize32 = pmx_neon_quantize32, .quantize256 = pmx_neon_quantize256,             \
    .exp = pmx_neon_exp, .silu_mul = pmx_neon_silu_mul, .axpy = pmx_neon_axpy, .add_rows = pmx_neon_add_rows,          \
    .rope = pmx_neon_rope, .narrow = pmx_neon_narrow, .widen = pmx_neon_widen, .attend_f32 = pmx_neon_attend_f32,      \
    .attend_f16 = pmx_neon_attend_f16, .attend_q8_0 = pmx_neon_attend_q8_0, .combine = pmx_neon_combine,               \
    .search = pmx_scalar_search

PMX_NEON_BEGIN

/* The contract's tree over eight partial sums, s0..s3 in low, s4..s7 in high. */
PMX_INLINE float sum8_tree(float32x4_t low, float32x4_t high) {
    const float32x4_t a = vaddq_f32(low, high);
    return vpadds_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a)));
}

PMX_INLINE float32x4_t exp4(float32x4_t x) {
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, PMX_EXP_LOG2E));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(PMX_EXP_LN2_HI));
    r = vfmsq_f32(r, n, vdupq_n_f32(PMX_EXP_LN2_LO));
    float32x4_t p = vdupq_n_f32(PMX_EXP_C7);
    p = vfmaq_f32(vdupq_n_f32(PMX_EXP_C6), p, r);
    p = vfmaq_f32(vdupq_n_f32(PMX_EXP_C5), p, r);
    p = vfmaq_f32(vdupq_n_f32(PMX_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(PMX_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(PMX_EXP_C2), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    const int32x4_t scale = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    const float32x4_t y = vmulq_f32(p, vreinterpretq_f32_s32(scale));
    const uint32x4_t huge = vcgtq_f32(x, vdupq_n_f32(PMX_EXP_HI)), tiny = vcltq_f32(x, vdupq_n_f32(PMX_EXP_LO));
    return vbslq_f32(huge, vdupq_n_f32(__builtin_inff()), vbslq_f32(tiny, vdupq_n_f32(0.0f), y));
}

PMX_NEON_END

#endif
