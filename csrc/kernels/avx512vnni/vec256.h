/* vec256.h: blocks of 256 times up to 4 tokens, 8 rows at a time: see matmul256.c. */
#ifndef PMX_AVX512VNNI_VEC256_H
#define PMX_AVX512VNNI_VEC256_H

#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "blocks256.h"

enum { VEC_TOKENS = 4 };

PMX_AVX512VNNI_BEGIN

/* Sums of 16 lanes of rows i and i + 4: 8 lanes each. */
PMX_INLINE __m512i halve(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
}

/* Of rows i and i + 4 the sums of 128-bit lane i, which has four. */
PMX_INLINE __m256i reduce_lanes(__m512i a, __m512i b) {
    const __m512i two = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i sums = _mm512_add_epi32(two, _mm512_shuffle_epi32(two, _MM_PERM_CDAB));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
}

/* The sub-block of a register's 128-bit lane. */
PMX_INLINE int sub_block(const int i, const int lane, const type256 T) {
    return piece256(T.order, i, lane) * T.n_sub / 16;
}

/* Where row `row` of four has, among the int16 of words256, the scale of a 128-bit lane of register
 * i: four times. */
PMX_INLINE int64_t scale_at(const int i, const int lane, const int row, const type256 T) {
    const int sub = sub_block(i, lane, T);
    return (8 * row + sub % 8 + sub / 8 * 32) * INT64_C(0x0001000100010001);
}

/* Words of packed registers i and i + 1 (vpackssdw works within 128-bit lanes): their scales. */
PMX_INLINE __m512i packed_scales(const words256 *scales, const int row, const int i, const type256 T) {
    const __m512i order = _mm512_setr_epi64(
        scale_at(i, 0, row, T), scale_at(i + 1, 0, row, T), scale_at(i, 1, row, T), scale_at(i + 1, 1, row, T),
        scale_at(i, 2, row, T), scale_at(i + 1, 2, row, T), scale_at(i, 3, row, T), scale_at(i + 1, 3, row, T));
    if (T.n_sub == 8) return _mm512_permutexvar_epi16(order, scales->low);
    return _mm512_permutex2var_epi16(scales->low, order, scales->high);
}

/* Of types whose sums exceed int16: the scales of registers i and i + 1, whose lanes have the same
 * sub-blocks. */
PMX_INLINE __m512i wide_scales(const words256 *scales, const int row, const int i, const type256 T) {
    const int at = row % 2 * 8 + sub_block(i, 0, T);
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m256i two_rows = row < 2 ? _mm512_castsi512_si256(scales->low) : _mm512_extracti64x4_epi64(scales->low, 1);
    return _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(at)), _mm512_cvtepi16_epi32(two_rows));
}

/* A row's scales of each 16 elements, as int32. */
PMX_INLINE __m512i scales16(const words256 *scales, const int row, const type256 T) {
    const __m256i piece = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i sub = T.n_sub == 8 ? _mm256_srli_epi16(piece, 1) : piece;
    /* 8 words of a row, then 32 words on 8 more */
    const __m256i upper = _mm256_slli_epi16(_mm256_srli_epi16(sub, 3), 5);
    const __m256i order = _mm256_add_epi16(_mm256_or_si256(_mm256_and_si256(sub, _mm256_set1_epi16(7)), upper),
                                           _mm256_set1_epi16((int16_t)(8 * row)));
    const __m512i words = _mm512_permutex2var_epi16(scales->low, _mm512_castsi256_si512(order), scales->high);
    return _mm512_cvtepi16_epi32(_mm512_castsi512_si256(words));
}

/* One row's block, as all tokens need it. */
typedef struct {
    __m512i q[MAX_REGISTERS];
    __m512i scales[2]; /* of registers 0 and 1, 2 and 3; of ORDER_FOURTHS the first, of all */
} row_block;

PMX_INLINE row_block unpack_row(const uint8_t *block, __m512i codes, const words256 *scales, const int row,
                                const type256 T) {
    row_block out;
    if (T.look_up)
        T.spread(out.q, codes, block);
    else
        T.unpack(out.q, block);
    if (T.n_sub == 1) return out;
    if (T.order == ORDER_FOURTHS) {
        out.scales[0] = scales16(scales, row, T);
        return out;
    }
    for (int i = 0; i < 2; i++)
        out.scales[i] = T.wide ? wide_scales(scales, row, 2 * i, T) : packed_scales(scales, row, 2 * i, T);
    return out;
}

/* The scaled sums of products of a row's block with activations x, in 16 lanes. A lane of vpdpbusd
 * holds four products: at most 4 * 63*127 = 32004 but for wide types, so that two registers pack into
 * int16 without loss, and vpdpwssd scales and adds them. Those of wide types stay int32: at most
 * 256 * 241*127 * 32 = 250,732,544 of iq4_xs, 256 * 126*127 * 31 = 126,992,384 of IQ2 and IQ3. */
PMX_INLINE __m512i dot_block(const row_block *w, const __m512i *x, const type256 T) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i dot = zero;
    if (T.order == ORDER_DIGITS) { /* digit = (3 * byte - its successor) / 256, so of sums too */
        __m512i next = zero;
#pragma GCC unroll 5
        for (int i = 0; i < 5; i++) {
            dot = _mm512_dpbusd_epi32(dot, w->q[i], x[i]);
            next = _mm512_dpbusd_epi32(next, w->q[i + 1], x[i]);
        }
        return _mm512_srai_epi32(_mm512_sub_epi32(_mm512_add_epi32(dot, _mm512_add_epi32(dot, dot)), next), 8);
    }
    if (T.n_sub == 1) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) dot = _mm512_dpbusd_epi32(dot, w->q[i], x[i]);
        return dot;
    }
    if (T.order == ORDER_FOURTHS) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) dot = _mm512_dpbusd_epi32(dot, w->q[i], x[i]);
        return _mm512_mullo_epi32(dot, w->scales[0]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m512i first = _mm512_dpbusd_epi32(zero, w->q[2 * i], x[2 * i]);
        if (T.wide) {
            const __m512i both = _mm512_dpbusd_epi32(first, w->q[2 * i + 1], x[2 * i + 1]);
            dot = _mm512_add_epi32(dot, _mm512_mullo_epi32(both, w->scales[i]));
        } else {
            const __m512i second = _mm512_dpbusd_epi32(zero, w->q[2 * i + 1], x[2 * i + 1]);
            dot = _mm512_dpwssd_epi32(dot, _mm512_packs_epi32(first, second), w->scales[i]);
        }
    }
    return dot;
}

/* A block's sums of activations as int16, for each sub-block, in every 128-bit lane. */
PMX_INLINE words256 load_sums(const int32_t *sums, const type256 T) {
    const __m256i v = T.n_sub == 16 ? kquant_sums16(sums) : _mm256_permute4x64_epi64(kquant_sums32(sums), 0x4e);
    return (words256){_mm512_broadcast_i32x4(_mm256_castsi256_si128(v)),
                      _mm512_broadcast_i32x4(_mm256_extracti128_si256(v, 1))};
}

/* Of N tokens; N is a constant where this is inlined. */
PMX_INLINE void vec256(const pmx_product p, const pmx_prefetch hint, const int N, const type256 T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256;
    pmx_quantized tokens[VEC_TOKENS];
    for (int t = 0; t < N; t++) tokens[t] = pmx_token_q256(p.acts, p.tokens[t], 0);
    for (int64_t r = 0; r < p.n_rows; r += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, &p, r);
        const char *next = (const char *)p.w + (r + 8) * p.row_bytes;
        __m256 acc[VEC_TOKENS];
        for (int t = 0; t < N; t++) acc[t] = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t at = b * T.block_bytes;
            words256 xsums[VEC_TOKENS];
            __m512i x[VEC_TOKENS][MAX_REGISTERS], dots[VEC_TOKENS][8], pairs[VEC_TOKENS][2];
            for (int t = 0; t < N; t++) {
                if (T.n_sub > 1) xsums[t] = load_sums(tokens[t].sums + b * 16, T);
                load_ordered256(x[t], tokens[t].q + b * PMX_BLOCK256, T.order);
            }
#pragma GCC unroll 2
            for (int first = 0; first < 8; first += 4) {
                words256 scales, factors;
                __m512i codes[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
                if (T.n_sub > 1) load_scales256(&scales, &factors, rows + first, at, T);
                for (int t = 0; t < N && T.n_sub > 1; t++) {
                    __m512i sum = _mm512_madd_epi16(factors.low, xsums[t].low);
                    if (T.n_sub == 16) sum = _mm512_dpwssd_epi32(sum, factors.high, xsums[t].high);
                    pairs[t][first / 4] = sum;
                }
#pragma GCC unroll 4
                for (int i = first; i < first + 4; i++) {
                    for (int64_t line = 0; line < T.block_bytes - 2; line += 64) /* one of tq2_0's 66 bytes */
                        pmx_prefetch_line(next + 8 * at + i * T.block_bytes + line, hint);
                    if (T.look_up && i % 2 == 0) T.look_up(codes, rows[i] + at, rows[i + 1] + at);
                    const row_block row = unpack_row(rows[i] + at, codes[i % 2], &scales, i - first, T);
                    for (int t = 0; t < N; t++) dots[t][i] = dot_block(&row, x[t], T);
                    /* The compiler would issue the prefetches of all rows at once. */
                    __asm__ volatile("" ::: "memory");
                }
            }
            __m256 dw, dmin;
            load_d256(&dw, &dmin, rows, at, T);
            for (int t = 0; t < N; t++) {
                __m512i halves[4];
                for (int i = 0; i < 4; i++) halves[i] = halve(dots[t][i], dots[t][i + 4]);
                __m256i isum = reduce8(halves);
                const __m256i psum = T.n_sub == 1 ? _mm256_set1_epi32(kquant_sum(tokens[t].sums + b * 16))
                                                  : reduce_lanes(pairs[t][0], pairs[t][1]);
                if (T.offset_bits || T.n_sub == 1)
                    isum = _mm256_sub_epi32(isum, _mm256_slli_epi32(psum, T.offset_bits));
                const __m256 dx = _mm256_set1_ps(tokens[t].d[b]);
                acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(dw, dx), _mm256_cvtepi32_ps(isum), acc[t]);
                if (T.has_min) acc[t] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, dx), _mm256_cvtepi32_ps(psum), acc[t]);
            }
        }
        const __mmask8 stored = p.n_rows - r >= 8 ? (__mmask8)0xff : (__mmask8)((1 << (p.n_rows - r)) - 1);
        for (int t = 0; t < N; t++) _mm256_mask_storeu_ps(p.y + t * p.ldy + r, stored, acc[t]);
    }
}

PMX_AVX512VNNI_END

#endif
