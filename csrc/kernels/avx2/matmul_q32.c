/* matmul_q32.c: q4_0 and q8_0 weights times 8-bit activations.
 *
 * Both kernels form the exact int32 dot product of each 32-block, then acc = fma(dw*dx, isum, acc) for 8 rows in one register.
 * vpmaddubsw adds two u8*s8 products into int16:
 *   q4_0: weights stay 0..15, so a whole block fits an int16 lane: 16 products of at most 15*127 make 30480 < 32768. They are
 *         summed with vpaddw and widened once; the offset -8 is -8 * (sum of the activations), exact in integers.
 *   q8_0: |w| * sign(x, w); two products of at most 128*127 make 32512, so each vpmaddubsw is widened at once.
 *
 * vec takes 8 rows of one token straight from the mapped blocks. Eight short row streams defeat the hardware prefetchers, so it
 * prefetches the next 8 rows, which lie behind these ones, linearly.
 * mat unpacks a strip of 16 rows to bytes [k/4][16 rows][4] once and multiplies it with all tokens, four at a time:
 * 2 loads and 4 dword broadcasts feed 8 vpmaddubsw. The 8 accumulators are named one by one because gcc spills arrays here. */
#include <string.h>

#include "avx2.h"

enum {
    STRIP_ROWS = 16,
    K_BLOCK = 1024, /* columns of a strip: 16 KB of weights and 4 KB of each 4 tokens stay in L1 */
    TILE_TOKENS = 4
};

PMX_AVX2_BEGIN

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

/* Block dot products of 8 rows with one activation block: int32 lanes, one a row. */
typedef __m256i (*dot8)(const uint8_t *const *rows, int64_t offset, __m256i x, int32_t sum);

PMX_INLINE __m256i dot8_q4_0(const uint8_t *const *rows, int64_t offset, __m256i x, int32_t sum) {
    __m256i p[8];
    for (int i = 0; i < 8; i++) p[i] = _mm256_maddubs_epi16(load_nibbles(rows[i] + offset + 2), x);
    /* Three levels of pairwise sums leave, in each 128-bit lane, one int16 a row: 8 lanes of at most 3810, still below 32768. */
    const __m256i a = _mm256_hadd_epi16(_mm256_hadd_epi16(p[0], p[1]), _mm256_hadd_epi16(p[2], p[3]));
    const __m256i b = _mm256_hadd_epi16(_mm256_hadd_epi16(p[4], p[5]), _mm256_hadd_epi16(p[6], p[7]));
    const __m256i c = _mm256_hadd_epi16(a, b);
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(c)), high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(c, 1));
    return _mm256_add_epi32(_mm256_add_epi32(low, high), _mm256_set1_epi32(-8 * sum));
}

PMX_INLINE __m256i dot_q8_0(__m256i w, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

PMX_INLINE __m256i dot8_q8_0(const uint8_t *const *rows, int64_t offset, __m256i x, int32_t sum) {
    (void)sum;
    __m256i p[8];
    for (int i = 0; i < 8; i++) p[i] = dot_q8_0(_mm256_loadu_si256((const __m256i *)(const void *)(rows[i] + offset + 2)), x);
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(p[4], p[5]), _mm256_hadd_epi32(p[6], p[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Eight row pointers from row r on; rows past the end repeat the last one and their results are dropped. */
PMX_INLINE void row_pointers(const uint8_t *rows[8], const uint8_t *w, int64_t row_bytes, int64_t r, int64_t n_rows) {
    for (int i = 0; i < 8; i++) rows[i] = w + (r + i < n_rows ? r + i : n_rows - 1) * row_bytes;
}

PMX_INLINE void vec(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token, dot8 dot,
                    const int64_t block_bytes) {
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
            for (int64_t line = 0; line < 8 * block_bytes; line += 64) _mm_prefetch(next + b * 8 * block_bytes + line, _MM_HINT_T0);
            const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(q + b * PMX_BLOCK));
            const __m256i isum = dot(rows, b * block_bytes, x, sums[b]);
            const __m256 scale = _mm256_mul_ps(load_scales(rows, b * block_bytes), _mm256_set1_ps(d[b]));
            acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), acc);
        }
        if (n_rows - r >= 8)
            _mm256_storeu_ps(y + r, acc);
        else
            _mm256_maskstore_ps(y + r, first_lanes(n_rows - r), acc);
    }
}

/* One block of 32 columns: 8 vectors of 8 rows' dwords become dword j of 8 rows each, for the strip's layout. */
PMX_INLINE void transpose8(uint8_t *out, const __m256i *v) {
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
        _mm256_store_si256((__m256i *)(void *)(out + i * 64), _mm256_permute2x128_si256(b[i], b[i + 4], 0x20));
        _mm256_store_si256((__m256i *)(void *)(out + (i + 4) * 64), _mm256_permute2x128_si256(b[i], b[i + 4], 0x31));
    }
}

typedef __m256i (*unpack32)(const uint8_t *block);
PMX_INLINE __m256i unpack_q4_0(const uint8_t *block) { return load_nibbles(block + 2); }
PMX_INLINE __m256i unpack_q8_0(const uint8_t *block) { return _mm256_loadu_si256((const __m256i *)(const void *)(block + 2)); }

/* n_blocks blocks of 16 rows into strip [block][8][16 rows][4 bytes] and scales [block][16]. */
PMX_INLINE void unpack_strip(uint8_t *strip, float *scales, const uint8_t *w, int64_t row_bytes, int64_t n_rows, int64_t n_blocks,
                             unpack32 unpack, const int64_t block_bytes) {
    for (int half = 0; half < STRIP_ROWS; half += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, w, row_bytes, half, n_rows);
        for (int64_t b = 0; b < n_blocks; b++) {
            __m256i v[8];
            for (int i = 0; i < 8; i++) v[i] = unpack(rows[i] + b * block_bytes);
            transpose8(strip + b * 32 * STRIP_ROWS + half * 4, v);
            _mm256_store_ps(scales + b * STRIP_ROWS + half, load_scales(rows, b * block_bytes));
        }
    }
}

/* Pointers of the four tokens of a tile, at the strip's first column. */
typedef struct {
    const int8_t *q[TILE_TOKENS];
    const float *d[TILE_TOKENS];
    const int32_t *sums[TILE_TOKENS];
} tile_acts;

typedef void (*tile_kernel)(float *acc, const uint8_t *strip, const float *scales, const tile_acts *acts, int64_t n_blocks);

PMX_INLINE __m256i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm256_set1_epi32(x);
}

PMX_INLINE void flush(float *acc, __m256i isum, __m256 scales, const float *d) {
    const __m256 scale = _mm256_mul_ps(scales, _mm256_broadcast_ss(d));
    _mm256_store_ps(acc, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), _mm256_load_ps(acc)));
}

#define FOR_TOKENS(M) M(0) M(1) M(2) M(3)

/* acc [4 tokens][16 rows] += the strip's blocks. */
PMX_INLINE void tile_q4_0(float *acc, const uint8_t *strip, const float *scales, const tile_acts *acts, int64_t n_blocks) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t b = 0; b < n_blocks; b++, strip += 32 * STRIP_ROWS, scales += STRIP_ROWS) {
        const __m256i *w = (const __m256i *)(const void *)strip;
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
        FOR_TOKENS(DECLARE)
#undef DECLARE
#define STEP(t)                                                                                                                            \
    {                                                                                                                                      \
        const __m256i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);                                                                  \
        low##t = _mm256_add_epi16(low##t, _mm256_maddubs_epi16(w0, x));                                                                    \
        high##t = _mm256_add_epi16(high##t, _mm256_maddubs_epi16(w1, x));                                                                  \
    }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
            FOR_TOKENS(STEP)
        }
#undef STEP
        const __m256 scale0 = _mm256_load_ps(scales), scale1 = _mm256_load_ps(scales + 8);
#define FLUSH(t)                                                                                                                           \
    {                                                                                                                                      \
        const __m256i offset = _mm256_set1_epi32(-8 * acts->sums[t][b]);                                                                   \
        flush(acc + t * STRIP_ROWS, _mm256_add_epi32(_mm256_madd_epi16(low##t, ones), offset), scale0, acts->d[t] + b);                    \
        flush(acc + t * STRIP_ROWS + 8, _mm256_add_epi32(_mm256_madd_epi16(high##t, ones), offset), scale1, acts->d[t] + b);               \
    }
        FOR_TOKENS(FLUSH)
#undef FLUSH
    }
}

PMX_INLINE void tile_q8_0(float *acc, const uint8_t *strip, const float *scales, const tile_acts *acts, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++, strip += 32 * STRIP_ROWS, scales += STRIP_ROWS) {
        const __m256i *w = (const __m256i *)(const void *)strip;
#define DECLARE(t) __m256i low##t = _mm256_setzero_si256(), high##t = low##t;
        FOR_TOKENS(DECLARE)
#undef DECLARE
#define STEP(t)                                                                                                                            \
    {                                                                                                                                      \
        const __m256i x = load_dword(acts->q[t] + b * PMX_BLOCK + 4 * i);                                                                  \
        low##t = _mm256_add_epi32(low##t, dot_q8_0(w0, x));                                                                                \
        high##t = _mm256_add_epi32(high##t, dot_q8_0(w1, x));                                                                              \
    }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m256i w0 = _mm256_load_si256(w + 2 * i), w1 = _mm256_load_si256(w + 2 * i + 1);
            FOR_TOKENS(STEP)
        }
#undef STEP
        const __m256 scale0 = _mm256_load_ps(scales), scale1 = _mm256_load_ps(scales + 8);
#define FLUSH(t)                                                                                                                           \
    flush(acc + t * STRIP_ROWS, low##t, scale0, acts->d[t] + b);                                                                           \
    flush(acc + t * STRIP_ROWS + 8, high##t, scale1, acts->d[t] + b);
        FOR_TOKENS(FLUSH)
#undef FLUSH
    }
}

/* The strip's K_BLOCK columns from block `first` on, for four tokens; tokens past the end repeat the last one. */
PMX_INLINE void tile_pointers(tile_acts *tile, const pmx_acts *acts, const int32_t *tokens, int64_t n_tokens, int64_t t, int64_t first) {
    const int64_t n_blocks = acts->cols / PMX_BLOCK;
    for (int i = 0; i < TILE_TOKENS; i++) {
        const int64_t token = tokens[t + i < n_tokens ? t + i : n_tokens - 1];
        tile->q[i] = acts->q32.q + token * acts->cols + first * PMX_BLOCK;
        tile->d[i] = acts->q32.d + token * n_blocks + first;
        tile->sums[i] = acts->q32.sums + token * n_blocks + first;
    }
}

PMX_INLINE void mat(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, const int32_t *tokens,
                    int64_t n_tokens, void *scratch, unpack32 unpack, tile_kernel kernel, const int64_t block_bytes) {
    uint8_t *strip = scratch;
    float *scales = (float *)(void *)(strip + STRIP_ROWS * K_BLOCK);
    float *acc = scales + STRIP_ROWS * (K_BLOCK / PMX_BLOCK);
    const int64_t n_blocks = acts->cols / PMX_BLOCK, tiles = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t r = 0; r < n_rows; r += STRIP_ROWS) {
        const int64_t rows = n_rows - r < STRIP_ROWS ? n_rows - r : STRIP_ROWS;
        memset(acc, 0, (size_t)(tiles * TILE_TOKENS * STRIP_ROWS) * sizeof *acc);
        for (int64_t first = 0; first < n_blocks; first += K_BLOCK / PMX_BLOCK) {
            const int64_t n = n_blocks - first < K_BLOCK / PMX_BLOCK ? n_blocks - first : K_BLOCK / PMX_BLOCK;
            unpack_strip(strip, scales, w + r * row_bytes + first * block_bytes, row_bytes, rows, n, unpack, block_bytes);
            for (int64_t t = 0; t < n_tokens; t += TILE_TOKENS) {
                tile_acts tile;
                tile_pointers(&tile, acts, tokens, n_tokens, t, first);
                kernel(acc + t * STRIP_ROWS, strip, scales, &tile, n);
            }
        }
        for (int64_t t = 0; t < n_tokens; t++) memcpy(y + t * ldy + r, acc + t * STRIP_ROWS, (size_t)rows * sizeof *y);
    }
}
_Static_assert(STRIP_ROWS *K_BLOCK + STRIP_ROWS * (K_BLOCK / PMX_BLOCK) * 4 + PMX_TOKEN_BLOCK * STRIP_ROWS * 4 <= PMX_MAT_SCRATCH,
               "scratch");

void pmx_avx2_vec_q4_0(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {
    vec(y, w, row_bytes, n_rows, acts, token, dot8_q4_0, sizeof(pmx_block_q4_0));
}

void pmx_avx2_vec_q8_0(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {
    vec(y, w, row_bytes, n_rows, acts, token, dot8_q8_0, sizeof(pmx_block_q8_0));
}

void pmx_avx2_mat_q4_0(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                       const int32_t *tokens, int64_t n_tokens, void *scratch) {
    mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, unpack_q4_0, tile_q4_0, sizeof(pmx_block_q4_0));
}

void pmx_avx2_mat_q8_0(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                       const int32_t *tokens, int64_t n_tokens, void *scratch) {
    mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, unpack_q8_0, tile_q8_0, sizeof(pmx_block_q8_0));
}

void pmx_avx2_dequantize_q4_0(float *y, const uint8_t *w, int64_t n) {
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, y += PMX_BLOCK, w += sizeof(pmx_block_q4_0)) {
        uint16_t h;
        memcpy(&h, w, sizeof h);
        const __m256 d = _mm256_set1_ps(pmx_f16_to_f32(h));
        const __m256i q = _mm256_sub_epi8(load_nibbles(w + 2), _mm256_set1_epi8(8));
        int8_t bytes[PMX_BLOCK];
        _mm256_storeu_si256((__m256i *)(void *)bytes, q);
        for (int i = 0; i < PMX_BLOCK; i += 8) {
            const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + i)));
            _mm256_storeu_ps(y + i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(wide)));
        }
    }
}

void pmx_avx2_dequantize_q8_0(float *y, const uint8_t *w, int64_t n) {
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, y += PMX_BLOCK, w += sizeof(pmx_block_q8_0)) {
        uint16_t h;
        memcpy(&h, w, sizeof h);
        const __m256 d = _mm256_set1_ps(pmx_f16_to_f32(h));
        for (int i = 0; i < PMX_BLOCK; i += 8) {
            const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(w + 2 + i)));
            _mm256_storeu_ps(y + i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(wide)));
        }
    }
}

PMX_AVX2_END
