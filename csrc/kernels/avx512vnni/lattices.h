/* lattices.h: blocks of the types IQ1 to IQ3, from memory into registers, as unsigned bytes with an
 * offset added.
 *
 * Entries of 16 bits are looked up 32 at a time: vpermi2w finds them among 64, and bits of the
 * indices choose between its results. The 256 entries of iq2_xxs take some 1.5 ns a block so, where
 * loads of 8 bytes one by one take 5 and of 4 bytes 10; gathers take twice that. The 1024 of iq2_s take
 * as long as loads. The 16 bits are the codes of 4 or 8 elements, which shifts bring into every second
 * or fourth byte: the activations are put into that order. */
#ifndef PMX_AVX512VNNI_LATTICES_H
#define PMX_AVX512VNNI_LATTICES_H

#include "../avx2/lattices.h"
#include "avx512vnni.h"

PMX_AVX512VNNI_BEGIN

/* 32 of n codes. */
PMX_INLINE __m512i look_up(const uint16_t *codes, const int n, __m512i index) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < n / 64; i++)
        v[i] =
            _mm512_permutex2var_epi16(_mm512_load_si512(codes + 64 * i), index, _mm512_load_si512(codes + 64 * i + 32));
#pragma GCC unroll 4
    for (int bit = 64; bit < n; bit *= 2) {
        const __mmask32 second = _mm512_test_epi16_mask(index, _mm512_set1_epi16((int16_t)bit));
#pragma GCC unroll 8
        for (int i = 0; i < n / bit / 2; i++) v[i] = _mm512_mask_blend_epi16(second, v[2 * i], v[2 * i + 1]);
    }
    return v[0];
}

/* The values of codes, with a sign in the bit above them. */
PMX_INLINE __m512i of_codes(__m128i values, __m512i codes, __m512i signs, const int sign) {
    const __m512i code = _mm512_and_si512(codes, _mm512_set1_epi8((char)(sign - 1)));
    const __m512i index = _mm512_ternarylogic_epi32(code, signs, _mm512_set1_epi8((char)sign), 0xf8);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), index);
}

/* Eights of 2 bits: ORDER_FOURTHS. */
PMX_INLINE void spread_fourths(__m512i q[4], __m512i codes, __m256i signs) {
    /* 8, 25 and 43, of both signs, plus 64 */
    const __m128i values = _mm_setr_epi8(72, 89, 107, 0, 56, 39, 21, 0, 72, 89, 107, 0, 56, 39, 21, 0);
    /* the low nibble of a byte of signs in a byte, the high one in the next, from bit 2 on */
    const __m512i words = _mm512_cvtepu8_epi16(signs), both = _mm512_or_si512(words, _mm512_slli_epi16(words, 4));
    const __m512i nibbles = _mm512_slli_epi16(_mm512_and_si512(both, _mm512_set1_epi8(15)), 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        q[i] =
            of_codes(values, _mm512_srli_epi32(codes, (unsigned)(2 * i)), _mm512_srli_epi32(nibbles, (unsigned)i), 4);
}

/* Fours of 3 bits in 4: ORDER_SECONDS. */
PMX_INLINE void spread_seconds(__m512i q[4], const __m512i codes[2], __m256i signs, __m128i values) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m128i bytes = half ? _mm256_extracti128_si256(signs, 1) : _mm256_castsi256_si128(signs);
        /* two bits of a byte of signs in each of four bytes, from bit 3 on */
        const __m512i dwords = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 3);
        const __m512i two = _mm512_or_si512(dwords, _mm512_slli_epi32(dwords, 6));
        const __m512i four = _mm512_or_si512(two, _mm512_slli_epi32(two, 12));
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            q[2 * half + i] = of_codes(values, _mm512_srli_epi32(codes[half], (unsigned)(4 * i)),
                                       _mm512_srli_epi32(four, (unsigned)i), 8);
    }
}

PMX_LOOKUP void unpack_iq2_xxs(__m512i q[4], const uint8_t *block) {
    const uint8_t *qs = block + offsetof(pmx_block_iq2_xxs, qs);
    const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(load32(qs)), _mm256_castsi256_ps(load32(qs + 32)), 0x88);
    const __m512i index = _mm512_cvtepu8_epi16(_mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xd8));
    spread_fourths(q, look_up(pmx_codes_iq2_xxs, 256, index), load_signs(PMX_IQ2_XXS, block));
}

PMX_LOOKUP void unpack_iq2_xs(__m512i q[4], const uint8_t *block) {
    const __m512i words = _mm512_loadu_si512(block + offsetof(pmx_block_iq2_xs, qs));
    const __m512i index = _mm512_and_si512(words, _mm512_set1_epi16(511));
    spread_fourths(q, look_up(pmx_codes_iq2_xs, 512, index), load_signs(PMX_IQ2_XS, block));
}

PMX_LOOKUP void unpack_iq2_s(__m512i q[4], const uint8_t *block) {
    const __m128i high = _mm_loadl_epi64((const __m128i *)(const void *)(block + offsetof(pmx_block_iq2_s, qh)));
    const __m512i copies =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 8, -1, 8, -1, 8, -1, 8, -1));
    const __m512i bytes = _mm512_shuffle_epi8(_mm512_cvtepu8_epi64(high), copies);
    const __m512i moved = _mm512_sllv_epi16(bytes, _mm512_set1_epi64(0x0002000400060008));
    const __m512i index = _mm512_or_si512(_mm512_cvtepu8_epi16(load32(block + offsetof(pmx_block_iq2_s, qs))),
                                          _mm512_and_si512(moved, _mm512_set1_epi16(0x300)));
    spread_fourths(q, look_up(pmx_codes_iq2_s, 1024, index), load_signs(PMX_IQ2_S, block));
}

/* 8 magnitudes, then the same of the other sign, plus the offset. */
PMX_INLINE __m128i both_signs(__m128i magnitudes, const int offset_bits) {
    const __m128i signs = _mm_setr_epi8(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
    return _mm_add_epi8(_mm_sign_epi8(magnitudes, signs), _mm_set1_epi8((char)(1 << offset_bits)));
}

PMX_INLINE __m128i values_iq3_xxs(void) {
    return both_signs(_mm_setr_epi8(PMX_IQ3_XXS_VALUES, PMX_IQ3_XXS_VALUES), LATTICE_OFFSET_BITS(PMX_IQ3_XXS));
}
PMX_INLINE __m128i values_iq3_s(void) {
    return both_signs(_mm_setr_epi8(PMX_IQ3_S_VALUES, PMX_IQ3_S_VALUES), LATTICE_OFFSET_BITS(PMX_IQ3_S));
}

PMX_LOOKUP void unpack_iq3_xxs(__m512i q[4], const uint8_t *block) {
    const uint8_t *qs = block + offsetof(pmx_block_iq3_xxs, qs);
    __m512i codes[2];
    for (int i = 0; i < 2; i++) codes[i] = look_up(pmx_codes_iq3_xxs, 256, _mm512_cvtepu8_epi16(load32(qs + 32 * i)));
    spread_seconds(q, codes, load_signs(PMX_IQ3_XXS, block), values_iq3_xxs());
}

PMX_LOOKUP void unpack_iq3_s(__m512i q[4], const uint8_t *block) {
    const uint8_t *qs = block + offsetof(pmx_block_iq3_s, qs);
    uint32_t high[2];
    __m512i codes[2];
    memcpy(high, block + offsetof(pmx_block_iq3_s, qh), sizeof high);
    for (int i = 0; i < 2; i++) {
        const __m512i low = _mm512_cvtepu8_epi16(load32(qs + 32 * i));
        codes[i] = look_up(pmx_codes_iq3_s, 512, _mm512_mask_add_epi16(low, high[i], low, _mm512_set1_epi16(256)));
    }
    spread_seconds(q, codes, load_signs(PMX_IQ3_S, block), values_iq3_s());
}

/* The high bits of 32 indices, moved to bit 8. */
PMX_INLINE __m512i high_iq1(const int type, const uint8_t *block) {
    if (type == PMX_IQ1_S) {
        const __m128i words = load16(block + offsetof(pmx_block_iq1_s, qh));
        const __m256i low = three_bits(four_times(words, 0)), high = three_bits(four_times(words, 4));
        return _mm512_slli_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), 8);
    }
    const __m256i bytes = _mm256_cvtepu8_epi16(load16(block + offsetof(pmx_block_iq1_m, qh)));
    const __m512i dwords = _mm512_cvtepu16_epi32(bytes);
    const __m512i words = _mm512_or_si512(_mm512_slli_epi32(dwords, 8), _mm512_slli_epi32(dwords, 20));
    return _mm512_and_si512(words, _mm512_set1_epi16(0x700));
}

/* Elements plus 16, from the table. The indices are stored first: computed one by one, as in avx2, they
 * take 3 ns a block more. */
PMX_INLINE void unpack_shifted(__m512i q[4], const int type, const uint8_t *block) {
    const size_t at = type == PMX_IQ1_S ? offsetof(pmx_block_iq1_s, qs) : offsetof(pmx_block_iq1_m, qs);
    _Alignas(64) uint16_t index[32];
    _mm512_store_si512(index, _mm512_or_si512(_mm512_cvtepu8_epi16(load32(block + at)), high_iq1(type, block)));
    const uint32_t up = ~(uint32_t)_mm256_movepi8_mask(downs(type, block));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        int64_t v[8];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) memcpy(&v[j], pmx_lattice_iq1[index[8 * i + j]], sizeof v[j]);
        const __m512i entries = _mm512_setr_epi64(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
        q[i] = _mm512_mask_add_epi64(entries, (__mmask8)(up >> 8 * i), entries, _mm512_set1_epi8(2));
    }
}
PMX_LOOKUP void unpack_iq1_s(__m512i q[4], const uint8_t *block) { unpack_shifted(q, PMX_IQ1_S, block); }
PMX_LOOKUP void unpack_iq1_m(__m512i q[4], const uint8_t *block) { unpack_shifted(q, PMX_IQ1_M, block); }

/* Scales of types that have them among the entries. */
PMX_INLINE __m128i scales_iq2_xxs(const uint8_t *block) { return lattice_scales(PMX_IQ2_XXS, block); }
PMX_INLINE __m128i scales_iq3_xxs(const uint8_t *block) { return lattice_scales(PMX_IQ3_XXS, block); }

PMX_AVX512VNNI_END

#endif
