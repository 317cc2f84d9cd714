/* attention.c: one cache page. Keys are [d][64] and values [64][d], so that lanes run over
 * positions, then over d, and every output is one chain of fused multiply-adds without horizontal
 * sums. Both are products of a few queries with the page: 6 x 2 accumulators hide the latency of
 * the chain (4 cycles, 2 a cycle) with 2 loads and 6 broadcasts for 12 multiply-adds. First the
 * scores of all queries, then their weights, then the values, whose accumulators are folded into
 * the pages before as they are stored.
 *
 * Keys of q8_0 lie as [d/4][64][4], so that vpmaddubsw and vpmaddwd leave each position's sum in
 * its own lane; |k| takes the place of the unsigned operand, and q, within 127 like k, its sign.
 * Two products stay within int16: 2 * 128 * 127. */
#if defined(__x86_64__)
#include "avx2.h"

PMX_AVX2_BEGIN

typedef __m256 (*load8)(const void *page, int64_t at);

PMX_INLINE __m256 load8_f32(const void *page, int64_t at) { return _mm256_loadu_ps((const float *)page + at); }

PMX_INLINE __m256 load8_f16(const void *page, int64_t at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)page + at)));
}

typedef struct {
    __m256 at[6][8];
} block;

/* at[i][0 .. V) = sum of a[i][j] * b[at + j*ldb ..] over begin <= j < end, each a chain in
 * ascending order; N rows i. */
PMX_INLINE block product(const float *a, int64_t lda, const int N, const int V, const void *b, int64_t at, int64_t ldb,
                         int64_t begin, int64_t end, load8 load) {
    block acc;
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc.at[i][v] = _mm256_setzero_ps();
    for (int64_t j = begin; j < end; j++) {
        __m256 y[8];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) y[v] = load(b, at + j * ldb + 8 * v);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++) {
            const __m256 x = _mm256_broadcast_ss(a + i * lda + j);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc.at[i][v] = _mm256_fmadd_ps(x, y[v], acc.at[i][v]);
        }
    }
    return acc;
}

/* Registers of a row: with few rows more, so that at least 8 chains are under way. */
PMX_INLINE int width(const int N) { return N > 2 ? 2 : 8 / N; }

/* s[i][0..63] = scores of N queries. */
PMX_INLINE void scores(float *s, const float *q, const int N, int64_t head_dim, const void *k, load8 load) {
    const int V = width(N);
    for (int first = 0; first < PMX_PAGE; first += 8 * V) {
        const block acc = product(q, head_dim, N, V, k, first, PMX_PAGE, 0, head_dim, load);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++)
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) _mm256_storeu_ps(s + i * PMX_PAGE + first + 8 * j, acc.at[i][j]);
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

/* Folds a page's maximum and sum into those so far; what is so far weighs *before, the page *now.
 */
PMX_INLINE void join(float *m, float *l, float page_m, float page_l, float *before, float *now) {
    const float largest = *m > page_m ? *m : page_m;
    const __m256 e = exp8(_mm256_setr_ps(*m - largest, page_m - largest, 0, 0, 0, 0, 0, 0));
    const __m128 a = _mm256_castps256_ps128(e), b = _mm_movehdup_ps(a);
    *m = largest;
    *l = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(page_l), b, _mm_mul_ss(_mm_set_ss(*l), a)));
    *before = _mm_cvtss_f32(a);
    *now = _mm_cvtss_f32(b);
}

/* p, and how the page and those before it weigh in what is so far: factors is [2][n_q], of the
 * pages before and of this one. */
PMX_INLINE void weights(float *m, float *l, float *s, float *factors, int64_t n_q, const int32_t *lo,
                        const int32_t *hi) {
    for (int64_t i = 0; i < n_q; i++) {
        factors[i] = 1.0f;
        factors[n_q + i] = 0.0f;
        float page_m, page_l;
        softmax(s + i * PMX_PAGE, &page_m, &page_l, lo[i], hi[i]);
        if (lo[i] < hi[i]) join(m + i, l + i, page_m, page_l, factors + i, factors + n_q + i);
    }
}

/* o[i][0 .. 8*V) = the values weighted by p over the positions seen, folded into what is there.
 * Masked positions have p = 0 and add nothing. */
PMX_INLINE void weigh(float *o, int64_t head_dim, const float *p, const float *before, const float *now, const int N,
                      const int V, const void *v, int64_t at, int64_t ldv, pmx_positions seen, load8 load) {
    const block acc = product(p, PMX_PAGE, N, V, v, at, ldv, seen.first, seen.end, load);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) {
            float *to = o + i * head_dim + 8 * j;
            const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_broadcast_ss(before + i));
            _mm256_storeu_ps(to, _mm256_fmadd_ps(acc.at[i][j], _mm256_broadcast_ss(now + i), old));
        }
}

PMX_INLINE void weigh_all(float *o, const float *p, const float *before, const float *now, const int N,
                          int64_t head_dim, const void *v, const int32_t *lo, const int32_t *hi, load8 load) {
    const pmx_positions seen = pmx_positions_seen(lo, hi, N);
    const int V = width(N);
    int64_t d = 0;
    for (; d + 8 * V <= head_dim; d += 8 * V) weigh(o + d, head_dim, p, before, now, N, V, v, d, head_dim, seen, load);
    for (; d < head_dim; d += 8) weigh(o + d, head_dim, p, before, now, N, 1, v, d, head_dim, seen, load);
}

/* Calls F(N) for queries i .. i+N-1 until all n are done. Few queries, which wait for memory, read
 * whole lines of the page. */
#define IN_BLOCKS(n, F)                                                                                                \
    for (; i + 6 <= (n); i += 6) F(6);                                                                                 \
    for (; i + 2 <= (n); i += 2) F(2);                                                                                 \
    for (; i < (n); i++) F(1);

/* First the keys for all queries, then the values: each in turn has L1 for itself. */
PMX_INLINE void attend(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                       const void *k, const void *v, const int32_t *lo, const int32_t *hi, load8 load) {
    float *before = s + n_q * PMX_PAGE, *now = before + n_q;
#define SCORES(N) scores(s + i * PMX_PAGE, q + i * head_dim, N, head_dim, k, load)
#define WEIGH(N)                                                                                                       \
    weigh_all(o + i * head_dim, s + i * PMX_PAGE, before + i, now + i, N, head_dim, v, lo + i, hi + i, load)
    int64_t i = 0;
    IN_BLOCKS(n_q, SCORES)
    weights(m, l, s, before, n_q, lo, hi);
    i = 0;
    IN_BLOCKS(n_q, WEIGH)
}

void pmx_avx2_attend_f32(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                         const float *k, const float *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load8_f32);
}

void pmx_avx2_attend_f16(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                         const uint16_t *k, const uint16_t *v, const int32_t *lo, const int32_t *hi) {
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
                    const __m256i key =
                        _mm256_loadu_si256((const __m256i *)(const void *)(k + d * PMX_PAGE + 4 * (half + 8 * j)));
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

/* Values of q8_0 as they are loaded, without their scale. */
PMX_INLINE __m256 load8_i8(const void *page, int64_t at) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)((const int8_t *)page + at))));
}

/* As weigh, for 32 values of q8_0 that share the scales dv: first p times the scales, position by
 * position. */
PMX_INLINE void weigh_q8_0(float *o, int64_t head_dim, const float *p, const float *before, const float *now,
                           const int N, const uint16_t *dv, const void *v, int64_t at, int64_t ldv, pmx_positions seen,
                           load8 load) {
    float scaled[6][PMX_PAGE];
    for (int j = 0; j < PMX_PAGE; j += 8) {
        const __m256 scale = load8_f16(dv, j);
        for (int i = 0; i < N; i++)
            _mm256_storeu_ps(scaled[i] + j, _mm256_mul_ps(_mm256_loadu_ps(p + i * PMX_PAGE + j), scale));
    }
    const int V = N > 2 ? 2 : 4;
    for (int d = 0; d < 32; d += 8 * V)
        weigh(o + d, head_dim, scaled[0], before, now, N, V, v, at + d, ldv, seen, load);
}

void pmx_avx2_attend_q8_0(float *m, float *l, float *o, float *s, const pmx_quantized *q, int64_t n_q, int64_t head_dim,
                          const uint8_t *k, const uint8_t *v, const int32_t *lo, const int32_t *hi) {
    float *before = s + n_q * PMX_PAGE, *now = before + n_q;
    const int64_t n_blocks = head_dim / 32;
    for (int64_t i = 0; i < n_q; i += 2) {
        const pmx_quantized at = {q->q + i * head_dim, q->d + i * n_blocks, q->sums + i * n_blocks};
        if (i + 2 <= n_q)
            scores_q8_0(s + i * PMX_PAGE, &at, 2, head_dim, k);
        else
            scores_q8_0(s + i * PMX_PAGE, &at, 1, head_dim, k);
    }
    weights(m, l, s, before, n_q, lo, hi);
#define WEIGH_Q8_0(N, V, AT, LDV, LOAD)                                                                                \
    weigh_q8_0(o + i * head_dim + d, head_dim, s + i * PMX_PAGE, before + i, now + i, N, dv, V, AT, LDV,               \
               pmx_positions_seen(lo + i, hi + i, N), LOAD)
    for (int64_t d = 0; d < head_dim; d += 32) {
        const uint16_t *dv = pmx_q8_0_page_scales(v, head_dim) + d / 32 * PMX_PAGE;
        int64_t i = 0;
        if (n_q >= 12) {
            float widened[PMX_PAGE * 32]; /* once for all queries */
            for (int64_t j = 0; j < PMX_PAGE; j++)
                for (int64_t at = 0; at < 32; at += 8)
                    _mm256_storeu_ps(widened + 32 * j + at, load8_i8(v, j * head_dim + d + at));
            for (; i + 6 <= n_q; i += 6) WEIGH_Q8_0(6, widened, 0, 32, load8_f32);
        }
        for (; i + 4 <= n_q; i += 4) WEIGH_Q8_0(4, v, d, head_dim, load8_i8);
        for (; i < n_q; i++) WEIGH_Q8_0(1, v, d, head_dim, load8_i8);
    }
}

void pmx_avx2_combine(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim) {
    float before, now;
    join(m, l, page_m, page_l, &before, &now);
    const __m256 a = _mm256_set1_ps(before), b = _mm256_set1_ps(now);
    for (int64_t d = 0; d < head_dim; d += 8)
        _mm256_storeu_ps(o + d,
                         _mm256_fmadd_ps(_mm256_loadu_ps(page_o + d), b, _mm256_mul_ps(_mm256_loadu_ps(o + d), a)));
}

PMX_AVX2_END
#endif
