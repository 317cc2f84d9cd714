/* matmul_float.c: f32, f16 and bf16 weights. The eight lanes are the contract's eight partial sums,
 * so each output needs its own vector accumulator; vec keeps 8 rows, mat 4 rows x 3 tokens = 12 of
 * them in registers, which hides the latency of fma and makes 7 loads serve 12 of them. Row streams
 * defeat the hardware prefetchers, so the first tile that meets a row prefetches the next ones
 * linearly: up to 60% faster with few tokens. */
#if defined(__x86_64__)
#include <string.h>

#include "avx2.h"

PMX_AVX2_BEGIN

typedef __m256 (*load8)(const uint8_t *w);

PMX_INLINE __m256 load8_f32(const uint8_t *w) { return _mm256_loadu_ps((const float *)(const void *)w); }
PMX_INLINE __m256 load8_f16(const uint8_t *w) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)w));
}
PMX_INLINE __m256 load8_bf16(const uint8_t *w) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)w));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* The last n < 8 elements, padded with zeros. */
PMX_INLINE __m256 load_tail(load8 load, const uint8_t *w, int64_t n, const int64_t size) {
    uint8_t padded[32] = {0};
    memcpy(padded, w, (size_t)(n * size));
    return load(padded);
}

/* R rows x T tokens; R and T are constants where this is inlined. */
PMX_INLINE void tile(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, const int R, const pmx_acts *acts,
                     const int32_t *tokens, const int T, int ahead, load8 load, const int64_t size) {
    const char *next = (const char *)w + R * row_bytes;
    const int64_t n = acts->cols, whole = n - n % 8;
    const float *x[8];
    __m256 acc[8][3];
    for (int t = 0; t < T; t++) x[t] = acts->x + tokens[t] * n;
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t] = _mm256_setzero_ps();
    for (int64_t i = 0; i < whole; i += 8) {
        for (int64_t line = 0; ahead && line < 8 * R * size; line += 64)
            _mm_prefetch(next + i * R * size + line, _MM_HINT_T0);
        __m256 v[3];
        for (int t = 0; t < T; t++) v[t] = _mm256_loadu_ps(x[t] + i);
        for (int r = 0; r < R; r++) {
            const __m256 row = load(w + r * row_bytes + i * size);
            for (int t = 0; t < T; t++) acc[r][t] = _mm256_fmadd_ps(v[t], row, acc[r][t]);
        }
    }
    if (whole < n) {
        const __m256i tail = first_lanes(n - whole);
        for (int t = 0; t < T; t++) {
            const __m256 v = _mm256_maskload_ps(x[t] + whole, tail);
            for (int r = 0; r < R; r++)
                acc[r][t] =
                    _mm256_fmadd_ps(v, load_tail(load, w + r * row_bytes + whole * size, n - whole, size), acc[r][t]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) y[t * ldy + r] = sum8_tree(acc[r][t]);
}

PMX_INLINE void vec(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token,
                    load8 load, const int64_t size) {
    const int32_t t = (int32_t)token;
    int64_t r = 0;
    for (; r + 8 <= n_rows; r += 8) tile(y + r, 0, w + r * row_bytes, row_bytes, 8, acts, &t, 1, 1, load, size);
    for (; r < n_rows; r++) tile(y + r, 0, w + r * row_bytes, row_bytes, 1, acts, &t, 1, 1, load, size);
}

PMX_INLINE void mat(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                    const int32_t *tokens, int64_t n_tokens, load8 load, const int64_t size) {
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        int64_t t = 0;
        for (; t + 3 <= n_tokens; t += 3)
            tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 3, t == 0, load, size);
        for (; t < n_tokens; t++)
            tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 1, t == 0, load, size);
    }
    for (int64_t t = 0; t < n_tokens && r < n_rows; t++)
        vec(y + t * ldy + r, w + r * row_bytes, row_bytes, n_rows - r, acts, tokens[t], load, size);
}

PMX_INLINE void dequantize(float *y, const uint8_t *w, int64_t n, load8 load, const int64_t size) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, load(w + i * size));
    if (i < n) _mm256_maskstore_ps(y + i, first_lanes(n - i), load_tail(load, w + i * size, n - i, size));
}

#define TYPE(T, SIZE)                                                                                                  \
    void pmx_avx2_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,         \
                          int64_t token) {                                                                             \
        vec(y, w, row_bytes, n_rows, acts, token, load8_##T, SIZE);                                                    \
    }                                                                                                                  \
    void pmx_avx2_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows,                  \
                          const pmx_acts *acts, const int32_t *tokens, int64_t n_tokens, void *scratch) {              \
        (void)scratch;                                                                                                 \
        mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, load8_##T, SIZE);                                    \
    }                                                                                                                  \
    void pmx_avx2_dequantize_##T(float *y, const uint8_t *w, int64_t n) { dequantize(y, w, n, load8_##T, SIZE); }

TYPE(f32, 4)
TYPE(f16, 2)
TYPE(bf16, 2)

PMX_AVX2_END
#endif
