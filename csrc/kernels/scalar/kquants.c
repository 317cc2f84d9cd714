/* kquants.c: weights in blocks of 256. Each type says how one block becomes integers, scales and
 * minimums of each 16 elements (where the type has one of each 32, it is there twice, and 1 where it has none); the rest is
 * common. */
#include <math.h>
#include <string.h>

#include "../../blocks.h"
#include "../lattices.h"
#include "scalar.h"

enum { N_SUB = 16 };

typedef struct {
    float d, dmin;
    int8_t q[PMX_BLOCK256], scales[N_SUB], mins[N_SUB];
} decoded;

typedef void (*decode)(decoded *out, const void *block);

/* Element i of the layouts that blocks.h describes. */
static inline int crumb(const uint8_t qs[64], int i) { return qs[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3; }
static inline int bit(const uint8_t qh[32], int i) { return qh[i % 32] >> i / 32 & 1; }
static inline int nibble(const uint8_t qs[128], int i) { return qs[i / 64 * 32 + i % 32] >> 4 * (i / 32 % 2) & 15; }

/* Digit k of a byte in base 3. */
static inline int digit(uint8_t byte, int k) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (uint8_t)(byte * powers[k]) * 3 >> 8;
}

static inline void decode_six_bits(decoded *out, const uint8_t s[12]) {
    for (int i = 0; i < N_SUB; i++) {
        const int j = i / 2;
        out->scales[i] = (int8_t)(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4);
        out->mins[i] = (int8_t)(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4);
    }
}

static inline void decode_q2_k(decoded *out, const void *block) {
    const pmx_block_q2_k *b = block;
    out->d = pmx_f16_to_f32(b->d);
    out->dmin = pmx_f16_to_f32(b->dmin);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = (int8_t)crumb(b->qs, i);
    for (int j = 0; j < N_SUB; j++) {
        out->scales[j] = (int8_t)(b->scales[j] & 15);
        out->mins[j] = (int8_t)(b->scales[j] >> 4);
    }
}

static inline void decode_q3_k(decoded *out, const void *block) {
    const pmx_block_q3_k *b = block;
    out->d = pmx_f16_to_f32(b->d);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = (int8_t)((crumb(b->qs, i) | bit(b->hmask, i) << 2) - 4);
    for (int j = 0; j < N_SUB; j++) {
        const int low = b->scales[j % 8] >> 4 * (j / 8) & 15, high = b->scales[8 + j % 4] >> 2 * (j / 4) & 3;
        out->scales[j] = (int8_t)((low | high << 4) - 32);
    }
}

static inline void decode_q4_k(decoded *out, const void *block) {
    const pmx_block_q4_k *b = block;
    out->d = pmx_f16_to_f32(b->d);
    out->dmin = pmx_f16_to_f32(b->dmin);
    decode_six_bits(out, b->scales);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = (int8_t)nibble(b->qs, i);
}

static inline void decode_q5_k(decoded *out, const void *block) {
    const pmx_block_q5_k *b = block;
    out->d = pmx_f16_to_f32(b->d);
    out->dmin = pmx_f16_to_f32(b->dmin);
    decode_six_bits(out, b->scales);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = (int8_t)(nibble(b->qs, i) | bit(b->qh, i) << 4);
}

static inline void decode_q6_k(decoded *out, const void *block) {
    const pmx_block_q6_k *b = block;
    out->d = pmx_f16_to_f32(b->d);
    for (int i = 0; i < PMX_BLOCK256; i++) {
        const int low = b->ql[i / 128 * 64 + i % 64] >> 4 * (i / 64 % 2) & 15;
        out->q[i] = (int8_t)((low | crumb(b->qh, i) << 4) - 32);
    }
    memcpy(out->scales, b->scales, sizeof out->scales);
}

static inline void decode_iq4_xs(decoded *out, const void *block) {
    static const int8_t values[16] = {PMX_IQ4_VALUES};
    const pmx_block_iq4_xs *b = block;
    out->d = pmx_f16_to_f32(b->d);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = values[b->qs[i / 32 * 16 + i % 16] >> 4 * (i / 16 % 2) & 15];
    for (int i = 0; i < N_SUB; i++) {
        const int j = i / 2, low = b->scales_l[j / 2] >> 4 * (j % 2) & 15, high = b->scales_h >> 2 * j & 3;
        out->scales[i] = (int8_t)((low | high << 4) - 32);
    }
}

static inline void decode_lattice(decoded *out, const void *block, const int type) {
    out->d = pmx_f16_to_f32(lattice_number(type, block)) * LATTICE_D(type);
    for (int i = 0; i < PMX_BLOCK256; i++) {
        const int magnitude = lattice_entry(type, block, i / LATTICE_WIDTH(type))[i % LATTICE_WIDTH(type)];
        if (LATTICE_SHIFTED(type))
            out->q[i] = (int8_t)(magnitude + 2 * lattice_shift(type, block, i / 8) - (1 << LATTICE_OFFSET_BITS(type)));
        else
            out->q[i] = (int8_t)(lattice_signs(type, block, i / 8) >> i % 8 & 1 ? -magnitude : magnitude);
    }
    for (int j = 0; j < N_SUB; j++) out->scales[j] = lattice_scale(type, block, 16 * j / LATTICE_SUB(type));
}

static inline void decode_iq1_s(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ1_S); }
static inline void decode_iq1_m(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ1_M); }
static inline void decode_iq2_xxs(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ2_XXS); }
static inline void decode_iq2_xs(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ2_XS); }
static inline void decode_iq2_s(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ2_S); }
static inline void decode_iq3_xxs(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ3_XXS); }
static inline void decode_iq3_s(decoded *out, const void *block) { decode_lattice(out, block, PMX_IQ3_S); }

/* Without sub-blocks. */
static inline void decode_tq1_0(decoded *out, const void *block) {
    const pmx_block_tq1_0 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    memset(out->scales, 1, sizeof out->scales);
    for (int i = 0; i < 160; i++) out->q[i] = (int8_t)(digit(b->qs[i % 32], i / 32) - 1);
    for (int i = 0; i < 80; i++) out->q[160 + i] = (int8_t)(digit(b->qs[32 + i % 16], i / 16) - 1);
    for (int i = 0; i < 16; i++) out->q[240 + i] = (int8_t)(digit(b->qh[i % 4], i / 4) - 1);
}

static inline void decode_tq2_0(decoded *out, const void *block) {
    const pmx_block_tq2_0 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    memset(out->scales, 1, sizeof out->scales);
    for (int i = 0; i < PMX_BLOCK256; i++) out->q[i] = (int8_t)(crumb(b->qs, i) - 1);
}

/* |isum| <= 256 * 127 * max |scale * q|, at most 128 * 32 (q6_k), 32 * 127 (iq4_xs) or 31 * 62
 * (iq3_xxs): below 2^31.
 */
static inline void vec(const pmx_product *p, decode decode_, const int64_t block_bytes, const int has_min) {
    const int64_t n_blocks = p->acts->cols / PMX_BLOCK256;
    const uint8_t *w = p->w;
    for (int64_t r = 0; r < p->n_rows; r++, w += p->row_bytes) {
        pmx_quantized x = pmx_token_q256(p->acts, p->tokens[0], 0);
        float acc = 0.0f;
        for (int64_t b = 0; b < n_blocks; b++, x.q += PMX_BLOCK256, x.sums += N_SUB) {
            decoded block;
            decode_(&block, w + b * block_bytes);
            int32_t isum = 0, msum = 0;
            for (int j = 0; j < N_SUB; j++) {
                int32_t dot = 0;
                for (int i = 16 * j; i < 16 * j + 16; i++) dot += block.q[i] * x.q[i];
                isum += block.scales[j] * dot;
                if (has_min) msum += block.mins[j] * x.sums[j];
            }
            acc = fmaf(block.d * x.d[b], (float)isum, acc);
            if (has_min) acc = fmaf(-(block.dmin * x.d[b]), (float)msum, acc);
        }
        p->y[r] = acc;
    }
}

static inline void dequantize(float *y, const uint8_t *w, int64_t n, decode decode_, const int64_t block_bytes,
                              const int has_min) {
    for (int64_t b = 0; b < n / PMX_BLOCK256; b++, y += PMX_BLOCK256) {
        decoded block;
        decode_(&block, w + b * block_bytes);
        for (int i = 0; i < PMX_BLOCK256; i++) {
            y[i] = block.d * (float)block.scales[i / 16] * (float)block.q[i];
            if (has_min) y[i] -= block.dmin * (float)block.mins[i / 16];
        }
    }
}

#define TYPE(T, HAS_MIN)                                                                                               \
    void pmx_scalar_vec_##T(const pmx_product *p) { vec(p, decode_##T, sizeof(pmx_block_##T), HAS_MIN); }              \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        dequantize(y, w, n, decode_##T, sizeof(pmx_block_##T), HAS_MIN);                                               \
    }

TYPE(q2_k, 1)
TYPE(q3_k, 0)
TYPE(q4_k, 1)
TYPE(q5_k, 1)
TYPE(q6_k, 0)
TYPE(iq1_s, 0)
TYPE(iq1_m, 0)
TYPE(iq2_xxs, 0)
TYPE(iq2_xs, 0)
TYPE(iq2_s, 0)
TYPE(iq3_xxs, 0)
TYPE(iq3_s, 0)
TYPE(iq4_xs, 0)
TYPE(tq1_0, 0)
TYPE(tq2_0, 0)
