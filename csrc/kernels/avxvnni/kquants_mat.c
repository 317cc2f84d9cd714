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
    if (type == PMX_Q2_K || type == PMX_Q3_K) return _mm256_dpwssd_avx_epi32(isum, sum, _mm256_srli_epi32(scales, 16));
    return _mm256_add_epi32(isum, _mm256_mullo_epi32(sum, _mm256_srai_epi32(scales, 16)));
}

PMX_INLINE void multiply_block(const int type, int32_t (*isum)[STRIP_ROWS], const uint8_t *q, const strip_block *block,
                               const int8_t *const *x) {
    const int quads = KQUANT_SUB(type) / 4;
    memset(isum, 0, TILE_TOKENS * sizeof *isum);
    for (int j = 0; j < PMX_BLOCK256 / KQUANT_SUB(type); j++) {
        const __m256i *w = (const __m256i *)(const void *)(q + j * KQUANT_SUB(type) * STRIP_ROWS);
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
        FOR_TOKENS(DECLARE)
#undef DECLARE
#define STEP(t)                                                                                                        \
    {                                                                                                                  \
        const __m256i v = load_dword(x[t] + KQUANT_SUB(type) * j + 4 * i);                                             \
        low##t = _mm256_dpbusd_avx_epi32(low##t, w0, v);                                                               \
        high##t = _mm256_dpbusd_avx_epi32(high##t, w1, v);                                                             \
    }
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
            FOR_TOKENS(STEP)
        }
#undef STEP
        const __m256i scale0 = load_epi32(block->scales[j]), scale1 = load_epi32(block->scales[j] + 8);
#define FLUSH(t)                                                                                                       \
    store_epi32(isum[t], add_scaled(type, load_epi32(isum[t]), low##t, scale0));                                       \
    store_epi32(isum[t] + 8, add_scaled(type, load_epi32(isum[t] + 8), high##t, scale1));
        FOR_TOKENS(FLUSH)
#undef FLUSH
    }
}

KQUANTS_MAT(pmx_avxvnni_mat_q2_k, PMX_Q2_K)
KQUANTS_MAT(pmx_avxvnni_mat_q3_k, PMX_Q3_K)
KQUANTS_MAT(pmx_avxvnni_mat_q4_k, PMX_Q4_K)
KQUANTS_MAT(pmx_avxvnni_mat_q5_k, PMX_Q5_K)
KQUANTS_MAT(pmx_avxvnni_mat_q6_k, PMX_Q6_K)
KQUANTS_MAT(pmx_avxvnni_mat_iq4_xs, KQUANT_IQ4_XS_128)

PMX_AVXVNNI_END
#endif
