/* attention.c: one cache page. Keys are [d][64] and values [64][d], so that lanes run over
 * positions, then over d, and every output is one chain of fused multiply-adds without horizontal
 * sums. Sixteen accumulators cover the latency of the chain (4 cycles, up to 4 a cycle) and leave
 * half the registers: 4 queries x 16 lanes where there are 4, since a loaded key or value then
 * serves all of them, else 1 query x 64 lanes. f16 pages are converted as they are loaded. Keys of
 * q8_0 lie as [d/4][64][4], so that sdot leaves each position's sum in its own lane. */
#if defined(__aarch64__)
#include "neon.h"

PMX_NEON_BEGIN

typedef float32x4_t (*load4)(const void *page, int64_t at);

PMX_INLINE float32x4_t load4_f32(const void *page, int64_t at) { return vld1q_f32((const float *)page + at); }

PMX_INLINE float32x4_t load4_f16(const void *page, int64_t at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)page + at)));
}

/* s[i][first .. first + 4*n_v) = scores of the first n queries; n * n_v = 16. */
PMX_INLINE void scores(const pmx_attend a, int64_t first, const int n, const int n_v, load4 load) {
    float32x4_t acc[4][16];
#pragma GCC unroll 16
    for (int i = 0; i < n * n_v; i++) acc[i / n_v][i % n_v] = vdupq_n_f32(0.0f);
    for (int64_t d = 0; d < a.head_dim; d++) {
        float32x4_t key[16];
#pragma GCC unroll 16
        for (int j = 0; j < n_v; j++) key[j] = load(a.k, d * PMX_PAGE + first + 4 * j);
#pragma GCC unroll 16
        for (int i = 0; i < n * n_v; i++)
            acc[i / n_v][i % n_v] = vfmaq_n_f32(acc[i / n_v][i % n_v], key[i % n_v], a.q[i / n_v * a.head_dim + d]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n * n_v; i++) vst1q_f32(a.s + first + i / n_v * PMX_PAGE + i % n_v * 4, acc[i / n_v][i % n_v]);
}

/* s becomes p; returns through m and l. */
PMX_INLINE void softmax(float *s, float *m, float *l, int32_t lo, int32_t hi) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    const int32x4_t first = vdupq_n_s32(lo), end = vdupq_n_s32(hi), step = vdupq_n_s32(4);
    int32x4_t j = vld1q_s32(lanes);
    float32x4_t largest = vdupq_n_f32(-__builtin_inff());
    uint32x4_t visible[16];
    for (int i = 0; i < 16; i++, j = vaddq_s32(j, step)) {
        visible[i] = vandq_u32(vcgeq_s32(j, first), vcltq_s32(j, end));
        largest = vmaxq_f32(largest, vbslq_f32(visible[i], vld1q_f32(s + 4 * i), vdupq_n_f32(-__builtin_inff())));
    }
    *m = vmaxvq_f32(largest);
    const float32x4_t top = vdupq_n_f32(*m);
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    for (int i = 0; i < 16; i += 2) {
        const float32x4_t a = exp4(vsubq_f32(vld1q_f32(s + 4 * i), top)),
                          b = exp4(vsubq_f32(vld1q_f32(s + 4 * i + 4), top));
        const float32x4_t p = vreinterpretq_f32_u32(vandq_u32(visible[i], vreinterpretq_u32_f32(a)));
        const float32x4_t r = vreinterpretq_f32_u32(vandq_u32(visible[i + 1], vreinterpretq_u32_f32(b)));
        vst1q_f32(s + 4 * i, p);
        vst1q_f32(s + 4 * i + 4, r);
        low = vaddq_f32(low, p);
        high = vaddq_f32(high, r);
    }
    *l = sum8_tree(low, high);
}

/* A page's own maximum, sum and weighted values for up to 4 queries. */
typedef struct {
    float m[4], l[4], o[4 * PMX_MAX_HEAD_DIM];
} own;

/* softmax of the first n queries. */
PMX_INLINE void softmax_n(own *page, const pmx_attend a, const int n) {
    for (int i = 0; i < n; i++) softmax(a.s + i * PMX_PAGE, page->m + i, page->l + i, a.lo[i], a.hi[i]);
}

/* o[i][d .. d + 4*n_v) = sum over the positions seen of p[i][j] * v[j][d ..]. Masked positions have
 * p = 0 and add nothing. */
PMX_INLINE void weigh(float *o, const pmx_attend a, pmx_positions seen, int64_t d, const int n, const int n_v,
                      load4 load) {
    float32x4_t acc[4][16];
#pragma GCC unroll 16
    for (int i = 0; i < n * n_v; i++) acc[i / n_v][i % n_v] = vdupq_n_f32(0.0f);
    for (int32_t position = seen.first; position < seen.end; position++) {
        float32x4_t value[16];
#pragma GCC unroll 16
        for (int j = 0; j < n_v; j++) value[j] = load(a.v, position * a.head_dim + d + 4 * j);
#pragma GCC unroll 16
        for (int i = 0; i < n * n_v; i++)
            acc[i / n_v][i % n_v] =
                vfmaq_n_f32(acc[i / n_v][i % n_v], value[i % n_v], a.s[i / n_v * PMX_PAGE + position]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n * n_v; i++) vst1q_f32(o + i / n_v * a.head_dim + d + i % n_v * 4, acc[i / n_v][i % n_v]);
}

void pmx_neon_combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim) {
    const float largest = *m > page_m ? *m : page_m;
    const float a = vgetq_lane_f32(exp4(vdupq_n_f32(*m - largest)), 0),
                b = vgetq_lane_f32(exp4(vdupq_n_f32(page_m - largest)), 0);
    *m = largest;
    *l = __builtin_fmaf(page_l, b, *l * a);
    for (int64_t d = 0; d < head_dim; d += 4)
        vst1q_f32(o + d, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(o + d), a), vld1q_f32(page_o + d), b));
}

/* Folds the page into what each of n queries that sees it has so far. */
PMX_INLINE void fold_n(const pmx_attend a, const own *page, const int n) {
    for (int i = 0; i < n; i++) {
        const float *o = page->o + i * a.head_dim;
        if (a.lo[i] < a.hi[i])
            pmx_neon_combine(a.m + i, a.l + i, a.o + i * a.head_dim, page->m[i], page->l[i], o, a.head_dim);
    }
}

/* The first n queries. */
PMX_INLINE void attend_n(const pmx_attend a, const int n, load4 load) {
    const int n_v = 16 / n;
    for (int j = 0; j < PMX_PAGE; j += 4 * n_v) scores(a, j, n, n_v, load);
    own page;
    softmax_n(&page, a, n);
    const pmx_positions seen = pmx_positions_seen(a.lo, a.hi, n);
    int64_t d = 0;
    for (; d + 4 * n_v <= a.head_dim; d += 4 * n_v) weigh(page.o, a, seen, d, n, n_v, load);
    for (; d < a.head_dim; d += 8) weigh(page.o, a, seen, d, n, 2, load);
    fold_n(a, &page, n);
}

PMX_INLINE void attend(const pmx_attend a, load4 load) {
    int64_t i = 0;
    for (; i + 4 <= a.n_q; i += 4) attend_n(pmx_attend_from(a, i), 4, load);
    for (; i < a.n_q; i++) attend_n(pmx_attend_from(a, i), 1, load);
}

void pmx_neon_attend_f32(const pmx_attend *a) { attend(*a, load4_f32); }

void pmx_neon_attend_f16(const pmx_attend *a) { attend(*a, load4_f16); }

/* s[i][first .. first + 4*n_v) = scores of the first n queries; n * n_v = 8: as many integer sums. */
PMX_INLINE void scores_q8_0(const pmx_attend a, int64_t first, const int n, const int n_v) {
    const int8_t *k = a.k;
    const uint16_t *dk = pmx_q8_0_page_scales(a.k, a.head_dim) + first;
    const int64_t n_blocks = a.head_dim / 32;
    float32x4_t acc[4][8];
#pragma GCC unroll 8
    for (int i = 0; i < n * n_v; i++) acc[i / n_v][i % n_v] = vdupq_n_f32(0.0f);
    for (int64_t b = 0; b < n_blocks; b++) {
        int32x4_t dot[4][8];
#pragma GCC unroll 8
        for (int i = 0; i < n * n_v; i++) dot[i / n_v][i % n_v] = vdupq_n_s32(0);
        for (int64_t d = 32 * b; d < 32 * b + 32; d += 4) {
            int8x16_t key[8];
#pragma GCC unroll 8
            for (int j = 0; j < n_v; j++) key[j] = vld1q_s8(k + d * PMX_PAGE + 4 * (first + 4 * j));
#pragma GCC unroll 8
            for (int i = 0; i < n * n_v; i++) {
                int32_t four;
                memcpy(&four, a.q8.q + i / n_v * a.head_dim + d, sizeof four);
                const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                dot[i / n_v][i % n_v] = vdotq_s32(dot[i / n_v][i % n_v], key[i % n_v], x);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < n * n_v; i++) {
            const float32x4_t d =
                vmulq_n_f32(load4_f16(dk, b * PMX_PAGE + 4 * (i % n_v)), a.q8.d[i / n_v * n_blocks + b]);
            acc[i / n_v][i % n_v] = vfmaq_f32(acc[i / n_v][i % n_v], d, vcvtq_f32_s32(dot[i / n_v][i % n_v]));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n * n_v; i++) vst1q_f32(a.s + first + i / n_v * PMX_PAGE + i % n_v * 4, acc[i / n_v][i % n_v]);
}

/* As weigh, for 16 values of q8_0 from d on: first p times the scales, position by position. */
PMX_INLINE void weigh_q8_0(float *o, const pmx_attend a, pmx_positions seen, int64_t d, const int n) {
    const int8_t *v = a.v;
    const uint16_t *dv = pmx_q8_0_page_scales(a.v, a.head_dim) + d / 32 * PMX_PAGE;
    float weights[4][PMX_PAGE];
    for (int j = 0; j < PMX_PAGE; j += 4) {
        const float32x4_t scale = load4_f16(dv, j);
        for (int i = 0; i < n; i++) vst1q_f32(weights[i] + j, vmulq_f32(vld1q_f32(a.s + i * PMX_PAGE + j), scale));
    }
    float32x4_t acc[4][4];
#pragma GCC unroll 16
    for (int i = 0; i < 4 * n; i++) acc[i / 4][i % 4] = vdupq_n_f32(0.0f);
    for (int32_t position = seen.first; position < seen.end; position++) {
        const int8x16_t bytes = vld1q_s8(v + position * a.head_dim + d);
        const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
        const float32x4_t value[4] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                                      vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                                      vcvtq_f32_s32(vmovl_high_s16(high))};
#pragma GCC unroll 16
        for (int i = 0; i < 4 * n; i++)
            acc[i / 4][i % 4] = vfmaq_n_f32(acc[i / 4][i % 4], value[i % 4], weights[i / 4][position]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * n; i++) vst1q_f32(o + i / 4 * a.head_dim + d + i % 4 * 4, acc[i / 4][i % 4]);
}

PMX_INLINE void attend_q8_0_n(const pmx_attend a, const int n) {
    const int n_v = 8 / n;
    for (int j = 0; j < PMX_PAGE; j += 4 * n_v) scores_q8_0(a, j, n, n_v);
    own page;
    softmax_n(&page, a, n);
    const pmx_positions seen = pmx_positions_seen(a.lo, a.hi, n);
    for (int64_t d = 0; d < a.head_dim; d += 16) weigh_q8_0(page.o, a, seen, d, n);
    fold_n(a, &page, n);
}

void pmx_neon_attend_q8_0(const pmx_attend *a) {
    int64_t i = 0;
    for (; i + 4 <= a->n_q; i += 4) attend_q8_0_n(pmx_attend_from(*a, i), 4);
    for (; i < a->n_q; i++) attend_q8_0_n(pmx_attend_from(*a, i), 1);
}

PMX_NEON_END
#endif
