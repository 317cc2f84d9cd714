/* table.c: the kernels of NEON with dot products and 8-bit matrix products in one struct. */
#if defined(__aarch64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "neon_i8mm.h"

/* mat from 4 tokens on, as in neon; it multiplies twice as fast as few, which has those before. */
#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, NULL, pmx_neon_mat_##T, 4, pmx_scalar_dequantize_##T},
#define BLOCKS32(NAME, T, FORM, ELEMENTS)                                                                              \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, pmx_neon_few_##T, pmx_neon_i8mm_mat_##T, 4, pmx_scalar_dequantize_##T},
#define INTEGERS(NAME, T, FORM, ELEMENTS)                                                                              \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, NULL, pmx_neon_i8mm_mat_##T, 4, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_neon_i8mm = {
    .name = "neon_i8mm",
    .available = pmx_cpu_neon_i8mm,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_Q32(BLOCKS32) PMX_TYPES_Q256(INTEGERS)},
    PMX_NEON_OPERATIONS,
};
#endif
