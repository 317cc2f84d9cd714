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

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        for (int64_t b = 0; b < n / ELEMENTS; b++)                                                                     \
            decode_##T(y + b * ELEMENTS, w + b * (int64_t)sizeof(pmx_block_##T));                                      \
    }

PMX_TYPES_DEQUANTIZED(TYPE)
