/* matmul_float.c: f32, f16 and bf16 weights. Each output has the contract's eight partial sums, two
 * registers. Tiles have 8 outputs: 8 rows of one token in vec, 4 rows x 2 tokens in mat, where 12
 * loads serve 16 fma; with 4 x 3, all 32 registers, gcc spills. */
#if defined(__aarch64__)
#include <string.h>

#include "neon.h"

enum { ROWS = 8, TOKENS = 2 }; /* at most, of a tile */

PMX_NEON_BEGIN

typedef float32x4_t (*load4)(const uint8_t *w);

PMX_INLINE float32x4_t load4_f32(const uint8_t *w) { return vld1q_f32((const float *)(const void *)w); }
PMX_INLINE float32x4_t load4_f16(const uint8_t *w) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(w))); }
PMX_INLINE float32x4_t load4_bf16(const uint8_t *w) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(w)), 16));
}

typedef float32x4_t sums[8][2];

/* acc[r * T + t] += eight elements of row r times eight of token t; R and T are constants where
 * this is inlined. */
PMX_INLINE void add_products(sums acc, const uint8_t *w, int64_t row_bytes, const int R, const float *const *x,
                             int64_t at, const int T, load4 load, const int64_t size) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++, at += 4) {
        float32x4_t v[TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) v[t] = vld1q_f32(x[t] + at);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float32x4_t row = load(w + r * row_bytes + at * size);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) acc[r * T + t][h] = vfmaq_f32(acc[r * T + t][h], v[t], row);
        }
    }
}

PMX_INLINE void tile(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, const int R, const pmx_acts *acts,
                     const int32_t *tokens, const int T, load4 load, const int64_t size) {
    const int64_t n = acts->cols, whole = n - n % 8;
    const float *x[TOKENS];
    sums acc;
    for (int t = 0; t < T; t++) x[t] = acts->x + tokens[t] * n;
#pragma GCC unroll 8
    for (int i = 0; i < R * T; i++) acc[i][0] = acc[i][1] = vdupq_n_f32(0.0f);
    for (int64_t at = 0; at < whole; at += 8) add_products(acc, w, row_bytes, R, x, at, T, load, size);
    if (whole < n) { /* the last elements, padded with zeros */
        float x_tail[TOKENS][8] = {0};
        uint8_t w_tail[ROWS][32] = {0};
        for (int t = 0; t < T; t++) {
            memcpy(x_tail[t], x[t] + whole, (size_t)(n - whole) * sizeof(float));
            x[t] = x_tail[t];
        }
        for (int r = 0; r < R; r++) memcpy(w_tail[r], w + r * row_bytes + whole * size, (size_t)((n - whole) * size));
        add_products(acc, w_tail[0], sizeof w_tail[0], R, x, 0, T, load, size);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R * T; i++) y[i % T * ldy + i / T] = sum8_tree(acc[i][0], acc[i][1]);
}

PMX_INLINE void vec(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token,
                    load4 load, const int64_t size) {
    const int32_t t = (int32_t)token;
    int64_t r = 0;
    for (; r + 8 <= n_rows; r += 8) tile(y + r, 0, w + r * row_bytes, row_bytes, 8, acts, &t, 1, load, size);
    for (; r < n_rows; r++) tile(y + r, 0, w + r * row_bytes, row_bytes, 1, acts, &t, 1, load, size);
}

PMX_INLINE void mat(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,
                    const int32_t *tokens, int64_t n_tokens, load4 load, const int64_t size) {
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        int64_t t = 0;
        for (; t + 2 <= n_tokens; t += 2)
            tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 2, load, size);
        if (t < n_tokens) tile(y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, 4, acts, tokens + t, 1, load, size);
    }
    for (int64_t t = 0; t < n_tokens && r < n_rows; t++)
        vec(y + t * ldy + r, w + r * row_bytes, row_bytes, n_rows - r, acts, tokens[t], load, size);
}

#define TYPE(T, SIZE)                                                                                                  \
    void pmx_neon_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,         \
                          int64_t token) {                                                                             \
        vec(y, w, row_bytes, n_rows, acts, token, load4_##T, SIZE);                                                    \
    }                                                                                                                  \
    void pmx_neon_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows,                  \
                          const pmx_acts *acts, const int32_t *tokens, int64_t n_tokens, void *scratch) {              \
        (void)scratch;                                                                                                 \
        mat(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, load4_##T, SIZE);                                    \
    }

TYPE(f32, 4)
TYPE(f16, 2)
TYPE(bf16, 2)

PMX_NEON_END
#endif
