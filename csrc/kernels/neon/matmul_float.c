/* matmul_float.c: f32, f16 and bf16 weights. Each output has the contract's eight partial sums, two
 * registers. Tiles have 8 outputs: 8 rows of one token in vec, 4 rows x 2 tokens in mat, where 12
 * loads serve 16 fma; with 4 x 3, all 32 registers, gcc spills. */
#if defined(__aarch64__)
#include <string.h>

#include "neon.h"

enum { ROWS = 8, TOKENS = 2 }; /* at most, of a tile */

PMX_NEON_BEGIN

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    float32x4_t (*load)(const uint8_t *w); /* four elements */
    int64_t size;                          /* of one in bytes */
} type_float;

PMX_INLINE float32x4_t load4_f32(const uint8_t *w) { return vld1q_f32((const float *)(const void *)w); }
PMX_INLINE float32x4_t load4_f16(const uint8_t *w) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(w))); }
PMX_INLINE float32x4_t load4_bf16(const uint8_t *w) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(w)), 16));
}

typedef float32x4_t sums[8][2];

/* Eight columns of rows: where they are, and from row to row. */
typedef struct {
    const uint8_t *at;
    int64_t row_bytes;
} row_columns;

/* acc[r * T + t] += eight columns of row r times eight of token t; R and T are constants where this
 * is inlined. */
PMX_INLINE void add_products(sums acc, const row_columns w, const int R, const float *const *x, int64_t at, const int T,
                             const type_float F) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        float32x4_t v[TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) v[t] = vld1q_f32(x[t] + at + 4 * h);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float32x4_t row = F.load(w.at + r * w.row_bytes + 4 * h * F.size);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) acc[r * T + t][h] = vfmaq_f32(acc[r * T + t][h], v[t], row);
        }
    }
}

/* The first R rows x T tokens. */
PMX_INLINE void tile(const pmx_product p, const int R, const int T, const type_float F) {
    const int64_t n = p.acts->cols, whole = n - n % 8;
    const float *x[TOKENS];
    sums acc;
    for (int t = 0; t < T; t++) x[t] = p.acts->x + p.tokens[t] * n;
#pragma GCC unroll 8
    for (int i = 0; i < R * T; i++) acc[i][0] = acc[i][1] = vdupq_n_f32(0.0f);
    for (int64_t at = 0; at < whole; at += 8) {
        const row_columns w = {p.w + at * F.size, p.row_bytes};
        add_products(acc, w, R, x, at, T, F);
    }
    if (whole < n) { /* the last elements, padded with zeros */
        float x_tail[TOKENS][8] = {0};
        uint8_t w_tail[ROWS][32] = {0};
        for (int t = 0; t < T; t++) {
            memcpy(x_tail[t], x[t] + whole, (size_t)(n - whole) * sizeof(float));
            x[t] = x_tail[t];
        }
        for (int r = 0; r < R; r++)
            memcpy(w_tail[r], p.w + r * p.row_bytes + whole * F.size, (size_t)((n - whole) * F.size));
        const row_columns w = {w_tail[0], sizeof w_tail[0]};
        add_products(acc, w, R, x, 0, T, F);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R * T; i++) p.y[i % T * p.ldy + i / T] = sum8_tree(acc[i][0], acc[i][1]);
}

PMX_INLINE void vec(const pmx_product p, const type_float F) {
    int64_t r = 0;
    for (; r + 8 <= p.n_rows; r += 8) tile(pmx_product_from(p, r, 0), 8, 1, F);
    for (; r < p.n_rows; r++) tile(pmx_product_from(p, r, 0), 1, 1, F);
}

PMX_INLINE void mat(const pmx_product p, const type_float F) {
    int64_t r = 0;
    for (; r + 4 <= p.n_rows; r += 4) {
        int64_t t = 0;
        for (; t + 2 <= p.n_tokens; t += 2) tile(pmx_product_from(p, r, t), 4, 2, F);
        if (t < p.n_tokens) tile(pmx_product_from(p, r, t), 4, 1, F);
    }
    for (int64_t t = 0; t < p.n_tokens && r < p.n_rows; t++) vec(pmx_product_from(p, r, t), F);
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    static const type_float T = {load4_##T, sizeof(pmx_block_##T)};                                                    \
    void pmx_neon_vec_##T(const pmx_product *p) { vec(*p, T); }                                                        \
    void pmx_neon_mat_##T(const pmx_product *p) { mat(*p, T); }

PMX_TYPES_F32(TYPE)

PMX_NEON_END
#endif
