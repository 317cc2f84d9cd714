/* scalar.h: what the files of the scalar kernels share. */
#ifndef PMX_SCALAR_H
#define PMX_SCALAR_H

#include "../../kernels.h"

/* Declares the kernels of a weight type. */
#define PMX_SCALAR_TYPE(T)                                                                                                                 \
    void pmx_scalar_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token);           \
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

/* The tree of sum8 over its eight partials. */
static inline float pmx_sum8_tree(const float s[8]) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

#endif
