/* types.h: the weight types, said once. What merely lists them is made of these lists.
 *
 * Their numbers stand in pmx.h, their layouts in blocks.h. A list applies M to each of its types:
 * the name in capitals, the name, the form of the activations that it is multiplied with, and the
 * elements of a block. */
#ifndef PMX_TYPES_H
#define PMX_TYPES_H

/* Floats, multiplied with f32 activations. */
#define PMX_TYPES_F32(M) M(F32, f32, PMX_FORM_F32, 1) M(F16, f16, PMX_FORM_F32, 1) M(BF16, bf16, PMX_FORM_F32, 1)

/* Blocks of 32, multiplied with integers that have a scale for each 32. */
#define PMX_TYPES_SCALED32(M)                                                                                          \
    M(Q4_0, q4_0, PMX_FORM_Q32, 32)                                                                                    \
    M(Q4_1, q4_1, PMX_FORM_Q32, 32)                                                                                    \
    M(Q5_0, q5_0, PMX_FORM_Q32, 32)                                                                                    \
    M(Q5_1, q5_1, PMX_FORM_Q32, 32)                                                                                    \
    M(Q8_0, q8_0, PMX_FORM_Q32, 32)                                                                                    \
    M(IQ4_NL, iq4_nl, PMX_FORM_Q32, 32)

/* The same, whose scales are powers of two. */
#define PMX_TYPES_POWERS32(M) M(MXFP4, mxfp4, PMX_FORM_Q32, 32)

#define PMX_TYPES_Q32(M) PMX_TYPES_SCALED32(M) PMX_TYPES_POWERS32(M)

/* Blocks of 256, multiplied with integers that have a scale for each 256. */
#define PMX_TYPES_KQUANTS(M)                                                                                           \
    M(Q2_K, q2_k, PMX_FORM_Q256, 256)                                                                                  \
    M(Q3_K, q3_k, PMX_FORM_Q256, 256)                                                                                  \
    M(Q4_K, q4_k, PMX_FORM_Q256, 256)                                                                                  \
    M(Q5_K, q5_k, PMX_FORM_Q256, 256)                                                                                  \
    M(Q6_K, q6_k, PMX_FORM_Q256, 256)                                                                                  \
    M(IQ4_XS, iq4_xs, PMX_FORM_Q256, 256)                                                                              \
    M(TQ1_0, tq1_0, PMX_FORM_Q256, 256)                                                                                \
    M(TQ2_0, tq2_0, PMX_FORM_Q256, 256)

/* The same, whose integers are entries of tables. */
#define PMX_TYPES_LATTICES(M)                                                                                          \
    M(IQ1_S, iq1_s, PMX_FORM_Q256, 256)                                                                                \
    M(IQ1_M, iq1_m, PMX_FORM_Q256, 256)                                                                                \
    M(IQ2_XXS, iq2_xxs, PMX_FORM_Q256, 256)                                                                            \
    M(IQ2_XS, iq2_xs, PMX_FORM_Q256, 256)                                                                              \
    M(IQ2_S, iq2_s, PMX_FORM_Q256, 256)                                                                                \
    M(IQ3_XXS, iq3_xxs, PMX_FORM_Q256, 256)                                                                            \
    M(IQ3_S, iq3_s, PMX_FORM_Q256, 256)

#define PMX_TYPES_Q256(M) PMX_TYPES_KQUANTS(M) PMX_TYPES_LATTICES(M)

#define PMX_TYPES(M) PMX_TYPES_F32(M) PMX_TYPES_Q32(M) PMX_TYPES_Q256(M)

#endif
