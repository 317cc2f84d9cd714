/* matmul32.c: weights in blocks of 32 times 8-bit activations with VNNI.
 *
 * vpdpbusd adds four u8*s8 products into int32 without a limit that matters here. Weights are
 * unsigned bytes: what a type stores, or its signed integer plus 128; the offset is an exact
 * integer correction, -offset times the block's sum of activations, with which the accumulator
 * starts.
 *
 * vec: 8 rows of one token from the mapped blocks, two rows a register (row i and i + 4, so that
 * the reduction ends in row order), prefetching the next 8 rows linearly as avx2's does. mat:
 * strips of 32 rows as bytes [k/4][32 rows][4], two registers per 4 columns, times 8 tokens: 2
 * loads of weights and 8 broadcasts feed 16 vpdpbusd into 16 accumulators. Every 32 columns cost
 * three more vector operations per accumulator: convert, scale, fma. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"

enum {
    STRIP_ROWS = 32,
    K_BLOCK = 1024, /* columns of a strip: 32 KB of weights */
    STRIP_BLOCKS = K_BLOCK / PMX_BLOCK,
    TILE_TOKENS = 8
};

/* What the kernels must know about a type; a constant wherever they are inlined. Blocks begin with
 * the scale. */
typedef struct {
    __m256i (*unpack)(const uint8_t *block); /* its integers plus the offset as unsigned bytes */
    int64_t block_bytes;
    int32_t offset;
    int has_min;  /* the scale is followed by a minimum */
    int is_power; /* the scale is a byte, the exponent of a power of two */
} type32;

PMX_AVX512VNNI_BEGIN

/* --- vec */

PMX_INLINE __m512i unpack_pair(const uint8_t *a, const uint8_t *b, const type32 T) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(T.unpack(a)), T.unpack(b), 1);
}

PMX_INLINE void vec32(const pmx_product p, const pmx_prefetch hint, const type32 T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    const pmx_quantized token = pmx_token_q32(p.acts, p.tokens[0], 0);
    for (int64_t r = 0; r < p.n_rows; r += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, &p, r);
        const char *next = (const char *)p.w + (r + 8) * p.row_bytes;
        __m256 acc = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            for (int64_t line = 0; line < 8 * T.block_bytes; line += 64) pmx_prefetch_line(next + 8 * at + line, hint);
            const __m512i x =
                _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(token.q + b * PMX_BLOCK)));
            __m512i dots[4];
            for (int i = 0; i < 4; i++)
                dots[i] =
                    _mm512_dpbusd_epi32(_mm512_setzero_si512(), unpack_pair(rows[i] + at, rows[i + 4] + at, T), x);
            __m256i isum = reduce8(dots);
            if (T.offset) isum = _mm256_add_epi32(isum, _mm256_set1_epi32(-T.offset * token.sums[b]));
            __m256 scales, mins;
            if (T.has_min)
                load_scale_pairs(&scales, &mins, rows, at);
            else
                scales = load_scales32(rows, at, T.is_power);
            acc = _mm256_fmadd_ps(_mm256_mul_ps(scales, _mm256_set1_ps(token.d[b])), _mm256_cvtepi32_ps(isum), acc);
            if (T.has_min) acc = _mm256_fmadd_ps(mins, _mm256_set1_ps(token.d[b] * (float)token.sums[b]), acc);
        }
        const int64_t left = p.n_rows - r;
        _mm256_mask_storeu_ps(p.y + r, left >= 8 ? (__mmask8)0xff : (__mmask8)((1 << left) - 1), acc);
    }
}

/* --- mat */

/* A strip of 32 rows, all [block][...]: bytes [8][32 rows][4], scales [32], minimums [32]. */
typedef struct {
    uint8_t *q;
    float *scales, *mins;
} strip32;

/* n_blocks blocks of each row from p->w on. next: their share of the next strip, to be prefetched. */
PMX_INLINE void unpack_strip(const strip32 *strip, const pmx_product *p, int64_t n_blocks, const uint8_t *next,
                             const type32 T) {
    for (int part = 0; part < STRIP_ROWS; part += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, p, part);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * T.block_bytes) {
            prefetch_bytes(next, 8 * T.block_bytes);
            __m256i v[8];
            for (int i = 0; i < 8; i++) v[i] = T.unpack(rows[i] + b * T.block_bytes);
            transpose8(strip->q + b * PMX_BLOCK * STRIP_ROWS + part * 4, 4 * STRIP_ROWS, v);
            __m256 scales, mins;
            if (T.has_min) {
                load_scale_pairs(&scales, &mins, rows, b * T.block_bytes);
                _mm256_store_ps(strip->mins + b * STRIP_ROWS + part, mins);
            } else {
                scales = load_scales32(rows, b * T.block_bytes, T.is_power);
            }
            _mm256_store_ps(strip->scales + b * STRIP_ROWS + part, scales);
        }
    }
}

PMX_INLINE __m512i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm512_set1_epi32(x);
}

/* 16 results of a token += a block. */
PMX_INLINE void flush(float *acc, __m512i isum, __m512 scale, __m512 min, __m512 d, __m512 dsum, const type32 T) {
    __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(scale, d), _mm512_cvtepi32_ps(isum), _mm512_load_ps(acc));
    if (T.has_min) y = _mm512_fmadd_ps(min, dsum, y);
    _mm512_store_ps(acc, y);
}

/* acc [N tokens][32 rows] += n_blocks blocks of the strip, which begins at block `first`. */
PMX_INLINE void tile(float *acc, const strip32 *strip, const pmx_product p, int64_t first, int64_t n_blocks,
                     const int N, const type32 T) {
    pmx_quantized x[TILE_TOKENS];
    for (int i = 0; i < N; i++) x[i] = pmx_token_q32(p.acts, p.tokens[i], first);
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t *w = strip->q + b * PMX_BLOCK * STRIP_ROWS;
        __m512i low[TILE_TOKENS], high[TILE_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < N; t++) low[t] = high[t] = _mm512_set1_epi32(T.offset ? -T.offset * x[t].sums[b] : 0);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i w0 = _mm512_load_si512(w + i * 4 * STRIP_ROWS),
                          w1 = _mm512_load_si512(w + i * 4 * STRIP_ROWS + 64);
#pragma GCC unroll 8
            for (int t = 0; t < N; t++) {
                const __m512i v = load_dword(x[t].q + b * PMX_BLOCK + 4 * i);
                low[t] = _mm512_dpbusd_epi32(low[t], w0, v);
                high[t] = _mm512_dpbusd_epi32(high[t], w1, v);
            }
        }
        __asm__ volatile("" ::: "memory"); /* keeps acc in memory: all 32 registers are taken */
        const float *scales = strip->scales + b * STRIP_ROWS, *mins = strip->mins + b * STRIP_ROWS;
        const __m512 scale0 = _mm512_load_ps(scales), scale1 = _mm512_load_ps(scales + 16);
        const __m512 min0 = T.has_min ? _mm512_load_ps(mins) : scale0,
                     min1 = T.has_min ? _mm512_load_ps(mins + 16) : scale1;
#pragma GCC unroll 8
        for (int t = 0; t < N; t++) {
            const __m512 d = _mm512_set1_ps(x[t].d[b]);
            const __m512 dsum = T.has_min ? _mm512_set1_ps(x[t].d[b] * (float)x[t].sums[b]) : d;
            flush(acc + t * STRIP_ROWS, low[t], scale0, min0, d, dsum, T);
            flush(acc + t * STRIP_ROWS + 16, high[t], scale1, min1, d, dsum, T);
        }
    }
}

PMX_INLINE void mat32(const pmx_product p, const type32 T) {
    strip32 strip = {.q = p.scratch};
    strip.scales = (float *)(void *)(strip.q + STRIP_ROWS * K_BLOCK);
    strip.mins = strip.scales + STRIP_ROWS * STRIP_BLOCKS;
    float *acc = strip.mins + STRIP_ROWS * STRIP_BLOCKS;
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t rows = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(p.n_tokens * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            pmx_product part = pmx_product_from(p, r, 0);
            part.w += first * T.block_bytes;
            unpack_strip(&strip, &part, n, p.w + (r + STRIP_ROWS) * p.row_bytes + first * STRIP_ROWS * T.block_bytes,
                         T);
            int64_t t = 0;
            for (; t + 8 <= p.n_tokens; t += 8)
                tile(acc + t * STRIP_ROWS, &strip, pmx_product_from(p, 0, t), first, n, 8, T);
            for (; t + 2 <= p.n_tokens; t += 2)
                tile(acc + t * STRIP_ROWS, &strip, pmx_product_from(p, 0, t), first, n, 2, T);
            if (t < p.n_tokens) tile(acc + t * STRIP_ROWS, &strip, pmx_product_from(p, 0, t), first, n, 1, T);
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *acc);
    }
}
_Static_assert(STRIP_ROWS *(K_BLOCK + 2 * STRIP_BLOCKS * 4 + PMX_TOKEN_BLOCK * 4) <= PMX_MAT_SCRATCH, "scratch");

/* --- The types */

PMX_INLINE __m256i plus_128(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
PMX_INLINE __m256i unsigned_q8_0(const uint8_t *block) { return plus_128(unpack_q8_0(block)); }
PMX_INLINE __m256i unsigned_iq4_nl(const uint8_t *block) { return plus_128(unpack_iq4_nl(block)); }

static const type32 q4_0 = {unpack_q4_0, sizeof(pmx_block_q4_0), .offset = 8};
static const type32 q4_1 = {unpack_q4_1, sizeof(pmx_block_q4_1), .has_min = 1};
static const type32 q5_0 = {unpack_q5_0, sizeof(pmx_block_q5_0), .offset = 16};
static const type32 q5_1 = {unpack_q5_1, sizeof(pmx_block_q5_1), .has_min = 1};
static const type32 q8_0 = {unsigned_q8_0, sizeof(pmx_block_q8_0), .offset = 128};
static const type32 iq4_nl = {unsigned_iq4_nl, sizeof(pmx_block_iq4_nl), .offset = 128};
static const type32 mxfp4 = {unpack_mxfp4, sizeof(pmx_block_mxfp4), .offset = 12, .is_power = 1};

#define MAT(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_avx512vnni_mat_##T(const pmx_product *p) { mat32(*p, T); }

PMX_TYPES_Q32(MAT)

/* The types of 4 bits have theirs in vec4_types.c. */
void pmx_avx512vnni_vec_q5_0(const pmx_product *p) { PMX_WITH_HINT(vec32, *p, q5_0); }
void pmx_avx512vnni_vec_q5_1(const pmx_product *p) { PMX_WITH_HINT(vec32, *p, q5_1); }
void pmx_avx512vnni_vec_q8_0(const pmx_product *p) { PMX_WITH_HINT(vec32, *p, q8_0); }

PMX_AVX512VNNI_END
#endif
