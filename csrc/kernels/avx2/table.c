/* table.c: the kernels of AVX2+FMA+F16C in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx2.h"

/* From so many tokens on a strip of 16 rows pays for its unpacking. Products of one token of q8_0
 * come at the speed of memory, so that three of them are faster still. */
#define MIN_TOKENS(TYPE) ((TYPE) == PMX_Q8_0 ? 4 : 3)

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, pmx_avx2_mat_##T, MIN_TOKENS(PMX_##NAME), pmx_avx2_dequantize_##T},
#define KQUANT(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, pmx_avx2_mat_##T, MIN_TOKENS(PMX_##NAME), pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx2 = {
    .name = "avx2",
    .available = pmx_cpu_avx2,
    .types = {PMX_TYPES_F32(TYPE) PMX_TYPES_Q32(TYPE) PMX_TYPES_Q256(KQUANT)},
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx2_attend_f32,
    .attend_f16 = pmx_avx2_attend_f16,
    .attend_q8_0 = pmx_avx2_attend_q8_0,
    .search = pmx_avx2_search,
};
#endif
