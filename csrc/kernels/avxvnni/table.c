/* table.c: the kernels of AVX-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avxvnni.h"

#define TYPE(FORM, T, MIN_TOKENS) {FORM, pmx_avx2_vec_##T, pmx_avx2_mat_##T, MIN_TOKENS, pmx_avx2_dequantize_##T}
#define KQUANT(T, MIN_TOKENS)                                                                                          \
    {PMX_FORM_Q256, pmx_avx2_vec_##T, pmx_avxvnni_mat_##T, MIN_TOKENS, pmx_scalar_dequantize_##T}
#define VNNI(T, MIN_TOKENS) {PMX_FORM_Q32, pmx_avx2_vec_##T, pmx_avxvnni_mat_##T, MIN_TOKENS, pmx_avx2_dequantize_##T}

const pmx_kernels pmx_kernels_avxvnni = {
    .name = "avxvnni",
    .available = pmx_cpu_avxvnni,
    .types =
        {
            [PMX_F32] = TYPE(PMX_FORM_F32, f32, 3),
            [PMX_F16] = TYPE(PMX_FORM_F32, f16, 3),
            [PMX_BF16] = TYPE(PMX_FORM_F32, bf16, 3),
            [PMX_Q4_0] = VNNI(q4_0, 3),
            [PMX_Q4_1] = VNNI(q4_1, 3),
            [PMX_Q5_0] = VNNI(q5_0, 2),
            [PMX_Q5_1] = VNNI(q5_1, 2),
            [PMX_Q8_0] = VNNI(q8_0, 3),
            [PMX_IQ4_NL] = VNNI(iq4_nl, 2),
            [PMX_Q2_K] = KQUANT(q2_k, 3),
            [PMX_Q3_K] = KQUANT(q3_k, 3),
            [PMX_Q4_K] = KQUANT(q4_k, 3),
            [PMX_Q5_K] = KQUANT(q5_k, 3),
            [PMX_Q6_K] = KQUANT(q6_k, 3),
            [PMX_IQ4_XS] = KQUANT(iq4_xs, 2),
            PMX_DEQUANTIZED_TYPES,
        },
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx2_attend_f32,
    .attend_f16 = pmx_avx2_attend_f16,
    .attend_q8_0 = pmx_avx2_attend_q8_0,
    .search = pmx_avx2_search,
};
#endif
