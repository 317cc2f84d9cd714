/* rows256.h: blocks of 256 times one token, row by row.
 *
 * vec256.h takes a block of each of eight rows at a time, so a thread reads eight places, and must ask for
 * the next eight rows as a whole: 18 KB of 4096 columns of q4_k, 94 KB of 14336 of q6_k. Here eight
 * blocks of one row are taken at a time, in the order of memory, and lines are asked for `ahead` bytes
 * before they are read. What a row's sum is made of is kept, and added for eight rows at a time, since
 * the contract adds blocks one after the other. q2_k and q3_k were slower so: they wait for arithmetic. */
#ifndef PMX_AVX512VNNI_ROWS256_H
#define PMX_AVX512VNNI_ROWS256_H

#include "vec256.h"

enum { PIECE_BLOCKS = 64 }; /* of a row at a time: 16384 columns. What they need takes 26 KB of the stack */

PMX_AVX512VNNI_BEGIN

/* A piece of a token's activations, in the type's order. */
typedef struct {
    __m512i x[PIECE_BLOCKS][4];
    words256 sums[PIECE_BLOCKS / 4]; /* of four blocks, one a 128-bit lane, as load_sums has them */
    float d[PIECE_BLOCKS];
} piece_acts;

/* Of the blocks of eight rows: the products of scales, and the integers that they are multiplied with. */
typedef struct {
    float d[8][PIECE_BLOCKS], isum[8][PIECE_BLOCKS], dmin[8][PIECE_BLOCKS], msum[8][PIECE_BLOCKS];
} row_terms;

/* n blocks, and zeros up to a multiple of eight. */
PMX_INLINE void load_piece(piece_acts *out, const pmx_quantized token, const int64_t n, const type256 T) {
    for (int64_t b = 0; b < (n + 7) / 8 * 8; b++) {
        __m512i x[MAX_REGISTERS];
        words256 sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < 4; i++) x[i] = _mm512_setzero_si512();
        if (b < n) {
            load_ordered256(x, token.q + b * PMX_BLOCK256, T.order);
            sums = load_sums(token.sums + b * 16, T);
        }
        for (int i = 0; i < 4; i++) out->x[b][i] = x[i];
        store16((uint8_t *)&out->sums[b / 4].low + 16 * (b % 4), _mm512_castsi512_si128(sums.low));
        store16((uint8_t *)&out->sums[b / 4].high + 16 * (b % 4), _mm512_castsi512_si128(sums.high));
        out->d[b] = b < n ? token.d[b] : 0.0f;
    }
}

/* n <= 8 blocks of a row, from block b of the piece on; those past the end repeat the last one. */
PMX_INLINE void add_blocks(row_terms *out, const int row, const int64_t b, const int64_t n, const uint8_t *w,
                           const piece_acts *acts, const int64_t ahead, const pmx_prefetch hint, const type256 T) {
    const uint8_t *blocks[8];
    for (int i = 0; i < 8; i++) blocks[i] = w + (i < n ? i : n - 1) * T.block_bytes;
    __m512i dots[8], pairs[2];
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += 4) {
        words256 scales, factors;
        load_scales256(&scales, &factors, blocks + first, 0, T);
        const words256 sums = acts->sums[(b + first) / 4];
        pairs[first / 4] = _mm512_madd_epi16(factors.low, sums.low);
        if (T.n_sub == 16) pairs[first / 4] = _mm512_dpwssd_epi32(pairs[first / 4], factors.high, sums.high);
#pragma GCC unroll 4
        for (int i = first; i < first + 4; i++) {
            for (int64_t at = (i * T.block_bytes + 63) / 64 * 64; at < (i + 1) * T.block_bytes; at += 64)
                pmx_prefetch_line(w + ahead + at, hint);
            const row_block block = unpack_row(blocks[i], _mm512_setzero_si512(), &scales, i - first, T);
            dots[i] = dot_block(&block, acts->x[b + i], T);
            __asm__ volatile("" ::: "memory"); /* prefetches stay where they are */
        }
    }
    __m256 dw, dmin;
    load_d256(&dw, &dmin, blocks, 0, T);
    __m512i halves[4];
    for (int i = 0; i < 4; i++) halves[i] = halve(dots[i], dots[i + 4]);
    const __m256i psum = reduce_lanes(pairs[0], pairs[1]), sum = reduce8(halves),
                  isum = T.offset_bits ? _mm256_sub_epi32(sum, _mm256_slli_epi32(psum, T.offset_bits)) : sum;
    const __m256 dx = _mm256_loadu_ps(acts->d + b);
    _mm256_storeu_ps(out->d[row] + b, _mm256_mul_ps(dw, dx));
    _mm256_storeu_ps(out->isum[row] + b, _mm256_cvtepi32_ps(isum));
    if (T.has_min) {
        _mm256_storeu_ps(out->dmin[row] + b, _mm256_mul_ps(dmin, dx));
        _mm256_storeu_ps(out->msum[row] + b, _mm256_cvtepi32_ps(psum));
    }
}

/* Number i of eight rows is lane of v[i]; p: [8][PIECE_BLOCKS]. */
PMX_INLINE void transpose_terms(__m256 v[8], const float *p) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) { /* rows i % 4 and i % 4 + 4, numbers 0..3 and then 4..7 */
        const float *at = p + i % 4 * PIECE_BLOCKS + i / 4 * 4;
        a[i] = _mm256_set_m128(_mm_loadu_ps(at + 4 * PIECE_BLOCKS), _mm_loadu_ps(at));
    }
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        v[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        v[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        v[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
}

/* acc of eight rows += n <= 8 blocks from block b on. */
PMX_INLINE __m256 add_terms8(__m256 acc, const row_terms *terms, const int64_t b, const int64_t n, const type256 T) {
    __m256 d[8], isum[8], dmin[8], msum[8];
    transpose_terms(d, terms->d[0] + b);
    transpose_terms(isum, terms->isum[0] + b);
    if (T.has_min) {
        transpose_terms(dmin, terms->dmin[0] + b);
        transpose_terms(msum, terms->msum[0] + b);
    }
    for (int64_t i = 0; i < n; i++) {
        acc = _mm256_fmadd_ps(d[i], isum[i], acc);
        if (T.has_min) acc = _mm256_fnmadd_ps(dmin[i], msum[i], acc);
    }
    return acc;
}

PMX_INLINE __m256 add_terms(__m256 acc, const row_terms *terms, const int64_t n, const type256 T) {
    int64_t b = 0;
    for (; b + 8 <= n; b += 8) acc = add_terms8(acc, terms, b, 8, T);
    return b < n ? add_terms8(acc, terms, b, n - b, T) : acc;
}

PMX_INLINE void rows256(const pmx_product p, const pmx_prefetch hint, const type256 T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256;
    piece_acts acts;
    row_terms terms;
    if (p.n_rows % 8) memset(&terms, 0, sizeof terms); /* those past the end */
    for (int64_t first = 0; first < n_blocks; first += PIECE_BLOCKS) {
        const int64_t n = n_blocks - first < PIECE_BLOCKS ? n_blocks - first : PIECE_BLOCKS;
        load_piece(&acts, pmx_token_q256(p.acts, p.tokens[0], first), n, T);
        for (int64_t r = 0; r < p.n_rows; r += 8) {
            const int rows = p.n_rows - r < 8 ? (int)(p.n_rows - r) : 8;
            for (int i = 0; i < rows; i++) {
                const uint8_t *w = p.w + (r + i) * p.row_bytes + first * T.block_bytes;
                int64_t b = 0;
                for (; b + 8 <= n; b += 8)
                    add_blocks(&terms, i, b, 8, w + b * T.block_bytes, &acts, p.acts->ahead, hint, T);
                if (b < n) add_blocks(&terms, i, b, n - b, w + b * T.block_bytes, &acts, p.acts->ahead, hint, T);
            }
            const __mmask8 stored = (__mmask8)((1 << rows) - 1);
            const __m256 acc = first ? _mm256_maskz_loadu_ps(stored, p.y + r) : _mm256_setzero_ps();
            _mm256_mask_storeu_ps(p.y + r, stored, add_terms(acc, &terms, n, T));
        }
    }
}

PMX_AVX512VNNI_END

#endif
