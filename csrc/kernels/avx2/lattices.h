/* lattices.h: blocks of the types IQ1 to IQ3, from memory into registers: 256 bits of signs, the
 * sub-blocks' scales, and the elements as unsigned bytes, with an offset added. `type` is a constant
 * wherever these are inlined.
 *
 * Entries are loaded one by one and put together: a gather of as many takes twice as long. Their
 * indices are made one by one too: vectors of them, stored and loaded again, take 2 ns a block more. */
#ifndef PMX_AVX2_LATTICES_H
#define PMX_AVX2_LATTICES_H

#include "../lattices.h"
#include "blocks32.h"

PMX_AVX2_BEGIN

/* --- Signs: bit i % 8 of byte i / 8: element i is negative. Of IQ1: byte i is 2 where entry i is shifted
 * up, else 0 */

/* Bytes of seven signs, and an eighth that makes their number even. */
PMX_INLINE __m256i even_signs(__m256i seven) {
    const __m256i odd = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(odd, _mm256_and_si256(seven, nibble)),
                  high = _mm256_shuffle_epi8(odd, _mm256_and_si256(_mm256_srli_epi16(seven, 4), nibble));
    return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}

/* The words of iq2_xxs and iq3_xxs, one of each 32 elements. */
PMX_INLINE __m256i xxs_words(const int type, const uint8_t *block) {
    if (type == PMX_IQ3_XXS) return load32(block + offsetof(pmx_block_iq3_xxs, scales));
    const uint8_t *qs = block + offsetof(pmx_block_iq2_xxs, qs);
    const __m256 odd = _mm256_shuffle_ps(_mm256_castsi256_ps(load32(qs)), _mm256_castsi256_ps(load32(qs + 32)), 0xdd);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(odd), 0xd8);
}

/* Of IQ1: bit 7 of byte i: entry i is shifted down. */
PMX_INLINE __m256i downs(const int type, const uint8_t *block) {
    if (type == PMX_IQ1_S) {
        const __m256i words = _mm256_broadcastsi128_si256(load16(block + offsetof(pmx_block_iq1_s, qh)));
        return _mm256_shuffle_epi8(
            words, _mm256_setr_epi64x(0x0303030301010101, 0x0707070705050505, 0x0b0b0b0b09090909, 0x0f0f0f0f0d0d0d0d));
    }
    const __m256i two = _mm256_cvtepu8_epi16(load16(block + offsetof(pmx_block_iq1_m, qh)));
    return _mm256_or_si256(_mm256_slli_epi16(two, 4), _mm256_slli_epi16(two, 8));
}

PMX_INLINE __m256i load_signs(const int type, const uint8_t *block) {
    switch (type) {
    case PMX_IQ1_S:
    case PMX_IQ1_M: return _mm256_andnot_si256(_mm256_srli_epi16(downs(type, block), 6), _mm256_set1_epi8(2));
    case PMX_IQ2_S: return load32(block + offsetof(pmx_block_iq2_s, signs));
    case PMX_IQ3_S: return load32(block + offsetof(pmx_block_iq3_s, signs));
    case PMX_IQ2_XS: {
        const uint8_t *qs = block + offsetof(pmx_block_iq2_xs, qs);
        const __m256i seven =
            _mm256_packus_epi16(_mm256_srli_epi16(load32(qs), 9), _mm256_srli_epi16(load32(qs + 32), 9));
        return even_signs(_mm256_permute4x64_epi64(seven, 0xd8));
    }
    default: {
        /* 4 * 7 bits: twice 14, then four times 7 */
        const __m256i words = xxs_words(type, block);
        const __m256i two =
            _mm256_or_si256(_mm256_and_si256(words, _mm256_set1_epi32(0x3fff)),
                            _mm256_and_si256(_mm256_slli_epi32(words, 2), _mm256_set1_epi32(0x3fff0000)));
        const __m256i four =
            _mm256_or_si256(_mm256_and_si256(two, _mm256_set1_epi32(0x007f007f)),
                            _mm256_and_si256(_mm256_slli_epi32(two, 1), _mm256_set1_epi32(0x7f007f00)));
        return even_signs(four);
    }
    }
}

/* --- Scales: 16 bytes, of 8 sub-blocks twice or followed by ones */

/* Four times 3 bits of words become the low bits of words, in order. */
PMX_INLINE __m256i three_bits(__m256i words) {
    const __m256i factors = _mm256_set1_epi64x(0x0010008004002000); /* to bit 13 */
    return _mm256_srli_epi16(_mm256_mullo_epi16(words, factors), 13);
}

/* Eight bytes, 0 above each, in four words of each 64 bits: words `first` and those after it. */
PMX_INLINE __m256i four_times(__m128i words, const int first) {
    const __m256i two =
        _mm256_setr_epi64x(0x0100010001000100, 0x0302030203020302, 0x0504050405040504, 0x0706070607060706);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(words),
                               _mm256_add_epi8(two, _mm256_set1_epi8((char)(2 * first))));
}

PMX_INLINE __m128i lattice_scales(const int type, const uint8_t *block) {
    __m128i scales;
    if (type == PMX_IQ1_S) {
        const __m128i words = _mm_srli_epi16(load16(block + offsetof(pmx_block_iq1_s, qh)), 12);
        scales = _mm_and_si128(_mm_packus_epi16(words, words), _mm_set1_epi8(7));
    } else if (type == PMX_IQ1_M) {
        const uint8_t *at = block + offsetof(pmx_block_iq1_m, scales);
        const __m256i words = three_bits(four_times(_mm_loadl_epi64((const __m128i *)(const void *)at), 0));
        scales = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    } else if (type == PMX_IQ2_XXS || type == PMX_IQ3_XXS) {
        const __m256i dwords = _mm256_srli_epi32(xxs_words(type, block), 28);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(dwords), _mm256_extracti128_si256(dwords, 1));
        scales = _mm_packs_epi16(words, words);
    } else {
        int32_t four;
        __m128i bytes;
        if (type == PMX_IQ3_S) {
            memcpy(&four, block + offsetof(pmx_block_iq3_s, scales), sizeof four);
            bytes = _mm_cvtsi32_si128(four);
        } else {
            const size_t at =
                type == PMX_IQ2_XS ? offsetof(pmx_block_iq2_xs, scales) : offsetof(pmx_block_iq2_s, scales);
            bytes = _mm_loadl_epi64((const __m128i *)(const void *)(block + at));
        }
        scales = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
    }
    return _mm_add_epi8(_mm_add_epi8(scales, scales), _mm_set1_epi8(1));
}

/* The f16 numbers of eight rows of iq1_m, widened. */
PMX_INLINE __m256 load_split_scales(const uint8_t *const *rows, int64_t offset) {
    uint64_t four[2] = {0, 0};
    for (int i = 0; i < 8; i++) four[i / 4] |= (uint64_t)lattice_number(PMX_IQ1_M, rows[i] + offset) << 16 * (i % 4);
    return _mm256_cvtph_ps(_mm_set_epi64x((int64_t)four[1], (int64_t)four[0]));
}

/* --- Elements */

PMX_INLINE int64_t eight_elements(const int type, const uint8_t *block, int i) {
    uint64_t both;
    if (LATTICE_WIDTH(type) == 8) {
        memcpy(&both, lattice_entry(type, block, i), sizeof both);
    } else {
        uint32_t entry[2];
        memcpy(&entry[0], lattice_entry(type, block, 2 * i), sizeof entry[0]);
        memcpy(&entry[1], lattice_entry(type, block, 2 * i + 1), sizeof entry[1]);
        both = entry[0] | (uint64_t)entry[1] << 32;
    }
    return (int64_t)both;
}

/* Elements 32*c .. 32*c + 31, plus 2 to LATTICE_OFFSET_BITS. */
PMX_INLINE __m256i load_elements(const int type, const uint8_t *block, __m256i signs, const int c) {
    const __m256i source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i magnitudes =
        _mm256_setr_epi64x(eight_elements(type, block, 4 * c), eight_elements(type, block, 4 * c + 1),
                           eight_elements(type, block, 4 * c + 2), eight_elements(type, block, 4 * c + 3));
    const __m256i four = _mm256_permutevar8x32_epi32(signs, _mm256_set1_epi32(c));
    const __m256i bytes = _mm256_shuffle_epi8(four, source);
    if (LATTICE_SHIFTED(type)) return _mm256_add_epi8(magnitudes, bytes);
    const __m256i masked = _mm256_and_si256(bytes, bit);
    /* 0 or -1, made odd: a sign for vpsignb */
    const __m256i sign = _mm256_or_si256(_mm256_cmpeq_epi8(masked, bit), _mm256_set1_epi8(1));
    return _mm256_add_epi8(_mm256_sign_epi8(magnitudes, sign),
                           _mm256_set1_epi8((char)(1 << LATTICE_OFFSET_BITS(type))));
}

PMX_AVX2_END

#endif
