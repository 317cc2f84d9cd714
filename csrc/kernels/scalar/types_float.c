/* types_float.c: weights that are themselves, widened. */
#include <math.h>
#include <string.h>

#include "../../blocks.h"
#include "scalar.h"

typedef float (*widen)(const uint8_t *w);

static inline float widen_f32(const uint8_t *w) {
    float x;
    memcpy(&x, w, sizeof x);
    return x;
}

static inline float widen_f16(const uint8_t *w) {
    uint16_t h;
    memcpy(&h, w, sizeof h);
    return pmx_f16_to_f32(h);
}

static inline float widen_bf16(const uint8_t *w) {
    uint16_t h;
    memcpy(&h, w, sizeof h);
    return pmx_bf16_to_f32(h);
}

static inline void vec(const pmx_product *p, widen widen_, const int64_t size) {
    const int64_t n = p->acts->cols;
    const float *x = p->acts->x + p->tokens[0] * n;
    const uint8_t *w = p->w;
    for (int64_t r = 0; r < p->n_rows; r++, w += p->row_bytes) {
        float s[8] = {0};
        for (int64_t i = 0; i < n; i++) s[i % 8] = fmaf(x[i], widen_(w + i * size), s[i % 8]);
        p->y[r] = pmx_sum8_tree(s);
    }
}

#define TYPE(NAME, T, FORM, ELEMENTS)                                                                                  \
    void pmx_scalar_vec_##T(const pmx_product *p) { vec(p, widen_##T, sizeof(pmx_block_##T)); }                        \
    void pmx_scalar_dequantize_##T(float *y, const uint8_t *w, int64_t n) {                                            \
        for (int64_t i = 0; i < n; i++) y[i] = widen_##T(w + i * (int64_t)sizeof(pmx_block_##T));                      \
    }

PMX_TYPES_F32(TYPE)
