/* kquants_mat.c: the strips and tiles of kquants_mat.h with vpmaddubsw.
 *
 * After vpmaddubsw a dword holds two int16 of its row, so vpmaddwd with the scales sums and scales
 * them at once. What an int16 sums before that (two products each):
 *   2 bits, 3 bits: the 4 of a sub-block of 16, 8 * 7*127 = 7112
 *   2 bits without sub-blocks: 8, 16 * 3*127 = 6096
 *   4 bits: the 8 of a sub-block of 32, 16 * 15*127 = 30480
 *   5 bits: 4, 8 * 31*127 = 31496
 *   6 bits: 2, 4 * 63*127 = 32004
 *   iq4_xs, as |w| * sign(x, w): 1, 2 * 127*127 = 32258
 *   iq2_xxs, iq2_xs, iq2_s, iq3_xxs, plus 64: 1, 2 * 126*127 = 32004
 *   iq1_s, iq1_m, iq3_s, plus 16: as 5 bits                          all below 32768 */
#if defined(__x86_64__)
#include "kquants_mat.h"

/* Unsigned, its bytes need 7 bits. */
#define LARGE_LATTICE(type) (LATTICE(type) && LATTICE_OFFSET_BITS(type) == 6)

PMX_AVX2_BEGIN

PMX_INLINE __m256i multiply_pairs(const int type, __m256i w, __m256i x) {
    if (KQUANT_SIGNED(type)) return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_maddubs_epi16(w, x);
}

/* Where an int16 holds two products and no more: each is scaled at once, and a block's sums stay in registers. */
PMX_INLINE void multiply_large(const int type, int32_t (*isum)[STRIP_ROWS], const uint8_t *q, const strip_block *block,
                               const int8_t *const *x) {
    rows16 sum[TILE_TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < TILE_TOKENS; t++) sum[t].low = sum[t].high = _mm256_setzero_si256();
    const int quads = KQUANT_SUB(type) / 4;
    for (int j = 0; j < PMX_BLOCK256 / 4 / quads; j++) {
        const __m256i scale0 = load_epi32(block->scales[j]), scale1 = load_epi32(block->scales[j] + 8);
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const __m256i *w = (const __m256i *)(const void *)(q + 4 * (j * quads + i) * STRIP_ROWS);
            const __m256i low = _mm256_load_si256(w), high = _mm256_load_si256(w + 1);
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) {
                const __m256i v = load_dword(x[t] + 4 * (j * quads + i));
                sum[t].low = _mm256_add_epi32(sum[t].low, _mm256_madd_epi16(_mm256_maddubs_epi16(low, v), scale0));
                sum[t].high = _mm256_add_epi32(sum[t].high, _mm256_madd_epi16(_mm256_maddubs_epi16(high, v), scale1));
                keep(&sum[t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < TILE_TOKENS; t++) {
        store_epi32(isum[t], sum[t].low);
        store_epi32(isum[t] + 8, sum[t].high);
    }
}

PMX_INLINE void multiply_block(const int type, int32_t (*isum)[STRIP_ROWS], const uint8_t *q, const strip_block *block,
                               const int8_t *const *x) {
    if (LARGE_LATTICE(type)) {
        multiply_large(type, isum, q, block, x);
        return;
    }
    const int n_sums = type == PMX_Q4_K || KQUANT_WHOLE(type) ? 8 : type == PMX_Q6_K ? 2 : KQUANT_SIGNED(type) ? 1 : 4;
    memset(isum, 0, TILE_TOKENS * sizeof *isum);
    for (int c = 0; c < 8; c++, q += 32 * STRIP_ROWS) {
        const __m256i *w = (const __m256i *)(const void *)q;
#pragma GCC unroll 8
        for (int first = 0; first < 8; first += n_sums) {
            rows16 pairs[TILE_TOKENS]; /* int16 */
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) pairs[t].low = pairs[t].high = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int i = first; i < first + n_sums; i++) {
                rows16 rows = {_mm256_load_si256(w + 2 * i), _mm256_load_si256(w + 2 * i + 1)};
                if (n_sums >= 4) keep(&rows); /* or gcc loads them anew for every other token, 2% slower */
#pragma GCC unroll 4
                for (int t = 0; t < TILE_TOKENS; t++) {
                    const __m256i v = load_dword(x[t] + 32 * c + 4 * i);
                    pairs[t].low = _mm256_add_epi16(pairs[t].low, multiply_pairs(type, rows.low, v));
                    pairs[t].high = _mm256_add_epi16(pairs[t].high, multiply_pairs(type, rows.high, v));
                    keep(&pairs[t]);
                }
            }
            const int32_t *scales = block->scales[KQUANT_SUB(type) >= 32 ? c : 2 * c + first / 4];
            const __m256i one = _mm256_set1_epi16(1);
            const __m256i scale0 = KQUANT_WHOLE(type) ? one : load_epi32(scales),
                          scale1 = KQUANT_WHOLE(type) ? one : load_epi32(scales + 8);
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) {
                int32_t *to = isum[t];
                store_epi32(to, _mm256_add_epi32(load_epi32(to), _mm256_madd_epi16(pairs[t].low, scale0)));
                store_epi32(to + 8, _mm256_add_epi32(load_epi32(to + 8), _mm256_madd_epi16(pairs[t].high, scale1)));
            }
        }
    }
}

#define MAT(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_avx2_mat_##T(const pmx_product *p) { mat256(PMX_##NAME, multiply_block, *p); }

PMX_TYPES_Q256(MAT)

PMX_AVX2_END
#endif
