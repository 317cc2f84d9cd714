/* attention.c: one cache page, 16 lanes. As avx2's, but four queries at a time (a Mixtral's group) share each loaded key or value: 4 x 4
 * accumulators, and f16 pages are converted as they are loaded. The sums of p keep the contract's eight partials: each register is folded
 * as two halves in order.
 *
 * Keys of q8_0 lie as [d/4][64][4], so that vpdpbusd leaves each position's sum in its own lane. Its unsigned operand is the key plus 128,
 * shared by the queries; the sums start at -128 times the sum of the query's block. */
#if defined(__x86_64__)
#include "avx512vnni.h"

PMX_AVX512VNNI_BEGIN

typedef __m512 (*load16)(const void *page, int64_t at);

PMX_INLINE __m512 load16_f32(const void *page, int64_t at) { return _mm512_loadu_ps((const float *)page + at); }

PMX_INLINE __m512 load16_f16(const void *page, int64_t at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)page + at)));
}

/* Eight lanes, for a tail. */
typedef __m256 (*load8)(const void *page, int64_t at);

PMX_INLINE __m256 load8_f32(const void *page, int64_t at) { return _mm256_loadu_ps((const float *)page + at); }

PMX_INLINE __m256 load8_f16(const void *page, int64_t at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)page + at)));
}

PMX_INLINE __m512 exp16(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(PMX_EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(PMX_EXP_LN2_HI), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(PMX_EXP_LN2_LO), r);
    __m512 p = _mm512_set1_ps(PMX_EXP_C7);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PMX_EXP_C6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PMX_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PMX_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PMX_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PMX_EXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    const __m512i scale = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    const __m512 y = _mm512_mul_ps(p, _mm512_castsi512_ps(scale));
    const __mmask16 huge = _mm512_cmp_ps_mask(x, _mm512_set1_ps(PMX_EXP_HI), _CMP_GT_OQ);
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(PMX_EXP_LO), _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(kept, _mm512_mask_mov_ps(y, huge, _mm512_set1_ps(__builtin_inff())));
}

/* s[i][0..63] = scores of N queries. */
PMX_INLINE void scores(float *s, const float *q, const int N, int64_t head_dim, const void *k, load16 load) {
    __m512 acc[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
    for (int64_t d = 0; d < head_dim; d++) {
        __m512 key[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) key[j] = load(k, d * PMX_PAGE + 16 * j);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            const __m512 x = _mm512_set1_ps(q[i * head_dim + d]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) acc[i][j] = _mm512_fmadd_ps(x, key[j], acc[i][j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(s + i * PMX_PAGE + 16 * j, acc[i][j]);
}

/* s becomes p; returns through m and l. */
PMX_INLINE void softmax(float *s, float *m, float *l, int32_t lo, int32_t hi) {
    const uint64_t below_hi = hi >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << hi) - 1;
    const uint64_t visible = lo < hi ? below_hi & (~UINT64_C(0) << lo) : 0;
    __m512 v[4], largest = _mm512_set1_ps(-__builtin_inff());
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(s + 16 * i);
        largest = _mm512_mask_max_ps(largest, (__mmask16)(visible >> 16 * i), largest, v[i]);
    }
    *m = _mm512_reduce_max_ps(largest);
    const __m512 top = _mm512_set1_ps(*m);
    __m256 sums = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        const __m512 p = _mm512_maskz_mov_ps((__mmask16)(visible >> 16 * i), exp16(_mm512_sub_ps(v[i], top)));
        _mm512_storeu_ps(s + 16 * i, p);
        sums = _mm256_add_ps(sums, _mm512_castps512_ps256(p));
        sums = _mm256_add_ps(sums, _mm512_extractf32x8_ps(p, 1));
    }
    *l = sum8_tree(sums);
}

/* The positions that at least one of a few queries sees. */
typedef struct {
    int32_t first, end;
} span;

/* softmax of N queries. */
PMX_INLINE span softmax_n(float *m, float *l, float *s, const int N, const int32_t *lo, const int32_t *hi) {
    span seen = {PMX_PAGE, 0};
    for (int i = 0; i < N; i++) {
        softmax(s + i * PMX_PAGE, m + i, l + i, lo[i], hi[i]);
        if (lo[i] < hi[i] && lo[i] < seen.first) seen.first = lo[i];
        if (lo[i] < hi[i] && hi[i] > seen.end) seen.end = hi[i];
    }
    return seen;
}

/* o[i][d .. d+16*V) = sum over positions lo .. hi-1 of p[i][j] * v[j][d..], N queries. Masked positions have p = 0 and add nothing. */
PMX_INLINE void weigh(float *o, const float *p, const int N, const int V, int64_t head_dim, const void *v, int64_t d, int32_t lo,
                      int32_t hi, load16 load) {
    __m512 acc[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) acc[i][j] = _mm512_setzero_ps();
    for (int32_t position = lo; position < hi; position++) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) value[j] = load(v, position * head_dim + d + 16 * j);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            const __m512 x = _mm512_set1_ps(p[i * PMX_PAGE + position]);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) acc[i][j] = _mm512_fmadd_ps(x, value[j], acc[i][j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) _mm512_storeu_ps(o + i * head_dim + d + 16 * j, acc[i][j]);
}

/* The last 8 of a head_dim that is no multiple of 16. */
PMX_INLINE void weigh_tail(float *o, const float *p, int64_t head_dim, const void *v, int64_t d, int32_t lo, int32_t hi, load8 load) {
    __m256 acc = _mm256_setzero_ps();
    for (int32_t position = lo; position < hi; position++)
        acc = _mm256_fmadd_ps(_mm256_set1_ps(p[position]), load(v, position * head_dim + d), acc);
    _mm256_storeu_ps(o + d, acc);
}

PMX_INLINE void attend_n(float *m, float *l, float *o, float *s, const float *q, const int N, int64_t head_dim, const void *k,
                         const void *v, const int32_t *lo, const int32_t *hi, load16 load, load8 load_tail) {
    scores(s, q, N, head_dim, k, load);
    const span seen = softmax_n(m, l, s, N, lo, hi);
    const int32_t first = seen.first, end = seen.end;
    int64_t d = 0;
    for (; d + 64 <= head_dim; d += 64) weigh(o, s, N, 4, head_dim, v, d, first, end, load);
    for (; d + 16 <= head_dim; d += 16) weigh(o, s, N, 1, head_dim, v, d, first, end, load);
    for (int i = 0; i < N && d < head_dim; i++) weigh_tail(o + i * head_dim, s + i * PMX_PAGE, head_dim, v, d, first, end, load_tail);
}

PMX_INLINE void attend(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const void *k, const void *v,
                       const int32_t *lo, const int32_t *hi, load16 load, load8 load_tail) {
    int64_t i = 0;
    for (; i + 4 <= n_q; i += 4)
        attend_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, q + i * head_dim, 4, head_dim, k, v, lo + i, hi + i, load, load_tail);
    for (; i < n_q; i++)
        attend_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, q + i * head_dim, 1, head_dim, k, v, lo + i, hi + i, load, load_tail);
}

void pmx_avx512vnni_attend_f32(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const float *k,
                               const float *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load16_f32, load8_f32);
}

void pmx_avx512vnni_attend_f16(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const uint16_t *k,
                               const uint16_t *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load16_f16, load8_f16);
}

/* s[i][0..63] = scores of N queries, V registers of 16 positions at a time. */
PMX_INLINE void scores_q8_0(float *s, const pmx_quantized *q, const int N, const int V, int64_t head_dim, const uint8_t *k) {
    const uint16_t *dk = pmx_q8_0_page_scales(k, head_dim);
    const __m512i offset = _mm512_set1_epi8(-128);
    const int64_t n_blocks = head_dim / 32;
    for (int first = 0; first < PMX_PAGE; first += 16 * V) {
        __m512 acc[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) acc[i][j] = _mm512_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            __m512i dot[4][4];
#pragma GCC unroll 4
            for (int i = 0; i < N; i++)
#pragma GCC unroll 4
                for (int j = 0; j < V; j++) dot[i][j] = _mm512_set1_epi32(-128 * q->sums[i * n_blocks + b]);
            for (int64_t d = 32 * b; d < 32 * b + 32; d += 4) {
                __m512i key[4];
#pragma GCC unroll 4
                for (int j = 0; j < V; j++) key[j] = _mm512_xor_si512(_mm512_loadu_si512(k + d * PMX_PAGE + 4 * (first + 16 * j)), offset);
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) {
                    int32_t four;
                    memcpy(&four, q->q + i * head_dim + d, sizeof four);
#pragma GCC unroll 4
                    for (int j = 0; j < V; j++) dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], key[j], _mm512_set1_epi32(four));
                }
            }
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) {
                const __m512 scale = load16_f16(dk, b * PMX_PAGE + first + 16 * j);
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) {
                    const __m512 d = _mm512_mul_ps(_mm512_set1_ps(q->d[i * n_blocks + b]), scale);
                    acc[i][j] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot[i][j]), acc[i][j]);
                }
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) _mm512_storeu_ps(s + i * PMX_PAGE + first + 16 * j, acc[i][j]);
    }
}

/* As weigh, for block b of q8_0 values: first p times the scales, position by position. */
PMX_INLINE void weigh_q8_0(float *o, const float *p, const int N, int64_t head_dim, const uint8_t *v, int64_t b, int32_t lo, int32_t hi) {
    const uint16_t *dv = pmx_q8_0_page_scales(v, head_dim) + b * PMX_PAGE;
    float weights[4][PMX_PAGE];
    for (int j = 0; j < PMX_PAGE; j += 16) {
        const __m512 scale = load16_f16(dv, j);
        for (int i = 0; i < N; i++) _mm512_storeu_ps(weights[i] + j, _mm512_mul_ps(_mm512_loadu_ps(p + i * PMX_PAGE + j), scale));
    }
    __m512 acc[4][2];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    for (int32_t position = lo; position < hi; position++) {
        const uint8_t *at = v + position * head_dim + 32 * b;
        __m512 value[2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
            value[j] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(at + 16 * j))));
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            const __m512 x = _mm512_set1_ps(weights[i][position]);
            acc[i][0] = _mm512_fmadd_ps(x, value[0], acc[i][0]);
            acc[i][1] = _mm512_fmadd_ps(x, value[1], acc[i][1]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) _mm512_storeu_ps(o + i * head_dim + 32 * b + 16 * j, acc[i][j]);
}

PMX_INLINE void attend_q8_0_n(float *m, float *l, float *o, float *s, const pmx_quantized *q, const int N, int64_t head_dim,
                              const uint8_t *k, const uint8_t *v, const int32_t *lo, const int32_t *hi) {
    scores_q8_0(s, q, N, N == 4 ? 2 : 4, head_dim, k);
    const span seen = softmax_n(m, l, s, N, lo, hi);
    for (int64_t b = 0; b < head_dim / 32; b++) weigh_q8_0(o, s, N, head_dim, v, b, seen.first, seen.end);
}

void pmx_avx512vnni_attend_q8_0(float *m, float *l, float *o, float *s, const pmx_quantized *q, int64_t n_q, int64_t head_dim,
                                const uint8_t *k, const uint8_t *v, const int32_t *lo, const int32_t *hi) {
    for (int64_t i = 0; i < n_q;) {
        const int64_t block = i * (head_dim / 32);
        const pmx_quantized at = {q->q + i * head_dim, q->d + block, q->sums + block};
        if (i + 4 <= n_q) {
            attend_q8_0_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, &at, 4, head_dim, k, v, lo + i, hi + i);
            i += 4;
        } else {
            attend_q8_0_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, &at, 1, head_dim, k, v, lo + i, hi + i);
            i += 1;
        }
    }
}

PMX_AVX512VNNI_END
#endif
