/* matmul256.c: weights in blocks of 256 (k-quants, iq4_xs, tq1_0, tq2_0) times 8-bit activations with VNNI.
 *
 * Integer scales stay in the integer domain: vpdpbusd gives a sub-block's dot products, which are
 * scaled as integers, and one conversion and fma ends the block of 256. Offsets and minimums are
 * vpdpwssd of int16: scales or minimums times the activations' sums, which fit (32 * 127).
 *
 * vec: q4_k, q5_k and q6_k row by row (rows256.h). Others: 8 rows of up to 4 tokens (vec256.h); the rows' 16 lanes are reduced together once per block of 256, and
 * so are the products of the sums, which are formed for four rows in one register. mat takes a few
 * tokens so. mat of more: strips of 32 rows as bytes [k/4][32 rows][4] times 4 tokens: 8
 * accumulators of a sub-block and 8 of the block. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "rows256.h"

enum {
    STRIP_ROWS = 32,
    STRIP_BLOCKS = 4, /* blocks of 256 of a strip: 32 KB of weights */
    TILE_TOKENS = 4,
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
    int32_t pairs[PAIRS][STRIP_ROWS]; /* two int16 each */
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
    __m512i scales[2][2], pairs[2][2]; /* [low, high][rows 0..3, 4..7] */
    for (int i = 0; i < 2; i++) {
        words256 words, factors;
        load_scales256(&words, &factors, rows + 4 * i, at, T);
        scales[0][i] = words.low;
        scales[1][i] = words.high;
        const __m512i factor = _mm512_set1_epi16((int16_t)-(1 << T.offset_bits));
        pairs[0][i] = T.offset_bits ? _mm512_mullo_epi16(factors.low, factor) : factors.low;
        pairs[1][i] = T.offset_bits ? _mm512_mullo_epi16(factors.high, factor) : factors.high;
    }
    for (int half = 0; half < T.n_sub / 8; half++) {
        for (int i = 0; i < 8; i++) v[i] = _mm256_cvtepi16_epi32(lane_of(scales[half], i));
        transpose8((uint8_t *)&out->scales[8 * half][part], 4 * STRIP_ROWS, v);
    }
    for (int i = 0; i < 8; i++) {
        const __m128i low = lane_of(pairs[0], i); /* of sub-blocks of 32, each has two equal ones */
        v[i] = T.n_sub == 8 ? _mm256_set_m128i(_mm_unpackhi_epi16(low, low), _mm_unpacklo_epi16(low, low))
                            : _mm256_set_m128i(lane_of(pairs[1], i), low);
    }
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

PMX_INLINE __m256i sums16(const int32_t *sums) { return _mm512_cvtepi32_epi16(_mm512_loadu_si512(sums)); }

/* sum + pairs of 16 rows times the sums of a token. */
PMX_INLINE __m512i add_pairs(__m512i sum, const strip_block *block, const int half, const int16_t *xsums) {
#pragma GCC unroll 8
    for (int j = 0; j < PAIRS; j++)
        sum = _mm512_dpwssd_epi32(sum, _mm512_load_si512(&block->pairs[j][half]), load_dword(xsums + 2 * j));
    return sum;
}

PMX_INLINE void flush(float *acc, const strip_block *block, const int half, __m512i isum, float d, const int16_t *xsums,
                      const type256 T) {
    const __m512 dx = _mm512_set1_ps(d);
    if (T.offset_bits) isum = add_pairs(isum, block, half, xsums);
    if (T.n_sub == 1) isum = _mm512_sub_epi32(isum, _mm512_set1_epi32(xsums[0]));
    __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->d + half), dx), _mm512_cvtepi32_ps(isum),
                               _mm512_load_ps(acc + half));
    if (T.has_min) {
        const __m512 msum = _mm512_cvtepi32_ps(add_pairs(_mm512_setzero_si512(), block, half, xsums));
        y = _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_load_ps(block->dmin + half), dx), msum, y);
    }
    _mm512_store_ps(acc + half, y);
}

/* acc [N tokens][32 rows] += one block of 256. q, d, xsums: of each token. */
PMX_INLINE void tile_block(float *acc, const strip_block *block, const int8_t *const *q, const float *d,
                           const int16_t (*xsums)[16], const int N, const type256 T) {
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
        if (T.n_sub == 1) {
            memcpy(low, dot_low, sizeof low);
            memcpy(high, dot_high, sizeof high);
            break;
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

/* acc [N tokens][32 rows] += n_blocks blocks of the strip, which begins at block `first`. */
PMX_INLINE void tile(float *acc, const strip_block *strip, const pmx_product p, int64_t first, int64_t n_blocks,
                     const int N, const type256 T) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *q[TILE_TOKENS];
        float d[TILE_TOKENS];
        int16_t xsums[TILE_TOKENS][16] __attribute__((aligned(32)));
        for (int t = 0; t < N; t++) {
            const pmx_quantized token = pmx_token_q256(p.acts, p.tokens[t], first + b);
            q[t] = token.q;
            d[t] = token.d[0];
            if (T.n_sub == 1)
                xsums[t][0] = (int16_t)kquant_sum(token.sums); /* at most 256 * 127 */
            else
                _mm256_store_si256((__m256i *)(void *)xsums[t], sums16(token.sums));
        }
        tile_block(acc, strip + b, q, d, (const int16_t(*)[16])xsums, N, T);
    }
}

PMX_INLINE void mat256(const pmx_product p, const type256 T) {
    strip_block *strip = p.scratch;
    float *acc = (float *)(void *)(strip + STRIP_BLOCKS);
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256;
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t rows = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(p.n_tokens * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            pmx_product part = pmx_product_from(p, r, 0);
            part.w += first * T.block_bytes;
            unpack_strip(strip, &part, n, p.w + (r + STRIP_ROWS) * p.row_bytes + first * STRIP_ROWS * T.block_bytes, T);
            int64_t t = 0;
            for (; t + TILE_TOKENS <= p.n_tokens; t += TILE_TOKENS)
                tile(acc + t * STRIP_ROWS, strip, pmx_product_from(p, 0, t), first, n, TILE_TOKENS, T);
            for (; t < p.n_tokens; t++) tile(acc + t * STRIP_ROWS, strip, pmx_product_from(p, 0, t), first, n, 1, T);
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *acc);
    }
}
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
#define LATTICE_TYPE(T, ORDER, N_SUB, NUMBER)                                                                          \
    TYPE(T, NULL, 0, ORDER, .n_sub = N_SUB, .offset_bits = LATTICE_OFFSET_BITS(NUMBER), .wide = 1,                     \
         .row_scales = scales_##T, .d_part = LATTICE_D(NUMBER))

TYPE(q2_k, scales4_q2_k, 0, ORDER_CRUMBS, .n_sub = 16, .has_min = 1)
TYPE(q3_k, scales4_q3_k, sizeof(pmx_block_q3_k) - 16, ORDER_CRUMBS, .n_sub = 16, .offset_bits = 2)
TYPE(q4_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q5_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q6_k, scales4_q6_k, offsetof(pmx_block_q6_k, scales), ORDER_PLAIN, .n_sub = 16, .offset_bits = 5, .by_row = 1)
TYPE(iq1_s, NULL, 0, ORDER_PLAIN, .n_sub = 8, .offset_bits = LATTICE_OFFSET_BITS(PMX_IQ1_S), .row_scales = scales_iq1_s,
     .d_part = LATTICE_D(PMX_IQ1_S))
PRODUCTS(iq1_m, NULL, 0, -1, ORDER_PLAIN, .n_sub = 16, .offset_bits = LATTICE_OFFSET_BITS(PMX_IQ1_M),
         .row_scales = scales_iq1_m, .d_part = LATTICE_D(PMX_IQ1_M))
LATTICE_TYPE(iq2_xxs, ORDER_FOURTHS, 8, PMX_IQ2_XXS)
LATTICE_TYPE(iq2_xs, ORDER_FOURTHS, 16, PMX_IQ2_XS)
LATTICE_TYPE(iq2_s, ORDER_FOURTHS, 16, PMX_IQ2_S)
LATTICE_TYPE(iq3_xxs, ORDER_SECONDS, 8, PMX_IQ3_XXS)
LATTICE_TYPE(iq3_s, ORDER_SECONDS, 8, PMX_IQ3_S)
TYPE(iq4_xs, scales4_iq4_xs, 0, ORDER_NIBBLES16, .n_sub = 8, .offset_bits = 7, .wide = 1)
TYPE(tq1_0, NULL, 0, ORDER_DIGITS, .n_sub = 1)
TYPE(tq2_0, NULL, 0, ORDER_CRUMBS, .n_sub = 1)

PMX_AVX512VNNI_END
#endif
