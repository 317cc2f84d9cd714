/* mxfp4_vec.c: mxfp4 times one token, as in avx512vnni/vec4.h. One permutation of bytes finds the nibbles of
 * four blocks of 17 bytes. */
#if defined(__x86_64__)
#include "../avx512vnni/vec4.h"
#include "avx512vbmi.h"

PMX_AVX512VBMI_BEGIN

/* Of blocks 0 to 2 bytes 1 to 16, then those of the last one. */
PMX_INLINE __m512i permute(__m512i head, __m512i last) {
    const __m128i first = _mm_setr_epi8(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    const __m512i blocks = _mm512_setr_epi64(0, 0, 0x1111111111111111, 0x1111111111111111, 0x2222222222222222,
                                             0x2222222222222222, 0x3f3f3f3f3f3f3f3f, 0x3f3f3f3f3f3f3f3f);
    return _mm512_permutex2var_epi8(head, _mm512_add_epi8(_mm512_broadcast_i32x4(first), blocks), last);
}

void pmx_avx512vbmi_vec_mxfp4(const pmx_product *p) {
    static const type4 type = {.block_bytes = sizeof(pmx_block_mxfp4),
                               .nibbles_at = offsetof(pmx_block_mxfp4, qs),
                               .table = mxfp4_table,
                               .offset = 12,
                               .is_power = 1,
                               .permute = permute};
    PMX_WITH_HINT(vec4, *p, type);
}

PMX_AVX512VBMI_END
#endif
