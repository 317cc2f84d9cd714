/* few32.c: avx2's few32.h with vpdpbusd: bytes are unsigned, a signed type's plus 128. */
#if defined(__x86_64__)
#include "../avx2/few32.h"
#include "avxvnni.h"

PMX_AVXVNNI_BEGIN

PMX_INLINE __m256i dot_vnni(const __m256i w[QUADS], const int8_t *q) {
    __m256i isum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) {
        int32_t x;
        memcpy(&x, q + 4 * k, sizeof x);
        isum = _mm256_dpbusd_avx_epi32(isum, w[k], _mm256_set1_epi32(x));
    }
    return isum;
}

PMX_INLINE void plus_128(__m256i w[QUADS]) {
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) w[k] = _mm256_xor_si256(w[k], _mm256_set1_epi8(-128));
}

PMX_INLINE void unsigned_q8_0(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    few_q8_0(w, packed, fifth);
    plus_128(w);
}

PMX_INLINE void unsigned_iq4_nl(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    few_iq4_nl(w, packed, fifth);
    plus_128(w);
}

#define TYPE(T, UNPACK, N_BLOCKS, ...)                                                                                 \
    static const few_type T = {UNPACK, sizeof(pmx_block_##T), N_BLOCKS, offsetof(pmx_block_##T, qs), __VA_ARGS__};     \
    void pmx_avxvnni_few_##T(const pmx_product *p) { PMX_FEW32(p, dot_vnni, T) }

TYPE(q4_0, few_nibbles, 2, .offset = 8)
TYPE(q4_1, few_nibbles, 2, .has_min = 1)
TYPE(q5_0, few_fives, 2, .fifth_at = offsetof(pmx_block_q5_0, qh), .offset = 16)
TYPE(q5_1, few_fives, 2, .fifth_at = offsetof(pmx_block_q5_1, qh), .has_min = 1)
TYPE(q8_0, unsigned_q8_0, 1, .offset = 128)
TYPE(iq4_nl, unsigned_iq4_nl, 2, .offset = 128)
TYPE(mxfp4, few_mxfp4, 2, .offset = 12, .is_power = 1)

PMX_AVXVNNI_END
#endif
