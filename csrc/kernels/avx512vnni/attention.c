/* attention.c: one cache page, 16 lanes. Scores and weighted values are products of a few queries
 * with the page, whose lanes are positions, then d: 6 x 4 accumulators with 4 loads and 6
 * broadcasts for 24 multiply-adds, which limit it. First the scores of all queries, then their
 * weights, then the values, whose accumulators are folded into the pages before as they are stored.
 * The sums of p keep the contract's eight partials: each register is folded as two halves in order.
 *
 * Keys of q8_0 lie as [d/4][64][4], so that vpdpbusd leaves each position's sum in its own lane.
 * Its unsigned operand is the key plus 128, shared by the queries; the sums start at -128 times the
 * sum of the query's block. */
#if defined(__x86_64__)
#include <string.h>

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

/* exp where x is visible, 0 elsewhere. x is at most 0 or NaN, as a score minus the largest is. */
PMX_INLINE __m512 exp16(__mmask16 visible, __m512 x) {
    const __mmask16 kept = _mm512_mask_cmp_ps_mask(visible, x, _mm512_set1_ps(PMX_EXP_LO), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(PMX_EXP_LOG2E)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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
    return _mm512_maskz_scalef_ps(kept, p, n);
}

/* Columns of a page: row j begins at element at + j * stride. */
typedef struct {
    const void *page;
    int64_t at, stride;
    load16 load;
} columns;

typedef struct {
    __m512 at[12][4];
} block;

/* at[i][0 .. V) = sum of a[i*lda + j] * row j of b over the rows, each a chain in ascending order,
 * for N rows i of a. */
PMX_INLINE block product(const float *a, int64_t lda, const columns b, pmx_positions rows, const int N, const int V) {
    block acc;
#pragma GCC unroll 12
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc.at[i][v] = _mm512_setzero_ps();
    for (int64_t j = rows.first; j < rows.end; j++) {
        __m512 y[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) y[v] = b.load(b.page, b.at + j * b.stride + 16 * v);
#pragma GCC unroll 12
        for (int i = 0; i < N; i++) {
            const __m512 x = _mm512_set1_ps(a[i * lda + j]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[i][v] = _mm512_fmadd_ps(x, y[v], acc.at[i][v]);
        }
    }
    return acc;
}

/* s[i][0..63] = scores of the first N queries. */
PMX_INLINE void scores(const pmx_attend a, const int N, load16 load) {
    const columns keys = {a.k, 0, PMX_PAGE, load};
    const pmx_positions all = {0, (int32_t)a.head_dim};
    const block acc = product(a.q, a.head_dim, keys, all, N, 4);
#pragma GCC unroll 12
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(a.s + i * PMX_PAGE + 16 * j, acc.at[i][j]);
}

/* The positions of lo .. hi-1 as bits. */
PMX_INLINE uint64_t visible(int32_t lo, int32_t hi) {
    const uint64_t below_hi = hi >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << hi) - 1;
    return lo < hi ? below_hi & (~UINT64_C(0) << lo) : 0;
}

PMX_INLINE float largest(const float *s, uint64_t seen) {
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (int i = 0; i < 4; i++)
        most = _mm512_mask_max_ps(most, (__mmask16)(seen >> 16 * i), most, _mm512_loadu_ps(s + 16 * i));
    return _mm512_reduce_max_ps(most);
}

/* s becomes p; returns its sum. */
PMX_INLINE float softmax(float *s, float m, uint64_t seen) {
    const __m512 top = _mm512_set1_ps(m);
    __m256 sums = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        const __m512 p = exp16((__mmask16)(seen >> 16 * i), _mm512_sub_ps(_mm512_loadu_ps(s + 16 * i), top));
        _mm512_storeu_ps(s + 16 * i, p);
        sums = _mm256_add_ps(sums, _mm512_castps512_ps256(p));
        sums = _mm256_add_ps(sums, _mm512_extractf32x8_ps(p, 1));
    }
    return sum8_tree(sums);
}

/* s becomes p, and factors [2][n_q]: how the pages before and this one weigh in what is so far. */
PMX_INLINE void weights(const pmx_attend a, float *factors) {
    float *page_m = factors, *page_l = factors + a.n_q;
    /* Two loops: shorter chains. */
    for (int64_t i = 0; i < a.n_q; i++) page_m[i] = largest(a.s + i * PMX_PAGE, visible(a.lo[i], a.hi[i]));
    for (int64_t i = 0; i < a.n_q; i++) page_l[i] = softmax(a.s + i * PMX_PAGE, page_m[i], visible(a.lo[i], a.hi[i]));
    for (int64_t i = 0; i < a.n_q; i += 16) {
        const __mmask16 some = a.n_q - i < 16 ? (__mmask16)((1u << (a.n_q - i)) - 1) : 0xffff;
        const __mmask16 seen = _mm512_mask_cmplt_epi32_mask(some, _mm512_maskz_loadu_epi32(some, a.lo + i),
                                                            _mm512_maskz_loadu_epi32(some, a.hi + i));
        const __m512 old_m = _mm512_maskz_loadu_ps(some, a.m + i), new_m = _mm512_maskz_loadu_ps(some, page_m + i);
        const __m512 old_l = _mm512_maskz_loadu_ps(some, a.l + i), new_l = _mm512_maskz_loadu_ps(some, page_l + i);
        const __m512 top = _mm512_max_ps(old_m, new_m);
        const __m512 before = exp16(0xffff, _mm512_sub_ps(old_m, top)), now = exp16(0xffff, _mm512_sub_ps(new_m, top));
        _mm512_mask_storeu_ps(a.m + i, seen, top);
        _mm512_mask_storeu_ps(a.l + i, seen, _mm512_fmadd_ps(new_l, now, _mm512_mul_ps(old_l, before)));
        _mm512_mask_storeu_ps(factors + i, some, _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), seen, before));
        _mm512_mask_storeu_ps(factors + a.n_q + i, some, _mm512_maskz_mov_ps(seen, now));
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

/* o[i][d .. d + 16*V) = the weighted values, folded into what is there. Masked positions have p = 0
 * and add nothing. */
PMX_INLINE void weigh(const weighing w, int64_t d, const columns values, const int N, const int V) {
    const block acc = product(w.p, PMX_PAGE, values, w.seen, N, V);
#pragma GCC unroll 12
    for (int i = 0; i < N; i++) {
        const __m512 a = _mm512_set1_ps(w.before[i]), b = _mm512_set1_ps(w.now[i]);
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) {
            float *to = w.o + i * w.head_dim + d + 16 * j;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(acc.at[i][j], b, _mm512_mul_ps(_mm512_loadu_ps(to), a)));
        }
    }
}

/* Of query i the last 8 of a head_dim that is no multiple of 16. */
PMX_INLINE void weigh_tail(const weighing w, int i, int64_t d, const void *v, load8 load) {
    const float *p = w.p + i * PMX_PAGE;
    float *o = w.o + i * w.head_dim + d;
    __m256 acc = _mm256_setzero_ps();
    for (int32_t position = w.seen.first; position < w.seen.end; position++)
        acc = _mm256_fmadd_ps(_mm256_set1_ps(p[position]), load(v, position * w.head_dim + d), acc);
    const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(o), _mm256_set1_ps(w.before[i]));
    _mm256_storeu_ps(o, _mm256_fmadd_ps(acc, _mm256_set1_ps(w.now[i]), old));
}

PMX_INLINE void weigh_all(const weighing w, const void *v, const int N, load16 load, load8 load_tail) {
    columns values = {v, 0, w.head_dim, load};
    for (; values.at + 64 <= w.head_dim; values.at += 64) weigh(w, values.at, values, N, 4);
    for (; values.at + 16 <= w.head_dim; values.at += 16) weigh(w, values.at, values, N, 1);
    for (int i = 0; i < N && values.at < w.head_dim; i++) weigh_tail(w, i, values.at, v, load_tail);
}

/* First the keys for all queries, then the values: each in turn has L1 for itself. */
PMX_INLINE void attend(const pmx_attend a, load16 load, load8 load_tail) {
    float *factors = a.s + a.n_q * PMX_PAGE;
    int64_t i = 0;
    for (; i + 6 <= a.n_q; i += 6) scores(pmx_attend_from(a, i), 6, load);
    for (; i + 4 <= a.n_q; i += 4) scores(pmx_attend_from(a, i), 4, load);
    for (; i + 2 <= a.n_q; i += 2) scores(pmx_attend_from(a, i), 2, load);
    for (; i < a.n_q; i++) scores(pmx_attend_from(a, i), 1, load);
    weights(a, factors);
    i = 0;
    for (; i + 6 <= a.n_q; i += 6) weigh_all(weighing_of(a, i, factors, 6), a.v, 6, load, load_tail);
    for (; i + 4 <= a.n_q; i += 4) weigh_all(weighing_of(a, i, factors, 4), a.v, 4, load, load_tail);
    for (; i + 2 <= a.n_q; i += 2) weigh_all(weighing_of(a, i, factors, 2), a.v, 2, load, load_tail);
    for (; i < a.n_q; i++) weigh_all(weighing_of(a, i, factors, 1), a.v, 1, load, load_tail);
}

void pmx_avx512vnni_attend_f32(const pmx_attend *a) { attend(*a, load16_f32, load8_f32); }

void pmx_avx512vnni_attend_f16(const pmx_attend *a) { attend(*a, load16_f16, load8_f16); }

/* s[i][0..63] = scores of the first N queries, V registers of 16 positions at a time. */
PMX_INLINE void scores_q8_0(const pmx_attend a, const int N, const int V) {
    const uint8_t *k = a.k;
    const uint16_t *dk = pmx_q8_0_page_scales(k, a.head_dim);
    const __m512i offset = _mm512_set1_epi8(-128);
    const int64_t n_blocks = a.head_dim / 32;
    for (int first = 0; first < PMX_PAGE; first += 16 * V) {
        __m512 acc[6][4];
#pragma GCC unroll 6
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) acc[i][j] = _mm512_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            __m512i dot[6][4];
#pragma GCC unroll 6
            for (int i = 0; i < N; i++)
#pragma GCC unroll 4
                for (int j = 0; j < V; j++) dot[i][j] = _mm512_set1_epi32(-128 * a.q8.sums[i * n_blocks + b]);
#pragma GCC unroll 8
            for (int step = 0; step < 8; step++) {
                const int64_t d = 32 * b + 4 * step;
                __m512i key[4];
#pragma GCC unroll 4
                for (int j = 0; j < V; j++)
                    key[j] = _mm512_xor_si512(_mm512_loadu_si512(k + d * PMX_PAGE + 4 * (first + 16 * j)), offset);
#pragma GCC unroll 6
                for (int i = 0; i < N; i++) {
                    int32_t four;
                    memcpy(&four, a.q8.q + i * a.head_dim + d, sizeof four);
#pragma GCC unroll 4
                    for (int j = 0; j < V; j++)
                        dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], key[j], _mm512_set1_epi32(four));
                }
            }
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) {
                const __m512 scale = load16_f16(dk, b * PMX_PAGE + first + 16 * j);
#pragma GCC unroll 6
                for (int i = 0; i < N; i++) {
                    const __m512 d = _mm512_mul_ps(_mm512_set1_ps(a.q8.d[i * n_blocks + b]), scale);
                    acc[i][j] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot[i][j]), acc[i][j]);
                }
            }
        }
#pragma GCC unroll 6
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) _mm512_storeu_ps(a.s + i * PMX_PAGE + first + 16 * j, acc[i][j]);
    }
}

/* Values of q8_0 as they are loaded, without their scale. */
PMX_INLINE __m512 load16_i8(const void *page, int64_t at) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)((const int8_t *)page + at))));
}

/* As weigh, for 32 values of q8_0 that share the scales dv: first p times the scales, position by
 * position. */
PMX_INLINE void weigh_q8_0(weighing w, int64_t d, const uint16_t *dv, const columns values, const int N) {
    float scaled[12][PMX_PAGE];
#pragma GCC unroll 4
    for (int j = 0; j < PMX_PAGE; j += 16) {
        const __m512 scale = load16_f16(dv, j);
#pragma GCC unroll 12
        for (int i = 0; i < N; i++)
            _mm512_storeu_ps(scaled[i] + j, _mm512_mul_ps(_mm512_loadu_ps(w.p + i * PMX_PAGE + j), scale));
    }
    w.p = scaled[0];
    weigh(w, d, values, N, 2);
}

void pmx_avx512vnni_attend_q8_0(const pmx_attend *all) {
    const pmx_attend a = *all;
    float *factors = a.s + a.n_q * PMX_PAGE;
    int64_t i = 0;
    for (; i + 6 <= a.n_q; i += 6) scores_q8_0(pmx_attend_from(a, i), 6, 2);
    for (; i + 4 <= a.n_q; i += 4) scores_q8_0(pmx_attend_from(a, i), 4, 2);
    for (; i + 2 <= a.n_q; i += 2) scores_q8_0(pmx_attend_from(a, i), 2, 2);
    for (; i < a.n_q; i++) scores_q8_0(pmx_attend_from(a, i), 1, 4);
    weights(a, factors);
    for (int64_t d = 0; d < a.head_dim; d += 32) {
        const uint16_t *dv = pmx_q8_0_page_scales(a.v, a.head_dim) + d / 32 * PMX_PAGE;
        const columns values = {a.v, d, a.head_dim, load16_i8};
        i = 0;
        if (a.n_q >= 12) {
            float once[PMX_PAGE * 32]; /* widened for all queries */
            for (int j = 0; j < 2 * PMX_PAGE; j++)
                _mm512_storeu_ps(once + 16 * j, load16_i8(a.v, j / 2 * a.head_dim + d + j % 2 * 16));
            const columns widened = {once, 0, 32, load16_f32};
            for (; i + 12 <= a.n_q; i += 12) weigh_q8_0(weighing_of(a, i, factors, 12), d, dv, widened, 12);
        }
        for (; i + 4 <= a.n_q; i += 4) weigh_q8_0(weighing_of(a, i, factors, 4), d, dv, values, 4);
        for (; i < a.n_q; i++) weigh_q8_0(weighing_of(a, i, factors, 1), d, dv, values, 1);
    }
}

PMX_AVX512VNNI_END
#endif
