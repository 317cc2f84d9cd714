/* matmul_int.c: quantized weights times 8-bit activations with sdot: each of its four lanes adds
 * four products of signed bytes.
 *
 * vec takes 8 rows of one token straight from the mapped blocks. Lanes are summed pairwise across
 * rows, so that the conversion of integers, scales and fma run once for 4 rows. It prefetches the
 * next 8 rows, which lie behind these ones, linearly: eight short streams are more than some
 * prefetchers follow. mat multiplies strips of 8 rows, bytes [k/4][8 rows][4], with tokens four at
 * a time: sdot takes the token's four bytes from a lane, so that 2 loads of weights feed 8 of them,
 * with no sums across lanes. 8 integer and 8 float accumulators leave half the registers. */
#if defined(__aarch64__)
#include "strips.h"

PMX_NEON_BEGIN

/* --- vec */

/* Lane i = the sum of the lanes of p[i]. */
PMX_INLINE int32x4_t sum_across(const int32x4_t p[4]) {
    return vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
}

PMX_INLINE int32x4_t dot32(int8x16_t a0, int8x16_t a1, int8x16_t b0, int8x16_t b1) {
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), a0, b0), a1, b1);
}

PMX_INLINE void prefetch(const uint8_t *p, const int64_t bytes, const pmx_prefetch hint) {
    for (int64_t line = 0; line < bytes; line += 64) pmx_prefetch_line(p + line, hint);
}

PMX_INLINE void store_rows(float *y, int64_t n, float32x4_t low, float32x4_t high) {
    float all[STRIP_ROWS];
    float *out = n >= STRIP_ROWS ? y : all;
    vst1q_f32(out, low);
    vst1q_f32(out + 4, high);
    if (n < STRIP_ROWS) memcpy(y, all, (size_t)n * sizeof *y);
}

PMX_INLINE void vec32(const pmx_product p, const pmx_prefetch hint, const neon_type T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    const pmx_quantized token = pmx_token_q32(p.acts, p.tokens[0], 0);
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const uint8_t *rows[STRIP_ROWS], *next = p.w + (r + STRIP_ROWS) * p.row_bytes;
        row_pointers(rows, &p, r);
        float32x4_t acc[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            const int8x16_t x0 = vld1q_s8(token.q + b * PMX_BLOCK), x1 = vld1q_s8(token.q + b * PMX_BLOCK + 16);
            prefetch(next + b * STRIP_ROWS * T.block_bytes, STRIP_ROWS * T.block_bytes, hint);
            for (int h = 0; h < 2; h++) {
                int32x4_t dots[4];
                for (int i = 0; i < 4; i++) {
                    const int8x16x2_t v = T.unpack(rows[4 * h + i] + at);
                    dots[i] = dot32(v.val[0], v.val[1], x0, x1);
                }
                const int32x4_t isum = vaddq_s32(sum_across(dots), vdupq_n_s32(-T.offset * token.sums[b]));
                const float32x4_t scale = vmulq_n_f32(load_scales_of_4(rows + 4 * h, at, T.is_power), token.d[b]);
                acc[h] = vfmaq_f32(acc[h], scale, vcvtq_f32_s32(isum));
                if (!T.has_min) continue;
                const float32x4_t minimum = load_f16_of_4(rows + 4 * h, at + 2);
                acc[h] = vfmaq_n_f32(acc[h], minimum, token.d[b] * (float)token.sums[b]);
            }
        }
        store_rows(p.y + r, p.n_rows - r, acc[0], acc[1]);
    }
}

/* The sums of a block of activations as the sub-blocks have them: of each 16, or of each 32. */
PMX_INLINE int16x8x2_t load_sums(const int32_t *sums, const int n_sub) {
    int32x4_t s[4];
    for (int i = 0; i < 4; i++) s[i] = vld1q_s32(sums + 4 * i);
    if (n_sub == 8)
        return (int16x8x2_t){
            {vmovn_high_s32(vmovn_s32(vpaddq_s32(s[0], s[1])), vpaddq_s32(s[2], s[3])), vdupq_n_s16(0)}};
    return (int16x8x2_t){{vmovn_high_s32(vmovn_s32(s[0]), s[1]), vmovn_high_s32(vmovn_s32(s[2]), s[3])}};
}

PMX_INLINE int32x4_t add_products(int32x4_t acc, int16x8_t a, int16x8_t b) {
    return vmlal_high_s16(vmlal_s16(acc, vget_low_s16(a), vget_low_s16(b)), a, b);
}

/* The dot products of a row's sub-blocks with x, times their scales: four partial sums. */
PMX_INLINE int32x4_t scaled_dot(const decoded256 *w, const int8_t *x, const int n_sub) {
    int32x4_t sum = vdupq_n_s32(0);
    if (n_sub == 1) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sum = vdotq_s32(sum, w->q[i], vld1q_s8(x + 16 * i));
        return sum;
    }
    const int16x8_t low = vmovl_s8(vget_low_s8(w->scales)), high = vmovl_high_s8(w->scales);
    const int32x4_t scales[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                 vmovl_high_s16(high)};
#pragma GCC unroll 4
    for (int j = 0; j < n_sub / 4; j++) {
        int32x4_t p[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const int at = 4 * j + i;
            if (n_sub == 8)
                p[i] = dot32(w->q[2 * at], w->q[2 * at + 1], vld1q_s8(x + 32 * at), vld1q_s8(x + 32 * at + 16));
            else
                p[i] = vdotq_s32(vdupq_n_s32(0), w->q[at], vld1q_s8(x + 16 * at));
        }
        sum = vmlaq_s32(sum, sum_across(p), scales[j]);
    }
    return sum;
}

PMX_INLINE void vec256(const pmx_product p, const pmx_prefetch hint, const neon_type T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256;
    const pmx_quantized token = pmx_token_q256(p.acts, p.tokens[0], 0);
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const uint8_t *rows[STRIP_ROWS], *next = p.w + (r + STRIP_ROWS) * p.row_bytes;
        row_pointers(rows, &p, r);
        float32x4_t acc[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            const int16x8x2_t x_sums = load_sums(token.sums + b * MAX_SUB, T.n_sub);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                int32x4_t dots[4], m[4];
#pragma GCC unroll 1
                for (int i = 0; i < 4; i++) {
                    decoded256 block;
                    prefetch(next + (b * STRIP_ROWS + 4 * h + i) * T.block_bytes, T.block_bytes, hint);
                    T.decode(&block, rows[4 * h + i] + at);
                    dots[i] = scaled_dot(&block, token.q + b * PMX_BLOCK256, T.n_sub);
                    m[i] = add_products(vdupq_n_s32(0), vmovl_s8(vget_low_s8(block.mins)), x_sums.val[0]);
                    if (T.n_sub == 16) m[i] = add_products(m[i], vmovl_high_s8(block.mins), x_sums.val[1]);
                }
                const float32x4_t scale = vmulq_n_f32(load_d_of_4(rows + 4 * h, at, T), token.d[b]);
                acc[h] = vfmaq_f32(acc[h], scale, vcvtq_f32_s32(sum_across(dots)));
                if (!T.has_min) continue;
                const float32x4_t minimum = vmulq_n_f32(load_f16_of_4(rows + 4 * h, at + T.d_at + 2), token.d[b]);
                acc[h] = vfmsq_f32(acc[h], minimum, vcvtq_f32_s32(sum_across(m)));
            }
        }
        store_rows(p.y + r, p.n_rows - r, acc[0], acc[1]);
    }
}

#define VEC32(NAME, T, FORM, ELEMENTS)                                                                                 \
    void pmx_neon_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec32, *p, T); }
#define VEC256(NAME, T, FORM, ELEMENTS)                                                                                \
    void pmx_neon_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec256, *p, T); }

PMX_TYPES_Q32(VEC32)
PMX_TYPES_Q256(VEC256)

/* --- mat */

/* Dwords of 8 rows become [4 dwords][8 rows]. */
PMX_INLINE void pack16_rows(int8_t *out, const int8x16_t v[STRIP_ROWS]) {
    for (int h = 0; h < STRIP_ROWS; h += 4, out += 16) {
        int32x4_t a[4];
        for (int i = 0; i < 4; i++) a[i] = vreinterpretq_s32_s8(v[h + i]);
        const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(a[0], a[1])),
                        odd01 = vreinterpretq_s64_s32(vtrn2q_s32(a[0], a[1]));
        const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(a[2], a[3])),
                        odd23 = vreinterpretq_s64_s32(vtrn2q_s32(a[2], a[3]));
        vst1q_s8(out, vreinterpretq_s8_s64(vtrn1q_s64(even01, even23)));
        vst1q_s8(out + 32, vreinterpretq_s8_s64(vtrn1q_s64(odd01, odd23)));
        vst1q_s8(out + 64, vreinterpretq_s8_s64(vtrn2q_s64(even01, even23)));
        vst1q_s8(out + 96, vreinterpretq_s8_s64(vtrn2q_s64(odd01, odd23)));
    }
}

/* dot += 16 columns of the strip times the four tokens' bytes at `at`. */
PMX_INLINE void add_dots(int32x4_t dot[TILE_TOKENS][2], const int8_t *w, const pmx_quantized *x, int64_t at) {
    int8x16_t v[TILE_TOKENS];
    for (int t = 0; t < TILE_TOKENS; t++) v[t] = vld1q_s8(x[t].q + at);
/* A macro, since clang takes no loop variable as a lane, though the loop were unrolled. */
#define STEP(lane)                                                                                                     \
    {                                                                                                                  \
        const int8x16_t w0 = vld1q_s8(w + lane * 32), w1 = vld1q_s8(w + lane * 32 + 16);                               \
        for (int t = 0; t < TILE_TOKENS; t++) {                                                                        \
            dot[t][0] = vdotq_laneq_s32(dot[t][0], w0, v[t], lane);                                                    \
            dot[t][1] = vdotq_laneq_s32(dot[t][1], w1, v[t], lane);                                                    \
        }                                                                                                              \
    }
    STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
}

PMX_INLINE void tile32(float *out, const strip *s, const pmx_quantized *x, int64_t n_blocks, const neon_type T) {
    float32x4_t acc[TILE_TOKENS][2];
    for (int t = 0; t < TILE_TOKENS; t++)
        for (int h = 0; h < 2; h++) acc[t][h] = vld1q_f32(out + t * STRIP_ROWS + 4 * h);
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *w = s->q + b * PMX_BLOCK * STRIP_ROWS;
        int32x4_t dot[TILE_TOKENS][2];
        for (int t = 0; t < TILE_TOKENS; t++) dot[t][0] = dot[t][1] = vdupq_n_s32(0);
        add_dots(dot, w, x, b * PMX_BLOCK);
        add_dots(dot, w + 16 * STRIP_ROWS, x, b * PMX_BLOCK + 16);
        for (int h = 0; h < 2; h++) {
            const float32x4_t scale = vld1q_f32(s->d + b * STRIP_ROWS + 4 * h);
            for (int t = 0; t < TILE_TOKENS; t++)
                acc[t][h] = vfmaq_f32(acc[t][h], vmulq_n_f32(scale, x[t].d[b]), vcvtq_f32_s32(dot[t][h]));
            if (!T.has_min) continue;
            const float32x4_t minimum = vld1q_f32(s->m + b * STRIP_ROWS + 4 * h);
            for (int t = 0; t < TILE_TOKENS; t++)
                acc[t][h] = vfmaq_n_f32(acc[t][h], minimum, x[t].d[b] * (float)x[t].sums[b]);
        }
    }
    for (int t = 0; t < TILE_TOKENS; t++)
        for (int h = 0; h < 2; h++) vst1q_f32(out + t * STRIP_ROWS + 4 * h, acc[t][h]);
}

PMX_INLINE void tile256(float *out, const strip *s, const pmx_quantized *x, int64_t n_blocks, const neon_type T) {
    const int columns = PMX_BLOCK256 / T.n_sub;
    for (int64_t b = 0; b < n_blocks; b++) {
        const int8_t *w = s->q + b * PMX_BLOCK256 * STRIP_ROWS;
        const int32_t *scales = s->scales + b * T.n_sub * STRIP_ROWS;
        int32x4_t isum[TILE_TOKENS][2];
        for (int t = 0; t < TILE_TOKENS; t++) isum[t][0] = isum[t][1] = vdupq_n_s32(0);
        for (int j = 0; j < T.n_sub; j++, w += columns * STRIP_ROWS, scales += STRIP_ROWS) {
            int32x4_t dot[TILE_TOKENS][2];
            for (int t = 0; t < TILE_TOKENS; t++) dot[t][0] = dot[t][1] = vdupq_n_s32(0);
            for (int at = 0; at < columns; at += 16)
                add_dots(dot, w + at * STRIP_ROWS, x, b * PMX_BLOCK256 + j * columns + at);
            for (int h = 0; h < 2; h++) {
                const int32x4_t scale = vld1q_s32(scales + 4 * h);
                for (int t = 0; t < TILE_TOKENS; t++) isum[t][h] = vmlaq_s32(isum[t][h], dot[t][h], scale);
            }
        }
        int32x4_t msum[TILE_TOKENS][2];
        if (T.has_min) minimum_sums(msum, s->mins + b * T.n_sub * STRIP_ROWS, x, b, T.n_sub);
        for (int t = 0; t < TILE_TOKENS; t++)
            for (int h = 0; h < 2; h++) {
                float *to = out + t * STRIP_ROWS + 4 * h;
                const float32x4_t scale = vmulq_n_f32(vld1q_f32(s->d + b * STRIP_ROWS + 4 * h), x[t].d[b]);
                float32x4_t acc = vfmaq_f32(vld1q_f32(to), scale, vcvtq_f32_s32(isum[t][h]));
                if (T.has_min) {
                    const float32x4_t minimum = vmulq_n_f32(vld1q_f32(s->m + b * STRIP_ROWS + 4 * h), x[t].d[b]);
                    acc = vfmsq_f32(acc, minimum, vcvtq_f32_s32(msum[t][h]));
                }
                vst1q_f32(to, acc);
            }
    }
}

static const strip_order order = {pack16_rows, 1, tile32, tile256};

#define MAT(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_neon_mat_##T(const pmx_product *p) { mat(*p, order, T); }

PMX_TYPES_Q32(MAT)
PMX_TYPES_Q256(MAT)

PMX_NEON_END
#endif
