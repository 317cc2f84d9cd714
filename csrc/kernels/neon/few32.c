/* few32.c: weights in blocks of 32 times a few tokens, with sdot.
 *
 * Several tokens share the unpacking of a block, and memory is read meanwhile: a strip is unpacked as a
 * whole, then multiplied, and memory rests so long. Here a block of 8 rows is
 * transposed in 16 registers, so that a lane is a row and no sum is reduced; sdot takes a token's four
 * bytes from a lane. Sums of tokens lie in memory, so that one loop takes any number of tokens. */
#if defined(__aarch64__)
#include "strips.h"

PMX_NEON_BEGIN

/* 8 rows of a block: [dword][rows 0..3, 4..7]. */
typedef struct {
    int8x16_t w[PMX_BLOCK / 4][2];
    float32x4_t scales[2], mins[2];
} block8;

PMX_INLINE int8x16_t of_eights(int64x2_t x) { return vreinterpretq_s8_s64(x); }

PMX_INLINE void unpack_block8(block8 *to, const uint8_t *const *rows, int64_t at, const neon_type T) {
    for (int h = 0; h < 2; h++) {
        int8x16x2_t v[4];
        for (int i = 0; i < 4; i++) v[i] = T.unpack(rows[4 * h + i] + at);
        for (int part = 0; part < 2; part++) {
            int32x4_t a[4];
            for (int i = 0; i < 4; i++) a[i] = vreinterpretq_s32_s8(v[i].val[part]);
            const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(a[0], a[1])),
                            odd01 = vreinterpretq_s64_s32(vtrn2q_s32(a[0], a[1]));
            const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(a[2], a[3])),
                            odd23 = vreinterpretq_s64_s32(vtrn2q_s32(a[2], a[3]));
            to->w[4 * part][h] = of_eights(vtrn1q_s64(even01, even23));
            to->w[4 * part + 1][h] = of_eights(vtrn1q_s64(odd01, odd23));
            to->w[4 * part + 2][h] = of_eights(vtrn2q_s64(even01, even23));
            to->w[4 * part + 3][h] = of_eights(vtrn2q_s64(odd01, odd23));
        }
        to->scales[h] = load_scales_of_4(rows + 4 * h, at, T.is_power);
        to->mins[h] = T.has_min ? load_f16_of_4(rows + 4 * h, at + 2) : to->scales[h];
    }
}

/* acc [8 rows] += the block times block b of a token. */
PMX_INLINE void add_block8(float *acc, const block8 *block, const pmx_quantized *x, int64_t b, const neon_type T) {
    const int8x16_t first = vld1q_s8(x->q + b * PMX_BLOCK), second = vld1q_s8(x->q + b * PMX_BLOCK + 16);
    const float d = x->d[b];
    const int32_t sum = x->sums[b];
    for (int h = 0; h < 2; h++) {
        int32x4_t isum = vdupq_n_s32(-T.offset * sum);
/* A macro, since clang takes no loop variable as a lane, though the loop were unrolled. */
#define STEP(lane)                                                                                                     \
    isum = vdotq_laneq_s32(isum, block->w[lane][h], first, lane);                                                      \
    isum = vdotq_laneq_s32(isum, block->w[4 + lane][h], second, lane)
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
#undef STEP
        float32x4_t y = vld1q_f32(acc + 4 * h);
        y = vfmaq_f32(y, vmulq_n_f32(block->scales[h], d), vcvtq_f32_s32(isum));
        if (T.has_min) y = vfmaq_n_f32(y, block->mins[h], d * (float)sum);
        vst1q_f32(acc + 4 * h, y);
    }
}

PMX_INLINE void few32(const pmx_product p, const neon_type T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    pmx_quantized x[PMX_FEW_TOKENS];
    float acc[PMX_FEW_TOKENS][STRIP_ROWS];
    for (int64_t t = 0; t < p.n_tokens; t++) x[t] = pmx_token_q32(p.acts, p.tokens[t], 0);
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t n = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        const uint8_t *rows[STRIP_ROWS], *next = p.w + (r + STRIP_ROWS) * p.row_bytes;
        row_pointers(rows, &p, r);
        memset(acc, 0, (size_t)p.n_tokens * sizeof acc[0]);
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            block8 block;
            for (int64_t line = 0; line < STRIP_ROWS * T.block_bytes; line += 64)
                pmx_prefetch_line(next + STRIP_ROWS * at + line, PMX_PREFETCH_NEAR);
            unpack_block8(&block, rows, at, T);
            for (int64_t t = 0; t < p.n_tokens; t++) add_block8(acc[t], &block, x + t, b, T);
        }
        for (int64_t t = 0; t < p.n_tokens; t++) memcpy(p.y + t * p.ldy + r, acc[t], (size_t)n * sizeof *p.y);
    }
}

#define FEW(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_neon_few_##T(const pmx_product *p) { few32(*p, T); }

PMX_TYPES_Q32(FEW)

PMX_NEON_END
#endif
