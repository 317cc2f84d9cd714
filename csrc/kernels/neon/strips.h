/* strips.h: what the integer matrix products of neon and neon_i8mm share: blocks of GGUF become
 * signed bytes, and eight rows of them a strip that all tokens are multiplied with, four at a time.
 * The order of bytes in a strip is the instruction set's own. */
#ifndef PMX_NEON_STRIPS_H
#define PMX_NEON_STRIPS_H

#include <stddef.h>
#include <string.h>

#include "../lattices.h"
#include "neon.h"

enum {
    STRIP_ROWS = 8,
    TILE_TOKENS = 4,
    K_BLOCK = 1024, /* columns of a strip: with scales at most 16 KB, and 4 KB of each 4 tokens,
                       stay in L1 */
    N_BLOCKS32 = K_BLOCK / PMX_BLOCK,
    N_BLOCKS256 = K_BLOCK / PMX_BLOCK256,
    MAX_SUB = 16
};

PMX_NEON_BEGIN

/* The f16 numbers at w + offset of four rows, widened. */
PMX_INLINE float32x4_t load_f16_of_4(const uint8_t *const *rows, int64_t offset) {
    uint16x4_t h = vdup_n_u16(0);
    h = vld1_lane_u16((const uint16_t *)(const void *)(rows[0] + offset), h, 0);
    h = vld1_lane_u16((const uint16_t *)(const void *)(rows[1] + offset), h, 1);
    h = vld1_lane_u16((const uint16_t *)(const void *)(rows[2] + offset), h, 2);
    h = vld1_lane_u16((const uint16_t *)(const void *)(rows[3] + offset), h, 3);
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

/* Those of blocks of iq1_m. */
PMX_INLINE float32x4_t load_split_of_4(const uint8_t *const *rows, int64_t offset) {
    uint16_t d[4];
    for (int i = 0; i < 4; i++) d[i] = lattice_number(PMX_IQ1_M, rows[i] + offset);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(d)));
}

/* The powers of two whose exponents are the bytes at `offset` of four rows: pmx_e8m0_to_f32. */
PMX_INLINE float32x4_t load_powers_of_4(const uint8_t *const *rows, int64_t offset) {
    const uint32_t bytes[4] = {rows[0][offset], rows[1][offset], rows[2][offset], rows[3][offset]};
    const uint32x4_t e = vld1q_u32(bytes), normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
    const uint32x4_t small = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
    return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), small, normal));
}

/* The scales at `offset` of four rows; is_power: of mxfp4. */
PMX_INLINE float32x4_t load_scales_of_4(const uint8_t *const *rows, int64_t offset, const int is_power) {
    return is_power ? load_powers_of_4(rows, offset) : load_f16_of_4(rows, offset);
}

/* Eight row pointers from row r on; rows past the end repeat the last one and their results are
 * dropped. */
PMX_INLINE void row_pointers(const uint8_t *rows[STRIP_ROWS], const pmx_product *p, int64_t r) {
    for (int i = 0; i < STRIP_ROWS; i++) rows[i] = p->w + (r + i < p->n_rows ? r + i : p->n_rows - 1) * p->row_bytes;
}

PMX_INLINE int8x16_t low_nibbles(uint8x16_t x) { return vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))); }
PMX_INLINE int8x16_t high_nibbles(uint8x16_t x) { return vreinterpretq_s8_u8(vshrq_n_u8(x, 4)); }

PMX_INLINE int8x16_t iq4_values(void) {
    static const int8_t values[16] = {PMX_IQ4_VALUES};
    return vld1q_s8(values);
}

PMX_INLINE int8x16_t mxfp4_values(void) {
    static const int8_t values[16] = {PMX_MXFP4_VALUES};
    return vld1q_s8(values);
}

/* --- Blocks of 32: the values before the type's offset is subtracted (iq4_nl, mxfp4: from their
 * tables) */

typedef int8x16x2_t (*unpack32)(const uint8_t *block);

PMX_INLINE int8x16x2_t unpack_nibbles(const uint8_t *qs) {
    const uint8x16_t x = vld1q_u8(qs);
    return (int8x16x2_t){{low_nibbles(x), high_nibbles(x)}};
}

/* 16 where the bit is set, for the 16 bits of two bytes. */
PMX_INLINE int8x16_t fifth_bits(const uint8_t *qh) {
    static const uint8_t select[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(qh[0]), vdup_n_u8(qh[1]));
    return vreinterpretq_s8_u8(vandq_u8(vtstq_u8(bytes, vld1q_u8(select)), vdupq_n_u8(16)));
}

PMX_INLINE int8x16x2_t unpack_fives(const uint8_t *qh, const uint8_t *qs) {
    const int8x16x2_t v = unpack_nibbles(qs);
    return (int8x16x2_t){{vorrq_s8(v.val[0], fifth_bits(qh)), vorrq_s8(v.val[1], fifth_bits(qh + 2))}};
}

PMX_INLINE int8x16x2_t unpack_q4_0(const uint8_t *block) { return unpack_nibbles(block + 2); }
PMX_INLINE int8x16x2_t unpack_q4_1(const uint8_t *block) { return unpack_nibbles(block + 4); }
PMX_INLINE int8x16x2_t unpack_q5_0(const uint8_t *block) { return unpack_fives(block + 2, block + 6); }
PMX_INLINE int8x16x2_t unpack_q5_1(const uint8_t *block) { return unpack_fives(block + 4, block + 8); }

PMX_INLINE int8x16x2_t unpack_q8_0(const uint8_t *block) {
    const int8_t *q = (const int8_t *)(block + 2);
    return (int8x16x2_t){{vld1q_s8(q), vld1q_s8(q + 16)}};
}

PMX_INLINE int8x16x2_t look_up(int8x16_t table, int8x16x2_t v) {
    return (int8x16x2_t){
        {vqtbl1q_s8(table, vreinterpretq_u8_s8(v.val[0])), vqtbl1q_s8(table, vreinterpretq_u8_s8(v.val[1]))}};
}

PMX_INLINE int8x16x2_t unpack_iq4_nl(const uint8_t *block) { return look_up(iq4_values(), unpack_nibbles(block + 2)); }
PMX_INLINE int8x16x2_t unpack_mxfp4(const uint8_t *block) { return look_up(mxfp4_values(), unpack_nibbles(block + 1)); }

/* --- Blocks of 256: offsets subtracted */

typedef struct {
    int8x16_t q[16];        /* element 16*i + lane */
    int8x16_t scales, mins; /* of each 16; of each 32 for the types with 8 sub-blocks, then the
                               upper half means nothing */
} decoded256;

typedef void (*decode256)(decoded256 *out, const uint8_t *block);

/* q[i] = crumbs: element 128*h + 32*s + i is bits 2*s of byte 32*h + i. */
PMX_INLINE void decode_crumbs(uint8x16_t q[16], const uint8_t *qs) {
    const uint8x16_t three = vdupq_n_u8(3);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const uint8x16_t x = vld1q_u8(qs + 16 * i);
        uint8x16_t *out = q + i / 2 * 8 + i % 2;
        out[0] = vandq_u8(x, three);
        out[2] = vandq_u8(vshrq_n_u8(x, 2), three);
        out[4] = vandq_u8(vshrq_n_u8(x, 4), three);
        out[6] = vshrq_n_u8(x, 6);
    }
}

/* bits[c] = bit c of 16 bytes, worth 1 << at; c is a constant where this is inlined. */
PMX_INLINE uint8x16_t bit_of(uint8x16_t x, const int c, const int at) {
    const uint8x16_t shifted = vshlq_u8(x, vdupq_n_s8((int8_t)(at - c)));
    return vandq_u8(shifted, vdupq_n_u8((uint8_t)(1 << at)));
}

/* Nibbles: element 64*p + i is the low nibble of byte 32*p + i, element 64*p + 32 + i the high one.
 */
PMX_INLINE void decode_nibbles(int8x16_t q[16], const uint8_t *qs) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const uint8x16_t x = vld1q_u8(qs + 16 * i);
        q[i / 2 * 4 + i % 2] = low_nibbles(x);
        q[i / 2 * 4 + i % 2 + 2] = high_nibbles(x);
    }
}

PMX_INLINE uint32_t load_u32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

PMX_INLINE int8x16_t eight_bytes(uint32_t low, uint32_t high) {
    return vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(low | (uint64_t)high << 32), vdup_n_u64(0)));
}

/* The 8 scales and minimums of six bits of q4_k and q5_k. */
PMX_INLINE void decode_six_bits(decoded256 *out, const uint8_t *s) {
    const uint32_t a = load_u32(s), b = load_u32(s + 4), c = load_u32(s + 8), six = 0x3f3f3f3fu, four = 0x0f0f0f0fu,
                   two = 0x30303030u;
    out->scales = eight_bytes(a & six, (c & four) | (a >> 2 & two));
    out->mins = eight_bytes(b & six, (c >> 4 & four) | (b >> 2 & two));
}

PMX_INLINE void decode_q2_k(decoded256 *out, const uint8_t *block) {
    const uint8x16_t scales = vld1q_u8(block + offsetof(pmx_block_q2_k, scales));
    uint8x16_t q[16];
    decode_crumbs(q, block + offsetof(pmx_block_q2_k, qs));
    for (int i = 0; i < 16; i++) out->q[i] = vreinterpretq_s8_u8(q[i]);
    out->scales = low_nibbles(scales);
    out->mins = high_nibbles(scales);
}

PMX_INLINE void decode_q3_k(decoded256 *out, const uint8_t *block) {
    static const int8_t shifts[16] = {0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4, -6, -6, -6, -6};
    const uint8_t *s = block + offsetof(pmx_block_q3_k, scales);
    uint8x16_t q[16], mask[2] = {vld1q_u8(block), vld1q_u8(block + 16)};
    decode_crumbs(q, block + offsetof(pmx_block_q3_k, qs));
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        out->q[i] = vreinterpretq_s8_u8(vsubq_u8(vorrq_u8(q[i], bit_of(mask[i % 2], i / 2, 2)), vdupq_n_u8(4)));
    const uint8x8_t low = vld1_u8(s);
    const uint8x16_t nibbles = vcombine_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8(low, 4));
    const uint8x16_t crumbs =
        vandq_u8(vshlq_u8(vreinterpretq_u8_u32(vdupq_n_u32(load_u32(s + 8))), vld1q_s8(shifts)), vdupq_n_u8(3));
    out->scales = vreinterpretq_s8_u8(vsubq_u8(vorrq_u8(nibbles, vshlq_n_u8(crumbs, 4)), vdupq_n_u8(32)));
    out->mins = vdupq_n_s8(0);
}

PMX_INLINE void decode_q4_k(decoded256 *out, const uint8_t *block) {
    decode_nibbles(out->q, block + offsetof(pmx_block_q4_k, qs));
    decode_six_bits(out, block + offsetof(pmx_block_q4_k, scales));
}

PMX_INLINE void decode_q5_k(decoded256 *out, const uint8_t *block) {
    const uint8_t *qh = block + offsetof(pmx_block_q5_k, qh);
    const uint8x16_t bits[2] = {vld1q_u8(qh), vld1q_u8(qh + 16)};
    decode_nibbles(out->q, block + offsetof(pmx_block_q5_k, qs));
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) out->q[i] = vorrq_s8(out->q[i], vreinterpretq_s8_u8(bit_of(bits[i % 2], i / 2, 4)));
    decode_six_bits(out, block + offsetof(pmx_block_q5_k, scales));
}

PMX_INLINE void decode_q6_k(decoded256 *out, const uint8_t *block) {
    uint8x16_t high[16];
    decode_crumbs(high, block + offsetof(pmx_block_q6_k, qh));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const uint8x16_t x = vld1q_u8(block + 16 * i);
        const int at = i / 4 * 8 + i % 4;
        out->q[at] = low_nibbles(x);
        out->q[at + 4] = high_nibbles(x);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        out->q[i] = vsubq_s8(vorrq_s8(out->q[i], vreinterpretq_s8_u8(vshlq_n_u8(high[i], 4))), vdupq_n_s8(32));
    out->scales = vld1q_s8((const int8_t *)(block + offsetof(pmx_block_q6_k, scales)));
    out->mins = vdupq_n_s8(0);
}

PMX_INLINE void decode_iq4_xs(decoded256 *out, const uint8_t *block) {
    const int8x16_t table = iq4_values();
    const uint8_t *qs = block + offsetof(pmx_block_iq4_xs, qs);
    uint32_t low = load_u32(block + offsetof(pmx_block_iq4_xs, scales_l)), high = load_u32(block) >> 16;
    uint64_t scales = 0;
    for (int j = 0; j < 8; j++, low >>= 4, high >>= 2) scales |= (uint64_t)((low & 15) | (high & 3) << 4) << 8 * j;
    out->scales = vsubq_s8(vreinterpretq_s8_u64(vdupq_n_u64(scales)), vdupq_n_s8(32));
    out->mins = vdupq_n_s8(0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const uint8x16_t x = vld1q_u8(qs + 16 * i);
        out->q[2 * i] = vqtbl1q_s8(table, vreinterpretq_u8_s8(low_nibbles(x)));
        out->q[2 * i + 1] = vqtbl1q_s8(table, vreinterpretq_u8_s8(high_nibbles(x)));
    }
}

/* 16 elements of a table, from 16 * i on. */
PMX_INLINE int8x16_t load_elements(const int type, const uint8_t *block, int i) {
    static const uint8_t select[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8_t magnitudes[16];
    for (int at = 0; at < 16; at += LATTICE_WIDTH(type))
        memcpy(magnitudes + at, lattice_entry(type, block, (16 * i + at) / LATTICE_WIDTH(type)), LATTICE_WIDTH(type));
    if (LATTICE_SHIFTED(type)) {
        const uint8_t offset = 1 << LATTICE_OFFSET_BITS(type);
        const uint8x8_t low = vdup_n_u8((uint8_t)(2 * lattice_shift(type, block, 2 * i) - offset)),
                        high = vdup_n_u8((uint8_t)(2 * lattice_shift(type, block, 2 * i + 1) - offset));
        return vreinterpretq_s8_u8(vaddq_u8(vld1q_u8(magnitudes), vcombine_u8(low, high)));
    }
    const uint8x16_t signs =
        vcombine_u8(vdup_n_u8(lattice_signs(type, block, 2 * i)), vdup_n_u8(lattice_signs(type, block, 2 * i + 1)));
    const uint8x16_t negative = vtstq_u8(signs, vld1q_u8(select));
    return vreinterpretq_s8_u8(vsubq_u8(veorq_u8(vld1q_u8(magnitudes), negative), negative));
}

PMX_INLINE void decode_lattice(decoded256 *out, const uint8_t *block, const int type) {
    int8_t scales[16] = {0};
    for (int i = 0; i < 16; i++) out->q[i] = load_elements(type, block, i);
    for (int j = 0; j < PMX_BLOCK256 / LATTICE_SUB(type); j++) scales[j] = lattice_scale(type, block, j);
    out->scales = vld1q_s8(scales);
    out->mins = vdupq_n_s8(0);
}

PMX_INLINE void decode_iq1_s(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ1_S); }
PMX_INLINE void decode_iq1_m(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ1_M); }
PMX_INLINE void decode_iq2_xxs(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ2_XXS); }
PMX_INLINE void decode_iq2_xs(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ2_XS); }
PMX_INLINE void decode_iq2_s(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ2_S); }
PMX_INLINE void decode_iq3_xxs(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ3_XXS); }
PMX_INLINE void decode_iq3_s(decoded256 *out, const uint8_t *block) { decode_lattice(out, block, PMX_IQ3_S); }

/* Without sub-blocks. */
PMX_INLINE void decode_tq2_0(decoded256 *out, const uint8_t *block) {
    uint8x16_t q[16];
    decode_crumbs(q, block + offsetof(pmx_block_tq2_0, qs));
    for (int i = 0; i < 16; i++) out->q[i] = vreinterpretq_s8_u8(vsubq_u8(q[i], vdupq_n_u8(1)));
    out->scales = vdupq_n_s8(1);
    out->mins = vdupq_n_s8(0);
}

/* The highest digit of each byte in base 3, which counts how many of 86 and 171 it reaches, minus 1. */
PMX_INLINE int8x16_t digit_minus_1(uint8x16_t v) {
    const uint8x16_t first = vcgeq_u8(v, vdupq_n_u8(86)), second = vcgeq_u8(v, vdupq_n_u8(171)); /* -1 where so */
    return vreinterpretq_s8_u8(vsubq_u8(vsubq_u8(vdupq_n_u8(255), first), second));
}

PMX_INLINE void decode_tq1_0(decoded256 *out, const uint8_t *block) {
    static const uint8_t powers[16] = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    uint8x16_t a = vld1q_u8(block), b = vld1q_u8(block + 16), c = vld1q_u8(block + 32);
    const uint8x16_t three = vdupq_n_u8(3);
#pragma GCC unroll 5
    for (int k = 0; k < 5; k++) {
        out->q[2 * k] = digit_minus_1(a);
        out->q[2 * k + 1] = digit_minus_1(b);
        out->q[10 + k] = digit_minus_1(c);
        a = vmulq_u8(a, three);
        b = vmulq_u8(b, three);
        c = vmulq_u8(c, three);
    }
    const uint8x16_t last = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(block + offsetof(pmx_block_tq1_0, qh))));
    out->q[15] = digit_minus_1(vmulq_u8(last, vld1q_u8(powers)));
    out->scales = vdupq_n_s8(1);
    out->mins = vdupq_n_s8(0);
}

/* --- The types */

/* What the kernels must know about a type; a constant wherever they are inlined. */
typedef struct {
    int64_t block_bytes;
    int64_t d_at; /* of the scale; a minimum's follows it */
    float d_part; /* what the scale is multiplied with; 0: nothing */
    int is_split; /* the scale is iq1_m's, in four pieces */
    int has_min;
    unpack32 unpack;  /* blocks of 32 */
    int offset;       /* subtracted from what it unpacks */
    int is_power;     /* the scale is a byte, the exponent of a power of two */
    decode256 decode; /* blocks of 256 */
    int n_sub;        /* their sub-blocks, 8, 16, or 1, whose scale is 1; 0: blocks of 32 */
} neon_type;

#define BLOCKS32(T, ...)                                                                                               \
    static const neon_type T = {.block_bytes = sizeof(pmx_block_##T), .unpack = unpack_##T, __VA_ARGS__};
#define BLOCKS256(T, ...)                                                                                              \
    static const neon_type T = {                                                                                       \
        .block_bytes = sizeof(pmx_block_##T), .d_at = offsetof(pmx_block_##T, d), .decode = decode_##T, __VA_ARGS__};

BLOCKS32(q4_0, .offset = 8)
BLOCKS32(q4_1, .has_min = 1)
BLOCKS32(q5_0, .offset = 16)
BLOCKS32(q5_1, .has_min = 1)
BLOCKS32(q8_0, .offset = 0)
BLOCKS32(iq4_nl, .offset = 0)
BLOCKS32(mxfp4, .offset = 0, .is_power = 1)
BLOCKS256(q2_k, .n_sub = 16, .has_min = 1)
BLOCKS256(q3_k, .n_sub = 16)
BLOCKS256(q4_k, .n_sub = 8, .has_min = 1)
BLOCKS256(q5_k, .n_sub = 8, .has_min = 1)
BLOCKS256(q6_k, .n_sub = 16)
BLOCKS256(iq1_s, .n_sub = 8, .d_part = LATTICE_D(PMX_IQ1_S))
BLOCKS256(iq2_xxs, .n_sub = 8, .d_part = LATTICE_D(PMX_IQ2_XXS))
BLOCKS256(iq2_xs, .n_sub = 16, .d_part = LATTICE_D(PMX_IQ2_XS))
BLOCKS256(iq2_s, .n_sub = 16, .d_part = LATTICE_D(PMX_IQ2_S))
BLOCKS256(iq3_xxs, .n_sub = 8, .d_part = LATTICE_D(PMX_IQ3_XXS))
BLOCKS256(iq3_s, .n_sub = 8, .d_part = LATTICE_D(PMX_IQ3_S))
BLOCKS256(iq4_xs, .n_sub = 8)
BLOCKS256(tq1_0, .n_sub = 1)
BLOCKS256(tq2_0, .n_sub = 1)
static const neon_type iq1_m = {.block_bytes = sizeof(pmx_block_iq1_m),
                                .d_part = LATTICE_D(PMX_IQ1_M),
                                .is_split = 1,
                                .decode = decode_iq1_m,
                                .n_sub = 16};

/* The scales of a block of four rows. */
PMX_INLINE float32x4_t load_d_of_4(const uint8_t *const *rows, int64_t block, const neon_type T) {
    const float32x4_t d = T.is_split ? load_split_of_4(rows, block) : load_f16_of_4(rows, block + T.d_at);
    return T.d_part != 0 ? vmulq_n_f32(d, T.d_part) : d;
}

/* --- Strips */

/* In scales every number stands `copies` times: once for sdot's rows, twice for smmla's pairs of a
 * row and two tokens. */
typedef struct {
    int8_t q[STRIP_ROWS * K_BLOCK];
    float d[N_BLOCKS32 * STRIP_ROWS * 2], m[N_BLOCKS32 * STRIP_ROWS * 2]; /* [block][row][copies]; m: minimum or dmin */
    int32_t scales[N_BLOCKS256 * MAX_SUB * STRIP_ROWS * 2];               /* [block][sub-block][row][copies] */
    int32_t mins[N_BLOCKS256 * MAX_SUB * STRIP_ROWS];                     /* [block][sub-block][row] */
    float acc[PMX_TOKEN_BLOCK * STRIP_ROWS];                              /* [token][row] */
} strip;
_Static_assert(sizeof(strip) <= PMX_MAT_SCRATCH, "scratch");

/* acc [4 tokens][8 rows] += the strip's blocks. x: of each token. */
typedef void (*tile_kernel)(float *acc, const strip *s, const pmx_quantized *x, int64_t n_blocks, const neon_type T);

/* What an instruction set makes of a strip; a constant wherever it is inlined. */
typedef struct {
    void (*pack)(int8_t *out, const int8x16_t v[STRIP_ROWS]); /* 16 columns of 8 rows in its order, 128 bytes */
    int copies;                                               /* of each number in scales */
    tile_kernel tile32, tile256;                              /* blocks of 32, of 256 */
} strip_order;

PMX_INLINE void store_of_4(float *out, float32x4_t x, const int copies) {
    vst1q_f32(out, copies == 1 ? x : vzip1q_f32(x, x));
    if (copies == 2) vst1q_f32(out + 4, vzip2q_f32(x, x));
}

PMX_INLINE void pack_numbers(float *out, const uint8_t *const *rows, int64_t offset, const int copies,
                             const int is_power) {
    store_of_4(out, load_scales_of_4(rows, offset, is_power), copies);
    store_of_4(out + 4 * copies, load_scales_of_4(rows + 4, offset, is_power), copies);
}

/* Block b of the strip, from `at` in each row. */
PMX_INLINE void pack_block32(strip *s, int64_t b, const uint8_t *const *rows, int64_t at, const strip_order O,
                             const neon_type T) {
    int8x16_t v[2][STRIP_ROWS];
    for (int i = 0; i < STRIP_ROWS; i++) {
        const int8x16x2_t x = T.unpack(rows[i] + at);
        v[0][i] = vsubq_s8(x.val[0], vdupq_n_s8((int8_t)T.offset));
        v[1][i] = vsubq_s8(x.val[1], vdupq_n_s8((int8_t)T.offset));
    }
    O.pack(s->q + b * PMX_BLOCK * STRIP_ROWS, v[0]);
    O.pack(s->q + (b * PMX_BLOCK + 16) * STRIP_ROWS, v[1]);
    pack_numbers(s->d + b * STRIP_ROWS * O.copies, rows, at, O.copies, T.is_power);
    if (T.has_min) pack_numbers(s->m + b * STRIP_ROWS * O.copies, rows, at + 2, O.copies, 0);
}

PMX_INLINE void pack_block256(strip *s, int64_t b, const uint8_t *const *rows, int64_t at, const strip_order O,
                              const neon_type T) {
    decoded256 block[STRIP_ROWS];
    int32_t *scales = s->scales + b * T.n_sub * STRIP_ROWS * O.copies, *mins = s->mins + b * T.n_sub * STRIP_ROWS;
    for (int i = 0; i < STRIP_ROWS; i++) {
        int8_t sub[2][MAX_SUB];
        T.decode(&block[i], rows[i] + at);
        vst1q_s8(sub[0], block[i].scales);
        vst1q_s8(sub[1], block[i].mins);
        for (int j = 0; j < T.n_sub; j++) {
            for (int c = 0; c < O.copies; c++) scales[(j * STRIP_ROWS + i) * O.copies + c] = sub[0][j];
            if (T.has_min) mins[j * STRIP_ROWS + i] = sub[1][j];
        }
    }
    for (int j = 0; j < 16; j++) {
        int8x16_t v[STRIP_ROWS];
        for (int i = 0; i < STRIP_ROWS; i++) v[i] = block[i].q[j];
        O.pack(s->q + (b * PMX_BLOCK256 + 16 * j) * STRIP_ROWS, v);
    }
    for (int h = 0; h < STRIP_ROWS; h += 4)
        store_of_4(s->d + (b * STRIP_ROWS + h) * O.copies, load_d_of_4(rows + h, at, T), O.copies);
    if (T.has_min) pack_numbers(s->m + b * STRIP_ROWS * O.copies, rows, at + T.d_at + 2, O.copies, 0);
}

/* msum[t][h] = sums over sub-blocks of minimum times sum of activations, token t, rows 4*h ..
 * 4*h+3, for one block of 256. */
PMX_INLINE void minimum_sums(int32x4_t msum[TILE_TOKENS][2], const int32_t *mins, const pmx_quantized *x, int64_t b,
                             const int n_sub) {
    for (int t = 0; t < TILE_TOKENS; t++) msum[t][0] = msum[t][1] = vdupq_n_s32(0);
    for (int j = 0; j < n_sub; j += 4, mins += 4 * STRIP_ROWS) {
        int32x4_t sums[TILE_TOKENS];
        for (int t = 0; t < TILE_TOKENS; t++) {
            const int32_t *at = x[t].sums + b * MAX_SUB + j * (MAX_SUB / n_sub); /* of each 16 */
            sums[t] = n_sub == 16 ? vld1q_s32(at) : vpaddq_s32(vld1q_s32(at), vld1q_s32(at + 4));
        }
/* A macro, since clang takes no loop variable as a lane, though the loop were unrolled. */
#define STEP(lane)                                                                                                     \
    {                                                                                                                  \
        const int32x4_t m0 = vld1q_s32(mins + lane * STRIP_ROWS), m1 = vld1q_s32(mins + lane * STRIP_ROWS + 4);        \
        for (int t = 0; t < TILE_TOKENS; t++) {                                                                        \
            msum[t][0] = vmlaq_laneq_s32(msum[t][0], m0, sums[t], lane);                                               \
            msum[t][1] = vmlaq_laneq_s32(msum[t][1], m1, sums[t], lane);                                               \
        }                                                                                                              \
    }
        STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
    }
}

PMX_INLINE void mat(const pmx_product p, const strip_order O, const neon_type T) {
    strip *s = p.scratch;
    const int64_t block = T.n_sub ? PMX_BLOCK256 : PMX_BLOCK, n_blocks = p.acts->cols / block, step = K_BLOCK / block;
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t n = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        const uint8_t *rows[STRIP_ROWS];
        row_pointers(rows, &p, r);
        memset(s->acc, 0, sizeof s->acc);
        for (int64_t first = 0; first < n_blocks; first += step) {
            const int64_t end = n_blocks - first < step ? n_blocks - first : step;
            for (int64_t b = 0; b < end; b++) {
                if (T.n_sub)
                    pack_block256(s, b, rows, (first + b) * T.block_bytes, O, T);
                else
                    pack_block32(s, b, rows, (first + b) * T.block_bytes, O, T);
            }
            for (int64_t t = 0; t < p.n_tokens; t += TILE_TOKENS) {
                pmx_quantized x[TILE_TOKENS]; /* tokens past the end repeat the last one */
                for (int i = 0; i < TILE_TOKENS; i++) {
                    const int64_t token = p.tokens[t + i < p.n_tokens ? t + i : p.n_tokens - 1];
                    x[i] = T.n_sub ? pmx_token_q256(p.acts, token, first) : pmx_token_q32(p.acts, token, first);
                }
                if (T.n_sub)
                    O.tile256(s->acc + t * STRIP_ROWS, s, x, end, T);
                else
                    O.tile32(s->acc + t * STRIP_ROWS, s, x, end, T);
            }
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, s->acc + t * STRIP_ROWS, (size_t)n * sizeof *p.y);
    }
}

PMX_NEON_END

#endif
