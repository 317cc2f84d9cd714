/* table.c: the kernels of AVX-512-VBMI in one struct. */
#if defined(__x86_64__)
#include "../../internal.h"
#include "../scalar/scalar.h"
#include "avx512vbmi.h"

#define SCALED(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS32(NAME, T, FORM, avx512vnni)
#define POWERS(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS32(NAME, T, FORM, avx512vbmi)
#define KQUANT(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS256(NAME, T, FORM, avx512vnni)
#define LATTICE(NAME, T, FORM, ELEMENTS) PMX_AVX512VNNI_BLOCKS256(NAME, T, FORM, avx512vbmi)

const pmx_kernels pmx_kernels_avx512vbmi = {
    .name = "avx512vbmi",
    .available = pmx_cpu_avx512vbmi,
    .types = {PMX_TYPES_F32(PMX_AVX512VNNI_FLOATS) PMX_TYPES_SCALED32(SCALED) PMX_TYPES_POWERS32(POWERS)
                  PMX_TYPES_KQUANTS(KQUANT) PMX_TYPES_LATTICES(LATTICE)},
    PMX_AVX512VNNI_OPERATIONS,
};
#endif
