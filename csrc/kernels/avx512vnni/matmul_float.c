/* matmul_float.c: f32, f16 and bf16 weights. The contract's eight partial sums are half a register:
 * each holds those of two rows, and the activations are broadcast to both halves.
 *
 * A tile is 8 rows x 6 tokens: 24 accumulators, 4 registers of weights, 1 of activations; 14 loads
 * serve 24 fma. mat takes 12 tokens at a time, whose activations (700 KB of 14336 columns) stay in
 * L2 while all rows pass by: of long rows 24 tokens are slower. Weights unpacked to a strip of f32,
 * with blocks of columns, gain at most 5%. vec is a tile of one token. Eight row streams defeat the
 * hardware prefetchers, so the first tile that meets a row prefetches the next 8 rows linearly: 20
 * to 50% faster with up to 6 tokens, but 15% slower in every tile. */
#if defined(__x86_64__)
#include "avx512vnni.h"

enum { ROWS = 8, PAIRS = ROWS / 2, TOKENS = 6, GROUP = 2 * TOKENS };

PMX_AVX512VNNI_BEGIN

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    /* Eight columns of two rows; columns whose bit is not set are 0 and not read. */
    __m512 (*load_pair)(const uint8_t *a, const uint8_t *b, __mmask8 columns);
    int64_t size; /* of an element in bytes */
} type_float;

PMX_INLINE __m512 load_pair_f32(const uint8_t *a, const uint8_t *b, __mmask8 columns) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_maskz_loadu_ps(columns, a)),
                              _mm256_maskz_loadu_ps(columns, b), 1);
}
PMX_INLINE __m256i load_words(const uint8_t *a, const uint8_t *b, __mmask8 columns) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_maskz_loadu_epi16(columns, a)),
                                   _mm_maskz_loadu_epi16(columns, b), 1);
}
PMX_INLINE __m512 load_pair_f16(const uint8_t *a, const uint8_t *b, __mmask8 columns) {
    return _mm512_cvtph_ps(load_words(a, b, columns));
}
PMX_INLINE __m512 load_pair_bf16(const uint8_t *a, const uint8_t *b, __mmask8 columns) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(a, b, columns)), 16));
}

/* The contract's tree over the eight partial sums of each of 8 rows. */
PMX_INLINE __m256 sum8_trees(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 low =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)); /* 128-bit lane i: row i */
    const __m512 high =
        _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd)); /* row i + 4 */
    const __m512d x = _mm512_castps_pd(low), y = _mm512_castps_pd(high);
    const __m512 two =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    const __m512 sums = _mm512_add_ps(two, _mm512_movehdup_ps(two)); /* 128-bit lane i: row i, -, row i + 4, - */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums));
}

/* Columns i .. i + 7 of 8 rows times T tokens. */
PMX_INLINE void step(__m512 (*acc)[PAIRS], const pmx_product *p, const float *const *x, int64_t i, __mmask8 columns,
                     const int T, const type_float F) {
    __m512 rows[PAIRS];
#pragma GCC unroll 4
    for (int k = 0; k < PAIRS; k++)
        rows[k] = F.load_pair(p->w + 2 * k * p->row_bytes + i * F.size, p->w + (2 * k + 1) * p->row_bytes + i * F.size,
                              columns);
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
        const __m512 v = _mm512_broadcast_f32x8(_mm256_maskz_loadu_ps(columns, x[t] + i));
#pragma GCC unroll 4
        for (int k = 0; k < PAIRS; k++) acc[t][k] = _mm512_fmadd_ps(v, rows[k], acc[t][k]);
    }
}

/* The first n_rows of 8 rows x T tokens; T is a constant where this is inlined. ahead: the next 8
 * rows are prefetched. */
PMX_INLINE void tile(const pmx_product p, int64_t n_rows, const int T, int ahead, const pmx_prefetch hint,
                     const type_float F) {
    const int64_t n = p.acts->cols, whole = n - n % 8;
    const char *next = (const char *)p.w + ROWS * p.row_bytes;
    const float *x[TOKENS];
    __m512 acc[TOKENS][PAIRS];
    for (int t = 0; t < T; t++) x[t] = p.acts->x + p.tokens[t] * n;
#pragma GCC unroll 6
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int k = 0; k < PAIRS; k++) acc[t][k] = _mm512_setzero_ps();
    for (int64_t i = 0; i < whole; i += 8) {
        for (int64_t line = 0; ahead && line < 8 * ROWS * F.size; line += 64)
            pmx_prefetch_line(next + i * ROWS * F.size + line, hint);
        step(acc, &p, x, i, 0xff, T, F);
    }
    if (whole < n) step(acc, &p, x, whole, (__mmask8)((1 << (n - whole)) - 1), T, F);
#pragma GCC unroll 6
    for (int t = 0; t < T; t++)
        _mm256_mask_storeu_ps(p.y + t * p.ldy, (__mmask8)((1 << n_rows) - 1),
                              sum8_trees(acc[t][0], acc[t][1], acc[t][2], acc[t][3]));
}

/* n_tokens <= 6. */
PMX_INLINE void rows8(const pmx_product p, int64_t n_rows, int64_t n_tokens, int ahead, const pmx_prefetch hint,
                      const type_float F) {
    switch (n_tokens) {
    case 1: tile(p, n_rows, 1, ahead, hint, F); return;
    case 2: tile(p, n_rows, 2, ahead, hint, F); return;
    case 3: tile(p, n_rows, 3, ahead, hint, F); return;
    case 4: tile(p, n_rows, 4, ahead, hint, F); return;
    case 5: tile(p, n_rows, 5, ahead, hint, F); return;
    default: tile(p, n_rows, 6, ahead, hint, F); return;
    }
}

/* Rows that do not make 8 go one by one: eight times the same row, and one result is kept. */
PMX_INLINE void mat(const pmx_product p, const pmx_prefetch hint, const type_float F) {
    for (int64_t first = 0; first < p.n_tokens; first += GROUP) {
        const int64_t end = first + GROUP < p.n_tokens ? first + GROUP : p.n_tokens;
        for (int64_t r = 0, n; r < p.n_rows; r += n) {
            n = p.n_rows - r < ROWS ? 1 : ROWS;
            for (int64_t t = first; t < end; t += TOKENS) {
                pmx_product part = pmx_product_from(p, r, t);
                if (n < ROWS) part.row_bytes = 0;
                rows8(part, n, end - t < TOKENS ? end - t : TOKENS, t == 0, hint, F);
            }
        }
    }
}

PMX_INLINE void vec(pmx_product p, const pmx_prefetch hint, const type_float F) {
    p.n_tokens = 1; /* tells the compiler, which leaves the rest of mat out */
    mat(p, hint, F);
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    static const type_float T = {load_pair_##T, sizeof(pmx_block_##T)};                                                \
    void pmx_avx512vnni_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec, *p, T); }                                   \
    void pmx_avx512vnni_mat_##T(const pmx_product *p) { mat(*p, PMX_PREFETCH_NEAR, T); }

PMX_TYPES_F32(TYPE)

PMX_AVX512VNNI_END
#endif
