/* matmul256.c: weights in blocks of 256 (k-quants, iq4_xs) times 8-bit activations with VNNI.
 *
 * Integer scales stay in the integer domain: vpdpbusd gives a sub-block's dot products, which are scaled as integers, and one conversion
 * and fma ends the block of 256. Offsets and minimums are one vpdpwssd for each 32 elements: int16 of the weights (block256.pairs) times
 * the activations' sums of 16, which fit int16 (16 * 127).
 *
 * vec: 8 rows of one token; the rows' 16 lanes are reduced together once per block of 256.
 * mat: strips of 32 rows as bytes [k/4][32 rows][4] times 4 tokens: 8 accumulators of a sub-block and 8 of the block. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "blocks256.h"

enum {
    STRIP_ROWS = 32,
    STRIP_BLOCKS = 4, /* blocks of 256 of a strip: 32 KB of weights */
    TILE_TOKENS = 4,
    PAIRS = 8 /* of int16 sums in a block of 256 */
};

PMX_AVX512VNNI_BEGIN

/* --- vec */

/* Sums of 16 lanes of each of 8 registers. */
PMX_INLINE __m256i reduce16(const __m512i rows[8]) {
    __m512i p[4]; /* 8 lanes of row i, 8 of row i + 4 */
    for (int i = 0; i < 4; i++)
        p[i] = _mm512_add_epi32(_mm512_shuffle_i64x2(rows[i], rows[i + 4], 0x44), _mm512_shuffle_i64x2(rows[i], rows[i + 4], 0xee));
    return reduce8(p);
}

/* Word w of two packed registers i and i + 1 (vpackssdw works within 128-bit lanes) belongs to 16 elements: their scale. */
PMX_INLINE __m512i packed_scales(__m256i scales, const int i) {
    const __m512i lane = _mm512_setr_epi64(0, 0x0004000400040004, 0x0001000100010001, 0x0005000500050005, 0x0002000200020002,
                                           0x0006000600060006, 0x0003000300030003, 0x0007000700070007);
    return _mm512_permutexvar_epi16(_mm512_add_epi16(lane, _mm512_set1_epi16((int16_t)(4 * i))), _mm512_castsi256_si512(scales));
}

/* Lane l of register i belongs to elements 64*i + 4*l ..: its scale. */
PMX_INLINE __m512i wide_scales(__m256i scales, const int i) {
    const __m512i by4 = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(_mm512_add_epi32(by4, _mm512_set1_epi32(4 * i)), _mm512_cvtepi16_epi32(scales));
}

/* start + the scaled sums of products of a row's block with activations q, in 16 lanes. A lane of vpdpbusd holds four products: at most
 * 4 * 63*127 = 32004 but for iq4_xs, so that two registers pack into int16 without loss, and vpdpwssd scales and adds them. */
PMX_INLINE __m512i dot_block(__m512i start, const block256 *block, const int8_t *q, const type256 T) {
    __m512i dots[4];
    for (int j = 0; j < 4; j++) dots[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), block->q[j], _mm512_loadu_si512(q + 64 * j));
    for (int j = 0; T.wide && j < 4; j++) start = _mm512_add_epi32(start, _mm512_mullo_epi32(dots[j], wide_scales(block->scales, j)));
    for (int j = 0; !T.wide && j < 4; j += 2)
        start = _mm512_dpwssd_epi32(start, _mm512_packs_epi32(dots[j], dots[j + 1]), packed_scales(block->scales, j));
    return start;
}

PMX_INLINE __m256i sums16(const int32_t *sums) { return _mm512_cvtepi32_epi16(_mm512_loadu_si512(sums)); }

PMX_INLINE void vec256(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token,
                       const type256 T) {
    const int64_t n_blocks = acts->cols / PMX_BLOCK256;
    const int8_t *q = acts->q256.q + token * acts->cols;
    const float *d = acts->q256.d + token * n_blocks;
    const int32_t *sums = acts->q256.sums + token * n_blocks * 16;
    for (int64_t r = 0; r < n_rows; r += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, r, n_rows);
        const char *next = (const char *)w + (r + 8) * row_bytes;
        __m256 acc = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            const __m256i xsums = sums16(sums + b * 16);
            __m512i dots[8], mins[8];
            for (int i = 0; i < 8; i++) {
                for (int64_t line = 0; line < T.block_bytes; line += 64)
                    _mm_prefetch(next + 8 * at + i * T.block_bytes + line, _MM_HINT_T0);
                const block256 block = T.unpack(rows[i] + at);
                const __m512i pairs = _mm512_zextsi256_si512(_mm256_madd_epi16(block.pairs, xsums));
                mins[i] = pairs;
                dots[i] = dot_block(T.dmin_at ? _mm512_setzero_si512() : pairs, &block, q + b * PMX_BLOCK256, T);
            }
            const __m256 dx = _mm256_set1_ps(d[b]);
            acc = _mm256_fmadd_ps(_mm256_mul_ps(load_scales(rows, at + T.d_at), dx), _mm256_cvtepi32_ps(reduce16(dots)), acc);
            if (T.dmin_at)
                acc = _mm256_fnmadd_ps(_mm256_mul_ps(load_scales(rows, at + T.dmin_at), dx), _mm256_cvtepi32_ps(reduce16(mins)), acc);
        }
        _mm256_mask_storeu_ps(y + r, n_rows - r >= 8 ? (__mmask8)0xff : (__mmask8)((1 << (n_rows - r)) - 1), acc);
    }
}

/* --- mat */

/* A strip's block of 256, in 32 rows. */
typedef struct {
    uint8_t q[PMX_BLOCK256 / 4][STRIP_ROWS][4];
    int32_t scales[16][STRIP_ROWS];
    int32_t pairs[PAIRS][STRIP_ROWS]; /* two int16 each */
    float d[STRIP_ROWS], dmin[STRIP_ROWS];
} strip_block;

PMX_INLINE void unpack_rows(strip_block *out, const uint8_t *const *rows, int64_t at, const int part, const uint8_t *next,
                            const type256 T) {
    uint8_t q[8][PMX_BLOCK256] __attribute__((aligned(64)));
    __m256i v[8], scales[8], pairs[8];
    for (int i = 0; i < 8; i++) {
        prefetch_bytes(next + i * T.block_bytes, T.block_bytes);
        const block256 block = T.unpack(rows[i] + at);
        for (int j = 0; j < 4; j++) _mm512_store_si512(q[i] + 64 * j, block.q[j]);
        scales[i] = block.scales;
        pairs[i] = block.pairs;
    }
    for (int g = 0; g < PMX_BLOCK256 / 32; g++) {
        for (int i = 0; i < 8; i++) v[i] = _mm256_load_si256((const __m256i *)(const void *)(q[i] + 32 * g));
        transpose8(&out->q[8 * g][part][0], 4 * STRIP_ROWS, v);
    }
    for (int half = 0; half < T.n_sub / 8; half++) {
        for (int i = 0; i < 8; i++) /* of 8 sub-blocks, each has two equal ones */
            v[i] = T.n_sub == 8 ? _mm256_srai_epi32(scales[i], 16)
                                : _mm256_cvtepi16_epi32(half ? _mm256_extracti128_si256(scales[i], 1) : _mm256_castsi256_si128(scales[i]));
        transpose8((uint8_t *)&out->scales[8 * half][part], 4 * STRIP_ROWS, v);
    }
    transpose8((uint8_t *)&out->pairs[0][part], 4 * STRIP_ROWS, pairs);
    _mm256_store_ps(out->d + part, load_scales(rows, at + T.d_at));
    if (T.dmin_at) _mm256_store_ps(out->dmin + part, load_scales(rows, at + T.dmin_at));
}

PMX_INLINE void unpack_strip(strip_block *strip, const uint8_t *w, int64_t row_bytes, int64_t n_rows, int64_t n_blocks, const uint8_t *next,
                             const type256 T) {
    for (int part = 0; part < STRIP_ROWS; part += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, part, n_rows);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * T.block_bytes) unpack_rows(strip + b, rows, b * T.block_bytes, part, next, T);
    }
}

PMX_INLINE __m512i load_dword(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

/* sum + pairs of 16 rows times the sums of a token. */
PMX_INLINE __m512i add_pairs(__m512i sum, const strip_block *block, const int half, const int16_t *xsums) {
#pragma GCC unroll 8
    for (int j = 0; j < PAIRS; j++) sum = _mm512_dpwssd_epi32(sum, _mm512_load_si512(&block->pairs[j][half]), load_dword(xsums + 2 * j));
    return sum;
}

PMX_INLINE void flush(float *acc, const strip_block *block, const int half, __m512i isum, float d, const int16_t *xsums, const type256 T) {
    const __m512 dx = _mm512_set1_ps(d);
    if (!T.dmin_at) isum = add_pairs(isum, block, half, xsums);
    __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->d + half), dx), _mm512_cvtepi32_ps(isum), _mm512_load_ps(acc + half));
    if (T.dmin_at) {
        const __m512 msum = _mm512_cvtepi32_ps(add_pairs(_mm512_setzero_si512(), block, half, xsums));
        y = _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->dmin + half), dx), msum, y);
    }
    _mm512_store_ps(acc + half, y);
}

/* acc [N tokens][32 rows] += one block of 256. q, d, xsums: of each token. */
PMX_INLINE void tile_block(float *acc, const strip_block *block, const int8_t *const *q, const float *d, const int16_t (*xsums)[16],
                           const int N, const type256 T) {
    __m512i low[TILE_TOKENS], high[TILE_TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < N; t++) low[t] = high[t] = _mm512_setzero_si512();
    for (int j = 0; j < T.n_sub; j++) {
        __m512i dot_low[TILE_TOKENS], dot_high[TILE_TOKENS];
        const int quads = PMX_BLOCK256 / 4 / T.n_sub;
#pragma GCC unroll 4
        for (int t = 0; t < N; t++) dot_low[t] = dot_high[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const uint8_t *w = &block->q[j * quads + i][0][0];
            const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
#pragma GCC unroll 4
            for (int t = 0; t < N; t++) {
                const __m512i x = load_dword(q[t] + 4 * (j * quads + i));
                dot_low[t] = _mm512_dpbusd_epi32(dot_low[t], w0, x);
                dot_high[t] = _mm512_dpbusd_epi32(dot_high[t], w1, x);
            }
        }
        const __m512i scale0 = _mm512_load_si512(block->scales[j]), scale1 = _mm512_load_si512(block->scales[j] + 16);
#pragma GCC unroll 4
        for (int t = 0; t < N; t++) {
            low[t] = _mm512_add_epi32(low[t], _mm512_mullo_epi32(dot_low[t], scale0));
            high[t] = _mm512_add_epi32(high[t], _mm512_mullo_epi32(dot_high[t], scale1));
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < N; t++) {
        flush(acc + t * STRIP_ROWS, block, 0, low[t], d[t], xsums[t], T);
        flush(acc + t * STRIP_ROWS, block, 16, high[t], d[t], xsums[t], T);
    }
}

PMX_INLINE void tile(float *acc, const strip_block *strip, const pmx_acts *acts, const int32_t *tokens, int64_t first, int64_t n_blocks,
                     const int N, const type256 T) {
    const int64_t row_blocks = acts->cols / PMX_BLOCK256;
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *q[TILE_TOKENS];
        float d[TILE_TOKENS];
        int16_t xsums[TILE_TOKENS][16] __attribute__((aligned(32)));
        for (int t = 0; t < N; t++) {
            const int64_t at = tokens[t] * row_blocks + first + b;
            q[t] = acts->q256.q + at * PMX_BLOCK256;
            d[t] = acts->q256.d[at];
            _mm256_store_si256((__m256i *)(void *)xsums[t], sums16(acts->q256.sums + at * 16));
        }
        tile_block(acc, strip + b, q, d, (const int16_t(*)[16])xsums, N, T);
    }
}

PMX_INLINE void mat256(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                       const int32_t *tokens, int64_t n_tokens, void *scratch, const type256 T) {
    strip_block *strip = scratch;
    float *acc = (float *)(void *)(strip + STRIP_BLOCKS);
    const int64_t n_blocks = acts->cols / PMX_BLOCK256;
    for (int64_t r = 0; r < n_rows; r += STRIP_ROWS) {
        const int64_t rows = n_rows - r < STRIP_ROWS ? n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(n_tokens * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            const uint8_t *next = w + (r + STRIP_ROWS) * row_bytes + first * STRIP_ROWS * T.block_bytes;
            unpack_strip(strip, w + r * row_bytes + first * T.block_bytes, row_bytes, rows, n, next, T);
            int64_t t = 0;
            for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS) {
                tile(acc + t * STRIP_ROWS, strip, acts, tokens + t, first, n, TILE_TOKENS, T);
            }
            for (; t < n_tokens; t++) tile(acc + t * STRIP_ROWS, strip, acts, tokens + t, first, n, 1, T);
        }
        for (int64_t t = 0; t < n_tokens; t++) memcpy(y + t * ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *y);
    }
}
_Static_assert(STRIP_BLOCKS * sizeof(strip_block) + PMX_TOKEN_BLOCK * STRIP_ROWS * 4 <= PMX_MAT_SCRATCH, "scratch");
_Static_assert(sizeof(strip_block) % 64 == 0, "alignment of the strip's blocks");

#define TYPE(T, ...)                                                                                                                       \
    static const type256 T = {unpack_##T, sizeof(pmx_block_##T), offsetof(pmx_block_##T, d), __VA_ARGS__};                                 \
    void pmx_avx512vnni_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {      \
        vec256(y, w, row_bytes, n_rows, acts, token, T);                                                                                   \
    }                                                                                                                                      \
    void pmx_avx512vnni_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,          \
                                const int32_t *tokens, int64_t n_tokens, void *scratch) {                                                  \
        mat256(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, T);                                                          \
    }

TYPE(q2_k, offsetof(pmx_block_q2_k, dmin), 16, 0)
TYPE(q3_k, 0, 16, 0)
TYPE(q4_k, offsetof(pmx_block_q4_k, dmin), 8, 0)
TYPE(q5_k, offsetof(pmx_block_q5_k, dmin), 8, 0)
TYPE(q6_k, 0, 16, 0)
TYPE(iq4_xs, 0, 8, 1)

PMX_AVX512VNNI_END
#endif
