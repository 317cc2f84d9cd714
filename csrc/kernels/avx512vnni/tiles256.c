/* tiles256.c: tiles of a strip of blocks of 256, by what ends a sub-block and a block: see matmul256.c. */
#if defined(__x86_64__)
#include "avx512vnni.h"
#include "strips256.h"

PMX_AVX512VNNI_BEGIN

PMX_INLINE __m512i load_dword(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

/* A token's sums as a tile wants them: int16 of the sub-blocks, which minimums are multiplied with; or
 * int32, what the offset adds to each sub-block's products, with which these begin. */
PMX_INLINE void store_sums(int32_t *out, const int32_t *sums, const int offset_bits, const int n_sub,
                           const int has_min) {
    const __m512i minus = _mm512_set1_epi32(-(1 << offset_bits));
    if (n_sub == 1) {
        out[0] = -kquant_sum(sums);
        return;
    }
    __m512i v = _mm512_loadu_si512(sums);
    if (n_sub == 8) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
        v = _mm512_permutexvar_epi32(even, _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB)));
    }
    if (has_min)
        _mm256_store_si256((__m256i *)(void *)out, _mm512_cvtepi32_epi16(v));
    else
        _mm512_store_si512(out, _mm512_mullo_epi32(v, minus));
}

/* 16 results of a token += a block. */
PMX_INLINE void flush(float *acc, const strip_block *block, const int half, __m512i isum, float d, const int32_t *sums,
                      const int n_sub, const int has_min) {
    const __m512 dx = _mm512_set1_ps(d);
    __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->d + half), dx), _mm512_cvtepi32_ps(isum),
                               _mm512_load_ps(acc + half));
    if (has_min) {
        __m512i msum = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < n_sub / 2; j++)
            msum = _mm512_dpwssd_epi32(msum, _mm512_load_si512(&block->pairs[j][half]), load_dword(sums + j));
        y = _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->dmin + half), dx), _mm512_cvtepi32_ps(msum), y);
    }
    _mm512_store_ps(acc + half, y);
}

/* acc [N tokens][32 rows] += block b of the strip. q, d: of each token and all blocks; sums of this one. */
PMX_INLINE void tile_block(float *acc, const strip_block *block, const int8_t *const *q, const float *const *d,
                           int64_t b, const int32_t (*sums)[16], const int N, const int n_sub, const int has_min) {
    __m512i low[TILE_TOKENS], high[TILE_TOKENS];
#pragma GCC unroll 6
    for (int t = 0; t < N; t++) low[t] = high[t] = _mm512_setzero_si512();
    const int quads = n_sub == 16 ? 4 : 8;
    for (int j = 0; j < 64 / quads; j++) {
        __m512i dot_low[TILE_TOKENS], dot_high[TILE_TOKENS];
#pragma GCC unroll 6
        for (int t = 0; t < N; t++) {
            if (n_sub == 1) {
                dot_low[t] = low[t];
                dot_high[t] = high[t];
            } else {
                dot_low[t] = dot_high[t] = has_min ? _mm512_setzero_si512() : load_dword(sums[t] + j);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const uint8_t *w = &block->q[j * quads + i][0][0];
            const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
#pragma GCC unroll 6
            for (int t = 0; t < N; t++) {
                const __m512i x = load_dword(q[t] + PMX_BLOCK256 * b + 4 * (j * quads + i));
                dot_low[t] = _mm512_dpbusd_epi32(dot_low[t], w0, x);
                dot_high[t] = _mm512_dpbusd_epi32(dot_high[t], w1, x);
            }
        }
        const __m512i scale0 = _mm512_load_si512(block->scales[j]), scale1 = _mm512_load_si512(block->scales[j] + 16);
#pragma GCC unroll 6
        for (int t = 0; t < N; t++) {
            low[t] = n_sub == 1 ? dot_low[t] : _mm512_add_epi32(low[t], _mm512_mullo_epi32(dot_low[t], scale0));
            high[t] = n_sub == 1 ? dot_high[t] : _mm512_add_epi32(high[t], _mm512_mullo_epi32(dot_high[t], scale1));
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < N; t++) {
        if (n_sub == 1) {
            low[t] = _mm512_add_epi32(low[t], load_dword(sums[t]));
            high[t] = _mm512_add_epi32(high[t], load_dword(sums[t]));
        }
        flush(acc + t * STRIP_ROWS, block, 0, low[t], d[t][b], sums[t], n_sub, has_min);
        flush(acc + t * STRIP_ROWS, block, 16, high[t], d[t][b], sums[t], n_sub, has_min);
    }
}

/* acc [N tokens][32 rows] += n_blocks blocks of the strip, which begins at block `first`. Tokens past
 * the end repeat the last one. */
PMX_INLINE void tile(float *acc, const strip_block *strip, const pmx_product *p, int64_t first_token, int64_t first,
                     int64_t n_blocks, int offset_bits, const int N, const int n_sub, const int has_min) {
    const int8_t *q[TILE_TOKENS];
    const float *d[TILE_TOKENS];
    _Alignas(64) int32_t sums[STRIP_BLOCKS][TILE_TOKENS][16];
    for (int t = 0; t < N; t++) {
        const int64_t i = first_token + t < p->n_tokens ? first_token + t : p->n_tokens - 1;
        const pmx_quantized token = pmx_token_q256(p->acts, p->tokens[i], first);
        q[t] = token.q;
        d[t] = token.d;
        for (int64_t b = 0; b < n_blocks; b++) store_sums(sums[b][t], token.sums + 16 * b, offset_bits, n_sub, has_min);
    }
    for (int64_t b = 0; b < n_blocks; b++)
        tile_block(acc, strip + b, q, d, b, (const int32_t(*)[16])sums[b], N, n_sub, has_min);
}

#define TILES(KIND, N_SUB, HAS_MIN)                                                                                    \
    void pmx_avx512vnni_tile6_##KIND(float *acc, const strip_block *strip, const pmx_product *p, int64_t first_token,  \
                                     int64_t first, int64_t n_blocks, int offset_bits) {                               \
        tile(acc, strip, p, first_token, first, n_blocks, offset_bits, 6, N_SUB, HAS_MIN);                             \
    }                                                                                                                  \
    void pmx_avx512vnni_tile4_##KIND(float *acc, const strip_block *strip, const pmx_product *p, int64_t first_token,  \
                                     int64_t first, int64_t n_blocks, int offset_bits) {                               \
        tile(acc, strip, p, first_token, first, n_blocks, offset_bits, 4, N_SUB, HAS_MIN);                             \
    }

TILES(min8, 8, 1)
TILES(min16, 16, 1)
TILES(offset8, 8, 0)
TILES(offset16, 16, 0)
TILES(whole, 1, 0)

PMX_AVX512VNNI_END
#endif
