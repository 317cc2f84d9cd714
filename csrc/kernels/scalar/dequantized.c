/* dequantized.c: weight types without products of their own: pmx_multiply_rows dequantizes their rows and
 * multiplies them as f32. Every value is what the package gguf computes, operation by operation,
 * each rounded to f32. */
#include <string.h>

#include "../../blocks.h"
#include "../lattices.h"
#include "scalar.h"

static inline float flip(float x, int negative) { return negative ? -x : x; }

/* Eight elements of -1, 0 or 1, shifted by an eighth. */
static inline void eight_shifted(float *y, float d, int index, int negative) {
    for (int i = 0; i < 8; i++) y[i] = d * ((float)(pmx_lattice_iq1_s[index][i] / 8 - 1) + flip(0.125f, negative));
}

/* A third of a digit: byte * 3^power holds it in its top bits. */
static inline float ternary(uint8_t byte, int power) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (float)(((uint8_t)(byte * powers[power]) * 3 >> 8) - 1);
}

static void decode_iq1_s(float *y, const void *block) {
    const pmx_block_iq1_s *b = block;
    for (int i = 0; i < 32; i++) {
        const int high = b->qh[i / 4];
        const float d = pmx_f16_to_f32(b->d) * (float)(2 * (high >> 12 & 7) + 1);
        eight_shifted(y + 8 * i, d, b->qs[i] | (high >> 3 * (i % 4) & 7) << 8, high >> 15);
    }
}

static void decode_iq1_m(float *y, const void *block) {
    const pmx_block_iq1_m *b = block;
    uint16_t d16 = 0; /* its four nibbles are the top ones of the scales */
    for (int i = 0; i < 4; i++) d16 = (uint16_t)(d16 | b->scales[i] >> 12 << 4 * i);
    for (int i = 0; i < 32; i++) {
        const int high = b->qh[i / 2] >> 4 * (i % 2);
        const float d = pmx_f16_to_f32(d16) * (float)(2 * (b->scales[i / 8] >> 3 * (i / 2 % 4) & 7) + 1);
        eight_shifted(y + 8 * i, d, b->qs[i] | (high & 7) << 8, high >> 3 & 1);
    }
}

static void decode_tq1_0(float *y, const void *block) {
    const pmx_block_tq1_0 *b = block;
    const float d = pmx_f16_to_f32(b->d);
    for (int i = 0; i < 160; i++) y[i] = d * ternary(b->qs[i % 32], i / 32);
    for (int i = 0; i < 80; i++) y[160 + i] = d * ternary(b->qs[32 + i % 16], i / 16);
    for (int i = 0; i < 16; i++) y[240 + i] = d * ternary(b->qh[i % 4], i / 4);
}

static void decode_tq2_0(float *y, const void *block) {
    const pmx_block_tq2_0 *b = block;
    for (int i = 0; i < PMX_BLOCK256; i++)
        y[i] = pmx_f16_to_f32(b->d) * (float)((b->qs[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3) - 1);
}

static void decode_mxfp4(float *y, const void *block) {
    static const float values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const pmx_block_mxfp4 *b = block;
    const float d = pmx_f32_from_bits(b->e < 2 ? 0x00200000u << b->e : (uint32_t)(b->e - 1) << 23); /* 2^(e - 128) */
    for (int i = 0; i < PMX_BLOCK; i++) y[i] = d * values[b->qs[i % 16] >> 4 * (i / 16) & 15];
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        for (int64_t b = 0; b < n / ELEMENTS; b++)                                                                     \
            decode_##T(y + b * ELEMENTS, w + b * (int64_t)sizeof(pmx_block_##T));                                      \
    }

PMX_TYPES_DEQUANTIZED(TYPE)
