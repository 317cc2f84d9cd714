/* matmul32.c: weights in blocks of 32 times many tokens: the strips and tiles of avx2's matmul32.h,
 * with vpdpbusd, which adds four u8*s8 products into int32 in one instruction, in place of
 * vpmaddubsw and vpaddw. Bytes are unsigned: a signed type's plus 128, and the offset is undone
 * with the block's sum of activations. One token is bound by memory: that kernel is avx2's. */
#if defined(__x86_64__)
#include "../avx2/matmul32.h"
#include "avxvnni.h"

PMX_AVXVNNI_BEGIN

PMX_INLINE void tile_vnni(float *acc, const strip32 *strip, const tile_acts *acts, int64_t n_blocks, const type32 T) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m256i *w = (const __m256i *)(const void *)(strip->q + b * PMX_BLOCK * STRIP_ROWS);
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
        FOR_TOKENS(DECLARE)
#undef DECLARE
#define STEP(t)                                                                                                        \
    {                                                                                                                  \
        const __m256i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);                                              \
        low##t = _mm256_dpbusd_avx_epi32(low##t, w0, x);                                                               \
        high##t = _mm256_dpbusd_avx_epi32(high##t, w1, x);                                                             \
    }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
            FOR_TOKENS(STEP)
        }
#undef STEP
#define FLUSH(t)                                                                                                       \
    flush(acc + t * STRIP_ROWS, low##t, high##t, strip, b * STRIP_ROWS, acts->d[t][b], acts->sums[t][b], T);
        FOR_TOKENS(FLUSH)
#undef FLUSH
    }
}

PMX_INLINE __m256i plus_128(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
PMX_INLINE __m256i unsigned_q8_0(const uint8_t *block) { return plus_128(unpack_q8_0(block)); }
PMX_INLINE __m256i unsigned_iq4_nl(const uint8_t *block) { return plus_128(unpack_iq4_nl(block)); }

#define TYPE(T, UNPACK, ...)                                                                                           \
    void pmx_avxvnni_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows,               \
                             const pmx_acts *acts, const int32_t *tokens, int64_t n_tokens, void *scratch) {           \
        static const type32 T = {UNPACK, sizeof(pmx_block_##T), __VA_ARGS__};                                          \
        mat32(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, tile_vnni, T);                            \
    }

TYPE(q4_0, unpack_q4_0, .offset = 8)
TYPE(q4_1, unpack_q4_1, .has_min = 1)
TYPE(q5_0, unpack_q5_0, .offset = 16)
TYPE(q5_1, unpack_q5_1, .has_min = 1)
TYPE(q8_0, unsigned_q8_0, .offset = 128)
TYPE(iq4_nl, unsigned_iq4_nl, .offset = 128)

PMX_AVXVNNI_END
#endif
