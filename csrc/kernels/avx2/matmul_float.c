/* matmul_float.c: f32, f16 and bf16 weights. The eight lanes are the contract's eight partial sums,
 * so each output needs its own vector accumulator; vec keeps 8 rows, mat 4 rows x 3 tokens = 12 of
 * them in registers, which hides the latency of fma and makes 7 loads serve 12 of them. Row streams
 * defeat the hardware prefetchers, so the first tile that meets a row prefetches the next ones
 * linearly: up to 60% faster with few tokens. */
#if defined(__x86_64__)
#include <string.h>

#include "avx2.h"

PMX_AVX2_BEGIN

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    __m256 (*load)(const uint8_t *w); /* eight elements */
    int64_t size;                     /* of one in bytes */
} type_float;

PMX_INLINE __m256 load8_f32(const uint8_t *w) { return _mm256_loadu_ps((const float *)(const void *)w); }
PMX_INLINE __m256 load8_f16(const uint8_t *w) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)w));
}
PMX_INLINE __m256 load8_bf16(const uint8_t *w) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)w));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* The last n < 8 elements, padded with zeros. */
PMX_INLINE __m256 load_tail(const uint8_t *w, int64_t n, const type_float F) {
    uint8_t padded[32] = {0};
    memcpy(padded, w, (size_t)(n * F.size));
    return F.load(padded);
}

/* The first R rows x T tokens; R and T are constants where this is inlined. ahead: the next R rows
 * are prefetched. */
PMX_INLINE void tile(const pmx_product p, const int R, const int T, const int ahead, const pmx_prefetch hint,
                     const type_float F) {
    const char *next = (const char *)p.w + R * p.row_bytes;
    const int64_t n = p.acts->cols, whole = n - n % 8;
    const float *x[8];
    __m256 acc[8][3];
    for (int t = 0; t < T; t++) x[t] = p.acts->x + p.tokens[t] * n;
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t] = _mm256_setzero_ps();
    for (int64_t i = 0; i < whole; i += 8) {
        for (int64_t line = 0; ahead && line < 8 * R * F.size; line += 64)
            pmx_prefetch_line(next + i * R * F.size + line, hint);
        __m256 v[3];
        for (int t = 0; t < T; t++) v[t] = _mm256_loadu_ps(x[t] + i);
        for (int r = 0; r < R; r++) {
            const __m256 row = F.load(p.w + r * p.row_bytes + i * F.size);
            for (int t = 0; t < T; t++) acc[r][t] = _mm256_fmadd_ps(v[t], row, acc[r][t]);
        }
    }
    if (whole < n) {
        const __m256i tail = first_lanes(n - whole);
        for (int t = 0; t < T; t++) {
            const __m256 v = _mm256_maskload_ps(x[t] + whole, tail);
            for (int r = 0; r < R; r++) {
                const __m256 row = load_tail(p.w + r * p.row_bytes + whole * F.size, n - whole, F);
                acc[r][t] = _mm256_fmadd_ps(v, row, acc[r][t]);
            }
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) p.y[t * p.ldy + r] = sum8_tree(acc[r][t]);
}

PMX_INLINE void vec(const pmx_product p, const pmx_prefetch hint, const type_float F) {
    int64_t r = 0;
    for (; r + 8 <= p.n_rows; r += 8) tile(pmx_product_from(p, r, 0), 8, 1, 1, hint, F);
    for (; r < p.n_rows; r++) tile(pmx_product_from(p, r, 0), 1, 1, 1, hint, F);
}

PMX_INLINE void mat(const pmx_product p, const type_float F) {
    int64_t r = 0;
    for (; r + 4 <= p.n_rows; r += 4) {
        int64_t t = 0;
        for (; t + 3 <= p.n_tokens; t += 3) tile(pmx_product_from(p, r, t), 4, 3, t == 0, PMX_PREFETCH_NEAR, F);
        for (; t < p.n_tokens; t++) tile(pmx_product_from(p, r, t), 4, 1, t == 0, PMX_PREFETCH_NEAR, F);
    }
    for (int64_t t = 0; t < p.n_tokens && r < p.n_rows; t++) vec(pmx_product_from(p, r, t), PMX_PREFETCH_NEAR, F);
}

PMX_INLINE void dequantize(float *y, const uint8_t *w, int64_t n, const type_float F) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, F.load(w + i * F.size));
    if (i < n) _mm256_maskstore_ps(y + i, first_lanes(n - i), load_tail(w + i * F.size, n - i, F));
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    static const type_float T = {load8_##T, sizeof(pmx_block_##T)};                                                    \
    void pmx_avx2_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec, *p, T); }                                         \
    void pmx_avx2_mat_##T(const pmx_product *p) { mat(*p, T); }                                                        \
    void pmx_avx2_dequantize_##T(float *y, const uint8_t *w, int64_t n) { dequantize(y, w, n, T); }

PMX_TYPES_F32(TYPE)

PMX_AVX2_END
#endif
