/* matmul32.c: weights in blocks of 32 times many tokens: the strips and tiles of avx2's matmul32.h,
 * with vpdpbusd, which adds four u8*s8 products into int32 in one instruction, in place of
 * vpmaddubsw and vpaddw. Bytes are unsigned: a signed type's plus 128, and the offset is undone
 * with the block's sum of activations. One token is bound by memory: that kernel is avx2's. */
#if defined(__x86_64__)
#include "../avx2/matmul32.h"
#include "avxvnni.h"

PMX_AVXVNNI_BEGIN

PMX_INLINE void tile_vnni(float *acc, const strip32 *strip, const pmx_quantized *x, int64_t n_blocks, const type32 T) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m256i *w = (const __m256i *)(const void *)(strip->q + b * PMX_BLOCK * STRIP_ROWS);
        rows16 isum[TILE_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++) isum[t].low = isum[t].high = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) {
                const __m256i v = load_dword(x[t].q + b * PMX_BLOCK + 4 * i);
                isum[t].low = _mm256_dpbusd_avx_epi32(isum[t].low, w0, v);
                isum[t].high = _mm256_dpbusd_avx_epi32(isum[t].high, w1, v);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++)
            flush(acc + t * STRIP_ROWS, isum[t], strip, b * STRIP_ROWS, x[t].d[b], x[t].sums[b], T);
    }
}

PMX_INLINE __m256i plus_128(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
PMX_INLINE __m256i unsigned_q8_0(const uint8_t *block) { return plus_128(unpack_q8_0(block)); }
PMX_INLINE __m256i unsigned_iq4_nl(const uint8_t *block) { return plus_128(unpack_iq4_nl(block)); }

#define TYPE(T, UNPACK, ...)                                                                                           \
    static const type32 T = {UNPACK, sizeof(pmx_block_##T), __VA_ARGS__};                                              \
    void pmx_avxvnni_mat_##T(const pmx_product *p) { mat32(*p, tile_vnni, T); }

TYPE(q4_0, unpack_q4_0, .offset = 8)
TYPE(q4_1, unpack_q4_1, .has_min = 1)
TYPE(q5_0, unpack_q5_0, .offset = 16)
TYPE(q5_1, unpack_q5_1, .has_min = 1)
TYPE(q8_0, unsigned_q8_0, .offset = 128)
TYPE(iq4_nl, unsigned_iq4_nl, .offset = 128)
TYPE(mxfp4, unpack_mxfp4, .offset = 12, .is_power = 1)

PMX_AVXVNNI_END
#endif
