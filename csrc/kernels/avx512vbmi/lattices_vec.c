/* lattices_vec.c: the types IQ1 to IQ3 times one token, as in avx512vnni/vec256.h, with entries looked up
 * as bytes.
 *
 * 64 indices of 8 elements are those of two rows' blocks; of 4, of one. vpermi2b finds the low bytes of
 * their codes among 128, and the bits of the indices above choose between its results; the same for the
 * high bytes. For 32 codes of 512 that takes 0.7 ns, of 2048 1.5, where vpermi2w takes 2.4 and 13, and
 * loads of 8 bytes 9. */
#if defined(__x86_64__)
#include "../avx512vnni/vec256.h"
#include "avx512vbmi.h"

PMX_AVX512VBMI_BEGIN

/* 64 of n bytes. bits[i]: which indices have bit 7 + i. */
PMX_INLINE __m512i look_up_bytes(const uint8_t *table, const int n, __m512i index, const __mmask64 *bits) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < n / 128; i++)
        v[i] = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128 * i), index,
                                        _mm512_load_si512(table + 128 * i + 64));
#pragma GCC unroll 4
    for (int bit = 0; n >> bit > 128; bit++)
#pragma GCC unroll 8
        for (int i = 0; i < n >> bit >> 8; i++) v[i] = _mm512_mask_blend_epi8(bits[bit], v[2 * i], v[2 * i + 1]);
    return v[0];
}

/* Codes of 16 bits: of the first 32 indices, of the others. */
PMX_INLINE void join_bytes(__m512i codes[2], __m512i low, __m512i high) {
    const __m512i twos =
        _mm512_cvtepu8_epi16(_mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                              21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
    const __m512i first = _mm512_or_si512(twos, _mm512_slli_epi16(_mm512_or_si512(twos, _mm512_set1_epi16(64)), 8));
    codes[0] = _mm512_permutex2var_epi8(low, first, high);
    codes[1] = _mm512_permutex2var_epi8(low, _mm512_add_epi8(first, _mm512_set1_epi8(32)), high);
}

PMX_INLINE __m512i two_halves(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }

/* Fields of bits of eight bytes a register's 64-bit lane, from the bits that a byte of `at` says on. */
PMX_INLINE __m512i fields(__m512i v, int64_t first, int64_t second, int64_t third, int64_t fourth) {
    return _mm512_multishift_epi64_epi8(_mm512_setr_epi64(first, second, third, fourth, first, second, third, fourth),
                                        v);
}

/* --- 64 indices: their low bytes, and which have the bits above */

PMX_INLINE __m256i low_iq2_xxs(const uint8_t *block) {
    const uint8_t *qs = block + offsetof(pmx_block_iq2_xxs, qs);
    const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(load32(qs)), _mm256_castsi256_ps(load32(qs + 32)), 0x88);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xd8);
}

PMX_INLINE void look_up_iq2_xxs(__m512i codes[2], const uint8_t *a, const uint8_t *b) {
    const __m512i index = two_halves(low_iq2_xxs(a), low_iq2_xxs(b));
    const __mmask64 bits[] = {_mm512_movepi8_mask(index)};
    join_bytes(codes, look_up_bytes(pmx_low_iq2_xxs, 256, index, bits),
               look_up_bytes(pmx_high_iq2_xxs, 256, index, bits));
}

PMX_INLINE void look_up_iq2_xs(__m512i codes[2], const uint8_t *a, const uint8_t *b) {
    const __m512i first = _mm512_loadu_si512(a + offsetof(pmx_block_iq2_xs, qs)),
                  second = _mm512_loadu_si512(b + offsetof(pmx_block_iq2_xs, qs));
    const __m512i index = two_halves(_mm512_cvtepi16_epi8(first), _mm512_cvtepi16_epi8(second));
    const __m512i bit8 = _mm512_set1_epi16(256);
    const __mmask64 bits[] = {_mm512_movepi8_mask(index), _mm512_kunpackd(_mm512_test_epi16_mask(second, bit8),
                                                                          _mm512_test_epi16_mask(first, bit8))};
    join_bytes(codes, look_up_bytes(pmx_low_iq2_xs, 512, index, bits),
               look_up_bytes(pmx_high_iq2_xs, 512, index, bits));
}

PMX_INLINE void look_up_iq2_s(__m512i codes[2], const uint8_t *a, const uint8_t *b) {
    const size_t at = offsetof(pmx_block_iq2_s, qs);
    const __m512i index = two_halves(load32(a + at), load32(b + at));
    int64_t first, second; /* 2 bits of each index */
    memcpy(&first, a + offsetof(pmx_block_iq2_s, qh), sizeof first);
    memcpy(&second, b + offsetof(pmx_block_iq2_s, qh), sizeof second);
    const int64_t from = 0x0e0c0a0806040200, step = 0x1010101010101010;
    const __m512i high = fields(two_halves(_mm256_set1_epi64x(first), _mm256_set1_epi64x(second)), from, from + step,
                                from + 2 * step, from + 3 * step);
    const __mmask64 bits[] = {_mm512_movepi8_mask(index), _mm512_test_epi8_mask(high, _mm512_set1_epi8(1)),
                              _mm512_test_epi8_mask(high, _mm512_set1_epi8(2))};
    join_bytes(codes, look_up_bytes(pmx_low_iq2_s, 1024, index, bits),
               look_up_bytes(pmx_high_iq2_s, 1024, index, bits));
}

/* high: the 3 bits above the low byte of each index, in a byte. */
PMX_INLINE void look_up_iq1(__m512i codes[2], __m512i index, __m512i high) {
    const __mmask64 bits[] = {_mm512_movepi8_mask(index), _mm512_test_epi8_mask(high, _mm512_set1_epi8(1)),
                              _mm512_test_epi8_mask(high, _mm512_set1_epi8(2)),
                              _mm512_test_epi8_mask(high, _mm512_set1_epi8(4))};
    const __m512i fifteen = _mm512_set1_epi8(15);
    const __m512i place = _mm512_and_si512(index, fifteen);
    /* bits 4 to 7 and the three above */
    const __m512i group = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(index, 4), fifteen),
                                          _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(7)), 4));
    const __m512i first = look_up_bytes(pmx_first_iq1, 128, group, bits),
                  step = look_up_bytes(pmx_step_iq1, 128, group, bits);
    const __m512i which = _mm512_mask_add_epi8(first, _mm512_cmpge_epu8_mask(place, step), first, _mm512_set1_epi8(1));
    join_bytes(codes, look_up_bytes(pmx_low_iq1, 2048, index, bits), look_up_bytes(pmx_high_iq1, 128, which, bits));
}

/* 16 bytes of high bits: the first eight twice, then the others. */
PMX_INLINE __m256i twice_eight(const uint8_t *p) {
    return _mm256_permute4x64_epi64(_mm256_castsi128_si256(load16(p)), 0x50);
}

PMX_INLINE void look_up_iq1_s(__m512i codes[2], const uint8_t *a, const uint8_t *b) {
    const size_t at = offsetof(pmx_block_iq1_s, qs), high_at = offsetof(pmx_block_iq1_s, qh);
    const int64_t from = 0x1916131009060300, next = from + 0x2020202020202020; /* 4 * 3 of 16 bits, twice */
    const __m512i high = fields(two_halves(twice_eight(a + high_at), twice_eight(b + high_at)), from, next, from, next);
    look_up_iq1(codes, two_halves(load32(a + at), load32(b + at)), high);
}

PMX_INLINE void look_up_iq1_m(__m512i codes[2], const uint8_t *a, const uint8_t *b) {
    const size_t at = offsetof(pmx_block_iq1_m, qs), high_at = offsetof(pmx_block_iq1_m, qh);
    const int64_t from = 0x1c1814100c080400, next = from + 0x2020202020202020; /* 3 of 4 bits */
    const __m512i high = fields(two_halves(twice_eight(a + high_at), twice_eight(b + high_at)), from, next, from, next);
    look_up_iq1(codes, two_halves(load32(a + at), load32(b + at)), high);
}

PMX_INLINE void look_up_iq3_xxs(__m512i codes[2], const uint8_t *block) {
    const __m512i index = _mm512_loadu_si512(block + offsetof(pmx_block_iq3_xxs, qs));
    const __mmask64 bits[] = {_mm512_movepi8_mask(index)};
    join_bytes(codes, look_up_bytes(pmx_low_iq3_xxs, 256, index, bits),
               look_up_bytes(pmx_high_iq3_xxs, 256, index, bits));
}

PMX_INLINE void look_up_iq3_s(__m512i codes[2], const uint8_t *block) {
    const __m512i index = _mm512_loadu_si512(block + offsetof(pmx_block_iq3_s, qs));
    uint64_t high;
    memcpy(&high, block + offsetof(pmx_block_iq3_s, qh), sizeof high);
    const __mmask64 bits[] = {_mm512_movepi8_mask(index), high};
    join_bytes(codes, look_up_bytes(pmx_low_iq3_s, 512, index, bits), look_up_bytes(pmx_high_iq3_s, 512, index, bits));
}

/* --- From codes to integers */

/* Of IQ1: 8 * code plus 7, or 9 where the entry is shifted up. ORDER_FOURTHS. */
PMX_INLINE void spread_shifted(__m512i *q, const int type, __m512i codes, const uint8_t *block) {
    const __mmask32 down = (__mmask32)_mm256_movepi8_mask(downs(type, block));
    const __m512i offset = _mm512_mask_blend_epi16(down, _mm512_set1_epi8(9), _mm512_set1_epi8(7));
    const __m512i mask = _mm512_set1_epi8(3 << 3);
    q[0] = _mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(codes, 3), mask), offset);
    q[1] = _mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(codes, 1), mask), offset);
    q[2] = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(codes, 1), mask), offset);
    q[3] = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(codes, 3), mask), offset);
}
PMX_INLINE void spread_iq1_s(__m512i *q, __m512i codes, const uint8_t *block) {
    spread_shifted(q, PMX_IQ1_S, codes, block);
}
PMX_INLINE void spread_iq1_m(__m512i *q, __m512i codes, const uint8_t *block) {
    spread_shifted(q, PMX_IQ1_M, codes, block);
}
PMX_INLINE void spread_iq2_xxs(__m512i *q, __m512i codes, const uint8_t *block) {
    spread_fourths(q, codes, load_signs(PMX_IQ2_XXS, block));
}
PMX_INLINE void spread_iq2_xs(__m512i *q, __m512i codes, const uint8_t *block) {
    spread_fourths(q, codes, load_signs(PMX_IQ2_XS, block));
}
PMX_INLINE void spread_iq2_s(__m512i *q, __m512i codes, const uint8_t *block) {
    spread_fourths(q, codes, load_signs(PMX_IQ2_S, block));
}

PMX_INLINE void unpack_bytes_iq3_xxs(__m512i q[4], const uint8_t *block) {
    __m512i codes[2];
    look_up_iq3_xxs(codes, block);
    spread_seconds(q, codes, load_signs(PMX_IQ3_XXS, block), values_iq3_xxs());
}
PMX_INLINE void unpack_bytes_iq3_s(__m512i q[4], const uint8_t *block) {
    __m512i codes[2];
    look_up_iq3_s(codes, block);
    spread_seconds(q, codes, load_signs(PMX_IQ3_S, block), values_iq3_s());
}

#define VEC(NAME, T, ...)                                                                                              \
    void pmx_avx512vbmi_vec_##T(const pmx_product *p) {                                                                \
        static const type256 type = {.block_bytes = sizeof(pmx_block_##T),                                             \
                                     .n_sub = PMX_BLOCK256 / LATTICE_SUB(PMX_##NAME),                                  \
                                     .offset_bits = LATTICE_OFFSET_BITS(PMX_##NAME),                                   \
                                     .wide = 1,                                                                        \
                                     .d_part = LATTICE_D(PMX_##NAME),                                                  \
                                     __VA_ARGS__};                                                                     \
        PMX_WITH_HINT(vec256, *p, 1, type);                                                                            \
    }

#define EIGHTS(T) .order = ORDER_FOURTHS, .look_up = look_up_##T, .spread = spread_##T
#define FOURS(T) .order = ORDER_SECONDS, .unpack = unpack_bytes_##T
#define LAST16(T) .scales = scales4_##T, .head_at = sizeof(pmx_block_##T) - 16

VEC(IQ1_S, iq1_s, EIGHTS(iq1_s), LAST16(iq1_s))
VEC(IQ1_M, iq1_m, EIGHTS(iq1_m), LAST16(iq1_m), .d_at = -1)
VEC(IQ2_XXS, iq2_xxs, EIGHTS(iq2_xxs), .row_scales = scales_iq2_xxs)
VEC(IQ2_XS, iq2_xs, EIGHTS(iq2_xs), LAST16(iq2_xs))
VEC(IQ2_S, iq2_s, EIGHTS(iq2_s), LAST16(iq2_s))
VEC(IQ3_XXS, iq3_xxs, FOURS(iq3_xxs), .row_scales = scales_iq3_xxs)
VEC(IQ3_S, iq3_s, FOURS(iq3_s), LAST16(iq3_s))

PMX_AVX512VBMI_END
#endif
