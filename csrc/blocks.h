/* blocks.h: GGUF's block layouts, and f16 and bf16 in portable C. */
#ifndef PMX_BLOCKS_H
#define PMX_BLOCKS_H

#include <stdint.h>
#include <string.h>

/* --- Floats: each a block of its own. */

typedef float pmx_block_f32;
typedef uint16_t pmx_block_f16, pmx_block_bf16;

/* --- Blocks of 32. d, m: f16. qs of 16 bytes: element j in the low nibble of byte j, element j+16
 * in the high one. qh: bit j, little endian, is element j's fifth. Values as in docs/numerics.md.
 */

#define PMX_BLOCK 32 /* elements of such a block, and of the block of activations it is multiplied with */

typedef struct {
    uint16_t d;
    uint8_t qs[16];
} pmx_block_q4_0;
_Static_assert(sizeof(pmx_block_q4_0) == 18, "q4_0 block");

typedef struct {
    uint16_t d, m;
    uint8_t qs[16];
} pmx_block_q4_1;
_Static_assert(sizeof(pmx_block_q4_1) == 20, "q4_1 block");

typedef struct {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
} pmx_block_q5_0;
_Static_assert(sizeof(pmx_block_q5_0) == 22, "q5_0 block");

typedef struct {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
} pmx_block_q5_1;
_Static_assert(sizeof(pmx_block_q5_1) == 24, "q5_1 block");

typedef struct {
    uint16_t d;
    int8_t qs[32];
} pmx_block_q8_0;
_Static_assert(sizeof(pmx_block_q8_0) == 34, "q8_0 block");

typedef struct {
    uint16_t d;
    uint8_t qs[16];
} pmx_block_iq4_nl;
_Static_assert(sizeof(pmx_block_iq4_nl) == 18, "iq4_nl block");

typedef struct {
    uint8_t e; /* the scale is 2^(e - 128) */
    uint8_t qs[16];
} pmx_block_mxfp4;
_Static_assert(sizeof(pmx_block_mxfp4) == 17, "mxfp4 block");

/* --- Blocks of 256 in sub-blocks of 16 or 32. d, dmin: f16.
 *
 * Crumbs (2 bits) of 64 bytes: element 128*h + 32*s + i is bits 2*s of byte 32*h + i. Bits of 32
 * bytes: element 32*c + i is bit c of byte i. Nibbles of 128 bytes: element 64*p + i is the low
 * nibble of byte 32*p + i, element 64*p + 32 + i the high one. */

#define PMX_BLOCK256 256

typedef struct {
    uint8_t scales[16]; /* of each 16: scale in the low nibble, minimum in the high one */
    uint8_t qs[64];     /* crumbs */
    uint16_t d, dmin;
} pmx_block_q2_k;
_Static_assert(sizeof(pmx_block_q2_k) == 84, "q2_k block");

typedef struct {
    uint8_t hmask[32];  /* bits: the third one */
    uint8_t qs[64];     /* crumbs */
    uint8_t scales[12]; /* of each 16: scale j plus 32; four bits in nibble j/8 of byte j%8, the two
                           above in crumb j/4 of byte 8 + j%4 */
    uint16_t d;
} pmx_block_q3_k;
_Static_assert(sizeof(pmx_block_q3_k) == 110, "q3_k block");

typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12]; /* of each 32. j < 4: scale j is six bits of byte j, minimum j six bits of
                           byte 4 + j. j >= 4: the low and the high nibble of byte 4 + j; the two
                           bits above them are the top ones of byte j - 4 and of byte j */
    uint8_t qs[128];    /* nibbles */
} pmx_block_q4_k;
_Static_assert(sizeof(pmx_block_q4_k) == 144, "q4_k block");

typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12]; /* as in q4_k */
    uint8_t qh[32];     /* bits: the fifth one */
    uint8_t qs[128];    /* nibbles */
} pmx_block_q5_k;
_Static_assert(sizeof(pmx_block_q5_k) == 176, "q5_k block");

typedef struct {
    uint8_t ql[128]; /* elements 128*h + i, i < 64, low nibble of byte 64*h + i; 128*h + 64 + i, the
                        high one */
    uint8_t qh[64];  /* crumbs: the two high bits */
    int8_t scales[16];
    uint16_t d;
} pmx_block_q6_k;
_Static_assert(sizeof(pmx_block_q6_k) == 210, "q6_k block");

typedef struct {
    uint16_t d;
    uint16_t scales_h;   /* of each 32: scale j plus 32; bits 2*j here are its two high bits */
    uint8_t scales_l[4]; /* nibble j its low ones */
    uint8_t qs[128];     /* element 32*j + i is the low nibble of byte 16*j + i, element 32*j + 16 + i
                            the high one */
} pmx_block_iq4_xs;
_Static_assert(sizeof(pmx_block_iq4_xs) == 136, "iq4_xs block");

/* No sub-blocks. */

typedef struct {
    uint8_t qs[48]; /* digits of base 3, digit k of a byte the high byte of 3 * (byte * 3^k mod 256): element
                       32*k + i is digit k of byte i < 32, element 160 + 16*k + i that of byte 32 + i */
    uint8_t qh[4];  /* element 240 + 4*k + i is digit k of byte i */
    uint16_t d;
} pmx_block_tq1_0;
_Static_assert(sizeof(pmx_block_tq1_0) == 54, "tq1_0 block");

typedef struct {
    uint8_t qs[64]; /* crumbs */
    uint16_t d;
} pmx_block_tq2_0;
_Static_assert(sizeof(pmx_block_tq2_0) == 66, "tq2_0 block");

/* The values of the 4-bit codes of iq4_nl and iq4_xs, and of mxfp4, in order; each initializes an
 * array of 16. */
#define PMX_IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define PMX_MXFP4_VALUES 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

/* Entries are indices into the tables of kernels/lattices.h, each for 8 elements (IQ3: 4). */

typedef struct {
    uint16_t d;
    uint8_t qs[32]; /* of each 8: an entry's low bits */
    uint16_t qh[8]; /* of each 32: 3 high bits of each entry, a scale of 3 bits, the sign of the shift */
} pmx_block_iq1_s;
_Static_assert(sizeof(pmx_block_iq1_s) == 50, "iq1_s block");

typedef struct {
    uint8_t qs[32];     /* as in iq1_s */
    uint8_t qh[16];     /* of each 8, a nibble: 3 high bits and the sign of the shift */
    uint16_t scales[4]; /* of each 64: four scales of 3 bits, and a nibble of the block's f16 scale */
} pmx_block_iq1_m;
_Static_assert(sizeof(pmx_block_iq1_m) == 56, "iq1_m block");

typedef struct {
    uint16_t d;
    uint8_t qs[64]; /* of each 32: four entries, then a word of four times 7 signs and a scale of 4
                       bits */
} pmx_block_iq2_xxs;
_Static_assert(sizeof(pmx_block_iq2_xxs) == 66, "iq2_xxs block");

typedef struct {
    uint16_t d;
    uint16_t qs[32];   /* of each 8: an entry of 9 bits, 7 signs */
    uint8_t scales[8]; /* of each 16, a nibble */
} pmx_block_iq2_xs;
_Static_assert(sizeof(pmx_block_iq2_xs) == 74, "iq2_xs block");

typedef struct {
    uint16_t d;
    uint8_t qs[32], signs[32]; /* of each 8: an entry's low bits; 8 signs */
    uint8_t qh[8];             /* of each 8, 2 bits: the entry's high ones */
    uint8_t scales[8];         /* of each 16, a nibble */
} pmx_block_iq2_s;
_Static_assert(sizeof(pmx_block_iq2_s) == 82, "iq2_s block");

typedef struct {
    uint16_t d;
    uint8_t qs[64];     /* of each 4: an entry */
    uint8_t scales[32]; /* of each 32: the word of iq2_xxs */
} pmx_block_iq3_xxs;
_Static_assert(sizeof(pmx_block_iq3_xxs) == 98, "iq3_xxs block");

typedef struct {
    uint16_t d;
    uint8_t qs[64]; /* of each 4: an entry's low bits */
    uint8_t qh[8];  /* of each 4, a bit: the entry's high one */
    uint8_t signs[32];
    uint8_t scales[4]; /* of each 32, a nibble */
} pmx_block_iq3_s;
_Static_assert(sizeof(pmx_block_iq3_s) == 110, "iq3_s block");

/* --- Numbers */

static inline uint32_t pmx_f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float pmx_f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* f16 to f32, exact. */
static inline float pmx_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return pmx_f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) { /* subnormal: an integer times 2^-24 */
        const float x = (float)magnitude * 0x1p-24f;
        return pmx_f32_from_bits(sign | pmx_f32_bits(x));
    }
    return pmx_f32_from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

/* f32 to f16, nearest even; overflow gives infinity, NaN stays NaN. */
static inline uint16_t pmx_f32_to_f16(float x) {
    const uint32_t u = pmx_f32_bits(x);
    const uint32_t sign = u >> 16 & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the integer of 2^-24 steps in the low
                              bits */
        const float shifted = pmx_f32_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (pmx_f32_bits(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = a - 0x38000000u + 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | rounded >> 13);
}

/* The power of two 2^(e - 128), exact; the two smallest are subnormal. */
static inline float pmx_e8m0_to_f32(uint8_t e) {
    return pmx_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* bf16 to f32, exact. */
static inline float pmx_bf16_to_f32(uint16_t h) { return pmx_f32_from_bits((uint32_t)h << 16); }

/* Finite f32 to bf16, nearest even; overflow gives infinity. */
static inline uint16_t pmx_f32_to_bf16(float x) {
    const uint32_t u = pmx_f32_bits(x);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#endif
