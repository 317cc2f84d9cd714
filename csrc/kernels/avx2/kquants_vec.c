/* kquants_vec.c: blocks of 256 times one token.
 *
 * Eight rows straight from the mapped blocks, the next eight prefetched linearly, as in matmul32.h.
 * Per row and block: vpmaddubsw of the bytes with the activations (two products of at most 63*127,
 * or 127*127 for iq4_xs, or 126*127 at most for IQ1 to IQ3, stay below 32768), then vpmaddwd with the
 * sub-block's scale in both int16 of a pair, into one vector of int32. The eight vectors are reduced
 * together, and their sums converted to float, once a block. Unsigned bytes times scales reach
 * 256 * 63*127 * 128 = 262,176,768, the offsets 32 * 256*127 * 128 = 133,169,152, iq4_xs
 * 256 * 127*127 * 32 = 132,128,768, iq3_xxs 256 * 126*127 * 31 = 126,992,384: no int32 overflows, in
 * any order of adding. Offsets and minimums are vpmaddwd of the scales or minimums with the
 * activations' sums, which fit int16. */
#if defined(__x86_64__)
#include "kquants.h"
#include "matmul32.h"

PMX_AVX2_BEGIN

/* One block's activations, as all rows need them. */
typedef struct {
    const int8_t *q;
    __m256i sums; /* int16: sub-blocks of 16: those of even sub-blocks, then of odd ones; of 32:
                     zeros, then the eight sums. Without sub-blocks int32, what is subtracted */
} block_acts;

PMX_INLINE __m256i load_sums(const int type, const int32_t *sums) {
    if (KQUANT_SUB(type) == 32) return kquant_sums32(sums);
    if (KQUANT_WHOLE(type)) return _mm256_madd_epi16(kquant_sums16(sums), _mm256_set1_epi16(1));
    const __m256i apart =
        _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, /* and the same in the other lane */
                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(kquant_sums16(sums), apart), 0xd8);
}

/* One row's block without sub-blocks: the parts of isum in eight int32. An int16 sums 16 products,
 * at most 16 * 3*127 = 6096. */
PMX_INLINE __m256i dot_whole(const int type, const uint8_t *block, const block_acts *acts) {
    const __m256i signs = kquant_signs(type, block);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i w = kquant_load(type, block, signs, c), x = load32((const uint8_t *)acts->q + 32 * c);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
    }
    return _mm256_sub_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), acts->sums);
}

/* One row's block: the parts of isum and msum in eight int32 each. */
PMX_INLINE void dot_block(const int type, __m256i *isum, __m256i *msum, const uint8_t *block, const block_acts *acts) {
    if (KQUANT_WHOLE(type)) {
        *isum = dot_whole(type, block, acts);
        return;
    }
    __m256i scales; /* int16: in each 128-bit lane the scales of the sub-blocks that fall into it,
                       chunk c's at position c */
    if (KQUANT_SUB(type) == 32) {
        const __m256i both = _mm256_cvtepi8_epi16(kquant_scales(type, block));
        if (KQUANT_HAS_MIN(type)) *msum = _mm256_madd_epi16(both, acts->sums);
        scales = _mm256_permute4x64_epi64(both, 0x44);
    } else {
        const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(kquant_scales(type, block), apart));
        if (KQUANT_HAS_MIN(type))
            *msum =
                _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_shuffle_epi8(kquant_mins_q2_k(block), apart)), acts->sums);
    }
    __m256i sum = _mm256_setzero_si256();
    if (KQUANT_OFFSET_BITS(type) >= 0)
        sum = _mm256_sub_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(scales, acts->sums), KQUANT_OFFSET_BITS(type)));
    const __m256i signs = kquant_signs(type, block);
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i w = kquant_load(type, block, signs, c), x = load32((const uint8_t *)acts->q + 32 * c);
        const __m256i pairs = KQUANT_SIGNED(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                                                  : _mm256_maddubs_epi16(w, x);
        const __m256i scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16((int16_t)(2 * c | (2 * c + 1) << 8)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
    }
    *isum = sum;
}

PMX_INLINE void vec(const pmx_product p, const pmx_prefetch hint, const int type) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256, bytes = kquant_bytes(type);
    const pmx_quantized token = pmx_token_q256(p.acts, p.tokens[0], 0);
    for (int64_t r = 0; r < p.n_rows; r += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, &p, r);
        const char *line = (const char *)p.w + (r + 8) * p.row_bytes,
                   *end = line; /* of the next rows: prefetched up to here */
        __m256 acc = _mm256_setzero_ps();
        for (int64_t b = 0; b < n_blocks; b++) {
            const block_acts x = {token.q + b * PMX_BLOCK256, load_sums(type, token.sums + 16 * b)};
            __m256i isum[8], msum[8];
#pragma GCC unroll 1 /* unrolled it is up to 15% slower */
            for (int i = 0; i < 8; i++) {
                for (end += bytes; line < end; line += 64) pmx_prefetch_line(line, hint);
                dot_block(type, isum + i, msum + i, rows[i] + b * bytes, &x);
            }
            __m256 dw, dmin;
            kquant_load_d(type, &dw, &dmin, rows, b * bytes);
            const __m256 dx = _mm256_set1_ps(token.d[b]);
            acc = _mm256_fmadd_ps(_mm256_mul_ps(dw, dx), _mm256_cvtepi32_ps(reduce8(isum)), acc);
            if (KQUANT_HAS_MIN(type))
                acc = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, dx), _mm256_cvtepi32_ps(reduce8(msum)), acc);
        }
        if (p.n_rows - r >= 8)
            _mm256_storeu_ps(p.y + r, acc);
        else
            _mm256_maskstore_ps(p.y + r, first_lanes(p.n_rows - r), acc);
    }
}

#define VEC(NAME, T, FORM, ELEMENTS)                                                                                   \
    void pmx_avx2_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec, *p, PMX_##NAME); }

PMX_TYPES_Q256(VEC)

PMX_AVX2_END
#endif
