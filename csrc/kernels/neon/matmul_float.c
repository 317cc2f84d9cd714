/* matmul_float.c: f32, f16 and bf16 weights. Each output has the contract's eight partial sums, two registers; vec keeps 8 rows, mat
 * 4 rows x 3 tokens in 24 registers, which leaves 8 for what 7 loads of eight elements bring. */
#if defined(__aarch64__)
#include <string.h>

#include "neon.h"

PMX_NEON_BEGIN

typedef float32x4x2_t (*load8)(const uint8_t *w);

PMX_INLINE float32x4x2_t load8_f32(const uint8_t *w) {
    const float *x = (const float *)(const void *)w;
    return (float32x4x2_t){{vld1q_f32(x), vld1q_f32(x + 4)}};
}

PMX_INLINE float32x4x2_t load8_f16(const uint8_t *w) {
    const float16x8_t x = vreinterpretq_f16_u8(vld1q_u8(w));
    return (float32x4x2_t){{vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)}};
}

PMX_INLINE float32x4x2_t load8_bf16(const uint8_t *w) {
    const uint16x8_t x = vreinterpretq_u16_u8(vld1q_u8(w));
    return (float32x4x2_t){{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(x, 16))}};
}

/* The last n < 8 elements, padded with zeros. */
PMX_INLINE float32x4x2_t load_tail(load8 load, const void *w, int64_t n, const int64_t size) {
    uint8_t padded[32] = {0};
    memcpy(padded, w, (size_t)(n * size));
    return load(padded);
}

PMX_INLINE void add_product(float32x4_t acc[2], float32x4x2_t x, float32x4x2_t w) {
    acc[0] = vfmaq_f32(acc[0], x.val[0], w.val[0]);
    acc[1] = vfmaq_f32(acc[1], x.val[1], w.val[1]);
}

/* R rows x T tokens; R and T are constants where this is inlined. */
PMX_INLINE void tile(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, const int R, const pmx_acts *acts, const int32_t *tokens,
                     const int T, load8 load, const int64_t size) {
    const int64_t n = acts->cols, whole = n - n % 8;
    const float *x[3];
    float32x4_t acc[8][3][2];
    for (int t = 0; t < T; t++) x[t] = acts->x + tokens[t] * n;
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t][0] = acc[r][t][1] = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < whole; i += 8) {
        float32x4x2_t v[3];
        for (int t = 0; t < T; t++) v[t] = load8_f32((const uint8_t *)(x[t] + i));
        for (int r = 0; r < R; r++) {
            const float32x4x2_t row = load(w + r * row_bytes + i * size);
            for (int t = 0; t < T; t++) add_product(acc[r][t], v[t], row);
        }
    }
    if (whole < n)
        for (int t = 0; t < T; t++) {
            const float32x4x2_t v = load_tail(load8_f32, x[t] + whole, n - whole, sizeof(float));
            for (int r = 0; r < R; r++) add_product(acc[r][t], v, load_tail(load, w + r * row_bytes + whole * size, n - whole, size));
        }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) y[t * ldy + r] = sum8_tree(acc[r][t][0], acc[r][t][1]);
}

PMX_INLINE void vec(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token, load8 load,
                    const int64_t size) {
    const int32_t t = (int32_t)token;
    int64_t r = 0;
    for (; r + 8 <= n_rows; r += 8) tile(y + r, 0, w + r * row_bytes, row_bytes, 8, acts, &t, 1, load, size);
    for (; r < n_rows; r++) tile(y + r, 0, w + r * row_bytes, row_bytes, 1, acts, &t, 1, load, size);
}

PMX_INLINE void mat(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, const int32_t *tokens,
                    int64_t n_tokens, load8 load, const int64_t size) {
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        int64_t t = 0;
        for (; t + 3 <= n_tokens; t += 3) tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 3, load, size);
        for (; t < n_tokens; t++) tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 1, load, size);
    }
    for (int64_t t = 0; t < n_tokens && r < n_rows; t++)
        vec(y + t * ldy + r, w + r * row_bytes, row_bytes, n_rows - r, acts, tokens[t], load, size);
}

#define TYPE(T, SIZE)                                                                                                                      \
    void pmx_neon_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {            \
        vec(y, w, row_bytes, n_rows, acts, token, load8_##T, SIZE);                                                                        \
    }                                                                                                                                      \
    void pmx_neon_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,                \
                          const int32_t *tokens, int64_t n_tokens, void *scratch) {                                                        \
        (void)scratch;                                                                                                                     \
        mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, load8_##T, SIZE);                                                        \
    }

TYPE(f32, 4)
TYPE(f16, 2)
TYPE(bf16, 2)

PMX_NEON_END
#endif
