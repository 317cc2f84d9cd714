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

/* Columns of a page: row j begins at element at + j * stride. */
typedef struct {
    const void *page;
    int64_t at, stride;
    load8 load;
} columns;

typedef struct {
    __m256 at[6][8];
} block;

/* at[i][0 .. V) = sum of a[i*lda + j] * row j of b over the rows, each a chain in ascending order,
 * for N rows i of a. */
PMX_INLINE block product(const float *a, int64_t lda, const columns b, pmx_positions rows, const int N, const int V) {
    block acc;
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc.at[i][v] = _mm256_setzero_ps();
    for (int64_t j = rows.first; j < rows.end; j++) {
        __m256 y[8];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) y[v] = b.load(b.page, b.at + j * b.stride + 8 * v);
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

/* s[i][0..63] = scores of the first N queries. */
PMX_INLINE void scores(const pmx_attend a, const int N, load8 load) {
    const int V = width(N);
    const pmx_positions all = {0, (int32_t)a.head_dim};
    for (int first = 0; first < PMX_PAGE; first += 8 * V) {
        const columns keys = {a.k, first, PMX_PAGE, load};
        const block acc = product(a.q, a.head_dim, keys, all, N, V);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++)
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) _mm256_storeu_ps(a.s + i * PMX_PAGE + first + 8 * j, acc.at[i][j]);
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

/* s becomes p, and factors [2][n_q]: how the pages before and this one weigh in what is so far. */
PMX_INLINE void weights(const pmx_attend a, float *factors) {
    for (int64_t i = 0; i < a.n_q; i++) {
        factors[i] = 1.0f;
        factors[a.n_q + i] = 0.0f;
        float page_m, page_l;
        softmax(a.s + i * PMX_PAGE, &page_m, &page_l, a.lo[i], a.hi[i]);
        if (a.lo[i] < a.hi[i]) join(a.m + i, a.l + i, page_m, page_l, factors + i, factors + a.n_q + i);
    }
}

/* N queries, and what they weigh a page's values with. */
typedef struct {
    float *o; /* [N][head_dim] */
    int64_t head_dim;
    const float *p;            /* [N][64] */
    const float *before, *now; /* [N]: factors of what o holds, and of the page */
    pmx_positions seen;
} weighing;

PMX_INLINE weighing weighing_of(const pmx_attend a, int64_t i, const float *factors, const int N) {
    return (weighing){a.o + i * a.head_dim, a.head_dim,          a.s + i * PMX_PAGE,
                      factors + i,          factors + a.n_q + i, pmx_positions_seen(a.lo + i, a.hi + i, N)};
}

/* o[i][d .. d + 8*V) = the weighted values, folded into what is there. Masked positions have p = 0
 * and add nothing. */
PMX_INLINE void weigh(const weighing w, int64_t d, const columns values, const int N, const int V) {
    const block acc = product(w.p, PMX_PAGE, values, w.seen, N, V);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) {
            float *to = w.o + i * w.head_dim + d + 8 * j;
            const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_broadcast_ss(w.before + i));
            _mm256_storeu_ps(to, _mm256_fmadd_ps(acc.at[i][j], _mm256_broadcast_ss(w.now + i), old));
        }
}

PMX_INLINE void weigh_all(const weighing w, const void *v, const int N, load8 load) {
    const int V = width(N);
    columns values = {v, 0, w.head_dim, load};
    for (; values.at + 8 * V <= w.head_dim; values.at += 8 * V) weigh(w, values.at, values, N, V);
    for (; values.at < w.head_dim; values.at += 8) weigh(w, values.at, values, N, 1);
}

/* First the keys for all queries, then the values: each in turn has L1 for itself. Few queries,
 * which wait for memory, read whole lines of the page. */
PMX_INLINE void attend(const pmx_attend a, load8 load) {
    float *factors = a.s + a.n_q * PMX_PAGE;
    int64_t i = 0;
    for (; i + 6 <= a.n_q; i += 6) scores(pmx_attend_from(a, i), 6, load);
    for (; i + 2 <= a.n_q; i += 2) scores(pmx_attend_from(a, i), 2, load);
    for (; i < a.n_q; i++) scores(pmx_attend_from(a, i), 1, load);
    weights(a, factors);
    i = 0;
    for (; i + 6 <= a.n_q; i += 6) weigh_all(weighing_of(a, i, factors, 6), a.v, 6, load);
    for (; i + 2 <= a.n_q; i += 2) weigh_all(weighing_of(a, i, factors, 2), a.v, 2, load);
    for (; i < a.n_q; i++) weigh_all(weighing_of(a, i, factors, 1), a.v, 1, load);
}

void pmx_avx2_attend_f32(const pmx_attend *a) { attend(*a, load8_f32); }

void pmx_avx2_attend_f16(const pmx_attend *a) { attend(*a, load8_f16); }

/* s[i][0..63] = scores of the first n queries, 16 positions at a time. */
PMX_INLINE void scores_q8_0(const pmx_attend a, const int n) {
    const uint8_t *k = a.k;
    const uint16_t *dk = pmx_q8_0_page_scales(k, a.head_dim);
    const __m256i ones = _mm256_set1_epi16(1);
    const int64_t n_blocks = a.head_dim / 32;
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
                        memcpy(&four, a.q8.q + i * a.head_dim + d, sizeof four);
                        const __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(four), key);
                        dot[i][j] = _mm256_add_epi32(dot[i][j], _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones));
                    }
                }
            }
            for (int j = 0; j < 2; j++) {
                const __m256 scale = load8_f16(dk, b * PMX_PAGE + half + 8 * j);
                for (int i = 0; i < n; i++) {
                    const __m256 d = _mm256_mul_ps(_mm256_broadcast_ss(a.q8.d + i * n_blocks + b), scale);
                    acc[i][j] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(dot[i][j]), acc[i][j]);
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 2; j++) _mm256_storeu_ps(a.s + i * PMX_PAGE + half + 8 * j, acc[i][j]);
    }
}

/* Values of q8_0 as they are loaded, without their scale. */
PMX_INLINE __m256 load8_i8(const void *page, int64_t at) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)((const int8_t *)page + at))));
}

/* As weigh, for 32 values of q8_0 that share the scales dv: first p times the scales, position by
 * position. */
PMX_INLINE void weigh_q8_0(weighing w, int64_t d, const uint16_t *dv, columns values, const int N) {
    float scaled[6][PMX_PAGE];
    for (int j = 0; j < PMX_PAGE; j += 8) {
        const __m256 scale = load8_f16(dv, j);
        for (int i = 0; i < N; i++)
            _mm256_storeu_ps(scaled[i] + j, _mm256_mul_ps(_mm256_loadu_ps(w.p + i * PMX_PAGE + j), scale));
    }
    w.p = scaled[0];
    const int V = N > 2 ? 2 : 4;
    for (int c = 0; c < 32; c += 8 * V, values.at += 8 * V) weigh(w, d + c, values, N, V);
}

void pmx_avx2_attend_q8_0(const pmx_attend *all) {
    const pmx_attend a = *all;
    float *factors = a.s + a.n_q * PMX_PAGE;
    for (int64_t i = 0; i < a.n_q; i += 2) {
        if (i + 2 <= a.n_q)
            scores_q8_0(pmx_attend_from(a, i), 2);
        else
            scores_q8_0(pmx_attend_from(a, i), 1);
    }
    weights(a, factors);
    for (int64_t d = 0; d < a.head_dim; d += 32) {
        const uint16_t *dv = pmx_q8_0_page_scales(a.v, a.head_dim) + d / 32 * PMX_PAGE;
        const columns values = {a.v, d, a.head_dim, load8_i8};
        int64_t i = 0;
        if (a.n_q >= 12) {
            float once[PMX_PAGE * 32]; /* widened for all queries */
            for (int64_t j = 0; j < PMX_PAGE; j++)
                for (int64_t c = 0; c < 32; c += 8)
                    _mm256_storeu_ps(once + 32 * j + c, load8_i8(a.v, j * a.head_dim + d + c));
            const columns widened = {once, 0, 32, load8_f32};
            for (; i + 6 <= a.n_q; i += 6) weigh_q8_0(weighing_of(a, i, factors, 6), d, dv, widened, 6);
        }
        for (; i + 4 <= a.n_q; i += 4) weigh_q8_0(weighing_of(a, i, factors, 4), d, dv, values, 4);
        for (; i < a.n_q; i++) weigh_q8_0(weighing_of(a, i, factors, 1), d, dv, values, 1);
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
