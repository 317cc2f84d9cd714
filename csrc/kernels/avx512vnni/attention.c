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

typedef struct {
    __m512 at[12][4];
} block;

/* at[i][0 .. V) = sum of a[i][j] * b[at + j*ldb ..] over begin <= j < end, each a chain in
 * ascending order; N rows i. */
PMX_INLINE block product(const float *a, int64_t lda, const int N, const int V, const void *b, int64_t at, int64_t ldb,
                         int64_t begin, int64_t end, load16 load) {
    block acc;
#pragma GCC unroll 12
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc.at[i][v] = _mm512_setzero_ps();
    for (int64_t j = begin; j < end; j++) {
        __m512 y[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) y[v] = load(b, at + j * ldb + 16 * v);
#pragma GCC unroll 12
        for (int i = 0; i < N; i++) {
            const __m512 x = _mm512_set1_ps(a[i * lda + j]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[i][v] = _mm512_fmadd_ps(x, y[v], acc.at[i][v]);
        }
    }
    return acc;
}

/* s[i][0..63] = scores of N queries. */
PMX_INLINE void scores(float *s, const float *q, const int N, int64_t head_dim, const void *k, load16 load) {
    const block acc = product(q, head_dim, N, 4, k, 0, PMX_PAGE, 0, head_dim, load);
#pragma GCC unroll 12
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(s + i * PMX_PAGE + 16 * j, acc.at[i][j]);
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

/* p, and how the page and those before it weigh in what is so far: factors is [2][n_q], of the
 * pages before and of this one. */
PMX_INLINE void weights(float *m, float *l, float *s, float *factors, int64_t n_q, const int32_t *lo,
                        const int32_t *hi) {
    float *page_m = factors, *page_l = factors + n_q;
    for (int64_t i = 0; i < n_q; i++)
        page_m[i] = largest(s + i * PMX_PAGE, visible(lo[i], hi[i])); /* apart: shorter chains */
    for (int64_t i = 0; i < n_q; i++) page_l[i] = softmax(s + i * PMX_PAGE, page_m[i], visible(lo[i], hi[i]));
    for (int64_t i = 0; i < n_q; i += 16) {
        const __mmask16 some = n_q - i < 16 ? (__mmask16)((1u << (n_q - i)) - 1) : 0xffff;
        const __mmask16 seen = _mm512_mask_cmplt_epi32_mask(some, _mm512_maskz_loadu_epi32(some, lo + i),
                                                            _mm512_maskz_loadu_epi32(some, hi + i));
        const __m512 old_m = _mm512_maskz_loadu_ps(some, m + i), new_m = _mm512_maskz_loadu_ps(some, page_m + i);
        const __m512 old_l = _mm512_maskz_loadu_ps(some, l + i), new_l = _mm512_maskz_loadu_ps(some, page_l + i);
        const __m512 top = _mm512_max_ps(old_m, new_m);
        const __m512 a = exp16(0xffff, _mm512_sub_ps(old_m, top)), b = exp16(0xffff, _mm512_sub_ps(new_m, top));
        _mm512_mask_storeu_ps(m + i, seen, top);
        _mm512_mask_storeu_ps(l + i, seen, _mm512_fmadd_ps(new_l, b, _mm512_mul_ps(old_l, a)));
        _mm512_mask_storeu_ps(factors + i, some, _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), seen, a));
        _mm512_mask_storeu_ps(factors + n_q + i, some, _mm512_maskz_mov_ps(seen, b));
    }
}

/* o[i][0 .. 16*V) = the values weighted by p over the positions seen, folded into what is there.
 * Masked positions have p = 0 and add nothing. */
PMX_INLINE void weigh(float *o, int64_t head_dim, const float *p, const float *before, const float *now, const int N,
                      const int V, const void *v, int64_t at, int64_t ldv, pmx_positions seen, load16 load) {
    const block acc = product(p, PMX_PAGE, N, V, v, at, ldv, seen.first, seen.end, load);
#pragma GCC unroll 12
    for (int i = 0; i < N; i++) {
        const __m512 a = _mm512_set1_ps(before[i]), b = _mm512_set1_ps(now[i]);
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) {
            float *to = o + i * head_dim + 16 * j;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(acc.at[i][j], b, _mm512_mul_ps(_mm512_loadu_ps(to), a)));
        }
    }
}

/* The last 8 of a head_dim that is no multiple of 16, one query. */
PMX_INLINE void weigh_tail(float *o, const float *p, float before, float now, int64_t head_dim, const void *v,
                           int64_t at, pmx_positions seen, load8 load) {
    __m256 acc = _mm256_setzero_ps();
    for (int32_t position = seen.first; position < seen.end; position++)
        acc = _mm256_fmadd_ps(_mm256_set1_ps(p[position]), load(v, position * head_dim + at), acc);
    const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(o), _mm256_set1_ps(before));
    _mm256_storeu_ps(o, _mm256_fmadd_ps(acc, _mm256_set1_ps(now), old));
}

PMX_INLINE void weigh_all(float *o, const float *p, const float *before, const float *now, const int N,
                          int64_t head_dim, const void *v, const int32_t *lo, const int32_t *hi, load16 load,
                          load8 load_tail) {
    const pmx_positions seen = pmx_positions_seen(lo, hi, N);
    int64_t d = 0;
    for (; d + 64 <= head_dim; d += 64) weigh(o + d, head_dim, p, before, now, N, 4, v, d, head_dim, seen, load);
    for (; d + 16 <= head_dim; d += 16) weigh(o + d, head_dim, p, before, now, N, 1, v, d, head_dim, seen, load);
    for (int i = 0; i < N && d < head_dim; i++)
        weigh_tail(o + i * head_dim + d, p + i * PMX_PAGE, before[i], now[i], head_dim, v, d, seen, load_tail);
}

/* Calls F(N) for queries i .. i+N-1 until all n are done. */
#define IN_BLOCKS(n, F)                                                                                                \
    for (; i + 6 <= (n); i += 6) F(6);                                                                                 \
    for (; i + 4 <= (n); i += 4) F(4);                                                                                 \
    for (; i + 2 <= (n); i += 2) F(2);                                                                                 \
    for (; i < (n); i++) F(1);

/* First the keys for all queries, then the values: each in turn has L1 for itself. */
PMX_INLINE void attend(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                       const void *k, const void *v, const int32_t *lo, const int32_t *hi, load16 load,
                       load8 load_tail) {
    float *before = s + n_q * PMX_PAGE, *now = before + n_q;
#define SCORES(N) scores(s + i * PMX_PAGE, q + i * head_dim, N, head_dim, k, load)
#define WEIGH(N)                                                                                                       \
    weigh_all(o + i * head_dim, s + i * PMX_PAGE, before + i, now + i, N, head_dim, v, lo + i, hi + i, load, load_tail)
    int64_t i = 0;
    IN_BLOCKS(n_q, SCORES)
    weights(m, l, s, before, n_q, lo, hi);
    i = 0;
    IN_BLOCKS(n_q, WEIGH)
}

void pmx_avx512vnni_attend_f32(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                               const float *k, const float *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load16_f32, load8_f32);
}

void pmx_avx512vnni_attend_f16(float *m, float *l, float *o, float *s, const float *q, int64_t n_q, int64_t head_dim,
                               const uint16_t *k, const uint16_t *v, const int32_t *lo, const int32_t *hi) {
    attend(m, l, o, s, q, n_q, head_dim, k, v, lo, hi, load16_f16, load8_f16);
}

/* s[i][0..63] = scores of N queries, V registers of 16 positions at a time. */
PMX_INLINE void scores_q8_0(float *s, const int8_t *q, const float *dq, const int32_t *sums, const int N, const int V,
                            int64_t head_dim, const uint8_t *k) {
    const uint16_t *dk = pmx_q8_0_page_scales(k, head_dim);
    const __m512i offset = _mm512_set1_epi8(-128);
    const int64_t n_blocks = head_dim / 32;
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
                for (int j = 0; j < V; j++) dot[i][j] = _mm512_set1_epi32(-128 * sums[i * n_blocks + b]);
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
                    memcpy(&four, q + i * head_dim + d, sizeof four);
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
                    const __m512 d = _mm512_mul_ps(_mm512_set1_ps(dq[i * n_blocks + b]), scale);
                    acc[i][j] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot[i][j]), acc[i][j]);
                }
            }
        }
#pragma GCC unroll 6
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) _mm512_storeu_ps(s + i * PMX_PAGE + first + 16 * j, acc[i][j]);
    }
}

/* Values of q8_0 as they are loaded, without their scale. */
PMX_INLINE __m512 load16_i8(const void *page, int64_t at) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)((const int8_t *)page + at))));
}

/* As weigh, for 32 values of q8_0 that share the scales dv: first p times the scales, position by
 * position. */
PMX_INLINE void weigh_q8_0(float *o, int64_t head_dim, const float *p, const float *before, const float *now,
                           const int N, const uint16_t *dv, const void *v, int64_t at, int64_t ldv, pmx_positions seen,
                           load16 load) {
    float scaled[12][PMX_PAGE];
#pragma GCC unroll 4
    for (int j = 0; j < PMX_PAGE; j += 16) {
        const __m512 scale = load16_f16(dv, j);
#pragma GCC unroll 12
        for (int i = 0; i < N; i++)
            _mm512_storeu_ps(scaled[i] + j, _mm512_mul_ps(_mm512_loadu_ps(p + i * PMX_PAGE + j), scale));
    }
    weigh(o, head_dim, scaled[0], before, now, N, 2, v, at, ldv, seen, load);
}

void pmx_avx512vnni_attend_q8_0(float *m, float *l, float *o, float *s, const pmx_quantized *q, int64_t n_q,
                                int64_t head_dim, const uint8_t *k, const uint8_t *v, const int32_t *lo,
                                const int32_t *hi) {
    float *before = s + n_q * PMX_PAGE, *now = before + n_q;
    const int64_t n_blocks = head_dim / 32;
#define SCORES_Q8_0(N)                                                                                                 \
    scores_q8_0(s + i * PMX_PAGE, q->q + i * head_dim, q->d + i * n_blocks, q->sums + i * n_blocks, N, N == 1 ? 4 : 2, \
                head_dim, k)
    int64_t i = 0;
    IN_BLOCKS(n_q, SCORES_Q8_0)
    weights(m, l, s, before, n_q, lo, hi);
#define WEIGH_Q8_0(N, V, AT, LDV, LOAD)                                                                                \
    weigh_q8_0(o + i * head_dim + d, head_dim, s + i * PMX_PAGE, before + i, now + i, N, dv, V, AT, LDV,               \
               pmx_positions_seen(lo + i, hi + i, N), LOAD)
    for (int64_t d = 0; d < head_dim; d += 32) {
        const uint16_t *dv = pmx_q8_0_page_scales(v, head_dim) + d / 32 * PMX_PAGE;
        i = 0;
        if (n_q >= 12) {
            float widened[PMX_PAGE * 32]; /* once for all queries */
            for (int j = 0; j < 2 * PMX_PAGE; j++)
                _mm512_storeu_ps(widened + 16 * j, load16_i8(v, j / 2 * head_dim + d + j % 2 * 16));
            for (; i + 12 <= n_q; i += 12) WEIGH_Q8_0(12, widened, 0, 32, load16_f32);
        }
        for (; i + 4 <= n_q; i += 4) WEIGH_Q8_0(4, v, d, head_dim, load16_i8);
        for (; i < n_q; i++) WEIGH_Q8_0(1, v, d, head_dim, load16_i8);
    }
}

PMX_AVX512VNNI_END
#endif
