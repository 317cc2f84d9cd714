/* matmul_q32.c: q4_0 and q8_0 weights times 8-bit activations with VNNI.
 *
 * vpdpbusd adds four u8*s8 products into int32 without a limit that matters here. Weights are unsigned: q4_0's nibbles 0..15, q8_0's
 * bytes with the sign bit flipped (q + 128); the offset is an exact integer correction, the start value of the accumulator:
 * -8 or -128 times the block's sum of activations.
 *
 * vec: 8 rows of one token from the mapped blocks, two rows a register (row i and i + 4, so that the reduction ends in row order),
 * prefetching the next 8 rows linearly as avx2's does.
 * mat: strips of 32 rows as bytes [k/4][32 rows][4], two registers per 4 columns, times 8 tokens: 2 loads of weights and 8 broadcasts feed
 * 16 vpdpbusd into 16 accumulators. Every 32 columns cost three more vector operations per accumulator: convert, scale, fma. */
#include <string.h>

#include "avx512vnni.h"

enum {
    STRIP_ROWS = 32,
    K_BLOCK = 1024, /* columns of a strip: 32 KB of weights */
    TILE_TOKENS = 8
};

PMX_AVX512VNNI_BEGIN

/* TEMP-BEGIN */
PMX_INLINE __m256i load_nibbles(const uint8_t *qs) {
    const __m128i packed = _mm_loadu_si128((const __m128i *)(const void *)qs);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* The f16 scales of eight blocks, widened. */
PMX_INLINE __m256 load_scales(const uint8_t *const *rows, int64_t offset) {
    uint16_t h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], rows[i] + offset, sizeof h[i]);
    const __m128i packed = _mm_setr_epi16((int16_t)h[0], (int16_t)h[1], (int16_t)h[2], (int16_t)h[3], (int16_t)h[4], (int16_t)h[5],
                                          (int16_t)h[6], (int16_t)h[7]);
    return _mm256_cvtph_ps(packed);
}

/* Eight row pointers from row r on; rows past the end repeat the last one and their results are dropped. */
PMX_INLINE void row_pointers(const uint8_t *rows[8], const uint8_t *w, int64_t row_bytes, int64_t r, int64_t n_rows) {
    for (int i = 0; i < 8; i++) rows[i] = w + (r + i < n_rows ? r + i : n_rows - 1) * row_bytes;
}

/* One block of 32 columns: 8 vectors of 8 rows' dwords become dword j of 8 rows each, for the strip's layout. */
PMX_INLINE void transpose8(uint8_t *out, const __m256i *v, const int64_t stride) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_store_si256((__m256i *)(void *)(out + i * stride), _mm256_permute2x128_si256(b[i], b[i + 4], 0x20));
        _mm256_store_si256((__m256i *)(void *)(out + (i + 4) * stride), _mm256_permute2x128_si256(b[i], b[i + 4], 0x31));
    }
}

/* TEMP-END */
/* --- vec */

/* Two blocks' integers as unsigned bytes: row a in the low half, row b in the high one. */
typedef __m512i (*load_pair)(const uint8_t *a, const uint8_t *b);

PMX_INLINE __m512i pair_q4_0(const uint8_t *a, const uint8_t *b) {
    const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(a + 2)),
                  high = _mm_loadu_si128((const __m128i *)(const void *)(b + 2));
    const __m512i both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(low), 0xff00, high);
    const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi8(15));
}

PMX_INLINE __m512i pair_q8_0(const uint8_t *a, const uint8_t *b) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(a + 2)),
                  high = _mm256_loadu_si256((const __m256i *)(const void *)(b + 2));
    return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(-128));
}

/* p[i]: 8 partial sums of row i, then of row i + 4. Returns the sums of rows 0..7. */
PMX_INLINE __m256i reduce8(__m512i p0, __m512i p1, __m512i p2, __m512i p3) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p0, p1), _mm512_unpackhi_epi32(p0, p1));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p2, p3), _mm512_unpackhi_epi32(p2, p3));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xb1));
    return _mm512_castsi512_si256(_mm512_shuffle_i32x4(d, d, 0x08));
}

PMX_INLINE void vec(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token, load_pair load,
                    const int64_t block_bytes, const int32_t offset) {
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
            const int64_t at = b * block_bytes;
            for (int64_t line = 0; line < 8 * block_bytes; line += 64) _mm_prefetch(next + 8 * at + line, _MM_HINT_T0);
            const __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(q + b * PMX_BLOCK)));
            const __m512i zero = _mm512_setzero_si512();
            const __m512i p0 = _mm512_dpbusd_epi32(zero, load(rows[0] + at, rows[4] + at), x);
            const __m512i p1 = _mm512_dpbusd_epi32(zero, load(rows[1] + at, rows[5] + at), x);
            const __m512i p2 = _mm512_dpbusd_epi32(zero, load(rows[2] + at, rows[6] + at), x);
            const __m512i p3 = _mm512_dpbusd_epi32(zero, load(rows[3] + at, rows[7] + at), x);
            const __m256i isum = _mm256_add_epi32(reduce8(p0, p1, p2, p3), _mm256_set1_epi32(-offset * sums[b]));
            const __m256 scale = _mm256_mul_ps(load_scales(rows, at), _mm256_set1_ps(d[b]));
            acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), acc);
        }
        _mm256_mask_storeu_ps(y + r, n_rows - r >= 8 ? (__mmask8)0xff : (__mmask8)((1 << (n_rows - r)) - 1), acc);
    }
}

/* --- mat */

typedef __m256i (*unpack32)(const uint8_t *block);

PMX_INLINE __m256i unpack_q4_0(const uint8_t *block) { return load_nibbles(block + 2); }

PMX_INLINE __m256i unpack_q8_0(const uint8_t *block) {
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(block + 2)), _mm256_set1_epi8(-128));
}

/* n_blocks blocks of 32 rows into strip [block][8][32 rows][4 bytes] and scales [block][32]. */
PMX_INLINE void unpack_strip(uint8_t *strip, float *scales, const uint8_t *w, int64_t row_bytes, int64_t n_rows, int64_t n_blocks,
                             unpack32 unpack, const int64_t block_bytes) {
    for (int part = 0; part < STRIP_ROWS; part += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, part, n_rows);
        for (int64_t b = 0; b < n_blocks; b++) {
            __m256i v[8];
            for (int i = 0; i < 8; i++) v[i] = unpack(rows[i] + b * block_bytes);
            transpose8(strip + b * 32 * STRIP_ROWS + part * 4, v, 4 * STRIP_ROWS);
            _mm256_store_ps(scales + b * STRIP_ROWS + part, load_scales(rows, b * block_bytes));
        }
    }
}

typedef struct {
    const int8_t *q[TILE_TOKENS];
    const float *d[TILE_TOKENS];
    const int32_t *sums[TILE_TOKENS];
} tile_acts;

PMX_INLINE __m512i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm512_set1_epi32(x);
}

PMX_INLINE void flush(float *acc, __m512i isum, __m512 scales, float d) {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(d));
    _mm512_store_ps(acc, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(isum), _mm512_load_ps(acc)));
}

/* acc [T tokens][32 rows] += the strip's blocks. */
PMX_INLINE void tile(float *acc, const uint8_t *strip, const float *scales, const tile_acts *acts, int64_t n_blocks, const int T,
                     const int32_t offset) {
    for (int64_t b = 0; b < n_blocks; b++, strip += 32 * STRIP_ROWS, scales += STRIP_ROWS) {
        __m512i low[TILE_TOKENS], high[TILE_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) low[t] = high[t] = _mm512_set1_epi32(-offset * acts->sums[t][b]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i w0 = _mm512_load_si512(strip + i * 128), w1 = _mm512_load_si512(strip + i * 128 + 64);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                const __m512i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);
                low[t] = _mm512_dpbusd_epi32(low[t], w0, x);
                high[t] = _mm512_dpbusd_epi32(high[t], w1, x);
            }
        }
        const __m512 scale0 = _mm512_load_ps(scales), scale1 = _mm512_load_ps(scales + 16);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            flush(acc + t * STRIP_ROWS, low[t], scale0, acts->d[t][b]);
            flush(acc + t * STRIP_ROWS + 16, high[t], scale1, acts->d[t][b]);
        }
    }
}

/* Pointers of n tokens at the strip's first block. */
PMX_INLINE void tile_pointers(tile_acts *out, const pmx_acts *acts, const int32_t *tokens, int n, int64_t first) {
    const int64_t n_blocks = acts->cols / PMX_BLOCK;
    for (int i = 0; i < n; i++) {
        out->q[i] = acts->q32.q + tokens[i] * acts->cols + first * PMX_BLOCK;
        out->d[i] = acts->q32.d + tokens[i] * n_blocks + first;
        out->sums[i] = acts->q32.sums + tokens[i] * n_blocks + first;
    }
}

PMX_INLINE void mat(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, const int32_t *tokens,
                    int64_t n_tokens, void *scratch, unpack32 unpack, const int64_t block_bytes, const int32_t offset) {
    uint8_t *strip = scratch;
    float *scales = (float *)(void *)(strip + STRIP_ROWS * K_BLOCK);
    float *acc = scales + STRIP_ROWS * (K_BLOCK / PMX_BLOCK);
    const int64_t n_blocks = acts->cols / PMX_BLOCK;
    for (int64_t r = 0; r < n_rows; r += STRIP_ROWS) {
        const int64_t rows = n_rows - r < STRIP_ROWS ? n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(n_tokens * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += K_BLOCK / PMX_BLOCK) {
            const int64_t n = n_blocks - first < K_BLOCK / PMX_BLOCK ? n_blocks - first : K_BLOCK / PMX_BLOCK;
            unpack_strip(strip, scales, w + r * row_bytes + first * block_bytes, row_bytes, rows, n, unpack, block_bytes);
            tile_acts pointers;
            int64_t t = 0;
            for (; t + 8 <= n_tokens; t += 8) {
                tile_pointers(&pointers, acts, tokens + t, 8, first);
                tile(acc + t * STRIP_ROWS, strip, scales, &pointers, n, 8, offset);
            }
            for (; t + 2 <= n_tokens; t += 2) {
                tile_pointers(&pointers, acts, tokens + t, 2, first);
                tile(acc + t * STRIP_ROWS, strip, scales, &pointers, n, 2, offset);
            }
            if (t < n_tokens) {
                tile_pointers(&pointers, acts, tokens + t, 1, first);
                tile(acc + t * STRIP_ROWS, strip, scales, &pointers, n, 1, offset);
            }
        }
        for (int64_t t = 0; t < n_tokens; t++) memcpy(y + t * ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *y);
    }
}
_Static_assert(STRIP_ROWS *K_BLOCK + STRIP_ROWS * (K_BLOCK / PMX_BLOCK) * 4 + PMX_TOKEN_BLOCK * STRIP_ROWS * 4 <= PMX_MAT_SCRATCH,
               "scratch");

void pmx_avx512vnni_vec_q4_0(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {
    vec(y, w, row_bytes, n_rows, acts, token, pair_q4_0, sizeof(pmx_block_q4_0), 8);
}

void pmx_avx512vnni_vec_q8_0(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {
    vec(y, w, row_bytes, n_rows, acts, token, pair_q8_0, sizeof(pmx_block_q8_0), 128);
}

void pmx_avx512vnni_mat_q4_0(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                             const int32_t *tokens, int64_t n_tokens, void *scratch) {
    mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, unpack_q4_0, sizeof(pmx_block_q4_0), 8);
}

void pmx_avx512vnni_mat_q8_0(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                             const int32_t *tokens, int64_t n_tokens, void *scratch) {
    mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, unpack_q8_0, sizeof(pmx_block_q8_0), 128);
}

PMX_AVX512VNNI_END
