/* lattices256.c: iq1_s to iq3_s times 8-bit activations with VNNI. They have a file of their own for
 * compilers' sake: see matmul256.c. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "strips256.h"

PMX_AVX512VNNI_BEGIN

#define LAST16(T) (sizeof(pmx_block_##T) - 16)
#define LATTICE_OF(NUMBER) .offset_bits = LATTICE_OFFSET_BITS(NUMBER), .d_part = LATTICE_D(NUMBER)

TYPE(iq1_s, scales4_iq1_s, LAST16(iq1_s), ORDER_PLAIN, .n_sub = 8, LATTICE_OF(PMX_IQ1_S))
PRODUCTS(iq1_m, scales4_iq1_m, LAST16(iq1_m), -1, ORDER_PLAIN, .n_sub = 16, LATTICE_OF(PMX_IQ1_M))
TYPE(iq2_xxs, NULL, 0, ORDER_FOURTHS, .n_sub = 8, LATTICE_OF(PMX_IQ2_XXS), .wide = 1, .row_scales = scales_iq2_xxs)
TYPE(iq2_xs, scales4_iq2_xs, LAST16(iq2_xs), ORDER_FOURTHS, .n_sub = 16, LATTICE_OF(PMX_IQ2_XS), .wide = 1)
TYPE(iq2_s, scales4_iq2_s, LAST16(iq2_s), ORDER_FOURTHS, .n_sub = 16, LATTICE_OF(PMX_IQ2_S), .wide = 1)
TYPE(iq3_xxs, NULL, 0, ORDER_SECONDS, .n_sub = 8, LATTICE_OF(PMX_IQ3_XXS), .wide = 1, .row_scales = scales_iq3_xxs)
TYPE(iq3_s, scales4_iq3_s, LAST16(iq3_s), ORDER_SECONDS, .n_sub = 8, LATTICE_OF(PMX_IQ3_S), .wide = 1)

PMX_AVX512VNNI_END
#endif
