/* blocks256.h: blocks of 256, from memory into registers: for each type a row's integers as
 * unsigned bytes, and the integer scales of four rows at once. A signed integer is stored plus an
 * offset, which is undone with the scales and the activations' sums. */
#ifndef PMX_AVX512VNNI_BLOCKS256_H
#define PMX_AVX512VNNI_BLOCKS256_H

#include "../avx2/kquants.h"
#include "avx512vnni.h"
#include "lattices.h"

/* In which order a row's 16 pieces of 16 elements are unpacked, four a register: as two shifts of
 * 64 packed bytes give them, so that the activations are put into order, once for eight rows,
 * instead of the weights. */
typedef enum {
    ORDER_PLAIN,
    ORDER_NIBBLES,
    ORDER_NIBBLES16,
    ORDER_CRUMBS,
    /* Not by pieces: register s has of each half every second element from s on, s = 0, 1; of the
     * whole block every fourth. */
    ORDER_SECONDS,
    ORDER_FOURTHS,
    ORDER_DIGITS
} order256;

/* Registers of a row's integers: four. In ORDER_DIGITS six, of bytes whose highest digits of base 3
 * are the integers in the first five: 32 bytes, 16, 4 (not in the fifth), and 12 that are 0. Each
 * register is three times the one before it, modulo 256. */
enum { MAX_REGISTERS = 6 };

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    void (*unpack)(__m512i *q, const uint8_t *block);
    __m512i (*scales)(__m512i heads); /* of 16 bytes of each of four rows: their scales as bytes; of
                                         8 sub-blocks: then their minimums */
    int64_t block_bytes, head_at;     /* head_at: where these 16 bytes are in a block */
    int64_t d_at;                     /* of the scale, which a minimum's may follow; below 0: iq1_m's, in pieces */
    order256 order;
    int n_sub;       /* sub-blocks: 8 of 32 or 16 of 16; 1: no scales but d, and the integers' offset is 1 */
    int has_min;     /* each sub-block has a minimum */
    int offset_bits; /* the integers' offset is 2 to this; 0: none */
    int wide;        /* the sum of four products may exceed int16 */
    int by_row;      /* one token is multiplied row by row */
    __m128i (*row_scales)(const uint8_t *block); /* of one row, in place of `scales` */
    /* In place of `unpack`: 32 codes of each of two rows at once, and integers from a row's codes. */
    void (*look_up)(__m512i codes[2], const uint8_t *a, const uint8_t *b);
    void (*spread)(__m512i *q, __m512i codes, const uint8_t *block);
    float d_part; /* what the scale is multiplied with; 0: nothing */
} type256;

/* Int16 of four rows, one a 128-bit lane: those of bytes 0..7 and of bytes 8..15. */
typedef struct {
    __m512i low, high;
} words256;

PMX_AVX512VNNI_BEGIN

/* The piece that is 128-bit lane `lane` of register i. */
PMX_INLINE int piece256(const order256 order, const int i, const int lane) {
    switch (order) {
    case ORDER_NIBBLES:
        return i / 2 * 8 + lane / 2 * 4 + i % 2 * 2 + lane % 2; /* 32 bytes hold 32 elements, then the next 32 */
    case ORDER_NIBBLES16: return i / 2 * 8 + lane * 2 + i % 2;  /* 16 bytes hold 16, then the next 16 */
    case ORDER_CRUMBS: return lane / 2 * 8 + i * 2 + lane % 2;  /* 32 bytes hold four times 32 */
    case ORDER_SECONDS: return i / 2 * 8 + lane * 2 + i % 2;    /* after interleave256 */
    case ORDER_FOURTHS: return lane * 4 + i;
    default: return 4 * i + lane;
    }
}

PMX_INLINE __m512i four_registers(__m128i a, __m128i b, __m128i c, __m128i d) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c), 1);
}

PMX_INLINE __m512i four_lanes(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    return four_registers(load16(a), load16(b), load16(c), load16(d));
}

/* Every second or fourth byte in a register of its own. */
PMX_INLINE void load_seconds256(__m512i x[4], const uint8_t *p) {
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                  odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    for (int i = 0; i < 4; i += 2) {
        const __m512i a = _mm512_shuffle_epi8(_mm512_loadu_si512(p + 64 * i), apart),
                      b = _mm512_shuffle_epi8(_mm512_loadu_si512(p + 64 * i + 64), apart);
        x[i] = _mm512_permutex2var_epi64(a, even, b);
        x[i + 1] = _mm512_permutex2var_epi64(a, odd, b);
    }
}
PMX_INLINE void load_fourths256(__m512i x[4], const uint8_t *p) {
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    /* dwords 0 and 1 of eight pieces; 2 and 3 */
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    __m512i v[4], pairs[2][2];
    for (int i = 0; i < 4; i++) v[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(p + 64 * i), apart);
    for (int i = 0; i < 2; i++) {
        pairs[0][i] = _mm512_permutex2var_epi32(v[2 * i], first, v[2 * i + 1]);
        pairs[1][i] = _mm512_permutex2var_epi32(v[2 * i], second, v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        x[2 * i] = _mm512_shuffle_i64x2(pairs[i][0], pairs[i][1], 0x44);
        x[2 * i + 1] = _mm512_shuffle_i64x2(pairs[i][0], pairs[i][1], 0xee);
    }
}

PMX_INLINE void store16(uint8_t *p, __m128i v) { _mm_store_si128((__m128i *)(void *)p, v); }

/* Of elements in order those that are register k of ORDER_DIGITS. */
PMX_INLINE __m512i load_digits(const uint8_t *p, const int k) {
    int32_t last = 0;
    if (k < 4) memcpy(&last, p + 240 + 4 * k, sizeof last);
    const __m256i high = _mm256_set_m128i(_mm_cvtsi32_si128(last), load16(p + 160 + 16 * k));
    return _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 32 * k)), high, 1);
}

/* The other way, of bytes v. A byte's highest digit is how many of 86 and 171 it reaches. */
PMX_INLINE void store_digits(uint8_t *p, __m512i v, const int k) {
    const __m512i one = _mm512_set1_epi8(1), first = _mm512_subs_epu8(v, _mm512_set1_epi8(85)),
                  second = _mm512_subs_epu8(v, _mm512_set1_epi8((char)170));
    const __m512i digits = _mm512_add_epi8(_mm512_min_epu8(first, one), _mm512_min_epu8(second, one));
    const int32_t last = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(digits, 3));
    if (k < 4) memcpy(p + 240 + 4 * k, &last, sizeof last);
    store16(p + 160 + 16 * k, _mm512_extracti32x4_epi32(digits, 2));
    _mm256_store_si256((__m256i *)(void *)(p + 32 * k), _mm512_castsi512_si256(digits));
}

/* The 256 bytes at p in a type's order. */
PMX_INLINE void load_ordered256(__m512i *x, const int8_t *p, const order256 order) {
    const uint8_t *at = (const uint8_t *)p;
    if (order == ORDER_SECONDS) {
        load_seconds256(x, at);
        return;
    }
    if (order == ORDER_FOURTHS) {
        load_fourths256(x, at);
        return;
    }
    if (order == ORDER_DIGITS) {
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++) x[k] = load_digits(at, k);
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int a = 16 * piece256(order, i, 0), b = 16 * piece256(order, i, 1), c = 16 * piece256(order, i, 2),
                  d = 16 * piece256(order, i, 3);
        if (order == ORDER_PLAIN)
            x[i] = _mm512_loadu_si512(at + a);
        else if (order == ORDER_NIBBLES16)
            x[i] = four_lanes(at + a, at + b, at + c, at + d);
        else
            x[i] = _mm512_inserti64x4(_mm512_castsi256_si512(load32(at + a)), load32(at + c), 1);
    }
}

/* Every second or fourth byte together again, in pieces of 16. */
PMX_INLINE void interleave256(__m512i *x, const order256 order) {
    __m512i pairs[4];
    for (int i = 0; i < 4; i += 2) {
        pairs[i] = _mm512_unpacklo_epi8(x[i], x[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi8(x[i], x[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        const int j = order == ORDER_SECONDS ? 2 * i : i;
        x[2 * i] = order == ORDER_SECONDS ? pairs[j] : _mm512_unpacklo_epi16(pairs[j], pairs[j + 2]);
        x[2 * i + 1] = order == ORDER_SECONDS ? pairs[j + 1] : _mm512_unpackhi_epi16(pairs[j], pairs[j + 2]);
    }
}

/* The other way. */
PMX_INLINE void store_ordered256(uint8_t *p, __m512i *x, const order256 order) {
    if (order == ORDER_DIGITS) {
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++) store_digits(p, x[k], k);
        return;
    }
    if (order == ORDER_SECONDS || order == ORDER_FOURTHS) interleave256(x, order);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        if (order == ORDER_PLAIN) {
            _mm512_store_si512(p + 64 * i, x[i]);
        } else if (order != ORDER_NIBBLES && order != ORDER_CRUMBS) {
            store16(p + 16 * piece256(order, i, 0), _mm512_castsi512_si128(x[i]));
            store16(p + 16 * piece256(order, i, 1), _mm512_extracti32x4_epi32(x[i], 1));
            store16(p + 16 * piece256(order, i, 2), _mm512_extracti32x4_epi32(x[i], 2));
            store16(p + 16 * piece256(order, i, 3), _mm512_extracti32x4_epi32(x[i], 3));
        } else {
            _mm256_store_si256((__m256i *)(void *)(p + 16 * piece256(order, i, 0)), _mm512_castsi512_si256(x[i]));
            _mm256_store_si256((__m256i *)(void *)(p + 16 * piece256(order, i, 2)), _mm512_extracti64x4_epi64(x[i], 1));
        }
    }
}

/* --- Integers */

/* Each byte's bits from `from` on moved to bit `to`, masked there. */
PMX_INLINE __m512i move_bits512(__m512i v, const int from, const int to, const int mask) {
    const __m512i moved = from > to   ? _mm512_srli_epi32(v, (unsigned)(from - to))
                          : from < to ? _mm512_slli_epi32(v, (unsigned)(to - from))
                                      : v;
    return _mm512_and_si512(moved, _mm512_set1_epi8((char)(mask << to)));
}

/* 128 bytes of nibbles. */
PMX_INLINE void load_nibbles256(__m512i q[4], const uint8_t *qs) {
    const __m512i v[2] = {load_once(qs), load_once(qs + 64)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = move_bits512(v[i / 2], i % 2 * 4, 0, 15);
}

/* 64 bytes of crumbs. */
PMX_INLINE void load_crumbs256(__m512i q[4], const uint8_t *qs) {
    const __m512i crumbs = load_once(qs);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = move_bits512(crumbs, 2 * i, 0, 3);
}

PMX_INLINE void unpack_q2_k(__m512i q[4], const uint8_t *block) {
    load_crumbs256(q, block + offsetof(pmx_block_q2_k, qs));
}

PMX_INLINE void unpack_tq2_0(__m512i q[4], const uint8_t *block) {
    load_crumbs256(q, block + offsetof(pmx_block_tq2_0, qs));
}

PMX_INLINE void unpack_tq1_0(__m512i *v, const uint8_t *block) {
    v[0] = _mm512_maskz_loadu_epi8((UINT64_C(1) << offsetof(pmx_block_tq1_0, d)) - 1, block);
#pragma GCC unroll 5
    for (int k = 0; k < 5; k++) v[k + 1] = _mm512_add_epi8(v[k], _mm512_add_epi8(v[k], v[k]));
}

/* 32 bytes, and moved right by 4 bits. */
PMX_INLINE __m512i load_bits(const uint8_t *bits) {
    const __m256i v = load32(bits);
    return _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
}

PMX_INLINE void unpack_q3_k(__m512i q[4], const uint8_t *block) {
    const __m512i crumbs = load_once(block + offsetof(pmx_block_q3_k, qs));
    const __m512i bits = load_bits(block + offsetof(pmx_block_q3_k, hmask));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = _mm512_or_si512(move_bits512(crumbs, 2 * i, 0, 3), move_bits512(bits, i, 2, 1));
}

PMX_INLINE void unpack_q4_k(__m512i q[4], const uint8_t *block) {
    load_nibbles256(q, block + offsetof(pmx_block_q4_k, qs));
}

PMX_INLINE void unpack_q5_k(__m512i q[4], const uint8_t *block) {
    const __m256i v = load32(block + offsetof(pmx_block_q5_k, qh));
    const __m512i bits = _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 2), 1);
    load_nibbles256(q, block + offsetof(pmx_block_q5_k, qs));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = _mm512_or_si512(q[i], move_bits512(bits, i / 2 * 4 + i % 2, 4, 1));
}

PMX_INLINE void unpack_q6_k(__m512i q[4], const uint8_t *block) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i low =
            move_bits512(_mm512_loadu_si512(block + offsetof(pmx_block_q6_k, ql) + 64 * (i / 2)), i % 2 * 4, 0, 15);
        const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi32(i % 2 * 4), _mm256_set1_epi32(i % 2 * 4 + 2), 1);
        const __m512i high = _mm512_broadcast_i64x4(load32(block + offsetof(pmx_block_q6_k, qh) + 32 * (i / 2)));
        q[i] = _mm512_or_si512(low, move_bits512(_mm512_srlv_epi32(high, counts), 0, 4, 3));
    }
}

PMX_INLINE void unpack_iq4_xs(__m512i q[4], const uint8_t *block) {
    const __m128i values = _mm_xor_si128(_mm_setr_epi8(PMX_IQ4_VALUES), _mm_set1_epi8(-128)); /* plus 128 */
    load_nibbles256(q, block + offsetof(pmx_block_iq4_xs, qs));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), q[i]);
}

/* --- Scales of four rows */

PMX_INLINE __m512i shuffle4(__m512i v, __m128i order) { return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order)); }

PMX_INLINE __m512i scales4_q2_k(__m512i heads) { return _mm512_and_si512(heads, _mm512_set1_epi8(15)); }
PMX_INLINE __m512i mins4_q2_k(__m512i heads) { return move_bits512(heads, 4, 0, 15); }

/* 2 bytes of no interest, then the 12 of the scales, then d. */
PMX_INLINE __m512i scales4_q3_k(__m512i heads) {
    const __m512i low = shuffle4(heads, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m512i top = shuffle4(heads, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    const __m512i four = move_bits512(_mm512_srlv_epi64(low, _mm512_broadcast_i32x4(_mm_set_epi64x(4, 0))), 0, 0, 15);
    const __m512i two =
        move_bits512(_mm512_srlv_epi32(top, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 2, 4, 6))), 0, 4, 3);
    return _mm512_sub_epi8(_mm512_or_si512(four, two), _mm512_set1_epi8(32));
}

/* d, dmin and 12 bytes of 6-bit numbers, as six_bits of kquants.h. */
PMX_INLINE __m512i scales4_k4(__m512i heads) {
    const __m512i low = shuffle4(heads, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i top = shuffle4(heads, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m512i mask = _mm512_broadcast_i32x4(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 0, 4));
    return _mm512_or_si512(_mm512_and_si512(_mm512_srlv_epi32(low, counts), mask), move_bits512(top, 6, 4, 3));
}

PMX_INLINE __m512i scales4_q6_k(__m512i heads) { return heads; }

/* d, 2 bytes of the scales' high bits, 4 of the low ones; as scales_iq4_xs of kquants.h. */
PMX_INLINE __m512i scales4_iq4_xs(__m512i heads) {
    const __m512i low = shuffle4(heads, _mm_setr_epi8(4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1));
    const __m512i low_at = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 4, 0, 4, 0, 4, 0, 4));
    const __m512i nibbles = _mm512_and_si512(_mm512_srlv_epi16(low, low_at), _mm512_set1_epi16(15));
    const __m512i high = shuffle4(heads, _mm_setr_epi8(2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));
    const __m512i high_at = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 2, 4, 6, 8, 10, 12, 14));
    const __m512i crumbs = _mm512_and_si512(_mm512_srlv_epi16(high, high_at), _mm512_set1_epi16(3));
    const __m512i words =
        _mm512_sub_epi16(_mm512_or_si512(nibbles, _mm512_slli_epi16(crumbs, 4)), _mm512_set1_epi16(32));
    return _mm512_packs_epi16(words, _mm512_setzero_si512());
}

/* Scales s of IQ types as they count. */
PMX_INLINE __m512i twice_plus_1(__m512i s) { return _mm512_add_epi8(_mm512_add_epi8(s, s), _mm512_set1_epi8(1)); }

/* A block's last 16 bytes: 8 words of 3 bits from bit 12 on; 8 bytes of no interest, then 4 words of four times
 * 3 bits. */
PMX_INLINE __m512i scales4_iq1_s(__m512i heads) {
    const __m512i words = _mm512_and_si512(_mm512_srli_epi16(heads, 12), _mm512_set1_epi16(7));
    return twice_plus_1(_mm512_packus_epi16(words, words));
}
PMX_INLINE __m512i scales4_iq1_m(__m512i heads) {
    const __m512i top = _mm512_broadcast_i32x4(_mm_set1_epi64x(0x0010008004002000)); /* to bit 13 */
    const __m512i low = shuffle4(heads, _mm_setr_epi8(8, 9, 8, 9, 8, 9, 8, 9, 10, 11, 10, 11, 10, 11, 10, 11));
    const __m512i high = shuffle4(heads, _mm_setr_epi8(12, 13, 12, 13, 12, 13, 12, 13, 14, 15, 14, 15, 14, 15, 14, 15));
    return twice_plus_1(_mm512_packus_epi16(_mm512_srli_epi16(_mm512_mullo_epi16(low, top), 13),
                                            _mm512_srli_epi16(_mm512_mullo_epi16(high, top), 13)));
}

/* Nibbles of bytes, each of which is there twice. */
PMX_INLINE __m512i scales4_nibbles(__m512i twice) {
    const __m512i low = _mm512_and_si512(twice, _mm512_set1_epi16(0x000f));
    return twice_plus_1(_mm512_or_si512(low, _mm512_and_si512(_mm512_srli_epi16(twice, 4), _mm512_set1_epi16(0x0f00))));
}
PMX_INLINE __m512i scales4_iq2_xs(__m512i heads) {
    return scales4_nibbles(shuffle4(heads, _mm_setr_epi8(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)));
}
PMX_INLINE __m512i scales4_iq2_s(__m512i heads) { return scales4_iq2_xs(heads); }
PMX_INLINE __m512i scales4_iq3_s(__m512i heads) {
    return scales4_nibbles(
        shuffle4(heads, _mm_setr_epi8(12, 12, 13, 13, 14, 14, 15, 15, 12, 12, 13, 13, 14, 14, 15, 15)));
}

/* iq1_m's f16 numbers of eight rows, whose scales' four words have four bits each at the top. */
PMX_INLINE __m256 load_pieces(const uint8_t *const *rows, int64_t at) {
    int64_t words[8];
    for (int i = 0; i < 8; i++) memcpy(&words[i], rows[i] + at, sizeof words[i]);
    const __m512i v = _mm512_setr_epi64(words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]);
    const __m512i moved = _mm512_srlv_epi16(v, _mm512_set1_epi64(0x000000040008000c));
    const __m512i nibbles = _mm512_and_si512(moved, _mm512_set1_epi64((int64_t)0xf0000f0000f0000f));
    const __m512i two = _mm512_or_si512(nibbles, _mm512_srli_epi64(nibbles, 32));
    return _mm256_cvtph_ps(_mm512_cvtepi64_epi16(_mm512_or_si512(two, _mm512_srli_epi64(two, 16))));
}

/* Signed bytes of four rows as int16. */
PMX_INLINE words256 widen256(__m512i bytes) {
    return (words256){_mm512_srai_epi16(_mm512_unpacklo_epi8(bytes, bytes), 8),
                      _mm512_srai_epi16(_mm512_unpackhi_epi8(bytes, bytes), 8)};
}

/* The scales of four rows, and what is multiplied with the activations' sums: minimums, or the
 * scales again where there is an offset. For 8 sub-blocks both are in `low`. */
PMX_INLINE void load_scales256(words256 *scales, words256 *pairs, const uint8_t *const *rows, int64_t at,
                               const type256 T) {
    const int64_t head = at + T.head_at;
    if (T.row_scales) {
        *scales = *pairs = widen256(four_registers(T.row_scales(rows[0] + at), T.row_scales(rows[1] + at),
                                                   T.row_scales(rows[2] + at), T.row_scales(rows[3] + at)));
        return;
    }
    const __m512i heads = four_lanes(rows[0] + head, rows[1] + head, rows[2] + head, rows[3] + head);
    *scales = *pairs = widen256(T.scales(heads));
    if (T.has_min && T.n_sub == 8)
        pairs->low = scales->high;
    else if (T.has_min)
        *pairs = widen256(mins4_q2_k(heads));
}

/* d, and dmin where the type has it, of eight rows. */
PMX_INLINE void load_d256(__m256 *d, __m256 *dmin, const uint8_t *const *rows, int64_t at, const type256 T) {
    *dmin = _mm256_setzero_ps();
    if (T.has_min)
        load_scale_pairs(d, dmin, rows, at + T.d_at);
    else if (T.d_at < 0)
        *d = load_pieces(rows, at + (int64_t)offsetof(pmx_block_iq1_m, scales));
    else
        *d = load_scales(rows, at + T.d_at);
    if (T.d_part != 0) *d = _mm256_mul_ps(*d, _mm256_set1_ps(T.d_part));
}

PMX_AVX512VNNI_END

#endif
