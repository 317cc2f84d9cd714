/* scalar.c: every kernel in portable C, in the contract's own order. The reference in C, and the
 * fallback on any CPU. The weight types are in files of their own. */
#include <math.h>
#include <string.h>

#include "../../blocks.h"
#include "scalar.h"

static int available(void) { return 1; }

static void rms_norm(float *y, const float *x, const float *w, int64_t n, float eps) {
    float s[8] = {0};
    for (int64_t i = 0; i < n; i++) s[i % 8] = fmaf(x[i], x[i], s[i % 8]);
    const float r = pmx_rms_scale(pmx_sum8_tree(s), n, eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] * r) * w[i];
}

/* One block of n elements; sums of each n_sum of them. */
static int quantize_block(int8_t *q, float *d, int32_t *sums, const float *x, int n, int n_sum) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = pmx_f32_bits(x[i]) & 0x7fffffffu;
        if (magnitude > largest) largest = magnitude;
    }
    const float amax = pmx_f32_from_bits(largest);
    const int bad = largest >= 0x7f800000u;
    *d = 0.0f;
    memset(q, 0, (size_t)n);
    memset(sums, 0, (size_t)(n / n_sum) * sizeof *sums);
    if (bad || amax < PMX_TINY_AMAX) return bad;
    const float inverse = 127.0f / amax;
    *d = amax / 127.0f;
    for (int i = 0; i < n; i++) {
        q[i] = (int8_t)rintf(x[i] * inverse);
        sums[i / n_sum] += q[i];
    }
    return 0;
}

static int quantize32(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    int bad = 0;
    for (int64_t b = 0; b < n / 32; b++) bad |= quantize_block(q + 32 * b, d + b, sums + b, x + 32 * b, 32, 32);
    return bad;
}

static int quantize256(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    int bad = 0;
    for (int64_t b = 0; b < n / 256; b++)
        bad |= quantize_block(q + 256 * b, d + b, sums + 16 * b, x + 256 * b, 256, 16);
    return bad;
}

static float exp1(float x) {
    if (x > PMX_EXP_HI) return INFINITY;
    if (x < PMX_EXP_LO) return 0.0f;
    if (x != x) return x;
    const float n = rintf(x * PMX_EXP_LOG2E);
    float r = fmaf(n, -PMX_EXP_LN2_HI, x);
    r = fmaf(n, -PMX_EXP_LN2_LO, r);
    float p = PMX_EXP_C7;
    p = fmaf(p, r, PMX_EXP_C6);
    p = fmaf(p, r, PMX_EXP_C5);
    p = fmaf(p, r, PMX_EXP_C4);
    p = fmaf(p, r, PMX_EXP_C3);
    p = fmaf(p, r, PMX_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * pmx_f32_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

static void exp_n(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = exp1(x[i]);
}

static void silu_mul(float *y, const float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = (gate[i] / (1.0f + exp1(-gate[i]))) * up[i];
}

static void axpy(float *y, float a, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void add_rows(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n) {
    for (int64_t r = 0; r < n_rows; r++) axpy(y, a[r], x + r * stride, n);
}

static void rope(float *x, const float *cosines, const float *sines, int64_t n_pairs) {
    for (int64_t i = 0; i < n_pairs; i++) {
        const float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = fmaf(x0, cosines[i], -(x1 * sines[i]));
        x[2 * i + 1] = fmaf(x0, sines[i], x1 * cosines[i]);
    }
}

static void narrow(uint16_t *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = pmx_f32_to_f16(x[i]);
}

static void widen(float *y, const uint16_t *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = pmx_f16_to_f32(x[i]);
}

/* s becomes p; returns through m and l. */
static void softmax(float *s, float *m, float *l, int32_t lo, int32_t hi) {
    float largest = -INFINITY, sums[8] = {0};
    for (int32_t j = lo; j < hi; j++)
        if (s[j] > largest) largest = s[j];
    for (int32_t j = lo; j < hi; j++) {
        s[j] = exp1(s[j] - largest);
        sums[j % 8] += s[j];
    }
    *m = largest;
    *l = pmx_sum8_tree(sums);
}

static void combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim) {
    const float largest = *m > page_m ? *m : page_m;
    const float a = exp1(*m - largest), b = exp1(page_m - largest);
    *m = largest;
    *l = fmaf(page_l, b, *l * a);
    for (int64_t d = 0; d < head_dim; d++) o[d] = fmaf(page_o[d], b, o[d] * a);
}

static void attend(const pmx_attend *a) {
    const int64_t dim = a->head_dim;
    const float *k = a->k, *v = a->v;
    for (int64_t i = 0; i < a->n_q; i++) {
        const float *q = a->q + i * dim;
        float *s = a->s + i * PMX_PAGE;
        if (a->lo[i] >= a->hi[i]) continue;
        for (int32_t j = a->lo[i]; j < a->hi[i]; j++) {
            s[j] = 0.0f;
            for (int64_t d = 0; d < dim; d++) s[j] = fmaf(q[d], k[d * PMX_PAGE + j], s[j]);
        }
        float page_m, page_l, page_o[PMX_MAX_HEAD_DIM] = {0};
        softmax(s, &page_m, &page_l, a->lo[i], a->hi[i]);
        for (int32_t j = a->lo[i]; j < a->hi[i]; j++) axpy(page_o, s[j], v + j * dim, dim);
        combine(a->m + i, a->l + i, a->o + i * dim, page_m, page_l, page_o, dim);
    }
}

static void attend_q8_0(const pmx_attend *a) {
    const int64_t dim = a->head_dim;
    const int8_t *keys = a->k, *values = a->v;
    const uint16_t *dk = pmx_q8_0_page_scales(a->k, dim), *dv = pmx_q8_0_page_scales(a->v, dim);
    for (int64_t i = 0; i < a->n_q; i++) {
        float *s = a->s + i * PMX_PAGE;
        if (a->lo[i] >= a->hi[i]) continue;
        const int8_t *query = a->q8.q + i * dim;
        const float *dq = a->q8.d + i * (dim / 32);
        for (int32_t j = a->lo[i]; j < a->hi[i]; j++) {
            s[j] = 0.0f;
            for (int64_t b = 0; b < dim / 32; b++) {
                int32_t isum = 0;
                for (int64_t d = 32 * b; d < 32 * b + 32; d++)
                    isum += query[d] * keys[(d / 4 * PMX_PAGE + j) * 4 + d % 4];
                s[j] = fmaf(dq[b] * pmx_f16_to_f32(dk[b * PMX_PAGE + j]), (float)isum, s[j]);
            }
        }
        float page_m, page_l, page_o[PMX_MAX_HEAD_DIM] = {0};
        softmax(s, &page_m, &page_l, a->lo[i], a->hi[i]);
        for (int64_t d = 0; d < dim; d++)
            for (int32_t j = a->lo[i]; j < a->hi[i]; j++)
                page_o[d] =
                    fmaf(s[j] * pmx_f16_to_f32(dv[d / 32 * PMX_PAGE + j]), (float)values[j * dim + d], page_o[d]);
        combine(a->m + i, a->l + i, a->o + i * dim, page_m, page_l, page_o, dim);
    }
}

/* There is no mat kernel: every product is a vec, token by token. */
#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    [PMX_##NAME] = {FORM, pmx_scalar_vec_##T, NULL, NULL, 0, pmx_scalar_dequantize_##T},

const pmx_kernels pmx_kernels_scalar = {
    .name = "scalar",
    .available = available,
    .types = {PMX_TYPES(TYPE)},
    .rms_norm = rms_norm,
    .quantize32 = quantize32,
    .quantize256 = quantize256,
    .exp = exp_n,
    .silu_mul = silu_mul,
    .axpy = axpy,
    .add_rows = add_rows,
    .rope = rope,
    .narrow = narrow,
    .widen = widen,
    .attend_f32 = attend,
    .attend_q8_0 = attend_q8_0,
    .combine = combine,
    .search = pmx_scalar_search,
};
