/* dequantized.c: weight types without products of their own: pmx_multiply_rows dequantizes their rows and
 * multiplies them as f32. Every value is what the package gguf computes, operation by operation,
 * each rounded to f32. */
#include <string.h>

#include "../../blocks.h"
#include "lattices.h"
#include "scalar.h"

static inline float flip(float x, int negative) { return negative ? -x : x; }

/* Bits 0 to 6 are signs; the eighth makes their number even. */
static inline uint8_t even_signs(uint32_t bits) {
    return (uint8_t)((bits & 127) | (uint32_t)__builtin_parity(bits & 127) << 7);
}

/* Eight elements of a lattice of 2 bits; bit i of signs: element i is negative. */
static inline void eight(float *y, float d, uint16_t entry, uint8_t signs) {
    static const float values[4] = {8, 25, 43};
    for (int i = 0; i < 8; i++) y[i] = flip(d * values[entry >> 2 * i & 3], signs >> i & 1);
}

/* Four elements of a lattice of 3 bits. */
static inline void four(float *y, float d, const float values[8], uint16_t entry, int signs) {
    for (int i = 0; i < 4; i++) y[i] = flip(d * values[entry >> 4 * i & 7], signs >> i & 1);
}

/* Eight elements of -1, 0 or 1, shifted by an eighth. */
static inline void eight_shifted(float *y, float d, int index, int negative) {
    const uint16_t entry = pmx_lattice_iq1_s[index];
    for (int i = 0; i < 8; i++) y[i] = d * ((float)((entry >> 2 * i & 3) - 1) + flip(0.125f, negative));
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

static void decode_iq2_xxs(float *y, const void *block) {
    const pmx_block_iq2_xxs *b = block;
    for (int j = 0; j < 8; j++) {
        uint32_t word;
        memcpy(&word, b->qs + 8 * j + 4, sizeof word);
        const float d = pmx_f16_to_f32(b->d) * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int i = 0; i < 4; i++)
            eight(y + 32 * j + 8 * i, d, pmx_lattice_iq2_xxs[b->qs[8 * j + i]], even_signs(word >> 7 * i));
    }
}

static void decode_iq2_xs(float *y, const void *block) {
    const pmx_block_iq2_xs *b = block;
    for (int i = 0; i < 32; i++) {
        const float d = pmx_f16_to_f32(b->d) * (0.5f + (float)(b->scales[i / 4] >> 4 * (i / 2 % 2) & 15)) * 0.25f;
        eight(y + 8 * i, d, pmx_lattice_iq2_xs[b->qs[i] & 511], even_signs(b->qs[i] >> 9));
    }
}

static void decode_iq2_s(float *y, const void *block) {
    const pmx_block_iq2_s *b = block;
    for (int i = 0; i < 32; i++) {
        const float d = pmx_f16_to_f32(b->d) * (0.5f + (float)(b->scales[i / 4] >> 4 * (i / 2 % 2) & 15)) * 0.25f;
        eight(y + 8 * i, d, pmx_lattice_iq2_s[b->qs[i] | (b->qh[i / 4] >> 2 * (i % 4) & 3) << 8], b->signs[i]);
    }
}

static void decode_iq3_xxs(float *y, const void *block) {
    static const float values[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    const pmx_block_iq3_xxs *b = block;
    for (int i = 0; i < 64; i++) {
        uint32_t word;
        memcpy(&word, b->scales + 4 * (i / 8), sizeof word);
        const float d = pmx_f16_to_f32(b->d) * (0.5f + (float)(word >> 28)) * 0.5f;
        four(y + 4 * i, d, values, pmx_lattice_iq3_xxs[b->qs[i]], even_signs(word >> 7 * (i / 2 % 4)) >> 4 * (i % 2));
    }
}

static void decode_iq3_s(float *y, const void *block) {
    static const float values[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    const pmx_block_iq3_s *b = block;
    for (int i = 0; i < 64; i++) {
        const float d = pmx_f16_to_f32(b->d) * (float)(1 + 2 * (b->scales[i / 16] >> 4 * (i / 8 % 2) & 15));
        const int index = b->qs[i] | (b->qh[i / 8] >> i % 8 & 1) << 8;
        four(y + 4 * i, d, values, pmx_lattice_iq3_s[index], b->signs[i / 2] >> 4 * (i % 2));
    }
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        for (int64_t b = 0; b < n / ELEMENTS; b++)                                                                     \
            decode_##T(y + b * ELEMENTS, w + b * (int64_t)sizeof(pmx_block_##T));                                      \
    }

PMX_TYPES_DEQUANTIZED(TYPE)
