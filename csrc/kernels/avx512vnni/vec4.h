/* vec4.h: one token times weights of 4-bit integers in blocks of 32 (q4_0, q4_1, iq4_nl, mxfp4), 16 rows
 * x 4 blocks at a time.
 *
 * A token's product must read weights as fast as memory gives them, some 40 GB/s a core: 144 bytes,
 * a block of 8 rows, in about 14 cycles. Here each row's four blocks are one register of nibbles,
 * block i in 128-bit lane i, so that a vpdpbusd of the low and one of the high nibbles leave four
 * partial sums a block, and 16 rows are reduced together: 44 vector operations for 64 blocks. The
 * f16 scales of 16 rows and 4 blocks are gathered by 30 more, not one by one. Those of two rows are
 * taken out while these are read: 16 registers that are kept for it until the end took a fifth of
 * the time to store and load. Blocks are multiples of words, so word permutations (AVX-512BW)
 * suffice. Those of mxfp4 have 17 bytes: its nibbles are loaded block by block. Two loads of 64
 * bytes and a permutation of words took 1.3 times as long, since nearly every such load crosses a
 * line; the other types lose a seventh by block by block. VBMI permutes bytes. */
#ifndef PMX_AVX512VNNI_VEC4_H
#define PMX_AVX512VNNI_VEC4_H

#include <stddef.h>
#include <string.h>

#include "../avx2/kquants.h"
#include "avx512vnni.h"

enum { ROWS = 16, BLOCKS = 4 };

/* What the kernel must know about a type; a constant where it is inlined. Blocks begin with the
 * scale, which a minimum may follow. */
typedef struct {
    int block_bytes, nibbles_at; /* size of a block, and where its nibbles begin */
    __m128i (*table)(void);      /* of the integers plus the offset; NULL: nibbles are integers */
    int32_t offset;              /* subtracted from the integers */
    int has_min;
    int is_power; /* the scale is a byte, the exponent of a power of two; a block's size is odd */
    __m512i (*permute)(__m512i head, __m512i last); /* in load_nibbles4, of blocks of odd size, where there are
                                                       permutations of bytes */
} type4;

/* The activations of four blocks. */
typedef struct {
    __m512i low, high; /* elements 0..15 and 16..31 of each block */
    __m512i start;     /* -offset * sum, in the first lane of each block */
    const float *d;
    const int32_t *sums;
} acts4;

PMX_AVX512VNNI_BEGIN

/* The first n bytes at p, at most 64: nothing beyond is read. */
PMX_INLINE __m512i load_first(const uint8_t *p, const int64_t n) {
    if (n >= 64) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi8((UINT64_C(1) << n) - 1, p);
}

/* The nibbles of n blocks, n <= 4, one a 128-bit lane. head: the first 64 bytes of these. */
PMX_INLINE __m512i load_nibbles4(__m512i head, const uint8_t *row, const int64_t n, const type4 T) {
    const int size = T.block_bytes, at = T.nibbles_at;
    if (T.is_power && !T.permute) {
        __m512i v = _mm512_setzero_si512();
        for (int b = 0; b < BLOCKS; b++)
            if (b < n) v = _mm512_mask_broadcast_i32x4(v, (__mmask16)(0xf << 4 * b), load16(row + b * size + at));
        return v;
    }
    /* The last 16 bytes of four blocks are the last one's nibbles. */
    const __m512i last =
        n == BLOCKS ? _mm512_castsi128_si512(load16(row + BLOCKS * size - 16)) : _mm512_setzero_si512();
    if (T.permute) return T.permute(head, last);
    return _mm512_permutex2var_epi16(head, word_pattern(at / 2, (at + size) / 2, (at + 2 * size) / 2, 32), last);
}

/* Partial sums of a row: four in the lane of each block. */
PMX_INLINE __m512i dot_row(__m512i packed, const acts4 *x, const type4 T) {
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(packed, mask), high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    if (T.table) {
        const __m512i values = _mm512_broadcast_i32x4(T.table());
        low = _mm512_shuffle_epi8(values, low);
        high = _mm512_shuffle_epi8(values, high);
    }
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x->start, low, x->low), high, x->high);
}

/* Four rows' partial sums to sums: 128-bit lane i has block i, its lanes the rows. */
PMX_INLINE __m512i reduce4(const __m512i *p) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Powers of two as bf16, which is exact, of words that hold the exponent of an even block in the
 * first byte, that of an odd one in the second; odd ones are in the upper half. */
PMX_INLINE __m512i powers(__m512i words) {
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(8), 1);
    const __m512i e = _mm512_and_si512(_mm512_srlv_epi16(words, shifts), _mm512_set1_epi16(255));
    const __m512i normal = _mm512_slli_epi16(_mm512_sub_epi16(e, _mm512_set1_epi16(1)), 7);
    const __mmask32 small = _mm512_cmplt_epu16_mask(e, _mm512_set1_epi16(2));
    return _mm512_mask_sllv_epi16(normal, small, _mm512_set1_epi16(0x20), e);
}

PMX_INLINE __m512 widen(__m256i words, const type4 T) {
    return T.is_power ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))
                      : _mm512_cvtph_ps(words);
}

/* Two rows' words b0 b0' b1 b1' b2 b2' b3 b3', the number in word `at` of each block. */
PMX_INLINE __m128i pair_scales(const __m512i head0, const __m512i head1, const int at, const type4 T) {
    const int16_t w0 = (int16_t)at, w1 = (int16_t)(at + T.block_bytes / 2), w2 = (int16_t)(at + T.block_bytes),
                  w3 = (int16_t)(at + 3 * T.block_bytes / 2);
    const __m512i two = _mm512_castsi128_si512(
        _mm_setr_epi16(w0, (int16_t)(32 + w0), w1, (int16_t)(32 + w1), w2, (int16_t)(32 + w2), w3, (int16_t)(32 + w3)));
    return _mm512_castsi512_si128(_mm512_permutex2var_epi16(head0, two, head1));
}

/* scales[b] of 16 rows, of their pairs. */
PMX_INLINE void gather_scales(__m512 scales[BLOCKS], const __m128i pairs[ROWS / 2], const type4 T) {
    __m512i quads[4], eights[2];
    /* Two pairs by dwords, then two quads by quadwords: block b of 8 rows is 128-bit lane b. */
    for (int i = 0; i < 4; i++)
        quads[i] = _mm512_inserti32x4(_mm512_castsi128_si512(_mm_unpacklo_epi32(pairs[2 * i], pairs[2 * i + 1])),
                                      _mm_unpackhi_epi32(pairs[2 * i], pairs[2 * i + 1]), 1);
    for (int i = 0; i < 2; i++) {
        const __m512i low = _mm512_unpacklo_epi64(quads[2 * i], quads[2 * i + 1]),
                      high = _mm512_unpackhi_epi64(quads[2 * i], quads[2 * i + 1]);
        eights[i] = _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1); /* lanes: b0 b2 b1 b3 */
    }
    const __m512i first = _mm512_shuffle_i32x4(eights[0], eights[1], 0x88);  /* b0 b1 of rows 0..7, then of 8..15 */
    const __m512i second = _mm512_shuffle_i32x4(eights[0], eights[1], 0xdd); /* b2 b3 */
    const __m512i order = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
    __m512i b01 = _mm512_permutexvar_epi64(order, first), b23 = _mm512_permutexvar_epi64(order, second);
    if (T.is_power) {
        b01 = powers(b01);
        b23 = powers(b23);
    }
    scales[0] = widen(_mm512_castsi512_si256(b01), T);
    scales[1] = widen(_mm512_extracti64x4_epi64(b01, 1), T);
    scales[2] = widen(_mm512_castsi512_si256(b23), T);
    scales[3] = widen(_mm512_extracti64x4_epi64(b23, 1), T);
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
    __m512i sums[4];
    __m128i d[ROWS / 2], m[ROWS / 2];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        __m512i p[4], heads[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const uint8_t *row = rows[4 * g + i] + at;
            pmx_prefetch_line(next + (4 * g + i) * T.block_bytes * BLOCKS, hint);
            __asm__ volatile("" ::: "memory"); /* the compiler would issue the prefetches of all rows at once */
            heads[i] = load_first(row, n * T.block_bytes);
            p[i] = dot_row(load_nibbles4(heads[i], row, n, T), x, T);
        }
        for (int i = 0; i < 2; i++) {
            d[2 * g + i] = pair_scales(heads[2 * i], heads[2 * i + 1], 0, T);
            if (T.has_min) m[2 * g + i] = pair_scales(heads[2 * i], heads[2 * i + 1], 1, T);
        }
        sums[g] = reduce4(p);
    }
    transpose_lanes(sums);
    __m512 scales[BLOCKS], mins[BLOCKS];
    gather_scales(scales, d, T);
    if (T.has_min) gather_scales(mins, m, T);
    for (int64_t b = 0; b < n; b++) {
        acc = _mm512_fmadd_ps(_mm512_mul_ps(scales[b], _mm512_set1_ps(x->d[b])), _mm512_cvtepi32_ps(sums[b]), acc);
        if (T.has_min) acc = _mm512_fmadd_ps(mins[b], _mm512_set1_ps(x->d[b] * (float)x->sums[b]), acc);
    }
    return acc;
}

PMX_INLINE void vec4(const pmx_product p, const pmx_prefetch hint, const type4 T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK, block_bytes = T.block_bytes;
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

PMX_AVX512VNNI_END

#endif
