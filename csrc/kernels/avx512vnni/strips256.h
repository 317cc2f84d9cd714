/* strips256.h: blocks of 256 times more than one token: see matmul256.c. */
#ifndef PMX_AVX512VNNI_STRIPS256_H
#define PMX_AVX512VNNI_STRIPS256_H

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

/* A strip's block of 256, in 32 rows. */
typedef struct {
    uint8_t q[PMX_BLOCK256 / 4][STRIP_ROWS][4];
    int32_t scales[16][STRIP_ROWS];
    int32_t pairs[PAIRS][STRIP_ROWS]; /* minimums of two sub-blocks as int16; of 8 the first half */
    float d[STRIP_ROWS], dmin[STRIP_ROWS];
} strip_block;

/* acc [n tokens][32 rows] += n_blocks blocks of a strip, which begins at block `first`; tokens past the end
 * repeat the last one. One function of 6 and one of 4 tokens for all types of a kind, in tiles256.c: as
 * much code as in each type's kernel would take compilers minutes. */
typedef void tile_kernel(float *acc, const strip_block *strip, const pmx_product *p, int64_t first_token, int64_t first,
                         int64_t n_blocks, int offset_bits);
tile_kernel pmx_avx512vnni_tile6_min8, pmx_avx512vnni_tile6_min16, pmx_avx512vnni_tile6_offset8,
    pmx_avx512vnni_tile6_offset16, pmx_avx512vnni_tile6_whole, pmx_avx512vnni_tile4_min8, pmx_avx512vnni_tile4_min16,
    pmx_avx512vnni_tile4_offset8, pmx_avx512vnni_tile4_offset16, pmx_avx512vnni_tile4_whole;

/* That of a type. */
#define TILE_OF(N, T)                                                                                                  \
    ((T).n_sub == 1   ? pmx_avx512vnni_tile##N##_whole                                                                 \
     : (T).has_min    ? (T).n_sub == 8 ? pmx_avx512vnni_tile##N##_min8 : pmx_avx512vnni_tile##N##_min16                \
     : (T).n_sub == 8 ? pmx_avx512vnni_tile##N##_offset8                                                               \
                      : pmx_avx512vnni_tile##N##_offset16)

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

PMX_AVX512VNNI_END
#endif
