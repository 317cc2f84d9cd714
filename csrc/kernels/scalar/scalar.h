/* scalar.h: what the files of the scalar kernels share. */
#ifndef PMX_SCALAR_H
#define PMX_SCALAR_H

#include <stddef.h>

#include "../../kernels.h"

/* search.c */
pmx_search pmx_scalar_search;

/* Declares the kernels of a weight type. */
#define PMX_SCALAR_TYPE(T)                                                                                             \
    void pmx_scalar_vec_##T(const pmx_product *p);                                                                     \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n);

/* types_float.c */
PMX_SCALAR_TYPE(f32)
PMX_SCALAR_TYPE(f16)
PMX_SCALAR_TYPE(bf16)

/* types32.c */
PMX_SCALAR_TYPE(q4_0)
PMX_SCALAR_TYPE(q4_1)
PMX_SCALAR_TYPE(q5_0)
PMX_SCALAR_TYPE(q5_1)
PMX_SCALAR_TYPE(q8_0)
PMX_SCALAR_TYPE(iq4_nl)

/* kquants.c */
PMX_SCALAR_TYPE(q2_k)
PMX_SCALAR_TYPE(q3_k)
PMX_SCALAR_TYPE(q4_k)
PMX_SCALAR_TYPE(q5_k)
PMX_SCALAR_TYPE(q6_k)
PMX_SCALAR_TYPE(iq4_xs)

/* dequantized.c */
void pmx_scalar_dequantize_iq2_xxs(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq2_xs(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq3_xxs(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq1_s(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq3_s(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq2_s(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_iq1_m(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_tq1_0(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_tq2_0(float *y, const uint8_t *w, int64_t n);
void pmx_scalar_dequantize_mxfp4(float *y, const uint8_t *w, int64_t n);
/* Their places in the table of an instruction set. */
#define PMX_DEQUANTIZED(T) {PMX_FORM_F32, NULL, NULL, 0, pmx_scalar_dequantize_##T}
#define PMX_DEQUANTIZED_TYPES                                                                                          \
    [PMX_IQ2_XXS] = PMX_DEQUANTIZED(iq2_xxs), [PMX_IQ2_XS] = PMX_DEQUANTIZED(iq2_xs),                                  \
    [PMX_IQ3_XXS] = PMX_DEQUANTIZED(iq3_xxs), [PMX_IQ1_S] = PMX_DEQUANTIZED(iq1_s),                                    \
    [PMX_IQ3_S] = PMX_DEQUANTIZED(iq3_s), [PMX_IQ2_S] = PMX_DEQUANTIZED(iq2_s), [PMX_IQ1_M] = PMX_DEQUANTIZED(iq1_m),  \
    [PMX_TQ1_0] = PMX_DEQUANTIZED(tq1_0), [PMX_TQ2_0] = PMX_DEQUANTIZED(tq2_0), [PMX_MXFP4] = PMX_DEQUANTIZED(mxfp4)

/* The tree of sum8 over its eight partials. */
static inline float pmx_sum8_tree(const float s[8]) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

#endif
