/* encode.c: weight encoders of the quantizer: f32 rows to GGUF blocks, the same bytes as gguf-py's encoders (FORMATS: q8_0 with
 * d = amax/127 and rounding half away from zero, q4_0 with d = -extreme/8 and truncation of x/d + 8.5). */
#include <math.h>
#include <string.h>

#include "../blocks.h"
#include "../internal.h"

/* 1/d, or 0 where d is zero or so small that its inverse overflows: such a block is zero in f16 anyway. */
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

static int encode_q8_0(pmx_block_q8_0 *y, const float *x, int64_t n) {
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        float amax = 0.0f;
        for (int i = 0; i < PMX_BLOCK; i++) {
            const float a = fabsf(x[i]);
            if (a > amax) amax = a;
        }
        const float d = amax / 127.0f;
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

static int encode_q4_0(pmx_block_q4_0 *y, const float *x, int64_t n) {
    int overflow = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK) {
        float amax = fabsf(x[0]), extreme = x[0]; /* the first of equal magnitudes; its sign counts even when it is zero */
        for (int i = 1; i < PMX_BLOCK; i++)
            if (fabsf(x[i]) > amax) {
                amax = fabsf(x[i]);
                extreme = x[i];
            }
        const float d = extreme / -8.0f;
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

static int encode_f16(const pmx_kernels *kernels, uint16_t *y, const float *x, int64_t n) {
    int overflow = 0;
    kernels->narrow(y, x, n);
    for (int64_t i = 0; i < n; i++) overflow |= (y[i] & 0x7c00u) == 0x7c00u;
    return overflow;
}

static int encode_bf16(uint16_t *y, const float *x, int64_t n) {
    int overflow = 0;
    for (int64_t i = 0; i < n; i++) {
        y[i] = pmx_f32_to_bf16(x[i]);
        overflow |= (y[i] & 0x7f80u) == 0x7f80u;
    }
    return overflow;
}

typedef struct {
    pmx_ctx *ctx;
    uint8_t *y;
    const float *x;
    int32_t type;
    int64_t cols, row_bytes;
} encode_args;

static void encode_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const encode_args *p = arg;
    void *y = p->y + row * p->row_bytes;
    const float *x = p->x + row * p->cols;
    if (pmx_first_nonfinite(x, 1, p->cols) == 0) {
        pmx_fault(p->ctx, PMX_ENONFINITE, row);
        return;
    }
    int overflow = 0;
    switch (p->type) {
    case PMX_F16: overflow = encode_f16(p->ctx->kernels, y, x, p->cols); break;
    case PMX_BF16: overflow = encode_bf16(y, x, p->cols); break;
    case PMX_Q4_0: overflow = encode_q4_0(y, x, p->cols); break;
    case PMX_Q8_0: overflow = encode_q8_0(y, x, p->cols); break;
    default: memcpy(y, x, (size_t)p->row_bytes); break;
    }
    if (overflow) pmx_fault(p->ctx, PMX_ENONFINITE, row);
}

pmx_status pmx_encode(pmx_ctx *ctx, void *y, int32_t type, const float *x, int64_t rows, int64_t cols) {
    if (!ctx || !y || !x) return pmx_fail(PMX_EINVAL, "a pointer is NULL");
    if (type != PMX_F32 && type != PMX_F16 && type != PMX_BF16 && type != PMX_Q4_0 && type != PMX_Q8_0)
        return pmx_fail(PMX_EUNSUPPORTED, "type %d has no encoder: expected f32 (0), f16 (1), bf16 (30), q4_0 (2) or q8_0 (8)", type);
    const int64_t row_bytes = pmx_row_bytes(type, cols);
    int64_t total;
    if (cols < 1 || row_bytes < 0 || pmx_mul(&total, rows, cols) || total > INT64_MAX / 8)
        return pmx_fail(PMX_EINVAL, "%lld x %lld: expected rows of at least 1 column and of whole blocks", (long long)rows,
                        (long long)cols);
    const pmx_fp_mode mode = pmx_fp_enter();
    encode_args args = {ctx, y, x, type, cols, row_bytes};
    const pmx_status status = pmx_parallel(ctx, encode_task, &args, rows, cols * 8);
    pmx_fp_leave(mode);
    return status;
}
