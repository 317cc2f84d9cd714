/* ops.c: the entry points that work row by row: validation, then one parallel region. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "blocks.h"
#include "internal.h"

enum {
    ELEMENTS_PER_ITEM = 16384, /* of a long row: 4 microseconds of exp, 18 of SiLU; 64 KB, which stay in L2 */
    SINCOS_WORK = 50           /* a sine and cosine take 11 ns, one element of rms_norm 0.26 */
};

/* n_rows of n numbers; names are theirs. */
static pmx_status check_rows(const char *names, int64_t n_rows, int64_t n) {
    if (n >= 1 && pmx_rows_fit(n_rows, n)) return PMX_OK;
    return pmx_fail(PMX_EINVAL, "%s: expected 0 or more rows of 1 or more, found %lld rows of %lld", names,
                    (long long)n_rows, (long long)n);
}

/* One struct for all row-wise tasks: each uses what it needs. */
typedef struct {
    pmx_ctx *ctx;
    float *y;
    const float *x;
    const float *a, *b;
    const pmx_weight *w;
    const int32_t *ids;
    const double *frequencies;
    double factor;
    float *sines;
    int64_t n, n_heads;
    float eps;
} row_args;

/* --- rms_norm */

static void rms_norm_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    p->ctx->kernels->rms_norm(p->y + row * p->n, p->x + row * p->n, p->a, p->n, p->eps);
}

pmx_status pmx_rms_norm(pmx_ctx *ctx, float *y, const float *x, const float *weight, int64_t n_tokens, int64_t n,
                        float eps) {
    pmx_status status = PMX_NOT_NULL(ctx, y, x, weight);
    if (status == PMX_OK) status = check_rows("n_tokens, n", n_tokens, n);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    pmx_begin_part(ctx, PMX_PART_NORM);
    row_args args = {.ctx = ctx, .y = y, .x = x, .a = weight, .n = n, .eps = eps};
    status = pmx_parallel(ctx, rms_norm_task, &args, n_tokens, n);
    if (status == PMX_OK) status = pmx_check_finite("y", y, n_tokens, n);
    pmx_leave(ctx, call);
    return status;
}

/* --- embed */

static void embed_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    const uint8_t *data = (const uint8_t *)p->w->data + p->ids[row] * p->w->row_bytes;
    p->ctx->kernels->types[p->w->type].dequantize(p->y + row * p->n, data, p->n);
}

pmx_status pmx_embed(pmx_ctx *ctx, float *y, const pmx_weight *w, const int32_t *ids, int64_t n_ids) {
    pmx_status status = PMX_NOT_NULL(ctx, y, w, ids);
    if (status == PMX_OK) status = pmx_check_weight(w, "w->", (pmx_scales){0});
    if (status == PMX_OK && w->delta)
        status = pmx_fail(PMX_EUNSUPPORTED, "w->delta: expected NULL, found one: rows that are looked up have none");
    if (status == PMX_OK) status = check_rows("n_ids, w->cols", n_ids, w->cols);
    if (status != PMX_OK) return status;
    for (int64_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= w->rows)
            return pmx_fail(PMX_EINVAL, "ids[%lld]: expected 0 to %lld, found %d", (long long)i, (long long)w->rows - 1,
                            ids[i]);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    pmx_begin_part(ctx, PMX_PART_EMBEDDING);
    if (ctx->timing) ctx->timing->parts[PMX_PART_EMBEDDING].bytes += n_ids * w->row_bytes;
    row_args args = {.ctx = ctx, .y = y, .w = w, .ids = ids, .n = w->cols};
    status = pmx_parallel(ctx, embed_task, &args, n_ids, w->cols);
    if (status == PMX_OK) status = pmx_check_finite("y", y, n_ids, w->cols);
    pmx_leave(ctx, call);
    return status;
}

/* --- exp and silu_mul: one long row, cut into items */

static int64_t piece(const row_args *p, int64_t item) {
    const int64_t left = p->n - item * ELEMENTS_PER_ITEM;
    return left < ELEMENTS_PER_ITEM ? left : ELEMENTS_PER_ITEM;
}

static void exp_task(void *arg, int64_t item, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    p->ctx->kernels->exp(p->y + item * ELEMENTS_PER_ITEM, p->x + item * ELEMENTS_PER_ITEM, piece(p, item));
}

pmx_status pmx_exp(pmx_ctx *ctx, float *y, const float *x, int64_t n) {
    pmx_status status = PMX_NOT_NULL(ctx, y, x);
    if (status == PMX_OK) status = check_rows("n", n, 1);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    row_args args = {.ctx = ctx, .y = y, .x = x, .n = n};
    status = pmx_parallel(ctx, exp_task, &args, (n + ELEMENTS_PER_ITEM - 1) / ELEMENTS_PER_ITEM, ELEMENTS_PER_ITEM);
    pmx_leave(ctx, call);
    return status;
}

static void silu_task(void *arg, int64_t item, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    const int64_t at = item * ELEMENTS_PER_ITEM;
    p->ctx->kernels->silu_mul(p->y + at, p->x + at, p->a + at, piece(p, item));
}

pmx_status pmx_silu_mul(pmx_ctx *ctx, float *y, const float *gate, const float *up, int64_t n) {
    pmx_status status = PMX_NOT_NULL(ctx, y, gate, up);
    if (status == PMX_OK) status = check_rows("n", n, 1);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    row_args args = {.ctx = ctx, .y = y, .x = gate, .a = up, .n = n};
    status = pmx_parallel(ctx, silu_task, &args, (n + ELEMENTS_PER_ITEM - 1) / ELEMENTS_PER_ITEM, ELEMENTS_PER_ITEM);
    if (status == PMX_OK) status = pmx_check_finite("y", y, n, 1);
    pmx_leave(ctx, call);
    return status;
}

/* --- rope. The table is computed once a pass; libm's sine differs between systems in its last bit,
 * so it is our own. */

static void sincos_contract(double angle, double *sine, double *cosine) {
    /* Two parts of pi/2 have 33 bits: their products with n, below 2^20, are exact. */
    const double n = rint(angle * 0x1.45f306dc9c883p-1);
    const double r = ((angle - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
    const double z = r * r;
    static const double s[] = {0x1.952c77030ad4ap-49,  -0x1.ae7f3e733b81fp-41, 0x1.6124613a86d09p-33,
                               -0x1.ae64567f544e4p-26, 0x1.71de3a556c734p-19,  -0x1.a01a01a01a01ap-13,
                               0x1.1111111111111p-7,   -0x1.5555555555555p-3};
    static const double c[] = {
        0x1.ae7f3e733b81fp-45, -0x1.93974a8c07c9dp-37, 0x1.1eed8eff8d898p-29, -0x1.27e4fb7789f5cp-22,
        0x1.a01a01a01a01ap-16, -0x1.6c16c16c16c17p-10, 0x1.5555555555555p-5,  -0x1p-1};
    double p = s[0], q = c[0];
    for (int i = 1; i < 8; i++) {
        p = p * z + s[i];
        q = q * z + c[i];
    }
    const double sine_r = r + (r * z) * p, cosine_r = 1.0 + z * q;
    switch ((int64_t)n & 3) {
    case 0: *sine = sine_r, *cosine = cosine_r; break;
    case 1: *sine = cosine_r, *cosine = -sine_r; break;
    case 2: *sine = -sine_r, *cosine = -cosine_r; break;
    default: *sine = -cosine_r, *cosine = sine_r; break;
    }
}

static void rope_table_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    for (int64_t i = 0; i < p->n; i++) {
        double sine, cosine;
        sincos_contract((double)p->ids[row] * p->frequencies[i], &sine, &cosine);
        p->y[row * p->n + i] = (float)(cosine * p->factor);
        p->sines[row * p->n + i] = (float)(sine * p->factor);
    }
}

pmx_status pmx_rope_table(pmx_ctx *ctx, float *cosines, float *sines, const double *frequencies,
                          const int32_t *positions, int64_t n_tokens, int64_t n_pairs, double factor) {
    pmx_status status = PMX_NOT_NULL(ctx, cosines, sines, frequencies, positions);
    if (status == PMX_OK) status = check_rows("n_tokens, n_pairs", n_tokens, n_pairs);
    if (status != PMX_OK) return status;
    double fastest = 0.0;
    for (int64_t i = 0; i < n_pairs; i++) {
        if (!(frequencies[i] >= 0.0) || isinf(frequencies[i]))
            return pmx_fail(PMX_EINVAL, "frequencies[%lld]: expected a finite number of 0 or more, found %g",
                            (long long)i, frequencies[i]);
        if (frequencies[i] > fastest) fastest = frequencies[i];
    }
    if (!(fabs(factor) <= FLT_MAX)) return pmx_fail(PMX_EINVAL, "factor: expected a finite f32, found %g", factor);
    for (int64_t i = 0; i < n_tokens; i++)
        if (positions[i] < 0 || (double)positions[i] * fastest > 0x1p20)
            return pmx_fail(PMX_EINVAL, "positions[%lld]: expected 0 or more, and angles up to 2^20, found %d",
                            (long long)i, positions[i]);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    pmx_begin_part(ctx, PMX_PART_ROPE);
    row_args args = {.ctx = ctx,
                     .y = cosines,
                     .sines = sines,
                     .frequencies = frequencies,
                     .ids = positions,
                     .n = n_pairs,
                     .factor = factor};
    status = pmx_parallel(ctx, rope_table_task, &args, n_tokens, n_pairs * SINCOS_WORK);
    pmx_leave(ctx, call);
    return status;
}

static void rope_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const row_args *p = arg;
    for (int64_t head = 0; head < p->n_heads; head++)
        p->ctx->kernels->rope(p->y + (row * p->n_heads + head) * p->n * 2, p->a + row * p->n, p->b + row * p->n, p->n);
}

pmx_status pmx_rope(pmx_ctx *ctx, float *x, const float *cosines, const float *sines, int64_t n_tokens, int32_t n_heads,
                    int32_t head_dim) {
    pmx_status status = PMX_NOT_NULL(ctx, x, cosines, sines);
    if (status != PMX_OK) return status;
    if (n_heads < 1 || head_dim < 2 || head_dim % 2)
        return pmx_fail(PMX_EINVAL, "n_heads, head_dim: expected 1 or more and an even number, found %d, %d", n_heads,
                        head_dim);
    status = check_rows("n_tokens", n_tokens, (int64_t)n_heads * head_dim);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    row_args args = {.ctx = ctx, .y = x, .a = cosines, .b = sines, .n = head_dim / 2, .n_heads = n_heads};
    status = pmx_parallel(ctx, rope_task, &args, n_tokens, (int64_t)n_heads * head_dim);
    if (status == PMX_OK) status = pmx_check_finite("x", x, n_tokens, (int64_t)n_heads * head_dim);
    pmx_leave(ctx, call);
    return status;
}
