/* table.c: the kernels of NEON with dot products and 8-bit matrix products in one struct. */
#if defined(__aarch64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "neon_i8mm.h"

#define FLOATS(T) {PMX_FORM_F32, pmx_neon_vec_##T, pmx_neon_mat_##T, 4, pmx_scalar_dequantize_##T}
#define INTEGERS(FORM, T) {FORM, pmx_neon_vec_##T, pmx_neon_i8mm_mat_##T, 4, pmx_scalar_dequantize_##T}

const pmx_kernels pmx_kernels_neon_i8mm = {
    .name = "neon_i8mm",
    .available = pmx_cpu_neon_i8mm,
    .types =
        {
            [PMX_F32] = FLOATS(f32),
            [PMX_F16] = FLOATS(f16),
            [PMX_BF16] = FLOATS(bf16),
            [PMX_Q4_0] = INTEGERS(PMX_FORM_Q32, q4_0),
            [PMX_Q4_1] = INTEGERS(PMX_FORM_Q32, q4_1),
            [PMX_Q5_0] = INTEGERS(PMX_FORM_Q32, q5_0),
            [PMX_Q5_1] = INTEGERS(PMX_FORM_Q32, q5_1),
            [PMX_Q8_0] = INTEGERS(PMX_FORM_Q32, q8_0),
            [PMX_IQ4_NL] = INTEGERS(PMX_FORM_Q32, iq4_nl),
            [PMX_Q2_K] = INTEGERS(PMX_FORM_Q256, q2_k),
            [PMX_Q3_K] = INTEGERS(PMX_FORM_Q256, q3_k),
            [PMX_Q4_K] = INTEGERS(PMX_FORM_Q256, q4_k),
            [PMX_Q5_K] = INTEGERS(PMX_FORM_Q256, q5_k),
            [PMX_Q6_K] = INTEGERS(PMX_FORM_Q256, q6_k),
            [PMX_IQ4_XS] = INTEGERS(PMX_FORM_Q256, iq4_xs),
            PMX_DEQUANTIZED_TYPES,
        },
    PMX_NEON_OPERATIONS,
};
#endif
