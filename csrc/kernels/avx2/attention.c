/* attention.c: one cache page. Keys are [d][64] and values [64][d], so that lanes run over positions, then over d, and every output is
 * one chain of fused multiply-adds without horizontal sums. Queries go in pairs: a loaded key or value serves both, and
 * 2 x 4 accumulators hide the latency of the chain (4 cycles, 2 a cycle). f16 pages are converted as they are loaded.
 *
 * Keys of q8_0 lie as [d/4][64][4], so that vpmaddubsw and vpmaddwd leave each position's sum in its own lane; |k| takes the place of the
 * unsigned operand, and q, within 127 like k, its sign. Two products stay within int16: 2 * 128 * 127. */
#if defined(__x86_64__)
#include "avx2.h"

PMX_AVX2_BEGIN

typedef __m256 (*load8)(const void *page, int64_t at);

PMX_INLINE __m256 load8_f32(const void *page, int64_t at) { return _mm256_loadu_ps((const float *)page + at); }

PMX_INLINE __m256 load8_f16(const void *page, int64_t at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)page + at)));
}

/* s[i][0..63] = scores of N queries: N = 1 or 2, four accumulators of 8 positions each at a time. */
PMX_INLINE void scores(float *s, const float *q, const int n, int64_t head_dim, const void *k, load8 load) {
    for (int half = 0; half < PMX_PAGE; half += 32) {
        __m256 acc[2][4];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 4; j++) acc[i][j] = _mm256_setzero_ps();
        for (int64_t d = 0; d < head_dim; d++) {
            __m256 key[4];
            for (int j = 0; j < 4; j++) key[j] = load(k, d * PMX_PAGE + half + 8 * j);
            for (int i = 0; i < n; i++) {
                const __m256 x = _mm256_broadcast_ss(q + i * head_dim + d);
                for (int j = 0; j < 4; j++) acc[i][j] = _mm256_fmadd_ps(x, key[j], acc[i][j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 4; j++) _mm256_storeu_ps(s + i * PMX_PAGE + half + 8 * j, acc[i][j]);
    }
}

/* s becomes p; returns through m and l. */
PMX_INLINE void softmax(float *s, float *m, float *l, int32_t lo, int32_t hi) {
    const __m256i below = _mm256_set1_epi32(lo - 1), end = _mm256_set1_epi32(hi), step = _mm256_set1_epi32(8);
    const __m256 minus_infinity = _mm256_set1_ps(-__builtin_inff());
    __m256i j = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 largest = minus_infinity, visible[8];
    for (int i = 0; i < 8; i++, j = _mm256_add_epi32(j, step)) {
        visible[i] = _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(j, below), _mm256_cmpgt_epi32(end, j)));
        largest = _mm256_max_ps(largest, _mm256_blendv_ps(minus_infinity, _mm256_loadu_ps(s + 8 * i), visible[i]));
    }
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    t = _mm_max_ss(t, _mm_movehdup_ps(t));
    *m = _mm_cvtss_f32(t);
    const __m256 top = _mm256_set1_ps(*m);
    __m256 sums = _mm256_setzero_ps();
    for (int i = 0; i < 8; i++) {
        const __m256 p = _mm256_and_ps(visible[i], exp8(_mm256_sub_ps(_mm256_loadu_ps(s + 8 * i), top)));
        _mm256_storeu_ps(s + 8 * i, p);
        sums = _mm256_add_ps(sums, p);
    }
    *l = sum8_tree(sums);
}

/* The positions that at least one of a few queries sees. */
typedef struct {
    int32_t first, end;
} span;

/* softmax of n queries. */
PMX_INLINE span softmax_n(float *m, float *l, float *s, const int n, const int32_t *lo, const int32_t *hi) {
    span seen = {PMX_PAGE, 0};
    for (int i = 0; i < n; i++) {
        softmax(s + i * PMX_PAGE, m + i, l + i, lo[i], hi[i]);
        if (lo[i] < hi[i] && lo[i] < seen.first) seen.first = lo[i];
        if (lo[i] < hi[i] && hi[i] > seen.end) seen.end = hi[i];
    }
    return seen;
}

/* o[i][d .. d+8*n_v) = sum over positions lo .. hi-1 of p[i][j] * v[j][d..]. Masked positions have p = 0 and add nothing. */
PMX_INLINE void weigh(float *o, const float *p, const int n, const int n_v, int64_t head_dim, const void *v, int64_t d, int32_t lo,
                      int32_t hi, load8 load) {
    __m256 acc[2][4];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n_v; j++) acc[i][j] = _mm256_setzero_ps();
    for (int32_t position = lo; position < hi; position++) {
        __m256 value[4];
        for (int j = 0; j < n_v; j++) value[j] = load(v, position * head_dim + d + 8 * j);
        for (int i = 0; i < n; i++) {
            const __m256 x = _mm256_broadcast_ss(p + i * PMX_PAGE + position);
            for (int j = 0; j < n_v; j++) acc[i][j] = _mm256_fmadd_ps(x, value[j], acc[i][j]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n_v; j++) _mm256_storeu_ps(o + i * head_dim + d + 8 * j, acc[i][j]);
}

PMX_INLINE void attend_n(float *m, float *l, float *o, float *s, const float *q, const int n, int64_t head_dim, const void *k,
                         const void *v, const int32_t *lo, const int32_t *hi, load8 load) {
    scores(s, q, n, head_dim, k, load);
    const span seen = softmax_n(m, l, s, n, lo, hi);
    int64_t d = 0;
    for (; d + 32 <= head_dim; d += 32) weigh(o, s, n, 4, head_dim, v, d, seen.first, seen.end, load);
    for (; d < head_dim; d += 8) weigh(o, s, n, 1, head_dim, v, d, seen.first, seen.end, load);
}

PMX_INLINE void attend(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const void *k, const void *v,
                       const int32_t *lo, const int32_t *hi, load8 load) {
    int64_t i = 0;
    for (; i + 2 <= n_q; i += 2)
        attend_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, q + i * head_dim, 2, head_dim, k, v, lo + i, hi + i, load);
    if (i < n_q) attend_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, q + i * head_dim, 1, head_dim, k, v, lo + i, hi + i, load);
}

void pmx_avx2_attend_f32(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const float *k,
                         const float *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load8_f32);
}

void pmx_avx2_attend_f16(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim, const uint16_t *k,
                         const uint16_t *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load8_f16);
}

/* s[i][0..63] = scores of n queries, 16 positions at a time. */
PMX_INLINE void scores_q8_0(float *s, const pmx_quantized *q, const int n, int64_t head_dim, const uint8_t *k) {
    const uint16_t *dk = pmx_q8_0_page_scales(k, head_dim);
    const __m256i ones = _mm256_set1_epi16(1);
    const int64_t n_blocks = head_dim / 32;
    for (int half = 0; half < PMX_PAGE; half += 16) {
        __m256 acc[2][2];
        for (int i = 0; i < n; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            __m256i dot[2][2];
            for (int i = 0; i < n; i++) dot[i][0] = dot[i][1] = _mm256_setzero_si256();
            for (int64_t d = 32 * b; d < 32 * b + 32; d += 4) {
                for (int j = 0; j < 2; j++) {
                    const __m256i key = _mm256_loadu_si256((const __m256i *)(const void *)(k + d * PMX_PAGE + 4 * (half + 8 * j)));
                    const __m256i size = _mm256_abs_epi8(key);
                    for (int i = 0; i < n; i++) {
                        int32_t four;
                        memcpy(&four, q->q + i * head_dim + d, sizeof four);
                        const __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(four), key);
                        dot[i][j] = _mm256_add_epi32(dot[i][j], _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones));
                    }
                }
            }
            for (int j = 0; j < 2; j++) {
                const __m256 scale = load8_f16(dk, b * PMX_PAGE + half + 8 * j);
                for (int i = 0; i < n; i++) {
                    const __m256 d = _mm256_mul_ps(_mm256_broadcast_ss(q->d + i * n_blocks + b), scale);
                    acc[i][j] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(dot[i][j]), acc[i][j]);
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 2; j++) _mm256_storeu_ps(s + i * PMX_PAGE + half + 8 * j, acc[i][j]);
    }
}

/* As weigh, for block b of q8_0 values: first p times the scales, position by position. */
PMX_INLINE void weigh_q8_0(float *o, const float *p, const int n, int64_t head_dim, const uint8_t *v, int64_t b, int32_t lo, int32_t hi) {
    const uint16_t *dv = pmx_q8_0_page_scales(v, head_dim) + b * PMX_PAGE;
    float weights[2][PMX_PAGE];
    for (int j = 0; j < PMX_PAGE; j += 8) {
        const __m256 scale = load8_f16(dv, j);
        for (int i = 0; i < n; i++) _mm256_storeu_ps(weights[i] + j, _mm256_mul_ps(_mm256_loadu_ps(p + i * PMX_PAGE + j), scale));
    }
    __m256 acc[2][4];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 4; j++) acc[i][j] = _mm256_setzero_ps();
    for (int32_t position = lo; position < hi; position++) {
        const uint8_t *at = v + position * head_dim + 32 * b;
        __m256 value[4];
        for (int j = 0; j < 4; j++)
            value[j] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(at + 8 * j))));
        for (int i = 0; i < n; i++) {
            const __m256 x = _mm256_broadcast_ss(weights[i] + position);
            for (int j = 0; j < 4; j++) acc[i][j] = _mm256_fmadd_ps(x, value[j], acc[i][j]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 4; j++) _mm256_storeu_ps(o + i * head_dim + 32 * b + 8 * j, acc[i][j]);
}

PMX_INLINE void attend_q8_0_n(float *m, float *l, float *o, float *s, const pmx_quantized *q, const int n, int64_t head_dim,
                              const uint8_t *k, const uint8_t *v, const int32_t *lo, const int32_t *hi) {
    scores_q8_0(s, q, n, head_dim, k);
    const span seen = softmax_n(m, l, s, n, lo, hi);
    for (int64_t b = 0; b < head_dim / 32; b++) weigh_q8_0(o, s, n, head_dim, v, b, seen.first, seen.end);
}

void pmx_avx2_attend_q8_0(float *m, float *l, float *o, float *s, const pmx_quantized *q, int64_t n_q, int64_t head_dim, const uint8_t *k,
                          const uint8_t *v, const int32_t *lo, const int32_t *hi) {
    for (int64_t i = 0; i < n_q; i += 2) {
        const pmx_quantized at = {q->q + i * head_dim, q->d + i * (head_dim / 32), q->sums + i * (head_dim / 32)};
        if (i + 2 <= n_q)
            attend_q8_0_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, &at, 2, head_dim, k, v, lo + i, hi + i);
        else
            attend_q8_0_n(m + i, l + i, o + i * head_dim, s + i * PMX_PAGE, &at, 1, head_dim, k, v, lo + i, hi + i);
    }
}

void pmx_avx2_combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim) {
    const float largest = *m > page_m ? *m : page_m;
    const __m256 e = exp8(_mm256_setr_ps(*m - largest, page_m - largest, 0, 0, 0, 0, 0, 0));
    const __m256 a = _mm256_broadcastss_ps(_mm256_castps256_ps128(e));
    const __m256 b = _mm256_broadcastss_ps(_mm_movehdup_ps(_mm256_castps256_ps128(e)));
    const __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(page_l), b, _mm256_mul_ps(_mm256_set1_ps(*l), a));
    *m = largest;
    *l = _mm256_cvtss_f32(sum);
    for (int64_t d = 0; d < head_dim; d += 8)
        _mm256_storeu_ps(o + d, _mm256_fmadd_ps(_mm256_loadu_ps(page_o + d), b, _mm256_mul_ps(_mm256_loadu_ps(o + d), a)));
}

PMX_AVX2_END
#endif
