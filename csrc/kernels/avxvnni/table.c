/* table.c: the kernels of AVX-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avxvnni.h"

/* As avx2's. Of blocks of 32 few takes 0.72 to 1 of mat's time for 8 tokens, 0.82 to 1.1 for 12. */
enum { MIN_TOKENS32 = 12 };
#define MIN_TOKENS(TYPE) ((TYPE) == PMX_IQ4_XS ? 2 : 3)

#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM, pmx_avx2_vec_##T, NULL, pmx_avx2_mat_##T, MIN_TOKENS(PMX_##NAME), pmx_avx2_dequantize_##T},
#define VNNI(NAME, T, FORM, ELEMENTS)                                                                                  \
    [PMX_##NAME] = {FORM,         pmx_avx2_vec_##T,       pmx_avxvnni_few_##T, pmx_avxvnni_mat_##T,                    \
                    MIN_TOKENS32, pmx_avx2_dequantize_##T},
#define KQUANT(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {                                                                                                   \
        FORM, pmx_avx2_vec_##T, NULL, pmx_avxvnni_mat_##T, MIN_TOKENS(PMX_##NAME), pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avxvnni = {
    .name = "avxvnni",
    .available = pmx_cpu_avxvnni,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_Q32(VNNI) PMX_TYPES_Q256(KQUANT)},
    PMX_AVX2_OPERATIONS,
    .attend_f32 = pmx_avx2_attend_f32,
    .attend_f16 = pmx_avx2_attend_f16,
    .attend_q8_0 = pmx_avx2_attend_q8_0,
    .search = pmx_avx2_search,
};
#endif
