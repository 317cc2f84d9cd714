/* table.c: the kernels of AVX2+FMA+F16C in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx2.h"

/* From so many tokens on a strip of 16 rows pays for its unpacking. From memory, two threads, few takes
 * 0.87 to 1.07 of mat's time for 8 tokens, 0.91 to 1.13 for 12, and more for 16; mat fills its tiles
 * with multiples of 4 alone. */
enum { MIN_TOKENS = 3, MIN_TOKENS32 = 12 };

#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, NULL, pmx_avx2_mat_##T, MIN_TOKENS, pmx_avx2_dequantize_##T},
#define BLOCKS32(NAME, T, FORM, ELEMENTS)                                                                              \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, pmx_avx2_few_##T, pmx_avx2_mat_##T, MIN_TOKENS32, pmx_avx2_dequantize_##T},
#define KQUANT(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, NULL, pmx_avx2_mat_##T, MIN_TOKENS, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx2 = {
    .name = "avx2",
    .available = pmx_cpu_avx2,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_Q32(BLOCKS32) PMX_TYPES_Q256(KQUANT)},
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx2_attend_f32,
    .attend_f16 = pmx_avx2_attend_f16,
    .attend_q8_0 = pmx_avx2_attend_q8_0,
    .search = pmx_avx2_search,
};
#endif
