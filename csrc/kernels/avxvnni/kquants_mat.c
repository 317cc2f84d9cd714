/* kquants_mat.c: the strips and tiles of avx2's kquants_mat.h with vpdpbusd, which adds four u8*s8
 * products into int32: a sub-block's sum is scaled once, whatever the type. That of q2_k and q3_k,
 * at most 16 * 7*127, is scaled and added by a vpdpwssd of its low int16, as Intel makes two
 * operations of vpmulld. iq4_xs is unsigned here, its table plus 128, 256 * 241*127 * 32 =
 * 250,732,544 at most. One token is bound by memory: that kernel is avx2's. */
#if defined(__x86_64__)
#include "../avx2/kquants_mat.h"
#include "avxvnni.h"

PMX_AVXVNNI_BEGIN

/* isum + sum * scale; scales: twice in a dword. */
PMX_INLINE __m256i add_scaled(const int type, __m256i isum, __m256i sum, __m256i scales) {
    if (KQUANT_WHOLE(type)) return _mm256_add_epi32(isum, sum);
    if (type == PMX_Q2_K || type == PMX_Q3_K) return _mm256_dpwssd_avx_epi32(isum, sum, _mm256_srli_epi32(scales, 16));
    return _mm256_add_epi32(isum, _mm256_mullo_epi32(sum, _mm256_srai_epi32(scales, 16)));
}

PMX_INLINE void multiply_block(const int type, int32_t (*isum)[STRIP_ROWS], const uint8_t *q, const strip_block *block,
                               const int8_t *const *x) {
    const int quads = KQUANT_SUB(type) / 4;
    memset(isum, 0, TILE_TOKENS * sizeof *isum);
    for (int j = 0; j < PMX_BLOCK256 / KQUANT_SUB(type); j++) {
        const __m256i *w = (const __m256i *)(const void *)(q + j * KQUANT_SUB(type) * STRIP_ROWS);
        rows16 dot[TILE_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++) dot[t].low = dot[t].high = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) {
                const __m256i v = load_dword(x[t] + KQUANT_SUB(type) * j + 4 * i);
                dot[t].low = _mm256_dpbusd_avx_epi32(dot[t].low, w0, v);
                dot[t].high = _mm256_dpbusd_avx_epi32(dot[t].high, w1, v);
            }
        }
        const __m256i scale0 = load_epi32(block->scales[j]), scale1 = load_epi32(block->scales[j] + 8);
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++) {
            int32_t *to = isum[t];
            store_epi32(to, add_scaled(type, load_epi32(to), dot[t].low, scale0));
            store_epi32(to + 8, add_scaled(type, load_epi32(to + 8), dot[t].high, scale1));
        }
    }
}

#define MAT(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_avxvnni_mat_##T(const pmx_product *p) {                                                                   \
        mat256(PMX_##NAME == PMX_IQ4_XS ? KQUANT_IQ4_XS_128 : PMX_##NAME, multiply_block, *p);                         \
    }

PMX_TYPES_Q256(MAT)

PMX_AVXVNNI_END
#endif
