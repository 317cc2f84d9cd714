/* table.c: the kernels of AVX-512-VNNI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vnni.h"

#define BLOCKS32(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS32(NAME, T, FORM, avx512vnni)
#define BLOCKS256(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS256(NAME, T, FORM, avx512vnni)

const pmx_kernels pmx_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = pmx_cpu_avx512vnni,
    .types = {PMX_TYPES_F32(PMX_AVX512VNNI_FLOATS) PMX_TYPES_Q32(BLOCKS32) PMX_TYPES_Q256(BLOCKS256)},
    PMX_AVX512VNNI_OPERATIONS,
};
#endif
