/* table.c: the kernels of AVX-512-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vnni.h"

/* From so many tokens on mat is faster. That of floats and of blocks of 256 needs no strip for few
 * tokens. Products of one token of q8_0, and of the types of vec4.c, come near the speed of memory. */
#define MIN_TOKENS(TYPE)                                                                                               \
    ((TYPE) == PMX_Q8_0                                                                        ? 4                     \
     : (TYPE) == PMX_Q4_0 || (TYPE) == PMX_Q4_1 || (TYPE) == PMX_IQ4_NL || (TYPE) == PMX_MXFP4 ? 3                     \
                                                                                               : 2)

#define PRODUCTS(NAME, T, FORM) FORM, pmx_avx512vnni_vec_##T, pmx_avx512vnni_mat_##T, MIN_TOKENS(PMX_##NAME)
#define TYPE(NAME, T, FORM, ELEMENTS) [PMX_##NAME] = {PRODUCTS(NAME, T, FORM), pmx_avx2_dequantize_##T},
#define VNNI256(NAME, T, FORM, ELEMENTS) [PMX_##NAME] = {PRODUCTS(NAME, T, FORM), pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = pmx_cpu_avx512vnni,
    .types = {PMX_TYPES_F32(TYPE) PMX_TYPES_Q32(TYPE) PMX_TYPES_Q256(VNNI256)},
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx512vnni_attend_f32,
    .attend_f16 = pmx_avx512vnni_attend_f16,
    .attend_q8_0 = pmx_avx512vnni_attend_q8_0,
    .search = pmx_avx512vnni_search,
};
#endif
