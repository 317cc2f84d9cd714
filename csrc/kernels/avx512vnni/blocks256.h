/* blocks256.h: blocks of 256 of one row, from memory into registers: for each type its integers as unsigned bytes in element order, and
 * the integer scales of its sub-blocks. A signed integer is stored plus an offset; what the offset adds is undone by `pairs`. */
#ifndef PMX_AVX512VNNI_BLOCKS256_H
#define PMX_AVX512VNNI_BLOCKS256_H

#include "../avx2/kquants.h"
#include "avx512vnni.h"

/* One block of one row. q[i]: elements 64*i .. 64*i+63. scales: int16 for each 16 elements (a sub-block of 32 has two equal ones).
 * pairs: int16 for each 16 elements, to be multiplied with their activations' sum: -offset * scale, part of the dot product, or
 * the minimum, which has a sum of its own. */
typedef struct {
    __m512i q[4];
    __m256i scales, pairs;
} block256;

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    block256 (*unpack)(const uint8_t *block);
    int64_t block_bytes;
    int64_t d_at, dmin_at; /* where in a block; dmin_at 0: no minimums */
    int n_sub;             /* sub-blocks: 8 of 32 or 16 of 16 */
    int wide;              /* the sum of four products may exceed int16 */
} type256;

PMX_AVX512VNNI_BEGIN

PMX_INLINE __m512i load32_twice(const uint8_t *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* Each byte shifted right by `low` in the lower and by `high` in the upper half, and masked. */
PMX_INLINE __m512i shift_halves(__m512i v, const int low, const int high, const char mask) {
    const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
    return _mm512_and_si512(_mm512_srlv_epi32(v, counts), _mm512_set1_epi8(mask));
}

/* 128 bytes of nibbles: a low half and a high half of 32 elements in each register. */
PMX_INLINE void load_nibbles256(__m512i q[4], const uint8_t *qs) {
    for (int i = 0; i < 4; i++) q[i] = shift_halves(load32_twice(qs + 32 * i), 0, 4, 15);
}

/* 64 bytes of crumbs. */
PMX_INLINE void load_crumbs256(__m512i q[4], const uint8_t *qs) {
    for (int i = 0; i < 4; i++) q[i] = shift_halves(load32_twice(qs + 32 * (i / 2)), i % 2 * 4, i % 2 * 4 + 2, 3);
}

/* Adds `value` to the elements whose bit in 32 bytes of bits is set. */
PMX_INLINE void add_bits256(__m512i q[4], const uint8_t *bits, const char value) {
    const __m512i v = load32_twice(bits);
    for (int i = 0; i < 4; i++) {
        const __m512i wanted = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << 2 * i)), _mm256_set1_epi8((char)(1 << (2 * i + 1))), 1);
        q[i] = _mm512_mask_add_epi8(q[i], _mm512_test_epi8_mask(v, wanted), q[i], _mm512_set1_epi8(value));
    }
}

/* Eight values, one for each 32 elements, as 16 int16, one for each 16. */
PMX_INLINE __m256i twice16(__m128i bytes) {
    const __m128i doubled = _mm_unpacklo_epi8(bytes, bytes);
    return _mm256_cvtepi8_epi16(doubled);
}

/* Scales and minimums of q4_k and q5_k. */
PMX_INLINE void load_scales_k4(block256 *out, const uint8_t *block) {
    const __m128i both = six_bits(load16(block));
    out->scales = twice16(both);
    out->pairs = twice16(_mm_unpackhi_epi64(both, both));
}

PMX_INLINE block256 unpack_q2_k(const uint8_t *block) {
    block256 out;
    load_crumbs256(out.q, block + offsetof(pmx_block_q2_k, qs));
    out.scales = _mm256_cvtepi8_epi16(kquant_scales(PMX_Q2_K, block));
    out.pairs = _mm256_cvtepi8_epi16(kquant_mins_q2_k(block));
    return out;
}

PMX_INLINE block256 unpack_q3_k(const uint8_t *block) {
    block256 out;
    load_crumbs256(out.q, block + offsetof(pmx_block_q3_k, qs));
    add_bits256(out.q, block + offsetof(pmx_block_q3_k, hmask), 4);
    out.scales = _mm256_cvtepi8_epi16(scales_q3_k(block));
    out.pairs = _mm256_mullo_epi16(out.scales, _mm256_set1_epi16(-4));
    return out;
}

PMX_INLINE block256 unpack_q4_k(const uint8_t *block) {
    block256 out;
    load_nibbles256(out.q, block + offsetof(pmx_block_q4_k, qs));
    load_scales_k4(&out, block);
    return out;
}

PMX_INLINE block256 unpack_q5_k(const uint8_t *block) {
    block256 out;
    load_nibbles256(out.q, block + offsetof(pmx_block_q5_k, qs));
    add_bits256(out.q, block + offsetof(pmx_block_q5_k, qh), 16);
    load_scales_k4(&out, block);
    return out;
}

PMX_INLINE block256 unpack_q6_k(const uint8_t *block) {
    block256 out;
    __m512i high[4];
    load_crumbs256(high, block + offsetof(pmx_block_q6_k, qh));
    for (int i = 0; i < 4; i++) {
        const __m512i packed = _mm512_loadu_si512(block + offsetof(pmx_block_q6_k, ql) + 64 * (i / 2));
        const __m512i low = _mm512_and_si512(i % 2 ? _mm512_srli_epi16(packed, 4) : packed, _mm512_set1_epi8(15));
        out.q[i] = _mm512_or_si512(low, _mm512_slli_epi16(high[i], 4));
    }
    out.scales = _mm256_cvtepi8_epi16(load16(block + offsetof(pmx_block_q6_k, scales)));
    out.pairs = _mm256_mullo_epi16(out.scales, _mm256_set1_epi16(-32));
    return out;
}

PMX_INLINE block256 unpack_iq4_xs(const uint8_t *block) {
    block256 out;
    const __m128i values = _mm_xor_si128(_mm_setr_epi8(PMX_IQ4_VALUES), _mm_set1_epi8(-128)); /* plus 128 */
    for (int i = 0; i < 4; i++) {
        const __m512i packed =
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(block + offsetof(pmx_block_iq4_xs, qs) + 32 * i)));
        const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), packed);
        const __m512i shifted = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        out.q[i] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), _mm512_and_si512(shifted, _mm512_set1_epi8(15)));
    }
    out.scales = twice16(scales_iq4_xs(block));
    out.pairs = _mm256_mullo_epi16(out.scales, _mm256_set1_epi16(-128));
    return out;
}

PMX_AVX512VNNI_END

#endif
