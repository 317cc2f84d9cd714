/* vec4_types.c: the kernel of vec4.h for each type. */
#if defined(__x86_64__)
#include "vec4.h"

PMX_AVX512VNNI_BEGIN

PMX_INLINE __m128i iq4_table(void) { return _mm_xor_si128(_mm_setr_epi8(PMX_IQ4_VALUES), _mm_set1_epi8(-128)); }

#define TYPE(T, ...)                                                                                                   \
    static const type4 T = {sizeof(pmx_block_##T), offsetof(pmx_block_##T, qs), __VA_ARGS__};                          \
    void pmx_avx512vnni_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec4, *p, T); }

TYPE(q4_0, .offset = 8)
TYPE(q4_1, .has_min = 1)
TYPE(iq4_nl, .table = iq4_table, .offset = 128)
TYPE(mxfp4, .table = mxfp4_table, .offset = 12, .is_power = 1)

PMX_AVX512VNNI_END
#endif
