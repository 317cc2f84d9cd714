/* types32.c: weights in blocks of 32. Each type says how one block becomes integers, a scale and
 * perhaps a minimum; the rest is common. */
#include <math.h>

#include "../../blocks.h"
#include "scalar.h"

typedef struct {
    float d, m;
    int8_t q[PMX_BLOCK];
} decoded;

typedef void (*decode)(decoded *out, const void *block);

static inline void decode_nibbles(int8_t *q, const uint8_t qs[16]) {
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)(qs[i] & 15);
        q[i + 16] = (int8_t)(qs[i] >> 4);
    }
}

/* Adds each element's fifth bit, then an offset. */
static inline void decode_fifth(int8_t *q, const uint8_t qh[4], int offset) {
    for (int i = 0; i < PMX_BLOCK; i++) q[i] = (int8_t)((q[i] | (qh[i / 8] >> i % 8 & 1) << 4) + offset);
}

static inline void decode_q4_0(decoded *out, const void *block) {
    const pmx_block_q4_0 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    decode_nibbles(out->q, b->qs);
    for (int i = 0; i < PMX_BLOCK; i++) out->q[i] = (int8_t)(out->q[i] - 8);
}

static inline void decode_q4_1(decoded *out, const void *block) {
    const pmx_block_q4_1 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    out->m = pmx_f16_to_f32(b->m);
    decode_nibbles(out->q, b->qs);
}

static inline void decode_q5_0(decoded *out, const void *block) {
    const pmx_block_q5_0 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    decode_nibbles(out->q, b->qs);
    decode_fifth(out->q, b->qh, -16);
}

static inline void decode_q5_1(decoded *out, const void *block) {
    const pmx_block_q5_1 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    out->m = pmx_f16_to_f32(b->m);
    decode_nibbles(out->q, b->qs);
    decode_fifth(out->q, b->qh, 0);
}

static inline void decode_q8_0(decoded *out, const void *block) {
    const pmx_block_q8_0 *b = block;
    out->d = pmx_f16_to_f32(b->d);
    for (int i = 0; i < PMX_BLOCK; i++) out->q[i] = b->qs[i];
}

static inline void decode_iq4_nl(decoded *out, const void *block) {
    static const int8_t values[16] = {PMX_IQ4_VALUES};
    const pmx_block_iq4_nl *b = block;
    out->d = pmx_f16_to_f32(b->d);
    decode_nibbles(out->q, b->qs);
    for (int i = 0; i < PMX_BLOCK; i++) out->q[i] = values[out->q[i]];
}

static inline void decode_mxfp4(decoded *out, const void *block) {
    static const int8_t values[16] = {PMX_MXFP4_VALUES};
    const pmx_block_mxfp4 *b = block;
    out->d = pmx_e8m0_to_f32(b->e);
    decode_nibbles(out->q, b->qs);
    for (int i = 0; i < PMX_BLOCK; i++) out->q[i] = values[out->q[i]];
}

static inline void vec(const pmx_product *p, decode decode_, const int64_t block_bytes, const int has_min) {
    const int64_t n_blocks = p->acts->cols / PMX_BLOCK;
    const pmx_quantized x = pmx_token_q32(p->acts, p->tokens[0], 0);
    const uint8_t *w = p->w;
    for (int64_t r = 0; r < p->n_rows; r++, w += p->row_bytes) {
        float acc = 0.0f;
        for (int64_t b = 0; b < n_blocks; b++) {
            decoded block;
            decode_(&block, w + b * block_bytes);
            int32_t isum = 0;
            for (int i = 0; i < PMX_BLOCK; i++) isum += block.q[i] * x.q[b * PMX_BLOCK + i];
            acc = fmaf(block.d * x.d[b], (float)isum, acc);
            if (has_min) acc = fmaf(block.m, x.d[b] * (float)x.sums[b], acc);
        }
        p->y[r] = acc;
    }
}

static inline void dequantize(float *y, const uint8_t *w, int64_t n, decode decode_, const int64_t block_bytes,
                              const int has_min) {
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, y += PMX_BLOCK) {
        decoded block;
        decode_(&block, w + b * block_bytes);
        for (int i = 0; i < PMX_BLOCK; i++) {
            y[i] = block.d * (float)block.q[i];
            if (has_min) y[i] += block.m;
        }
    }
}

#define TYPE(T, HAS_MIN)                                                                                               \
    void pmx_scalar_vec_##T(const pmx_product *p) { vec(p, decode_##T, sizeof(pmx_block_##T), HAS_MIN); }              \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        dequantize(y, w, n, decode_##T, sizeof(pmx_block_##T), HAS_MIN);                                               \
    }

TYPE(q4_0, 0)
TYPE(q4_1, 1)
TYPE(q5_0, 0)
TYPE(q5_1, 1)
TYPE(q8_0, 0)
TYPE(iq4_nl, 0)
TYPE(mxfp4, 0)
