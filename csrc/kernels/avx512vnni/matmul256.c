/* matmul256.c: weights in blocks of 256 (k-quants, iq4_xs, tq1_0, tq2_0) times 8-bit activations with VNNI.
 *
 * Integer scales stay in the integer domain: vpdpbusd gives a sub-block's dot products, which are
 * scaled as integers, and one conversion and fma ends the block of 256. Offsets and minimums are
 * vpdpwssd of int16: scales or minimums times the activations' sums, which fit (32 * 127).
 *
 * vec: q4_k, q5_k and q6_k row by row (rows256.h). Others: 8 rows of up to 4 tokens (vec256.h); the
 * rows' 16 lanes are reduced together once per block of 256, and so are the products of the sums, which
 * are formed for four rows in one register. mat takes a few tokens so. mat of more: strips of 32 rows as
 * bytes [k/4][32 rows][4] times 6 tokens: 12
 * accumulators of a sub-block and 12 of the block. On Zen 5 two units do all that multiplies, so
 * that a tile takes as long as its multiplications: of a block 768 vpdpbusd, and beside them 96
 * vpmulld of 8 sub-blocks or 192 of 16, 48 vpdpwssd of minimums or 96, and 24 or 48 of the floats. What
 * an offset adds is where a sub-block's accumulator begins, which takes none. Chains of 8
 * accumulators wait for their own results. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "rows256.h"

enum {
    STRIP_ROWS = 32,
    STRIP_BLOCKS = 2, /* blocks of 256 of a strip: 16 KB of weights, which stay in L1 beside the activations */
    TILE_TOKENS = 6,
    /* So many are multiplied without a strip. At 8 a strip is up to 13% faster from the cache, but 8
     * to 43% slower from memory; at 9 it is up to 20% faster from both, but for q6_k. */
    FEW_TOKENS = 8,
    PAIRS = 8 /* of int16 sums in a block of 256 */
};

PMX_AVX512VNNI_BEGIN

/* A few tokens: groups of 8 rows, so that they read each row from memory once. */
PMX_INLINE void few256(const pmx_product p, const type256 T) {
    for (int64_t r = 0; r < p.n_rows; r += 8) {
        for (int64_t t = 0; t < p.n_tokens; t += VEC_TOKENS) {
            pmx_product part = pmx_product_from(p, r, t);
            if (part.n_rows > 8) part.n_rows = 8;
            switch (part.n_tokens) {
            case 3: vec256(part, PMX_PREFETCH_NEAR, 3, T); break;
            case 2: vec256(part, PMX_PREFETCH_NEAR, 2, T); break;
            case 1: vec256(part, PMX_PREFETCH_NEAR, 1, T); break;
            default: vec256(part, PMX_PREFETCH_NEAR, VEC_TOKENS, T); break;
            }
        }
    }
}

/* --- mat */

/* A strip's block of 256, in 32 rows. */
typedef struct {
    uint8_t q[PMX_BLOCK256 / 4][STRIP_ROWS][4];
    int32_t scales[16][STRIP_ROWS];
    int32_t pairs[PAIRS][STRIP_ROWS]; /* minimums of two sub-blocks as int16; of 8 the first half */
    float d[STRIP_ROWS], dmin[STRIP_ROWS];
} strip_block;

PMX_INLINE __m128i lane_of(const __m512i *two, int row) { return load16((const uint8_t *)two + 16 * row); }

PMX_INLINE void unpack_rows(strip_block *out, const uint8_t *const *rows, int64_t at, const int part,
                            const uint8_t *next, const type256 T) {
    uint8_t q[8][PMX_BLOCK256] __attribute__((aligned(64)));
    __m256i v[8];
    for (int i = 0; i < 8; i++) {
        prefetch_bytes(next + i * T.block_bytes, T.block_bytes);
        __m512i ordered[MAX_REGISTERS];
        T.unpack(ordered, rows[i] + at);
        store_ordered256(q[i], ordered, T.order);
    }
    for (int g = 0; g < PMX_BLOCK256 / 32; g++) {
        for (int i = 0; i < 8; i++) v[i] = _mm256_load_si256((const __m256i *)(const void *)(q[i] + 32 * g));
        transpose8(&out->q[8 * g][part][0], 4 * STRIP_ROWS, v);
    }
    __m256 d, dmin;
    load_d256(&d, &dmin, rows, at, T);
    _mm256_store_ps(out->d + part, d);
    _mm256_store_ps(out->dmin + part, dmin);
    if (T.n_sub == 1) return;
    __m512i scales[2][2], mins[2][2]; /* [low, high][rows 0..3, 4..7] */
    for (int i = 0; i < 2; i++) {
        words256 words, factors;
        load_scales256(&words, &factors, rows + 4 * i, at, T);
        scales[0][i] = words.low;
        scales[1][i] = words.high;
        mins[0][i] = factors.low;
        mins[1][i] = factors.high;
    }
    for (int half = 0; half < T.n_sub / 8; half++) {
        for (int i = 0; i < 8; i++) v[i] = _mm256_cvtepi16_epi32(lane_of(scales[half], i));
        transpose8((uint8_t *)&out->scales[8 * half][part], 4 * STRIP_ROWS, v);
    }
    if (!T.has_min) return;
    for (int i = 0; i < 8; i++) v[i] = _mm256_set_m128i(lane_of(mins[T.n_sub / 16], i), lane_of(mins[0], i));
    transpose8((uint8_t *)&out->pairs[0][part], 4 * STRIP_ROWS, v);
}

/* n_blocks blocks of each row from p->w on. next: their share of the next strip, to be prefetched. */
PMX_INLINE void unpack_strip(strip_block *strip, const pmx_product *p, int64_t n_blocks, const uint8_t *next,
                             const type256 T) {
    for (int part = 0; part < STRIP_ROWS; part += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, p, part);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * T.block_bytes)
            unpack_rows(strip + b, rows, b * T.block_bytes, part, next, T);
    }
}

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

/* Once for all types of a kind: as much code as in each type's kernel would take compilers minutes. */
typedef void tile_kernel(float *acc, const strip_block *strip, const pmx_product *p, int64_t first_token, int64_t first,
                         int64_t n_blocks, int offset_bits);
#define TILES(KIND, N_SUB, HAS_MIN)                                                                                    \
    static __attribute__((noinline)) void tile6_##KIND(float *acc, const strip_block *strip, const pmx_product *p,     \
                                                       int64_t first_token, int64_t first, int64_t n_blocks,           \
                                                       int offset_bits) {                                              \
        tile(acc, strip, p, first_token, first, n_blocks, offset_bits, 6, N_SUB, HAS_MIN);                             \
    }                                                                                                                  \
    static __attribute__((noinline)) void tile4_##KIND(float *acc, const strip_block *strip, const pmx_product *p,     \
                                                       int64_t first_token, int64_t first, int64_t n_blocks,           \
                                                       int offset_bits) {                                              \
        tile(acc, strip, p, first_token, first, n_blocks, offset_bits, 4, N_SUB, HAS_MIN);                             \
    }

TILES(min8, 8, 1)
TILES(min16, 16, 1)
TILES(offset8, 8, 0)
TILES(offset16, 16, 0)
TILES(whole, 1, 0)

/* That of a type. */
#define TILE_OF(N, T)                                                                                                  \
    ((T).n_sub == 1   ? tile##N##_whole                                                                                \
     : (T).has_min    ? (T).n_sub == 8 ? tile##N##_min8 : tile##N##_min16                                              \
     : (T).n_sub == 8 ? tile##N##_offset8                                                                              \
                      : tile##N##_offset16)

/* Tiles of 6 tokens, and where these leave some over, one or two of 4: with at most one token too many. */
PMX_INLINE void mat256(const pmx_product p, const type256 T) {
    tile_kernel *const six = TILE_OF(6, T), *const four = TILE_OF(4, T);
    strip_block *strip = p.scratch;
    float *acc = (float *)(void *)(strip + STRIP_BLOCKS);
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256, even = (p.n_tokens + 1) / 2 * 2, left = even % 6;
    const int64_t sixes = even - (left ? (6 - left) / 2 * 4 : 0); /* the tokens in tiles of 6 */
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t rows = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(even * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            pmx_product part = pmx_product_from(p, r, 0);
            part.w += first * T.block_bytes;
            unpack_strip(strip, &part, n, p.w + (r + STRIP_ROWS) * p.row_bytes + first * STRIP_ROWS * T.block_bytes, T);
            int64_t t = 0;
            for (; t < sixes; t += 6) six(acc + t * STRIP_ROWS, strip, &p, t, first, n, T.offset_bits);
            for (; t < even; t += 4) four(acc + t * STRIP_ROWS, strip, &p, t, first, n, T.offset_bits);
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *acc);
    }
}
_Static_assert(FEW_TOKENS >= 8, "fewer tokens are no sum of sixes and fours");
_Static_assert(PMX_TOKEN_BLOCK % 2 == 0, "a token too many has its place");
_Static_assert(STRIP_BLOCKS * sizeof(strip_block) + PMX_TOKEN_BLOCK * STRIP_ROWS * 4 <= PMX_MAT_SCRATCH, "scratch");
_Static_assert(sizeof(strip_block) % 64 == 0, "alignment of the strip's blocks");

/* few256 stands in a function of its own: inlined beside mat256 it is 3 to 8% slower. */
#define PRODUCTS(T, SCALES, HEAD, D, ORDER, ...)                                                                       \
    static const type256 T = {unpack_##T, SCALES, sizeof(pmx_block_##T), HEAD, D, ORDER, __VA_ARGS__};                 \
    static __attribute__((noinline)) void few_##T(const pmx_product *p) { few256(*p, T); }                             \
    void pmx_avx512vnni_vec_##T(const pmx_product *p) {                                                                \
        if (T.by_row)                                                                                                  \
            PMX_WITH_HINT(rows256, *p, T);                                                                             \
        else                                                                                                           \
            PMX_WITH_HINT(vec256, *p, 1, T);                                                                           \
    }                                                                                                                  \
    void pmx_avx512vnni_mat_##T(const pmx_product *p) {                                                                \
        if (p->n_tokens <= FEW_TOKENS)                                                                                 \
            few_##T(p);                                                                                                \
        else                                                                                                           \
            mat256(*p, T);                                                                                             \
    }

#define TYPE(T, SCALES, HEAD, ORDER, ...) PRODUCTS(T, SCALES, HEAD, offsetof(pmx_block_##T, d), ORDER, __VA_ARGS__)
#define LAST16(T) (sizeof(pmx_block_##T) - 16)
#define LATTICE_OF(NUMBER) .offset_bits = LATTICE_OFFSET_BITS(NUMBER), .d_part = LATTICE_D(NUMBER)

TYPE(q2_k, scales4_q2_k, 0, ORDER_CRUMBS, .n_sub = 16, .has_min = 1)
TYPE(q3_k, scales4_q3_k, sizeof(pmx_block_q3_k) - 16, ORDER_CRUMBS, .n_sub = 16, .offset_bits = 2)
TYPE(q4_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q5_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q6_k, scales4_q6_k, offsetof(pmx_block_q6_k, scales), ORDER_PLAIN, .n_sub = 16, .offset_bits = 5, .by_row = 1)
TYPE(iq1_s, scales4_iq1_s, LAST16(iq1_s), ORDER_PLAIN, .n_sub = 8, LATTICE_OF(PMX_IQ1_S))
PRODUCTS(iq1_m, scales4_iq1_m, LAST16(iq1_m), -1, ORDER_PLAIN, .n_sub = 16, LATTICE_OF(PMX_IQ1_M))
TYPE(iq2_xxs, NULL, 0, ORDER_FOURTHS, .n_sub = 8, LATTICE_OF(PMX_IQ2_XXS), .wide = 1, .row_scales = scales_iq2_xxs)
TYPE(iq2_xs, scales4_iq2_xs, LAST16(iq2_xs), ORDER_FOURTHS, .n_sub = 16, LATTICE_OF(PMX_IQ2_XS), .wide = 1)
TYPE(iq2_s, scales4_iq2_s, LAST16(iq2_s), ORDER_FOURTHS, .n_sub = 16, LATTICE_OF(PMX_IQ2_S), .wide = 1)
TYPE(iq3_xxs, NULL, 0, ORDER_SECONDS, .n_sub = 8, LATTICE_OF(PMX_IQ3_XXS), .wide = 1, .row_scales = scales_iq3_xxs)
TYPE(iq3_s, scales4_iq3_s, LAST16(iq3_s), ORDER_SECONDS, .n_sub = 8, LATTICE_OF(PMX_IQ3_S), .wide = 1)
TYPE(iq4_xs, scales4_iq4_xs, 0, ORDER_NIBBLES16, .n_sub = 8, .offset_bits = 7, .wide = 1)
TYPE(tq1_0, NULL, 0, ORDER_DIGITS, .n_sub = 1)
TYPE(tq2_0, NULL, 0, ORDER_CRUMBS, .n_sub = 1)

PMX_AVX512VNNI_END
#endif
