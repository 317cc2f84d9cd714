/* elementwise.c: norm, activation quantization, exp, SiLU, RoPE and conversions, 4 or 8 lanes at a
 * time. */
#if defined(__aarch64__)
#include <math.h>
#include <string.h>

#include "neon.h"

PMX_NEON_BEGIN

void pmx_neon_rms_norm(float *y, const float *x, const float *w, int64_t n, float eps) {
    const int64_t whole = n - n % 8;
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    for (int64_t i = 0; i < whole; i += 8) {
        const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + 4);
        low = vfmaq_f32(low, a, a);
        high = vfmaq_f32(high, b, b);
    }
    if (whole < n) {
        float tail[8] = {0};
        memcpy(tail, x + whole, (size_t)(n - whole) * sizeof *x);
        const float32x4_t a = vld1q_f32(tail), b = vld1q_f32(tail + 4);
        low = vfmaq_f32(low, a, a);
        high = vfmaq_f32(high, b, b);
    }
    const float r = pmx_rms_scale(sum8_tree(low, high), n, eps);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(w + i)));
    for (; i < n; i++) y[i] = (x[i] * r) * w[i];
}

/* The largest bits of |x| over n elements, as an integer. */
PMX_INLINE uint32_t magnitude_bits(const float *x, const int n) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffffu);
    uint32x4_t most = vdupq_n_u32(0);
    for (int i = 0; i < n; i += 4)
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), magnitude));
    return vmaxvq_u32(most);
}

/* 16 values times inverse, rounded; returns their sum. */
PMX_INLINE int32_t quantize_16(int8_t *q, const float *x, float inverse) {
    int32x4_t v[4];
    for (int i = 0; i < 4; i++) v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
    const int16x8_t low = vmovn_high_s32(vmovn_s32(v[0]), v[1]), high = vmovn_high_s32(vmovn_s32(v[2]), v[3]);
    vst1q_s8(q, vmovn_high_s16(vmovn_s16(low), high));
    return vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3])));
}

PMX_INLINE int quantize(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n, const int block) {
    const int n_sums = block == 32 ? 1 : 16;
    int nonfinite = 0;
    for (int64_t b = 0; b < n / block; b++, x += block, q += block, sums += n_sums) {
        const uint32_t bits = magnitude_bits(x, block);
        const float amax = pmx_f32_from_bits(bits);
        const int bad = bits >= 0x7f800000u;
        nonfinite |= bad;
        if (bad || amax < PMX_TINY_AMAX) {
            d[b] = 0.0f;
            memset(q, 0, (size_t)block);
            memset(sums, 0, (size_t)n_sums * sizeof *sums);
            continue;
        }
        const float inverse = 127.0f / amax;
        d[b] = amax / 127.0f;
        if (block == 32)
            *sums = quantize_16(q, x, inverse) + quantize_16(q + 16, x + 16, inverse);
        else
            for (int i = 0; i < 16; i++) sums[i] = quantize_16(q + 16 * i, x + 16 * i, inverse);
    }
    return nonfinite;
}

int pmx_neon_quantize32(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    return quantize(q, d, sums, x, n, 32);
}

int pmx_neon_quantize256(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    return quantize(q, d, sums, x, n, 256);
}

void pmx_neon_exp(float *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, exp4(vld1q_f32(x + i)));
    for (; i < n; i++) y[i] = vgetq_lane_f32(exp4(vdupq_n_f32(x[i])), 0);
}

PMX_INLINE float32x4_t silu_mul4(float32x4_t gate, float32x4_t up) {
    return vmulq_f32(vdivq_f32(gate, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(gate)))), up);
}

void pmx_neon_silu_mul(float *y, const float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, silu_mul4(vld1q_f32(gate + i), vld1q_f32(up + i)));
    for (; i < n; i++) y[i] = vgetq_lane_f32(silu_mul4(vdupq_n_f32(gate[i]), vdupq_n_f32(up[i])), 0);
}

void pmx_neon_axpy(float *y, float a, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(x + i), a));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

/* N vectors of y stay in registers for all rows. */
PMX_INLINE void add_vectors(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, const int N) {
    float32x4_t sums[16];
    for (int k = 0; k < N; k++) sums[k] = vld1q_f32(y + 4 * k);
    for (int64_t r = 0; r < n_rows; r++, x += stride)
        for (int k = 0; k < N; k++) sums[k] = vfmaq_n_f32(sums[k], vld1q_f32(x + 4 * k), a[r]);
    for (int k = 0; k < N; k++) vst1q_f32(y + 4 * k, sums[k]);
}

void pmx_neon_add_rows(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n) {
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) add_vectors(y + i, a, x + i, stride, n_rows, 16);
    for (; i + 32 <= n; i += 32) add_vectors(y + i, a, x + i, stride, n_rows, 8);
    for (; i + 4 <= n; i += 4) add_vectors(y + i, a, x + i, stride, n_rows, 1);
    for (; i < n; i++)
        for (int64_t r = 0; r < n_rows; r++) y[i] = fmaf(a[r], x[r * stride + i], y[i]);
}

void pmx_neon_rope(float *x, const float *cosines, const float *sines, int64_t n_pairs) {
    int64_t i = 0;
    for (; i + 4 <= n_pairs; i += 4) {
        const float32x4x2_t v = vld2q_f32(x + 2 * i); /* the first, then the second elements of four pairs */
        const float32x4_t c = vld1q_f32(cosines + i), s = vld1q_f32(sines + i);
        float32x4x2_t y;
        y.val[0] = vfmaq_f32(vnegq_f32(vmulq_f32(v.val[1], s)), v.val[0], c);
        y.val[1] = vfmaq_f32(vmulq_f32(v.val[1], c), v.val[0], s);
        vst2q_f32(x + 2 * i, y);
    }
    for (; i < n_pairs; i++) {
        const float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = fmaf(x0, cosines[i], -(x1 * sines[i]));
        x[2 * i + 1] = fmaf(x0, sines[i], x1 * cosines[i]);
    }
}

void pmx_neon_narrow(uint16_t *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n; i++) y[i] = pmx_f32_to_f16(x[i]);
}

void pmx_neon_widen(float *y, const uint16_t *x, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
    for (; i < n; i++) y[i] = pmx_f16_to_f32(x[i]);
}

PMX_NEON_END
#endif
