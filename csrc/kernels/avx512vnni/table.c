/* table.c: the kernels of AVX-512-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vnni.h"

#define TYPE(FORM, T, MIN_TOKENS)                                                                                      \
    {FORM, pmx_avx512vnni_vec_##T, pmx_avx512vnni_mat_##T, MIN_TOKENS, pmx_avx2_dequantize_##T}
#define VNNI256(T) {PMX_FORM_Q256, pmx_avx512vnni_vec_##T, pmx_avx512vnni_mat_##T, 2, pmx_scalar_dequantize_##T}

const pmx_kernels pmx_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = pmx_cpu_avx512vnni,
    .types =
        {
            [PMX_F32] = TYPE(PMX_FORM_F32, f32, 2),
            [PMX_F16] = TYPE(PMX_FORM_F32, f16, 2),
            [PMX_BF16] = TYPE(PMX_FORM_F32, bf16, 2),
            [PMX_Q4_0] = TYPE(PMX_FORM_Q32, q4_0, 3),
            [PMX_Q4_1] = TYPE(PMX_FORM_Q32, q4_1, 3),
            [PMX_Q5_0] = TYPE(PMX_FORM_Q32, q5_0, 2),
            [PMX_Q5_1] = TYPE(PMX_FORM_Q32, q5_1, 2),
            [PMX_Q8_0] = TYPE(PMX_FORM_Q32, q8_0, 4),
            [PMX_IQ4_NL] = TYPE(PMX_FORM_Q32, iq4_nl, 3),
            [PMX_Q2_K] = VNNI256(q2_k),
            [PMX_Q3_K] = VNNI256(q3_k),
            [PMX_Q4_K] = VNNI256(q4_k),
            [PMX_Q5_K] = VNNI256(q5_k),
            [PMX_Q6_K] = VNNI256(q6_k),
            [PMX_IQ4_XS] = VNNI256(iq4_xs),
            PMX_DEQUANTIZED_TYPES,
        },
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx512vnni_attend_f32,
    .attend_f16 = pmx_avx512vnni_attend_f16,
    .attend_q8_0 = pmx_avx512vnni_attend_q8_0,
    .search = pmx_avx512vnni_search,
};
#endif
