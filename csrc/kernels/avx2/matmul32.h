/* matmul32.h: weights in blocks of 32 times 8-bit activations, for all types that a type32
 * describes.
 *
 * All kernels form the exact int32 dot product of each 32-block, then acc = fma(dw*dx, isum, acc)
 * for 8 rows in one register. vpmaddubsw adds two u8*s8 products into int16: unsigned integers: the
 * results of several vpmaddubsw are summed with vpaddw and widened once. A strip's block has 8 of
 * them a lane: 4 bits: all fit, 16 products of at most 15*127 make 30480 < 32768. 5 bits: 4 fit,
 * 8*31*127 = 31496. The offset of a signed type is -offset * (sum of the activations), exact in
 * integers. signed integers: |w| * sign(x, w); two products of at most 128*127 make 32512, so each
 * vpmaddubsw is widened at once.
 *
 * vec takes 8 rows of one token straight from the mapped blocks. Eight short row streams defeat the
 * hardware prefetchers, so it prefetches the next 8 rows, which lie behind these ones, linearly.
 * mat unpacks a strip of 16 rows to bytes [k/4][16 rows][4] once, prefetching the next strip
 * likewise, and multiplies it with all tokens, four at a time: 2 loads and 4 dword broadcasts feed
 * 8 vpmaddubsw. The 8 accumulators are named one by one because gcc spills arrays here, and pass
 * through an empty asm because it also reassociates the chains of additions into trees and spills
 * all the products. */
#ifndef PMX_AVX2_MATMUL32_H
#define PMX_AVX2_MATMUL32_H

#include "blocks32.h"

enum {
    STRIP_ROWS = 16,
    K_BLOCK = 1024, /* columns of a strip: 16 KB of weights and 4 KB of each 4 tokens stay in L1 */
    STRIP_BLOCKS = K_BLOCK / PMX_BLOCK,
    TILE_TOKENS = 4
};

/* What the kernels must know about a type; a constant wherever they are inlined. Blocks begin with
 * the scale. */
typedef struct {
    __m256i (*unpack)(const uint8_t *block); /* its integers as bytes */
    int64_t block_bytes;
    int n_sums;     /* unsigned integers: vpmaddubsw that an int16 lane can sum, 4 or 8; signed
                       integers: 1 */
    int32_t offset; /* subtracted from unsigned integers */
    int has_min;    /* the scale is followed by a minimum */
} type32;

PMX_AVX2_BEGIN

/* --- vec */

/* Both 128-bit lanes of a added, then those of b. */
PMX_INLINE __m256i add_lanes(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Of each of 8 vectors the sum of its 8 int32. */
PMX_INLINE __m256i reduce8(const __m256i *p) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(p[4], p[5]), _mm256_hadd_epi32(p[6], p[7]));
    return add_lanes(a, b);
}

/* Block dot products of 8 rows with one activation block: int32 lanes, one a row. */
PMX_INLINE __m256i dot8_unsigned(const uint8_t *const *rows, int64_t offset, __m256i x, const type32 T) {
    __m256i p[8];
    for (int i = 0; i < 8; i++) p[i] = _mm256_maddubs_epi16(T.unpack(rows[i] + offset), x);
    /* Two levels of pairwise sums add 4 results, the third one widens. */
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i a = _mm256_hadd_epi16(_mm256_hadd_epi16(p[0], p[1]), _mm256_hadd_epi16(p[2], p[3]));
    const __m256i b = _mm256_hadd_epi16(_mm256_hadd_epi16(p[4], p[5]), _mm256_hadd_epi16(p[6], p[7]));
    return add_lanes(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
}

PMX_INLINE __m256i dot_signed(__m256i w, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

PMX_INLINE __m256i dot8_signed(const uint8_t *const *rows, int64_t offset, __m256i x, const type32 T) {
    __m256i p[8];
    for (int i = 0; i < 8; i++) p[i] = dot_signed(T.unpack(rows[i] + offset), x);
    return reduce8(p);
}

PMX_INLINE void vec32(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                      int64_t token, const type32 T) {
    const int64_t n_blocks = acts->cols / PMX_BLOCK;
    const int8_t *q = acts->q32.q + token * acts->cols;
    const float *d = acts->q32.d + token * n_blocks;
    const int32_t *sums = acts->q32.sums + token * n_blocks;
    for (int64_t r = 0; r < n_rows; r += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, r, n_rows);
        const char *next = (const char *)w + (r + 8) * row_bytes;
        __m256 acc = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            for (int64_t line = 0; line < 8 * T.block_bytes; line += 64)
                _mm_prefetch(next + 8 * at + line, _MM_HINT_T0);
            const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(q + b * PMX_BLOCK));
            __m256i isum = T.n_sums > 1 ? dot8_unsigned(rows, at, x, T) : dot8_signed(rows, at, x, T);
            if (T.offset) isum = _mm256_add_epi32(isum, _mm256_set1_epi32(-T.offset * sums[b]));
            __m256 scales, mins;
            if (T.has_min)
                load_scale_pairs(&scales, &mins, rows, at);
            else
                scales = load_scales(rows, at);
            acc = _mm256_fmadd_ps(_mm256_mul_ps(scales, _mm256_set1_ps(d[b])), _mm256_cvtepi32_ps(isum), acc);
            if (T.has_min) acc = _mm256_fmadd_ps(mins, _mm256_set1_ps(d[b] * (float)sums[b]), acc);
        }
        if (n_rows - r >= 8)
            _mm256_storeu_ps(y + r, acc);
        else
            _mm256_maskstore_ps(y + r, first_lanes(n_rows - r), acc);
    }
}

/* --- mat */

/* A strip of 16 rows, all [block][...]: bytes [8][16 rows][4], scales [16], minimums [16]. */
typedef struct {
    uint8_t *q;
    float *scales, *mins;
} strip32;

/* n_blocks blocks of each row from w on. next: their share of the next strip, n_blocks * STRIP_ROWS
 * blocks, to be prefetched. */
PMX_INLINE void unpack_strip(const strip32 *strip, const uint8_t *w, int64_t row_bytes, int64_t n_rows,
                             int64_t n_blocks, const uint8_t *next, const type32 T) {
    for (int half = 0; half < STRIP_ROWS; half += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, half, n_rows);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * T.block_bytes) {
            prefetch_bytes(next, 8 * T.block_bytes);
            __m256i v[8];
            for (int i = 0; i < 8; i++) v[i] = T.unpack(rows[i] + b * T.block_bytes);
            transpose8(strip->q + b * PMX_BLOCK * STRIP_ROWS + half * 4, 4 * STRIP_ROWS, v);
            const int64_t at = b * STRIP_ROWS + half;
            if (T.has_min) {
                __m256 scales, mins;
                load_scale_pairs(&scales, &mins, rows, b * T.block_bytes);
                _mm256_store_ps(strip->scales + at, scales);
                _mm256_store_ps(strip->mins + at, mins);
            } else {
                _mm256_store_ps(strip->scales + at, load_scales(rows, b * T.block_bytes));
            }
        }
    }
}

/* Pointers of the four tokens of a tile, at the strip's first column. */
typedef struct {
    const int8_t *q[TILE_TOKENS];
    const float *d[TILE_TOKENS];
    const int32_t *sums[TILE_TOKENS];
} tile_acts;

PMX_INLINE __m256i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm256_set1_epi32(x);
}

/* One token's 16 results += a block. at: the block's first row in scales and minimums. */
PMX_INLINE void flush(float *acc, __m256i isum0, __m256i isum1, const strip32 *strip, int64_t at, float d, int32_t sum,
                      const type32 T) {
    if (T.offset) {
        const __m256i offset = _mm256_set1_epi32(-T.offset * sum);
        isum0 = _mm256_add_epi32(isum0, offset);
        isum1 = _mm256_add_epi32(isum1, offset);
    }
    const __m256 dx = _mm256_set1_ps(d);
    const __m256 scale0 = _mm256_mul_ps(_mm256_load_ps(strip->scales + at), dx);
    const __m256 scale1 = _mm256_mul_ps(_mm256_load_ps(strip->scales + at + 8), dx);
    __m256 y0 = _mm256_fmadd_ps(scale0, _mm256_cvtepi32_ps(isum0), _mm256_load_ps(acc));
    __m256 y1 = _mm256_fmadd_ps(scale1, _mm256_cvtepi32_ps(isum1), _mm256_load_ps(acc + 8));
    if (T.has_min) {
        const __m256 x = _mm256_mul_ps(dx, _mm256_cvtepi32_ps(_mm256_set1_epi32(sum)));
        y0 = _mm256_fmadd_ps(_mm256_load_ps(strip->mins + at), x, y0);
        y1 = _mm256_fmadd_ps(_mm256_load_ps(strip->mins + at + 8), x, y1);
    }
    _mm256_store_ps(acc, y0);
    _mm256_store_ps(acc + 8, y1);
}

/* acc [4 tokens][16 rows] += the strip's blocks. */
typedef void (*tile_kernel)(float *acc, const strip32 *strip, const tile_acts *acts, int64_t n_blocks, const type32 T);

#define FOR_TOKENS(M) M(0) M(1) M(2) M(3)

PMX_INLINE void tile_unsigned(float *acc, const strip32 *strip, const tile_acts *acts, int64_t n_blocks,
                              const type32 T) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m256i *w = (const __m256i *)(const void *)(strip->q + b * PMX_BLOCK * STRIP_ROWS);
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
#define STEP(t)                                                                                                        \
    {                                                                                                                  \
        const __m256i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);                                              \
        low##t = _mm256_add_epi16(low##t, _mm256_maddubs_epi16(w0, x));                                                \
        high##t = _mm256_add_epi16(high##t, _mm256_maddubs_epi16(w1, x));                                              \
        __asm__("" : "+x"(low##t), "+x"(high##t));                                                                     \
    }
#define WIDEN(t)                                                                                                       \
    low##t = _mm256_madd_epi16(low##t, ones);                                                                          \
    high##t = _mm256_madd_epi16(high##t, ones);
        FOR_TOKENS(DECLARE)
#pragma GCC unroll 8
        for (int i = 0; i < T.n_sums; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
            FOR_TOKENS(STEP)
        }
        FOR_TOKENS(WIDEN)
        if (T.n_sums < 8) { /* the other half of the block */
#define KEEP(t) const __m256i first_low##t = low##t, first_high##t = high##t;
            FOR_TOKENS(KEEP)
#undef KEEP
#define CLEAR(t) low##t = high##t = _mm256_setzero_si256();
            FOR_TOKENS(CLEAR)
#undef CLEAR
#pragma GCC unroll 8
            for (int i = T.n_sums; i < 8; i++) {
                const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
                FOR_TOKENS(STEP)
            }
            FOR_TOKENS(WIDEN)
#define ADD(t)                                                                                                         \
    low##t = _mm256_add_epi32(low##t, first_low##t);                                                                   \
    high##t = _mm256_add_epi32(high##t, first_high##t);
            FOR_TOKENS(ADD)
#undef ADD
        }
#undef WIDEN
#undef STEP
#define FLUSH(t)                                                                                                       \
    flush(acc + t * STRIP_ROWS, low##t, high##t, strip, b * STRIP_ROWS, acts->d[t][b], acts->sums[t][b], T);
        FOR_TOKENS(FLUSH)
#undef FLUSH
#undef DECLARE
    }
}

PMX_INLINE void tile_signed(float *acc, const strip32 *strip, const tile_acts *acts, int64_t n_blocks, const type32 T) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m256i *w = (const __m256i *)(const void *)(strip->q + b * PMX_BLOCK * STRIP_ROWS);
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
        FOR_TOKENS(DECLARE)
#undef DECLARE
#define STEP(t)                                                                                                        \
    {                                                                                                                  \
        const __m256i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);                                              \
        low##t = _mm256_add_epi32(low##t, dot_signed(w0, x));                                                          \
        high##t = _mm256_add_epi32(high##t, dot_signed(w1, x));                                                        \
        __asm__("" : "+x"(low##t), "+x"(high##t));                                                                     \
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

/* The strip's columns from block `first` on, for four tokens; tokens past the end repeat the last
 * one. */
PMX_INLINE void tile_pointers(tile_acts *tile, const pmx_acts *acts, const int32_t *tokens, int64_t n_tokens, int64_t t,
                              int64_t first) {
    const int64_t n_blocks = acts->cols / PMX_BLOCK;
    for (int i = 0; i < TILE_TOKENS; i++) {
        const int64_t token = tokens[t + i < n_tokens ? t + i : n_tokens - 1];
        tile->q[i] = acts->q32.q + token * acts->cols + first * PMX_BLOCK;
        tile->d[i] = acts->q32.d + token * n_blocks + first;
        tile->sums[i] = acts->q32.sums + token * n_blocks + first;
    }
}

PMX_INLINE void mat32(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                      const int32_t *tokens, int64_t n_tokens, void *scratch, tile_kernel kernel, const type32 T) {
    strip32 strip = {.q = scratch};
    strip.scales = (float *)(void *)(strip.q + STRIP_ROWS * K_BLOCK);
    strip.mins = strip.scales + STRIP_ROWS * STRIP_BLOCKS;
    float *acc = strip.mins + STRIP_ROWS * STRIP_BLOCKS;
    const int64_t n_blocks = acts->cols / PMX_BLOCK, tiles = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t r = 0; r < n_rows; r += STRIP_ROWS) {
        const int64_t rows = n_rows - r < STRIP_ROWS ? n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(tiles * TILE_TOKENS * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            const uint8_t *next = w + (r + STRIP_ROWS) * row_bytes + first * STRIP_ROWS * T.block_bytes;
            unpack_strip(&strip, w + r * row_bytes + first * T.block_bytes, row_bytes, rows, n, next, T);
            for (int64_t t = 0; t < n_tokens; t += TILE_TOKENS) {
                tile_acts tile;
                tile_pointers(&tile, acts, tokens, n_tokens, t, first);
                kernel(acc + t * STRIP_ROWS, &strip, &tile, n, T);
            }
        }
        for (int64_t t = 0; t < n_tokens; t++) memcpy(y + t * ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *y);
    }
}
_Static_assert(STRIP_ROWS *(K_BLOCK + 2 * STRIP_BLOCKS * 4 + PMX_TOKEN_BLOCK * 4) <= PMX_MAT_SCRATCH, "scratch");

/* --- dequantize */

PMX_INLINE void dequantize32(float *y, const uint8_t *w, int64_t n, const type32 T) {
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, y += PMX_BLOCK, w += T.block_bytes) {
        uint16_t h[2];
        memcpy(h, w, sizeof h);
        const __m256 d = _mm256_set1_ps(pmx_f16_to_f32(h[0])), m = _mm256_set1_ps(pmx_f16_to_f32(h[1]));
        int8_t q[PMX_BLOCK];
        _mm256_storeu_si256((__m256i *)(void *)q, _mm256_sub_epi8(T.unpack(w), _mm256_set1_epi8((int8_t)T.offset)));
        for (int i = 0; i < PMX_BLOCK; i += 8) {
            const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(q + i)));
            const __m256 value = _mm256_mul_ps(d, _mm256_cvtepi32_ps(wide));
            _mm256_storeu_ps(y + i, T.has_min ? _mm256_add_ps(value, m) : value);
        }
    }
}

PMX_AVX2_END

#endif
