/* matmul_int.c: mat with smmla: eight columns of two rows times those of two tokens, 32 products,
 * added to a 2x2 block of sums.
 *
 * Strips of 8 rows are bytes [k/8][8 rows][8]: a register holds two rows. Eight columns of two
 * tokens come together from two loads of 16 and a zip each. A tile of 8 rows x 4 tokens is 8 blocks
 *     row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1
 * of integers and 8 of floats; scales are stored twice in the strip, so that they lie in the same
 * order. One token alone would waste half of smmla: vec is neon's. */
#if defined(__aarch64__)
#include "../neon/strips.h"
#include "neon_i8mm.h"

PMX_NEON_I8MM_BEGIN

enum {
    COPIES = 2,
    PAIRS = STRIP_ROWS / 2, /* of rows */
    TOKEN_PAIRS = TILE_TOKENS / 2
};

PMX_INLINE int8x16_t zip1_eights(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

PMX_INLINE int8x16_t zip2_eights(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* Eights of 8 rows become [2 eights][8 rows]. */
PMX_INLINE void pack16_rows(int8_t *out, const int8x16_t v[STRIP_ROWS]) {
    for (int i = 0; i < PAIRS; i++) {
        vst1q_s8(out + 16 * i, zip1_eights(v[2 * i], v[2 * i + 1]));
        vst1q_s8(out + 8 * STRIP_ROWS + 16 * i, zip2_eights(v[2 * i], v[2 * i + 1]));
    }
}

/* dot += 16 columns of the strip times the four tokens' bytes at `at`. */
PMX_INLINE void add_dots(int32x4_t dot[TOKEN_PAIRS][PAIRS], const int8_t *w, const pmx_quantized *x, int64_t at) {
    int8x16_t v[TOKEN_PAIRS][2];
    for (int t = 0; t < TOKEN_PAIRS; t++) {
        const int8x16_t a = vld1q_s8(x[2 * t].q + at), b = vld1q_s8(x[2 * t + 1].q + at);
        v[t][0] = zip1_eights(a, b);
        v[t][1] = zip2_eights(a, b);
    }
    for (int k = 0; k < 2; k++, w += 8 * STRIP_ROWS)
        for (int i = 0; i < PAIRS; i++) {
            const int8x16_t rows = vld1q_s8(w + 16 * i);
            for (int t = 0; t < TOKEN_PAIRS; t++) dot[t][i] = vmmlaq_s32(dot[t][i], rows, v[t][k]);
        }
}

PMX_INLINE void clear(int32x4_t sums[TOKEN_PAIRS][PAIRS]) {
    for (int t = 0; t < TOKEN_PAIRS; t++)
        for (int i = 0; i < PAIRS; i++) sums[t][i] = vdupq_n_s32(0);
}

/* A number of each token of a pair, in the order of a 2x2 block. */
PMX_INLINE float32x4_t of_two_tokens(float first, float second) {
    const float32x2_t both = vset_lane_f32(second, vdup_n_f32(first), 1);
    return vcombine_f32(both, both);
}

/* [4 tokens][8 rows] to 2x2 blocks and back. */
PMX_INLINE void load_blocks(float32x4_t acc[TOKEN_PAIRS][PAIRS], const float *from) {
    for (int t = 0; t < TOKEN_PAIRS; t++, from += 2 * STRIP_ROWS)
        for (int i = 0; i < PAIRS; i += 2) {
            const float32x4_t a = vld1q_f32(from + 2 * i), b = vld1q_f32(from + STRIP_ROWS + 2 * i);
            acc[t][i] = vzip1q_f32(a, b);
            acc[t][i + 1] = vzip2q_f32(a, b);
        }
}

PMX_INLINE void store_blocks(float *to, float32x4_t acc[TOKEN_PAIRS][PAIRS]) {
    for (int t = 0; t < TOKEN_PAIRS; t++, to += 2 * STRIP_ROWS)
        for (int i = 0; i < PAIRS; i += 2) {
            vst1q_f32(to + 2 * i, vuzp1q_f32(acc[t][i], acc[t][i + 1]));
            vst1q_f32(to + STRIP_ROWS + 2 * i, vuzp2q_f32(acc[t][i], acc[t][i + 1]));
        }
}

PMX_INLINE void tile32(float *out, const strip *s, const pmx_quantized *x, int64_t n_blocks, const neon_type T) {
    float32x4_t acc[TOKEN_PAIRS][PAIRS];
    load_blocks(acc, out);
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *w = s->q + b * PMX_BLOCK * STRIP_ROWS;
        int32x4_t dot[TOKEN_PAIRS][PAIRS];
        clear(dot);
        add_dots(dot, w, x, b * PMX_BLOCK);
        add_dots(dot, w + 16 * STRIP_ROWS, x, b * PMX_BLOCK + 16);
        for (int t = 0; t < TOKEN_PAIRS; t++) {
            const float *scales = s->d + b * STRIP_ROWS * COPIES, *minimums = s->m + b * STRIP_ROWS * COPIES;
            const float d0 = x[2 * t].d[b], d1 = x[2 * t + 1].d[b];
            const float32x4_t d = of_two_tokens(d0, d1);
            for (int i = 0; i < PAIRS; i++)
                acc[t][i] = vfmaq_f32(acc[t][i], vmulq_f32(vld1q_f32(scales + 4 * i), d), vcvtq_f32_s32(dot[t][i]));
            if (!T.has_min) continue;
            const float32x4_t m = of_two_tokens(d0 * (float)x[2 * t].sums[b], d1 * (float)x[2 * t + 1].sums[b]);
            for (int i = 0; i < PAIRS; i++) acc[t][i] = vfmaq_f32(acc[t][i], vld1q_f32(minimums + 4 * i), m);
        }
    }
    store_blocks(out, acc);
}

PMX_INLINE void tile256(float *out, const strip *s, const pmx_quantized *x, int64_t n_blocks, const neon_type T) {
    const int columns = PMX_BLOCK256 / T.n_sub;
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *w = s->q + b * PMX_BLOCK256 * STRIP_ROWS;
        const int32_t *scales = s->scales + b * T.n_sub * STRIP_ROWS * COPIES;
        int32x4_t isum[TOKEN_PAIRS][PAIRS];
        clear(isum);
        for (int j = 0; j < T.n_sub; j++, w += columns * STRIP_ROWS, scales += STRIP_ROWS * COPIES) {
            int32x4_t dot[TOKEN_PAIRS][PAIRS];
            clear(dot);
            for (int at = 0; at < columns; at += 16)
                add_dots(dot, w + at * STRIP_ROWS, x, b * PMX_BLOCK256 + j * columns + at);
            for (int i = 0; i < PAIRS; i++) {
                const int32x4_t scale = vld1q_s32(scales + 4 * i);
                for (int t = 0; t < TOKEN_PAIRS; t++) isum[t][i] = vmlaq_s32(isum[t][i], dot[t][i], scale);
            }
        }
        int32x4_t msum[TILE_TOKENS][2];
        if (T.has_min) minimum_sums(msum, s->mins + b * T.n_sub * STRIP_ROWS, x, b, T.n_sub);
        float32x4_t acc[TOKEN_PAIRS][PAIRS];
        load_blocks(acc, out);
        for (int t = 0; t < TOKEN_PAIRS; t++) {
            const float *numbers = s->d + b * STRIP_ROWS * COPIES, *minimums = s->m + b * STRIP_ROWS * COPIES;
            const float32x4_t d = of_two_tokens(x[2 * t].d[b], x[2 * t + 1].d[b]);
            for (int i = 0; i < PAIRS; i++) {
                acc[t][i] = vfmaq_f32(acc[t][i], vmulq_f32(vld1q_f32(numbers + 4 * i), d), vcvtq_f32_s32(isum[t][i]));
                if (!T.has_min) continue;
                const int32x4_t a = msum[2 * t][i / 2], c = msum[2 * t + 1][i / 2];
                const int32x4_t m = i % 2 ? vzip2q_s32(a, c) : vzip1q_s32(a, c);
                acc[t][i] = vfmsq_f32(acc[t][i], vmulq_f32(vld1q_f32(minimums + 4 * i), d), vcvtq_f32_s32(m));
            }
        }
        store_blocks(out, acc);
    }
}

static const strip_order order = {pack16_rows, COPIES, tile32, tile256};

#define MAT(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_neon_i8mm_mat_##T(const pmx_product *p) { mat(*p, order, T); }

PMX_TYPES_Q32(MAT)
PMX_TYPES_Q256(MAT)

PMX_NEON_I8MM_END
#endif
