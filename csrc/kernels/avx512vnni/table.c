/* table.c: the kernels of AVX-512-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vnni.h"

/* From so many tokens on mat is faster. That of floats and of blocks of 256 needs no strip for few
 * tokens. Of blocks of 32 few has all that it can take: from memory, two threads, 8 tokens take 0.59 to
 * 0.70 of mat's time (q5_1 0.53, mxfp4 0.77), 12 take 0.62 to 0.88, 16 take 0.75 to 0.92 (mxfp4 1.05).
 * Within the caches mat is as fast at 12, and 1.15 times as fast at 16. */
enum { MIN_TOKENS = 2, MIN_TOKENS32 = PMX_FEW_TOKENS + 1 };

#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_avx512vnni_vec_##T, NULL, pmx_avx512vnni_mat_##T, MIN_TOKENS, pmx_avx2_dequantize_##T},
#define VNNI32(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,         pmx_avx512vnni_vec_##T, pmx_avx512vnni_few_##T, pmx_avx512vnni_mat_##T,              \
                    MIN_TOKENS32, pmx_avx2_dequantize_##T},
#define VNNI256(NAME, T, FORM, ELEMENTS)                                                                               \
    [PMX_##NAME] = {FORM, pmx_avx512vnni_vec_##T, NULL, pmx_avx512vnni_mat_##T, MIN_TOKENS, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = pmx_cpu_avx512vnni,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_Q32(VNNI32) PMX_TYPES_Q256(VNNI256)
                  PMX_TYPES_DEQUANTIZED(PMX_DEQUANTIZED)},
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx512vnni_attend_f32,
    .attend_f16 = pmx_avx512vnni_attend_f16,
    .attend_q8_0 = pmx_avx512vnni_attend_q8_0,
    .search = pmx_avx512vnni_search,
};
#endif
