/* few32.c: few32.h with vpmaddubsw: sums of products in int16 as matmul32.h forms them. */
#if defined(__x86_64__)
#include "few32.h"

PMX_AVX2_BEGIN

PMX_INLINE __m256i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm256_set1_epi32(x);
}

/* n: as many vpmaddubsw as an int16 lane can sum. */
PMX_INLINE __m256i dot_unsigned(const __m256i w[QUADS], const int8_t *q, const int n) {
    __m256i isum = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int first = 0; first < QUADS; first += n) {
        __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int k = first; k < first + n; k++)
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[k], load_dword(q + 4 * k)));
        isum = _mm256_add_epi32(isum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return isum;
}

PMX_INLINE __m256i dot_all(const __m256i w[QUADS], const int8_t *q) { return dot_unsigned(w, q, 8); }
PMX_INLINE __m256i dot_halves(const __m256i w[QUADS], const int8_t *q) { return dot_unsigned(w, q, 4); }

PMX_INLINE __m256i dot_signed(const __m256i w[QUADS], const int8_t *q) {
    __m256i isum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) {
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(w[k]), _mm256_sign_epi8(load_dword(q + 4 * k), w[k]));
        isum = _mm256_add_epi32(isum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return isum;
}

#define TYPE(T, UNPACK, DOT, N_BLOCKS, ...)                                                                            \
    static const few_type T = {UNPACK, sizeof(pmx_block_##T), N_BLOCKS, offsetof(pmx_block_##T, qs), __VA_ARGS__};     \
    void pmx_avx2_few_##T(const pmx_product *p) { PMX_FEW32(p, DOT, T) }

TYPE(q4_0, few_nibbles, dot_all, 2, .offset = 8)
TYPE(q4_1, few_nibbles, dot_all, 2, .has_min = 1)
TYPE(q5_0, few_fives, dot_halves, 2, .fifth_at = offsetof(pmx_block_q5_0, qh), .offset = 16)
TYPE(q5_1, few_fives, dot_halves, 2, .fifth_at = offsetof(pmx_block_q5_1, qh), .has_min = 1)
TYPE(q8_0, few_q8_0, dot_signed, 1, .offset = 0)
TYPE(iq4_nl, few_iq4_nl, dot_signed, 2, .offset = 0)
TYPE(mxfp4, few_mxfp4, dot_halves, 2, .offset = 12, .is_power = 1)

PMX_AVX2_END
#endif
