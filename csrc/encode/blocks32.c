/* blocks32.c: types in blocks of 32 without a search: the same bytes as gguf-py's encoders (q8_0
 * with d = amax/127 and rounding half away from zero; q4_0, q5_0 with d = -extreme/8, -extreme/16
 * and truncation of x/d + 8.5, 16.5; q4_1, q5_1 with d = range/15, range/31 and truncation of (x -
 * min)/d + 0.5). */
#include <math.h>
#include <string.h>

#include "../blocks.h"
#include "encode.h"

/* 1/d, or 0 where d is zero or so small that its inverse overflows: such a block is zero in f16
 * anyway. */
static float inverse_of(float d) {
    const float inverse = 1.0f / d;
    return d == 0.0f || isinf(inverse) ? 0.0f : inverse;
}

/* Returns the scale as f16; *overflow is set when it does not fit. */
static uint16_t scale_f16(float d, int *overflow) {
    const uint16_t h = pmx_f32_to_f16(d);
    *overflow |= (h & 0x7c00u) == 0x7c00u;
    return h;
}

/* The bits of the largest magnitude of a block. Magnitudes compare as integers, which compilers
 * turn into vectors. */
static int32_t largest_bits(const float *x) {
    int32_t largest = 0;
    for (int i = 0; i < PMX_BLOCK; i++) {
        const int32_t bits = (int32_t)(pmx_f32_bits(x[i]) & 0x7fffffffu);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* The first element of largest magnitude; its sign counts even when it is zero. */
static float extreme_of(const float *x) {
    const int32_t largest = largest_bits(x);
    int i = 0;
    while ((int32_t)(pmx_f32_bits(x[i]) & 0x7fffffffu) != largest) i++;
    return x[i];
}

int pmx_encode_q8_0(void *blocks, const float *x, int64_t n) {
    pmx_block_q8_0 *y = blocks;
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        const float d = pmx_f32_from_bits((uint32_t)largest_bits(x)) / 127.0f;
        const float inverse = inverse_of(d);
        y[b].d = scale_f16(d, &overflow);
        for (int i = 0; i < PMX_BLOCK; i++) {
            const float v = x[i] * inverse, a = fabsf(v);
            const float whole = (float)(int32_t)a;
            const int32_t magnitude = (int32_t)a + (a - whole >= 0.5f);
            y[b].qs[i] = (int8_t)(v < 0.0f ? -magnitude : magnitude);
        }
    }
    return overflow;
}

int pmx_encode_q4_0(void *blocks, const float *x, int64_t n) {
    pmx_block_q4_0 *y = blocks;
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        const float d = extreme_of(x) / -8.0f;
        const float inverse = inverse_of(d);
        y[b].d = scale_f16(d, &overflow);
        uint8_t q[PMX_BLOCK];
        for (int i = 0; i < PMX_BLOCK; i++) {
            const int32_t v = (int32_t)(x[i] * inverse + 8.5f);
            q[i] = (uint8_t)(v < 0 ? 0 : v > 15 ? 15 : v);
        }
        for (int i = 0; i < 16; i++) y[b].qs[i] = (uint8_t)(q[i] | q[i + 16] << 4);
    }
    return overflow;
}

/* --- q4_1, q5_0, q5_1. codes: [32] */

static void pack_nibbles(uint8_t *qs, const uint8_t *codes) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
}

static void pack_fifth_bits(uint8_t *qh, const uint8_t *codes) {
    for (int b = 0; b < 4; b++) {
        unsigned byte = 0;
        for (int i = 0; i < 8; i++) byte |= (codes[8 * b + i] >> 4 & 1u) << i;
        qh[b] = (uint8_t)byte;
    }
}

/* min(most, trunc((x - lowest) * inverse + half)) */
static void truncated(uint8_t *codes, const float *x, float lowest, float inverse, float half, int32_t most) {
    for (int i = 0; i < PMX_BLOCK; i++) {
        const int32_t v = (int32_t)((x[i] - lowest) * inverse + half);
        codes[i] = (uint8_t)(v > most ? most : v);
    }
}

/* d = range / most and codes of a block from its lowest value; returns it. */
static float affine_codes(float *d, uint8_t *codes, const float *x, int32_t most) {
    float lowest = x[0], largest = x[0];
    for (int i = 1; i < PMX_BLOCK; i++) {
        lowest = x[i] < lowest ? x[i] : lowest;
        largest = x[i] > largest ? x[i] : largest;
    }
    *d = (largest - lowest) / (float)most;
    if (isinf(*d)) { /* the row is refused */
        memset(codes, 0, PMX_BLOCK);
        return lowest;
    }
    truncated(codes, x, lowest, inverse_of(*d), 0.5f, most);
    return lowest;
}

int pmx_encode_q4_1(void *blocks, const float *x, int64_t n) {
    pmx_block_q4_1 *y = blocks;
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        uint8_t codes[PMX_BLOCK];
        float d;
        const float lowest = affine_codes(&d, codes, x, 15);
        y[b].d = scale_f16(d, &overflow);
        y[b].m = scale_f16(lowest, &overflow);
        pack_nibbles(y[b].qs, codes);
    }
    return overflow;
}

int pmx_encode_q5_1(void *blocks, const float *x, int64_t n) {
    pmx_block_q5_1 *y = blocks;
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        uint8_t codes[PMX_BLOCK];
        float d;
        const float lowest = affine_codes(&d, codes, x, 31);
        y[b].d = scale_f16(d, &overflow);
        y[b].m = scale_f16(lowest, &overflow);
        pack_nibbles(y[b].qs, codes);
        pack_fifth_bits(y[b].qh, codes);
    }
    return overflow;
}

int pmx_encode_q5_0(void *blocks, const float *x, int64_t n) {
    pmx_block_q5_0 *y = blocks;
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        uint8_t codes[PMX_BLOCK];
        const float d = extreme_of(x) / -16.0f;
        y[b].d = scale_f16(d, &overflow);
        truncated(codes, x, 0.0f, inverse_of(d), 16.5f, 31);
        pack_nibbles(y[b].qs, codes);
        pack_fifth_bits(y[b].qh, codes);
    }
    return overflow;
}
