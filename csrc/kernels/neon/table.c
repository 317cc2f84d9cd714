/* table.c: the kernels of NEON with dot products in one struct. */
#if defined(__aarch64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "neon.h"

/* mat from 4 tokens on: a tile has so many, and fewer leave some of it idle. Where few shares the
 * unpacking too, from 9 on, more than two tiles. */
#define BLOCKS32(NAME, T, FORM, ELEMENTS)                                                                              \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, pmx_neon_few_##T, pmx_neon_mat_##T, 9, pmx_scalar_dequantize_##T},
#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, NULL, pmx_neon_mat_##T, 4, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_neon = {
    .name = "neon",
    .available = pmx_cpu_neon,
    .types = {PMX_TYPES_F32(TYPE) PMX_TYPES_Q32(BLOCKS32) PMX_TYPES_Q256(TYPE)},
    PMX_NEON_OPERATIONS,
};
#endif
