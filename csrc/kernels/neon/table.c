/* table.c: the kernels of NEON with dot products in one struct. */
#if defined(__aarch64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "neon.h"

#define TYPE(FORM, T) {FORM, pmx_neon_vec_##T, pmx_neon_mat_##T, 4, pmx_scalar_dequantize_##T}

const pmx_kernels pmx_kernels_neon = {
    .name = "neon",
    .available = pmx_cpu_neon,
    .types =
        {
            [PMX_F32] = TYPE(PMX_FORM_F32, f32),
            [PMX_F16] = TYPE(PMX_FORM_F32, f16),
            [PMX_BF16] = TYPE(PMX_FORM_F32, bf16),
            [PMX_Q4_0] = TYPE(PMX_FORM_Q32, q4_0),
            [PMX_Q4_1] = TYPE(PMX_FORM_Q32, q4_1),
            [PMX_Q5_0] = TYPE(PMX_FORM_Q32, q5_0),
            [PMX_Q5_1] = TYPE(PMX_FORM_Q32, q5_1),
            [PMX_Q8_0] = TYPE(PMX_FORM_Q32, q8_0),
            [PMX_IQ4_NL] = TYPE(PMX_FORM_Q32, iq4_nl),
            [PMX_Q2_K] = TYPE(PMX_FORM_Q256, q2_k),
            [PMX_Q3_K] = TYPE(PMX_FORM_Q256, q3_k),
            [PMX_Q4_K] = TYPE(PMX_FORM_Q256, q4_k),
            [PMX_Q5_K] = TYPE(PMX_FORM_Q256, q5_k),
            [PMX_Q6_K] = TYPE(PMX_FORM_Q256, q6_k),
            [PMX_IQ4_XS] = TYPE(PMX_FORM_Q256, iq4_xs),
            PMX_DEQUANTIZED_TYPES,
        },
    PMX_NEON_OPERATIONS,
};
#endif
