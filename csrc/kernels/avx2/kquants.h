/* kquants.h: how blocks of 256 become vectors: of each type its bytes, scales and minimums, and
 * what the kernels must know about it. `type` is a constant wherever these are inlined. */
#ifndef PMX_AVX2_KQUANTS_H
#define PMX_AVX2_KQUANTS_H

#include <stddef.h>

#include "blocks32.h"
#include "lattices.h"

/* iq4_xs with 128 added to the table's values, which makes bytes unsigned as in the other types. */
#define KQUANT_IQ4_XS_128 PMX_TYPE_SLOTS

/* Types without sub-blocks: integers of 2 bits, and one scale. */
#define KQUANT_WHOLE(type) ((type) == PMX_TQ1_0 || (type) == PMX_TQ2_0)
/* Elements of a sub-block. */
#define KQUANT_SUB(type)                                                                                               \
    (LATTICE(type)                                                    ? LATTICE_SUB(type)                              \
     : KQUANT_WHOLE(type)                                             ? 256                                            \
     : (type) == PMX_Q2_K || (type) == PMX_Q3_K || (type) == PMX_Q6_K ? 16                                             \
                                                                      : 32)
#define KQUANT_HAS_MIN(type) ((type) == PMX_Q2_K || (type) == PMX_Q4_K || (type) == PMX_Q5_K)
/* Bytes are unsigned (but for iq4_xs): the type's offset is 2 to this, applied to sums; -1: none.
 */
#define KQUANT_OFFSET_BITS(type)                                                                                       \
    (LATTICE(type)                 ? LATTICE_OFFSET_BITS(type)                                                         \
     : (type) == PMX_Q3_K          ? 2                                                                                 \
     : (type) == PMX_Q6_K          ? 5                                                                                 \
     : (type) == KQUANT_IQ4_XS_128 ? 7                                                                                 \
     : KQUANT_WHOLE(type)          ? 0                                                                                 \
                                   : -1)
#define KQUANT_SIGNED(type) ((type) == PMX_IQ4_XS)

/* Of a block. */
PMX_INLINE int64_t kquant_bytes(const int type) {
    switch (type) {
#define BYTES(NAME, T, FORM, ELEMENTS)                                                                                 \
    case PMX_##NAME: return sizeof(pmx_block_##T);
        PMX_TYPES_Q256(BYTES)
#undef BYTES
    default: return sizeof(pmx_block_iq4_xs); /* KQUANT_IQ4_XS_128 */
    }
}

PMX_AVX2_BEGIN

/* Each byte's bits from `from` on moved to bit `to`, masked there. A shift of 16-bit lanes brings
 * foreign bits only where the mask is 0. */
PMX_INLINE __m256i move_bits(__m256i v, const int from, const int to, const int mask) {
    const __m256i moved = from > to ? _mm256_srli_epi16(v, from - to) : from < to ? _mm256_slli_epi16(v, to - from) : v;
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(mask << to)));
}

/* What all chunks of a block need: signs. */
PMX_INLINE __m256i kquant_signs(const int type, const uint8_t *block) {
    return LATTICE(type) ? load_signs(type, block) : _mm256_setzero_si256();
}

/* Bytes minus 128, times 3^k, stay bytes minus 128 modulo 256. */
PMX_INLINE __m256i triple(__m256i v, const int k) {
    for (int i = 0; i < k; i++) v = _mm256_add_epi8(v, _mm256_add_epi8(v, v));
    return v;
}

/* The 32 bytes minus 128 whose highest digits of base 3 are chunk c: bytes times powers of 3. */
PMX_INLINE __m256i load_powers_of_3(const uint8_t *block, const int c) {
    const __m256i bias = _mm256_set1_epi8(-128);
    if (c < 5) return triple(_mm256_xor_si256(load32(block), bias), c);
    const __m256i middle = _mm256_xor_si256(_mm256_broadcastsi128_si256(load16(block + 32)), bias);
    const __m256i two = triple(_mm256_blend_epi32(middle, triple(middle, 1), 0xf0), 2 * (c - 5));
    if (c < 7) return two; /* 16 bytes twice, the second time times 3 */
    int32_t last;
    memcpy(&last, block + offsetof(pmx_block_tq1_0, qh), sizeof last);
    __m256i v = _mm256_xor_si256(_mm256_set1_epi32(last), bias);
    v = _mm256_blend_epi32(v, triple(v, 1), 0xe0); /* the last 4 bytes from dword 4 on: times 1, 3, 9, 27 */
    v = _mm256_blend_epi32(v, triple(v, 1), 0xc0);
    v = _mm256_blend_epi32(v, triple(v, 1), 0x80);
    return _mm256_blend_epi32(two, v, 0xf0);
}

/* A byte's highest digit is how many of 86 and 171 it reaches. The asm hides constants from gcc, which
 * would make two instructions of a comparison with one. */
PMX_INLINE __m256i load_tq1_0(const uint8_t *block, const int c) {
    __m256i below_86 = _mm256_set1_epi8(85 - 128), below_171 = _mm256_set1_epi8(170 - 128);
    __asm__("" : "+x"(below_86), "+x"(below_171));
    const __m256i v = load_powers_of_3(block, c);
    const __m256i first = _mm256_cmpgt_epi8(v, below_86), second = _mm256_cmpgt_epi8(v, below_171);
    return _mm256_sub_epi8(_mm256_and_si256(first, _mm256_set1_epi8(1)), second);
}

/* Elements 32*c .. 32*c + 31 as bytes. */
PMX_INLINE __m256i kquant_load(const int type, const uint8_t *block, __m256i signs, const int c) {
    if (LATTICE(type)) return load_elements(type, block, signs, c);
    const int half = c / 4, s = c % 4; /* of 128 elements, of its crumbs */
    switch (type) {
    case PMX_Q2_K: return move_bits(load32(block + offsetof(pmx_block_q2_k, qs) + 32 * half), 2 * s, 0, 3);
    case PMX_Q3_K:
        return _mm256_or_si256(move_bits(load32(block + offsetof(pmx_block_q3_k, qs) + 32 * half), 2 * s, 0, 3),
                               move_bits(load32(block + offsetof(pmx_block_q3_k, hmask)), c, 2, 1));
    case PMX_Q4_K: return move_bits(load32(block + offsetof(pmx_block_q4_k, qs) + c / 2 * 32), 4 * (c % 2), 0, 15);
    case PMX_Q5_K:
        return _mm256_or_si256(move_bits(load32(block + offsetof(pmx_block_q5_k, qs) + c / 2 * 32), 4 * (c % 2), 0, 15),
                               move_bits(load32(block + offsetof(pmx_block_q5_k, qh)), c, 4, 1));
    case PMX_Q6_K:
        return _mm256_or_si256(
            move_bits(load32(block + offsetof(pmx_block_q6_k, ql) + 64 * half + s % 2 * 32), 4 * (s / 2), 0, 15),
            move_bits(load32(block + offsetof(pmx_block_q6_k, qh) + 32 * half), 2 * s, 4, 3));
    case PMX_TQ1_0: return load_tq1_0(block, c);
    case PMX_TQ2_0: return move_bits(load32(block + offsetof(pmx_block_tq2_0, qs) + 32 * half), 2 * s, 0, 3);
    default: {
        const __m256i values = _mm256_setr_epi8(PMX_IQ4_VALUES, PMX_IQ4_VALUES),
                      offset = _mm256_set1_epi8(KQUANT_SIGNED(type) ? 0 : -128);
        return _mm256_shuffle_epi8(_mm256_xor_si256(values, offset),
                                   load_nibbles(block + offsetof(pmx_block_iq4_xs, qs) + 16 * c));
    }
    }
}

/* q4_k's and q5_k's first 16 bytes, d, dmin and 12 bytes of 6-bit numbers, as 8 scales, then 8
 * minimums. */
PMX_INLINE __m128i six_bits(__m128i head) {
    /* dwords of the four results: scales 0..3, scales 4..7, minimums 0..3, minimums 4..7 */
    const __m128i low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i top = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i mask = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
    return _mm_or_si128(_mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), mask),
                        _mm_and_si128(_mm_srli_epi16(top, 2), _mm_set1_epi8(0x30)));
}

PMX_INLINE __m128i scales_q3_k(const uint8_t *block) {
    /* 2 bytes of no interest, then the 12 of the scales, then d: a load that ends with the block */
    const __m128i v = load16(block + sizeof(pmx_block_q3_k) - 16);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m128i top =
        _mm_shuffle_epi8(v, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    const __m128i four = _mm_and_si128(_mm_srlv_epi64(low, _mm_set_epi64x(4, 0)), _mm_set1_epi8(15));
    const __m128i two = _mm_and_si128(_mm_srlv_epi32(top, _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    return _mm_sub_epi8(_mm_or_si128(four, _mm_slli_epi16(two, 4)), _mm_set1_epi8(32));
}

PMX_INLINE __m128i scales_iq4_xs(const uint8_t *block) {
    const __m128i v = _mm_loadl_epi64((const __m128i *)(const void *)block);
    const __m128i bytes = _mm_shuffle_epi8(v, _mm_setr_epi8(4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1));
    const __m128i nibbles = _mm_mullo_epi16(bytes, _mm_setr_epi16(16, 1, 16, 1, 16, 1, 16, 1)); /* at bits 4..7 */
    const __m128i low = _mm_and_si128(_mm_srli_epi16(nibbles, 4), _mm_set1_epi16(15));
    const __m128i high = _mm_shuffle_epi8(v, _mm_setr_epi8(2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));
    const __m128i crumbs =
        _mm_mullo_epi16(high, _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1));
    const __m128i top = _mm_and_si128(_mm_srli_epi16(crumbs, 10), _mm_set1_epi16(0x30)); /* from bits 14, 15 */
    return _mm_packs_epi16(_mm_sub_epi16(_mm_or_si128(low, top), _mm_set1_epi16(32)), _mm_setzero_si128());
}

/* 16 bytes: the scales of 16 sub-blocks, or 8 scales and the 8 minimums (0 where the type has
 * none). */
PMX_INLINE __m128i kquant_scales(const int type, const uint8_t *block) {
    if (LATTICE(type)) return lattice_scales(type, block);
    switch (type) {
    case PMX_Q2_K: return _mm_and_si128(load16(block), _mm_set1_epi8(15));
    case PMX_Q3_K: return scales_q3_k(block);
    case PMX_Q4_K:
    case PMX_Q5_K: return six_bits(load16(block));
    case PMX_Q6_K: return load16(block + offsetof(pmx_block_q6_k, scales));
    default: return scales_iq4_xs(block);
    }
}

/* q2_k's 16 minimums as bytes. */
PMX_INLINE __m128i kquant_mins_q2_k(const uint8_t *block) {
    return _mm_and_si128(_mm_srli_epi16(load16(block), 4), _mm_set1_epi8(15));
}

/* A block's 16 sums of activations as int16, in order; each at most 16 * 127. */
PMX_INLINE __m256i kquant_sums16(const int32_t *sums) {
    const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)sums);
    const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(sums + 8));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* Its sums of each 32, at most 4064: eight int16 in the upper lane, zeros in the lower one. */
PMX_INLINE __m256i kquant_sums32(const int32_t *sums) {
    const __m256i pairs = _mm256_madd_epi16(kquant_sums16(sums), _mm256_set1_epi16(1));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(pairs, _mm256_setzero_si256()), 0x8d);
}

/* Its sum of all. */
PMX_INLINE int32_t kquant_sum(const int32_t *sums) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += sums[i];
    return sum;
}

/* d, and dmin where the type has it, of eight rows. */
PMX_INLINE void kquant_load_d(const int type, __m256 *d, __m256 *dmin, const uint8_t *const *rows, int64_t offset) {
    switch (type) {
    case PMX_Q2_K: load_scale_pairs(d, dmin, rows, offset + (int64_t)offsetof(pmx_block_q2_k, d)); return;
    case PMX_Q4_K:
    case PMX_Q5_K: load_scale_pairs(d, dmin, rows, offset); return;
    case PMX_Q3_K: *d = load_scales(rows, offset + (int64_t)offsetof(pmx_block_q3_k, d)); break;
    case PMX_Q6_K: *d = load_scales(rows, offset + (int64_t)offsetof(pmx_block_q6_k, d)); break;
    case PMX_TQ1_0: *d = load_scales(rows, offset + (int64_t)offsetof(pmx_block_tq1_0, d)); break;
    case PMX_TQ2_0: *d = load_scales(rows, offset + (int64_t)offsetof(pmx_block_tq2_0, d)); break;
    case PMX_IQ1_M: *d = load_split_scales(rows, offset); break;
    default: *d = load_scales(rows, offset);
    }
    if (LATTICE(type)) *d = _mm256_mul_ps(*d, _mm256_set1_ps(LATTICE_D(type)));
    *dmin = _mm256_setzero_ps();
}

PMX_AVX2_END

#endif
