/* blocks32.h: blocks of 32 of eight rows at once, from memory into registers and strips. */
#ifndef PMX_AVX2_BLOCKS32_H
#define PMX_AVX2_BLOCKS32_H

#include <stddef.h>
#include <string.h>

#include "avx2.h"

PMX_AVX2_BEGIN

PMX_INLINE __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
PMX_INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

/* Eight row pointers from row r on; rows past the end repeat the last one and their results are
 * dropped. */
PMX_INLINE void row_pointers(const uint8_t *rows[8], const pmx_product *p, int64_t r) {
    for (int i = 0; i < 8; i++) rows[i] = p->w + (r + i < p->n_rows ? r + i : p->n_rows - 1) * p->row_bytes;
}

/* The f16 numbers at `offset` of eight rows, widened. */
PMX_INLINE __m256 load_scales(const uint8_t *const *rows, int64_t offset) {
    uint16_t h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], rows[i] + offset, sizeof h[i]);
    const __m128i packed = _mm_setr_epi16((int16_t)h[0], (int16_t)h[1], (int16_t)h[2], (int16_t)h[3], (int16_t)h[4],
                                          (int16_t)h[5], (int16_t)h[6], (int16_t)h[7]);
    return _mm256_cvtph_ps(packed);
}

/* The pairs of f16 numbers at `offset` of eight rows, widened. */
PMX_INLINE void load_scale_pairs(__m256 *first, __m256 *second, const uint8_t *const *rows, int64_t offset) {
    int32_t h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], rows[i] + offset, sizeof h[i]);
    const __m256i pairs = _mm256_setr_epi32(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]);
    const __m256i apart =
        _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, /* and the same in the other lane */
                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i both = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, apart), 0xd8);
    *first = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
    *second = _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1));
}

/* The powers of two whose exponents are the bytes at `offset` of eight rows: pmx_e8m0_to_f32. */
PMX_INLINE __m256 load_powers(const uint8_t *const *rows, int64_t offset) {
    const __m256i e = _mm256_setr_epi32(rows[0][offset], rows[1][offset], rows[2][offset], rows[3][offset],
                                        rows[4][offset], rows[5][offset], rows[6][offset], rows[7][offset]);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}

/* The scales at `offset` of eight rows; is_power: of mxfp4. */
PMX_INLINE __m256 load_scales32(const uint8_t *const *rows, int64_t offset, const int is_power) {
    return is_power ? load_powers(rows, offset) : load_scales(rows, offset);
}

/* 16 bytes of nibbles as 32 bytes: the low ones, then the high ones. */
PMX_INLINE __m256i load_nibbles(const uint8_t *qs) {
    const __m128i packed = _mm_loadu_si128((const __m128i *)(const void *)qs);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* Bit i of four bytes as 16 or 0 in byte i. */
PMX_INLINE __m256i load_fifth_bits(const uint8_t *qh) {
    int32_t bits;
    memcpy(&bits, qh, sizeof bits);
    const __m256i source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i masked = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), source), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(masked, bit), _mm256_set1_epi8(16));
}

/* --- A block's 32 integers as bytes: unsigned, with the type's offset, but signed for q8_0 and
 * iq4_nl */

PMX_INLINE __m256i unpack_q4_0(const uint8_t *block) { return load_nibbles(block + offsetof(pmx_block_q4_0, qs)); }

PMX_INLINE __m256i unpack_q4_1(const uint8_t *block) { return load_nibbles(block + offsetof(pmx_block_q4_1, qs)); }

PMX_INLINE __m256i unpack_q5_0(const uint8_t *block) {
    return _mm256_or_si256(load_nibbles(block + offsetof(pmx_block_q5_0, qs)),
                           load_fifth_bits(block + offsetof(pmx_block_q5_0, qh)));
}

PMX_INLINE __m256i unpack_q5_1(const uint8_t *block) {
    return _mm256_or_si256(load_nibbles(block + offsetof(pmx_block_q5_1, qs)),
                           load_fifth_bits(block + offsetof(pmx_block_q5_1, qh)));
}

PMX_INLINE __m256i unpack_q8_0(const uint8_t *block) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(block + offsetof(pmx_block_q8_0, qs)));
}

PMX_INLINE __m256i unpack_iq4_nl(const uint8_t *block) {
    const __m256i values = _mm256_setr_epi8(PMX_IQ4_VALUES, PMX_IQ4_VALUES);
    return _mm256_shuffle_epi8(values, load_nibbles(block + offsetof(pmx_block_iq4_nl, qs)));
}

/* mxfp4's values plus 12. */
PMX_INLINE __m128i mxfp4_table(void) { return _mm_add_epi8(_mm_setr_epi8(PMX_MXFP4_VALUES), _mm_set1_epi8(12)); }

PMX_INLINE __m256i unpack_mxfp4(const uint8_t *block) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(mxfp4_table()),
                               load_nibbles(block + offsetof(pmx_block_mxfp4, qs)));
}

/* 8 vectors of 8 rows' dwords become dword j of 8 rows each, at out + j * stride. */
PMX_INLINE void transpose8(uint8_t *out, const int64_t stride, const __m256i *v) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_store_si256((__m256i *)(void *)(out + i * stride), _mm256_permute2x128_si256(b[i], b[i + 4], 0x20));
        _mm256_store_si256((__m256i *)(void *)(out + (i + 4) * stride),
                           _mm256_permute2x128_si256(b[i], b[i + 4], 0x31));
    }
}

PMX_AVX2_END

#endif
