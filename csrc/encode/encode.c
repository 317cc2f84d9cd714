/* encode.c: weights into GGUF's types, row by row on all threads. Types that share one scale among
 * 32 weights and f16, bf16 are what gguf-py makes of the same rows (blocks32.c), unless columns
 * have importance; the others are searched for (searched.c). */
#include <math.h>
#include <string.h>

#include "../blocks.h"
#include "../internal.h"
#include "encode.h"

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

/* Of a column: 4 to 16 ns with a search, 1 or 2 without. */
enum { SEARCH_WORK = 64, ENCODE_WORK = 8 };

typedef struct {
    pmx_ctx *ctx;
    uint8_t *y;
    const float *x;
    const float *weight; /* [cols] or NULL */
    int32_t type;
    int64_t cols, row_bytes;
} encode_args;

static int encode_blocks(const encode_args *p, void *y, const float *x) {
    if (!p->weight) switch (p->type) {
        case PMX_Q4_0: return pmx_encode_q4_0(y, x, p->cols);
        case PMX_Q4_1: return pmx_encode_q4_1(y, x, p->cols);
        case PMX_Q5_0: return pmx_encode_q5_0(y, x, p->cols);
        case PMX_Q5_1: return pmx_encode_q5_1(y, x, p->cols);
        default: break;
        }
    return pmx_encode_searched(p->ctx->kernels, p->type, y, x, p->weight, p->cols);
}

/* The weights of the columns' squared errors: importance over its mean, from 2^-20 to 2^20; *weight
 * NULL where all importance is 0. */
static pmx_status weights_of(pmx_ctx *ctx, const float **weight, const float *importance, int64_t cols) {
    double sum = 0.0;
    for (int64_t i = 0; i < cols; i++) {
        if (!(importance[i] >= 0.0f && importance[i] <= 0x1.fffffep127f))
            return pmx_fail(PMX_EINVAL, "importance[%lld]: expected a finite number of 0 or more, found %g",
                            (long long)i, (double)importance[i]);
        sum += (double)importance[i];
    }
    *weight = NULL;
    if (sum == 0.0) return PMX_OK;
    float *w = pmx_scratch(ctx, PMX_SCRATCH_IMPORTANCE, (size_t)cols * sizeof *w);
    if (!w) return PMX_ENOMEM;
    const double mean = sum / (double)cols;
    for (int64_t i = 0; i < cols; i++) {
        const double v = (double)importance[i] / mean;
        w[i] = (float)(v < 0x1p-20 ? 0x1p-20 : v > 0x1p20 ? 0x1p20 : v);
    }
    *weight = w;
    return PMX_OK;
}

static void encode_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const encode_args *p = arg;
    void *y = p->y + row * p->row_bytes;
    const float *x = p->x + row * p->cols;
    if (pmx_first_nonfinite(x, 1, p->cols) == 0) {
        pmx_fault(p->ctx, PMX_ENONFINITE, "x", row);
        return;
    }
    int overflow = 0;
    switch (p->type) {
    case PMX_F32: memcpy(y, x, (size_t)p->row_bytes); break;
    case PMX_F16: overflow = encode_f16(p->ctx->kernels, y, x, p->cols); break;
    case PMX_BF16: overflow = encode_bf16(y, x, p->cols); break;
    case PMX_Q8_0: overflow = pmx_encode_q8_0(y, x, p->cols); break;
    default: overflow = encode_blocks(p, y, x); break;
    }
    if (overflow) pmx_fault(p->ctx, PMX_ENONFINITE, "x", row);
}

static int has_encoder(int32_t type) {
    return type >= 0 && type < PMX_TYPE_SLOTS &&
           (type == PMX_F32 || type == PMX_F16 || type == PMX_BF16 || type == PMX_Q8_0 || pmx_encode_searches(type));
}

pmx_status pmx_encode(pmx_ctx *ctx, void *y, int32_t type, const float *x, const float *importance, int64_t rows,
                      int64_t cols) {
    pmx_status status = PMX_NOT_NULL(ctx, y, x);
    if (status != PMX_OK) return status;
    if (!has_encoder(type)) return pmx_fail(PMX_EUNSUPPORTED, "type: expected one that has an encoder, found %d", type);
    const int64_t row_bytes = pmx_row_bytes(type, cols);
    if (cols < 1 || row_bytes < 0 || !pmx_rows_fit(rows, cols))
        return pmx_fail(PMX_EINVAL, "rows, cols: expected 0 or more rows of whole blocks, found %lld x %lld",
                        (long long)rows, (long long)cols);
    encode_args args = {ctx, y, x, NULL, type, cols, row_bytes};
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    status = importance && pmx_encode_searches(type) ? weights_of(ctx, &args.weight, importance, cols) : PMX_OK;
    if (status == PMX_OK)
        status =
            pmx_parallel(ctx, encode_task, &args, rows, cols * (pmx_encode_searches(type) ? SEARCH_WORK : ENCODE_WORK));
    pmx_leave(ctx, call);
    return status;
}
