/* table.c: the kernels of NEON with dot products in one struct. */
#if defined(__aarch64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "neon.h"

/* mat from 4 tokens on: a tile has so many, and fewer leave some of it idle. */
#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    [PMX_##NAME] = {FORM, pmx_neon_vec_##T, pmx_neon_mat_##T, 4, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_neon = {
    .name = "neon",
    .available = pmx_cpu_neon,
    .types = {PMX_TYPES(TYPE)},
    PMX_NEON_OPERATIONS,
};
#endif
