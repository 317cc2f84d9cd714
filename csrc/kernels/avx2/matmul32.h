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
 * likewise, and multiplies it with all tokens, four at a time: 2 loads and 4 dword broadcasts feed 8
 * vpmaddubsw. The 8 accumulators pass through an empty asm at each step: gcc would make trees of the
 * chains of additions, and spill the products and accumulators both. */
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
    int is_power;   /* the scale is a byte, the exponent of a power of two */
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
            const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(token.q + b * PMX_BLOCK));
            __m256i isum = T.n_sums > 1 ? dot8_unsigned(rows, at, x, T) : dot8_signed(rows, at, x, T);
            if (T.offset) isum = _mm256_add_epi32(isum, _mm256_set1_epi32(-T.offset * token.sums[b]));
            __m256 scales, mins;
            if (T.has_min)
                load_scale_pairs(&scales, &mins, rows, at);
            else
                scales = load_scales32(rows, at, T.is_power);
            acc = _mm256_fmadd_ps(_mm256_mul_ps(scales, _mm256_set1_ps(token.d[b])), _mm256_cvtepi32_ps(isum), acc);
            if (T.has_min) acc = _mm256_fmadd_ps(mins, _mm256_set1_ps(token.d[b] * (float)token.sums[b]), acc);
        }
        if (p.n_rows - r >= 8)
            _mm256_storeu_ps(p.y + r, acc);
        else
            _mm256_maskstore_ps(p.y + r, first_lanes(p.n_rows - r), acc);
    }
}

/* --- mat */

/* A strip of 16 rows, all [block][...]: bytes [8][16 rows][4], scales [16], minimums [16]. */
typedef struct {
    uint8_t *q;
    float *scales, *mins;
} strip32;

/* Blocks first .. first + n_blocks - 1 of the rows from r on. The same share of the next strip is
 * prefetched. */
PMX_INLINE void unpack_strip(const strip32 *strip, const pmx_product *p, int64_t r, int64_t first, int64_t n_blocks,
                             const type32 T) {
    const uint8_t *next = p->w + (r + STRIP_ROWS) * p->row_bytes + first * STRIP_ROWS * T.block_bytes;
    for (int half = 0; half < STRIP_ROWS; half += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, p, r + half);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * T.block_bytes) {
            prefetch_bytes(next, 8 * T.block_bytes);
            __m256i v[8];
            for (int i = 0; i < 8; i++) v[i] = T.unpack(rows[i] + (first + b) * T.block_bytes);
            transpose8(strip->q + b * PMX_BLOCK * STRIP_ROWS + half * 4, 4 * STRIP_ROWS, v);
            const int64_t at = b * STRIP_ROWS + half;
            if (T.has_min) {
                __m256 scales, mins;
                load_scale_pairs(&scales, &mins, rows, (first + b) * T.block_bytes);
                _mm256_store_ps(strip->scales + at, scales);
                _mm256_store_ps(strip->mins + at, mins);
            } else {
                _mm256_store_ps(strip->scales + at, load_scales32(rows, (first + b) * T.block_bytes, T.is_power));
            }
        }
    }
}

PMX_INLINE __m256i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm256_set1_epi32(x);
}

/* Integers of 16 rows. */
typedef struct {
    __m256i low, high;
} rows16;

/* Keeps a sum in registers, and the chain of additions that leads to it as it is written. */
PMX_INLINE void keep(rows16 *sum) { __asm__("" : "+x"(sum->low), "+x"(sum->high)); }

/* One token's 16 results += a block. at: the block's first row in scales and minimums. */
PMX_INLINE void flush(float *acc, rows16 isum, const strip32 *strip, int64_t at, float d, int32_t sum, const type32 T) {
    if (T.offset) {
        const __m256i offset = _mm256_set1_epi32(-T.offset * sum);
        isum.low = _mm256_add_epi32(isum.low, offset);
        isum.high = _mm256_add_epi32(isum.high, offset);
    }
    const __m256 dx = _mm256_set1_ps(d);
    const __m256 scale0 = _mm256_mul_ps(_mm256_load_ps(strip->scales + at), dx);
    const __m256 scale1 = _mm256_mul_ps(_mm256_load_ps(strip->scales + at + 8), dx);
    __m256 y0 = _mm256_fmadd_ps(scale0, _mm256_cvtepi32_ps(isum.low), _mm256_load_ps(acc));
    __m256 y1 = _mm256_fmadd_ps(scale1, _mm256_cvtepi32_ps(isum.high), _mm256_load_ps(acc + 8));
    if (T.has_min) {
        const __m256 x = _mm256_mul_ps(dx, _mm256_cvtepi32_ps(_mm256_set1_epi32(sum)));
        y0 = _mm256_fmadd_ps(_mm256_load_ps(strip->mins + at), x, y0);
        y1 = _mm256_fmadd_ps(_mm256_load_ps(strip->mins + at + 8), x, y1);
    }
    _mm256_store_ps(acc, y0);
    _mm256_store_ps(acc + 8, y1);
}

/* acc [4 tokens][16 rows] += the strip's blocks. */
typedef void (*tile_kernel)(float *acc, const strip32 *strip, const pmx_quantized *x, int64_t n_blocks, const type32 T);

PMX_INLINE void tile_unsigned(float *acc, const strip32 *strip, const pmx_quantized *x, int64_t n_blocks,
                              const type32 T) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m256i *w = (const __m256i *)(const void *)(strip->q + b * PMX_BLOCK * STRIP_ROWS);
        rows16 isum[TILE_TOKENS];
#pragma GCC unroll 2
        for (int first = 0; first < 8; first += T.n_sums) {
            rows16 pairs[TILE_TOKENS]; /* int16 */
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) pairs[t].low = pairs[t].high = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int i = first; i < first + T.n_sums; i++) {
                const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
#pragma GCC unroll 4
                for (int t = 0; t < TILE_TOKENS; t++) {
                    const __m256i v = load_dword(x[t].q + b * PMX_BLOCK + 4 * i);
                    pairs[t].low = _mm256_add_epi16(pairs[t].low, _mm256_maddubs_epi16(w0, v));
                    pairs[t].high = _mm256_add_epi16(pairs[t].high, _mm256_maddubs_epi16(w1, v));
                    keep(&pairs[t]);
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < TILE_TOKENS; t++) {
                const rows16 wide = {_mm256_madd_epi16(pairs[t].low, ones), _mm256_madd_epi16(pairs[t].high, ones)};
                isum[t].low = first == 0 ? wide.low : _mm256_add_epi32(isum[t].low, wide.low);
                isum[t].high = first == 0 ? wide.high : _mm256_add_epi32(isum[t].high, wide.high);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++)
            flush(acc + t * STRIP_ROWS, isum[t], strip, b * STRIP_ROWS, x[t].d[b], x[t].sums[b], T);
    }
}

PMX_INLINE void tile_signed(float *acc, const strip32 *strip, const pmx_quantized *x, int64_t n_blocks,
                            const type32 T) {
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
                isum[t].low = _mm256_add_epi32(isum[t].low, dot_signed(w0, v));
                isum[t].high = _mm256_add_epi32(isum[t].high, dot_signed(w1, v));
                keep(&isum[t]);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < TILE_TOKENS; t++)
            flush(acc + t * STRIP_ROWS, isum[t], strip, b * STRIP_ROWS, x[t].d[b], x[t].sums[b], T);
    }
}

PMX_INLINE void mat32(const pmx_product p, tile_kernel kernel, const type32 T) {
    strip32 strip = {.q = p.scratch};
    strip.scales = (float *)(void *)(strip.q + STRIP_ROWS * K_BLOCK);
    strip.mins = strip.scales + STRIP_ROWS * STRIP_BLOCKS;
    float *acc = strip.mins + STRIP_ROWS * STRIP_BLOCKS;
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK, tiles = (p.n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t rows = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(tiles * TILE_TOKENS * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS ? n_blocks - first : STRIP_BLOCKS;
            unpack_strip(&strip, &p, r, first, n, T);
            for (int64_t t = 0; t < p.n_tokens; t += TILE_TOKENS) {
                pmx_quantized x[TILE_TOKENS]; /* tokens past the end repeat the last one */
                for (int i = 0; i < TILE_TOKENS; i++)
                    x[i] = pmx_token_q32(p.acts, p.tokens[t + i < p.n_tokens ? t + i : p.n_tokens - 1], first);
                kernel(acc + t * STRIP_ROWS, &strip, x, n, T);
            }
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *acc);
    }
}
_Static_assert(STRIP_ROWS *(K_BLOCK + 2 * STRIP_BLOCKS * 4 + PMX_TOKEN_BLOCK * 4) <= PMX_MAT_SCRATCH, "scratch");

/* --- dequantize */

PMX_INLINE void dequantize32(float *y, const uint8_t *w, int64_t n, const type32 T) {
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, y += PMX_BLOCK, w += T.block_bytes) {
        uint16_t h[2];
        memcpy(h, w, sizeof h);
        const __m256 d = _mm256_set1_ps(T.is_power ? pmx_e8m0_to_f32(w[0]) : pmx_f16_to_f32(h[0])),
                     m = _mm256_set1_ps(pmx_f16_to_f32(h[1]));
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
