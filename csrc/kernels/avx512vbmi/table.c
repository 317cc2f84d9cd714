/* table.c: the kernels of AVX-512-VBMI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vbmi.h"

#define FLOATS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_avx2_dequantize_##T},
#define SCALED(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    pmx_avx512vnni_few_##T,                                                                            \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS32,                                                                       \
                    pmx_avx2_dequantize_##T},
#define POWERS(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vbmi_vec_##T,                                                                            \
                    pmx_avx512vnni_few_##T,                                                                            \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS32,                                                                       \
                    pmx_avx2_dequantize_##T},
#define KQUANT(NAME, T, FORM, ELEMENTS)                                                                                \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vnni_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_scalar_dequantize_##T},
#define LATTICE(NAME, T, FORM, ELEMENTS)                                                                               \
    [PMX_##NAME] = {FORM,                                                                                              \
                    pmx_avx512vbmi_vec_##T,                                                                            \
                    NULL,                                                                                              \
                    pmx_avx512vnni_mat_##T,                                                                            \
                    PMX_AVX512VNNI_MIN_TOKENS,                                                                         \
                    pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_avx512vbmi = {
    .name = "avx512vbmi",
    .available = pmx_cpu_avx512vbmi,
    .types = {PMX_TYPES_F32(FLOATS) PMX_TYPES_SCALED32(SCALED) PMX_TYPES_POWERS32(POWERS) PMX_TYPES_KQUANTS(KQUANT)
                  PMX_TYPES_LATTICES(LATTICE)},
    PMX_AVX512VNNI_OPERATIONS,
};
#endif
