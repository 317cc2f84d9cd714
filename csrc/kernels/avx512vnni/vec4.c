/* vec4.c: one token times weights of 4-bit integers in blocks of 32 (q4_0, q4_1, iq4_nl), 16 rows x
 * 4 blocks at a time.
 *
 * A token's product must read weights as fast as memory gives them, some 40 GB/s a core: 144 bytes,
 * a block of 8 rows, in about 14 cycles. Here each row's four blocks are one register of nibbles,
 * block i in 128-bit lane i, so that a vpdpbusd of the low and one of the high nibbles leave four
 * partial sums a block, and 16 rows are reduced together: 44 vector operations for 64 blocks. The
 * f16 scales of 16 rows and 4 blocks are gathered by 30 more, not one by one. Blocks are multiples
 * of words, so word permutations (AVX-512BW) suffice. */
#if defined(__x86_64__)
#include <stddef.h>
#include <string.h>

#include "../avx2/blocks32.h"
#include "avx512vnni.h"

enum { ROWS = 16, BLOCKS = 4 };

/* What the kernel must know about a type; a constant where it is inlined. Blocks begin with the
 * scale, which a minimum may follow. */
typedef struct {
    int block_words, nibble_words; /* size of a block, and where its nibbles begin, in 16-bit words */
    int has_min, is_table;
    int32_t offset; /* subtracted from the integers */
} type4;

/* The activations of four blocks. */
typedef struct {
    __m512i low, high; /* elements 0..15 and 16..31 of each block */
    __m512i start;     /* -offset * sum, in the first lane of each block */
    const float *d;
    const int32_t *sums;
} acts4;

PMX_AVX512VNNI_BEGIN

/* Word 8*i + j is begin + i*step + j. */
PMX_INLINE __m512i word_pattern(const int begin, const int step) {
    const __m128i j = _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i out = _mm512_castsi128_si512(_mm_add_epi16(j, _mm_set1_epi16((int16_t)begin)));
    out = _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)(begin + step))), 1);
    out = _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)(begin + 2 * step))), 2);
    return _mm512_inserti32x4(out, _mm_add_epi16(j, _mm_set1_epi16((int16_t)(begin + 3 * step))), 3);
}

/* The first 64 bytes of n blocks, n <= 4, and what lies beyond them: nothing past the last block is
 * read. */
PMX_INLINE void load_blocks(__m512i *head, __m512i *tail, const uint8_t *row, const int64_t n, const type4 T) {
    const int64_t bytes = n * T.block_words * 2;
    if (n == BLOCKS) {
        *head = _mm512_loadu_si512(row);
        *tail = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(row + bytes - 16)));
    } else {
        *head = _mm512_maskz_loadu_epi8(bytes >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << bytes) - 1, row);
        *tail = _mm512_setzero_si512();
    }
}

/* Partial sums of a row: four in the lane of each block. */
PMX_INLINE __m512i dot_row(__m512i head, __m512i tail, const acts4 *x, const type4 T) {
    /* tail is words 32 .. of the permutation: the last 16 bytes of four blocks, which are the last
     * block's nibbles. */
    const __m512i index = _mm512_inserti32x4(word_pattern(T.nibble_words, T.block_words),
                                             _mm_setr_epi16(32, 33, 34, 35, 36, 37, 38, 39), 3);
    const __m512i packed = _mm512_permutex2var_epi16(head, index, tail);
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(packed, mask), high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    if (T.is_table) {
        const __m128i values = _mm_xor_si128(_mm_setr_epi8(PMX_IQ4_VALUES), _mm_set1_epi8(-128)); /* plus 128 */
        low = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), low);
        high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), high);
    }
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x->start, low, x->low), high, x->high);
}

/* Four rows' partial sums to sums: 128-bit lane i has block i, its lanes the rows. */
PMX_INLINE __m512i reduce4(const __m512i *p) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Transposes 4 x 4 lanes of 128 bits. */
PMX_INLINE void transpose_lanes(__m512i v[4]) {
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* The word at `at` of each block of 16 rows, widened from f16: scales[b] of 16 rows. */
PMX_INLINE void gather_scales(__m512 scales[BLOCKS], const __m512i heads[ROWS], const int at, const type4 T) {
    __m512i pairs[8], quads[4], eights[2];
    const int s = T.block_words;
    /* Rows 2i and 2i+1: words b0 b0' b1 b1' b2 b2' b3 b3'. */
    const __m512i two = _mm512_castsi128_si512(_mm_setr_epi16(
        (int16_t)at, (int16_t)(32 + at), (int16_t)(at + s), (int16_t)(32 + at + s), (int16_t)(at + 2 * s),
        (int16_t)(32 + at + 2 * s), (int16_t)(at + 3 * s), (int16_t)(32 + at + 3 * s)));
    for (int i = 0; i < 8; i++) pairs[i] = _mm512_permutex2var_epi16(heads[2 * i], two, heads[2 * i + 1]);
    /* Two pairs by dwords, then two quads by quadwords: block b of 8 rows is 128-bit lane b. */
    for (int i = 0; i < 4; i++)
        quads[i] = _mm512_inserti32x4(
            _mm512_castsi128_si512(
                _mm_unpacklo_epi32(_mm512_castsi512_si128(pairs[2 * i]), _mm512_castsi512_si128(pairs[2 * i + 1]))),
            _mm_unpackhi_epi32(_mm512_castsi512_si128(pairs[2 * i]), _mm512_castsi512_si128(pairs[2 * i + 1])), 1);
    for (int i = 0; i < 2; i++) {
        const __m512i low = _mm512_unpacklo_epi64(quads[2 * i], quads[2 * i + 1]),
                      high = _mm512_unpackhi_epi64(quads[2 * i], quads[2 * i + 1]);
        eights[i] = _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1); /* lanes: b0 b2 b1 b3 */
    }
    const __m512i first = _mm512_shuffle_i32x4(eights[0], eights[1], 0x88);  /* b0 b1 of rows 0..7, then of 8..15 */
    const __m512i second = _mm512_shuffle_i32x4(eights[0], eights[1], 0xdd); /* b2 b3 */
    const __m512i order = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
    const __m512i b01 = _mm512_permutexvar_epi64(order, first), b23 = _mm512_permutexvar_epi64(order, second);
    scales[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(b01));
    scales[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(b01, 1));
    scales[2] = _mm512_cvtph_ps(_mm512_castsi512_si256(b23));
    scales[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(b23, 1));
}

PMX_INLINE acts4 load_acts(const pmx_quantized token, int64_t b, const int64_t n, const type4 T) {
    const int8_t *q = token.q + b * PMX_BLOCK;
    acts4 x = {.d = token.d + b, .sums = token.sums + b};
    const __m512i first =
        n == BLOCKS ? _mm512_loadu_si512(q) : _mm512_maskz_loadu_epi64(n >= 2 ? 0xff : (__mmask8)(n * 0xf), q);
    const __m512i second =
        n == BLOCKS ? _mm512_loadu_si512(q + 64) : _mm512_maskz_loadu_epi64(n == 3 ? 0xf : 0, q + 64);
    x.low = _mm512_shuffle_i32x4(first, second, 0x88);
    x.high = _mm512_shuffle_i32x4(first, second, 0xdd);
    const __m128i offsets =
        _mm_mullo_epi32(_mm_maskz_loadu_epi32((__mmask8)((1u << n) - 1), x.sums), _mm_set1_epi32(-T.offset));
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0);
    x.start = _mm512_maskz_permutexvar_epi32(0x1111, spread, _mm512_castsi128_si512(offsets));
    return x;
}

/* acc of 16 rows += n blocks. next: what to prefetch meanwhile, a line a row, so that a few are
 * left to the hardware: all of them, or all at once, cost two cores more of a busy memory's
 * bandwidth than they gain. */
PMX_INLINE __m512 add_blocks(__m512 acc, const uint8_t *const *rows, int64_t at, const char *next, const acts4 *x,
                             const int64_t n, const pmx_prefetch hint, const type4 T) {
    __m512i heads[ROWS], sums[4];
    for (int g = 0; g < 4; g++) {
        __m512i p[4];
        for (int i = 0; i < 4; i++) {
            __m512i tail;
            pmx_prefetch_line(next + (4 * g + i) * 2 * T.block_words * BLOCKS, hint);
            __asm__ volatile("" ::: "memory"); /* the compiler would issue the prefetches of all rows at once */
            load_blocks(&heads[4 * g + i], &tail, rows[4 * g + i] + at, n, T);
            p[i] = dot_row(heads[4 * g + i], tail, x, T);
        }
        sums[g] = reduce4(p);
    }
    transpose_lanes(sums);
    __m512 scales[BLOCKS], mins[BLOCKS];
    gather_scales(scales, heads, 0, T);
    if (T.has_min) gather_scales(mins, heads, 1, T);
    for (int64_t b = 0; b < n; b++) {
        acc = _mm512_fmadd_ps(_mm512_mul_ps(scales[b], _mm512_set1_ps(x->d[b])), _mm512_cvtepi32_ps(sums[b]), acc);
        if (T.has_min) acc = _mm512_fmadd_ps(mins[b], _mm512_set1_ps(x->d[b] * (float)x->sums[b]), acc);
    }
    return acc;
}

PMX_INLINE void vec4(const pmx_product p, const pmx_prefetch hint, const type4 T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK, block_bytes = 2 * T.block_words;
    const pmx_quantized token = pmx_token_q32(p.acts, p.tokens[0], 0);
    for (int64_t r = 0; r < p.n_rows; r += ROWS) {
        const uint8_t *rows[ROWS];
        for (int i = 0; i < ROWS; i++) rows[i] = p.w + (r + i < p.n_rows ? r + i : p.n_rows - 1) * p.row_bytes;
        const char *next = (const char *)p.w + (r + ROWS) * p.row_bytes;
        __m512 acc = _mm512_setzero_ps();
        int64_t b = 0;
        for (; b + BLOCKS <= n_blocks; b += BLOCKS) {
            const acts4 x = load_acts(token, b, BLOCKS, T);
            acc = add_blocks(acc, rows, b * block_bytes, next + ROWS * b * block_bytes, &x, BLOCKS, hint, T);
        }
        if (b < n_blocks) {
            const acts4 x = load_acts(token, b, n_blocks - b, T);
            acc = add_blocks(acc, rows, b * block_bytes, next + ROWS * b * block_bytes, &x, n_blocks - b, hint, T);
        }
        const int64_t left = p.n_rows - r;
        _mm512_mask_storeu_ps(p.y + r, left >= ROWS ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1), acc);
    }
}

#define TYPE(T, ...)                                                                                                   \
    static const type4 T = {sizeof(pmx_block_##T) / 2, offsetof(pmx_block_##T, qs) / 2, __VA_ARGS__};                  \
    void pmx_avx512vnni_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec4, *p, T); }

TYPE(q4_0, .offset = 8)
TYPE(q4_1, .has_min = 1)
TYPE(iq4_nl, .is_table = 1, .offset = 128)

PMX_AVX512VNNI_END
#endif
