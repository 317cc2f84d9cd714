/* table.c: the kernels of AVX-512-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vnni.h"

#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_avx2_dequantize_##T},
#define VNNI32(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    pmx_avx512vnni_few_##T,                                                                            \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS32,                                                                       \
                    pmx_avx2_dequantize_##T},
#define VNNI256(NAME, T, FORM, ELEMENTS)                                                                               \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = pmx_cpu_avx512vnni,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_Q32(VNNI32) PMX_TYPES_Q256(VNNI256)},
    PMX_AVX512VNNI_OPERATIONS,
};
#endif
