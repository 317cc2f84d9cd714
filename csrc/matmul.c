/* matmul.c: matrix products: forms of activations, partition into items of rows, choice between
 * vector and matrix kernels. */
#include "matmul.h"

#include <string.h>

#include "blocks.h"

typedef struct {
    pmx_ctx *ctx;
    const float *x;
    int8_t *q;
    float *d;
    int32_t *sums;
    int64_t n_rows, cols, block, n_sum;
    int32_t planes;
} quantize_args;

/* n numbers x, which are those of the row from i on. */
static int quantize_part(const quantize_args *p, int64_t row, int64_t i, const float *x, int64_t n) {
    const int64_t at = row * p->cols + i;
    return (p->block == 32 ? p->ctx->kernels->quantize32 : p->ctx->kernels->quantize256)(
        p->q + at, p->d + at / p->block, p->sums + at / p->n_sum, x, n);
}

/* What the rounding of a row left becomes its row of the second plane. */
static void quantize_rest(const quantize_args *p, int64_t row) {
    enum { N = 256 }; /* of both blocks a multiple */
    float q[N], rest[N];
    for (int64_t first = 0; first < p->cols; first += N) {
        const int64_t n = p->cols - first < N ? p->cols - first : N, at = row * p->cols + first;
        memcpy(rest, p->x + at, (size_t)n * sizeof *rest);
        for (int64_t i = 0; i < n; i++) q[i] = (float)p->q[at + i];
        for (int64_t i = 0; i < n; i += p->block)
            p->ctx->kernels->axpy(rest + i, -p->d[(at + i) / p->block], q + i, p->block);
        quantize_part(p, p->n_rows + row, first, rest, n);
    }
}

static void quantize_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const quantize_args *p = arg;
    if (quantize_part(p, row, 0, p->x + row * p->cols, p->cols))
        pmx_fault(p->ctx, PMX_ENONFINITE, "x", row);
    else if (p->planes == 2)
        quantize_rest(p, row);
}

/* Into one scratch slot: values, then scales, then sums. */
static pmx_status quantize(pmx_ctx *ctx, pmx_quantized *out, const float *x, int64_t n_tokens, int64_t cols,
                           int64_t block) {
    const int64_t n_sum = block == 32 ? 32 : 16, n = ctx->planes * n_tokens * cols;
    const size_t bytes = (size_t)n + (size_t)(n / block) * sizeof(float) + (size_t)(n / n_sum) * sizeof(int32_t);
    int8_t *q = pmx_scratch(ctx, block == 32 ? PMX_SCRATCH_Q32 : PMX_SCRATCH_Q256, bytes);
    if (!q) return PMX_ENOMEM;
    float *d = (float *)(void *)(q + n);
    int32_t *sums = (int32_t *)(void *)(d + n / block);
    *out = (pmx_quantized){q, d, sums};
    quantize_args args = {ctx, x, q, d, sums, n_tokens, cols, block, n_sum, ctx->planes};
    return pmx_parallel(ctx, quantize_task, &args, n_tokens, ctx->planes * cols);
}

pmx_status pmx_acts_prepare(pmx_ctx *ctx, pmx_acts *acts, const float *x, int64_t n_tokens,
                            const pmx_weight *const *weights, int64_t n_weights) {
    if (n_tokens > INT32_MAX / ctx->planes) /* kernels count rows in 32 bits */
        return pmx_fail(PMX_EINVAL, "n_tokens: expected at most %d, found %lld: use smaller batches",
                        INT32_MAX / ctx->planes, (long long)n_tokens);
    *acts = (pmx_acts){.x = x,
                       .cols = weights[0]->cols,
                       .n_tokens = n_tokens,
                       .planes = ctx->planes,
                       .prefetch = ctx->prefetch,
                       .ahead = ctx->ahead};
    int wanted[PMX_FORMS] = {0};
    for (int64_t i = 0; i < n_weights; i++) wanted[ctx->kernels->types[weights[i]->type].form] = 1;
    pmx_status status = PMX_OK;
    if (wanted[PMX_FORM_Q32]) status = quantize(ctx, &acts->q32, x, n_tokens, acts->cols, 32);
    if (status == PMX_OK && wanted[PMX_FORM_Q256]) status = quantize(ctx, &acts->q256, x, n_tokens, acts->cols, 256);
    return status;
}

pmx_status pmx_quantize_activations(pmx_ctx *ctx, int8_t *q, float *d, int32_t *sums, const float *x, int64_t n_tokens,
                                    int64_t n, int32_t block) {
    pmx_status status = PMX_NOT_NULL(ctx, q, d, sums, x);
    if (status != PMX_OK) return status;
    if (block != 32 && block != 256) return pmx_fail(PMX_EINVAL, "block: expected 32 or 256, found %d", block);
    if (n < 1 || n % block || !pmx_rows_fit(n_tokens, n))
        return pmx_fail(PMX_EINVAL, "n_tokens, n: expected 0 or more rows of a multiple of %d, found %lld, %lld", block,
                        (long long)n_tokens, (long long)n);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    quantize_args args = {ctx, x, q, d, sums, n_tokens, n, block, block == 32 ? 32 : 16, 1};
    status = pmx_parallel(ctx, quantize_task, &args, n_tokens, n);
    pmx_leave(ctx, call);
    return status;
}

enum { VEC_ROWS = 16 }; /* the most that a vec kernel takes at once: avx512vnni/vec4.h */

static void multiply(const pmx_kernels *kernels, int32_t type, const pmx_product *p) {
    const pmx_type_kernels *of = &kernels->types[type];
    if (of->mat && p->n_tokens >= of->mat_min_tokens) {
        of->mat(p);
        return;
    }
    if (p->n_tokens == 1) {
        of->vec(p);
        return;
    }
    if (of->few && p->n_tokens <= PMX_FEW_TOKENS) {
        of->few(p);
        return;
    }
    /* A few rows at a time, 70 KB of 4096 columns of q8_0: the first token reads them from memory, the
     * others from L2. */
    for (int64_t r = 0; r < p->n_rows; r += VEC_ROWS)
        for (int64_t t = 0; t < p->n_tokens; t++) {
            pmx_product part = pmx_product_from(*p, r, t);
            if (part.n_rows > VEC_ROWS) part.n_rows = VEC_ROWS;
            of->vec(&part);
        }
}

/* Both planes are rows of one product, so that weights are read once; then they are added. */
static void multiply_planes(const pmx_kernels *kernels, int32_t type, const pmx_product *p) {
    float *tile = (float *)(void *)((char *)p->scratch + PMX_MAT_SCRATCH);
    int32_t tokens[PMX_TOKEN_BLOCK];
    for (int64_t t = 0; t < p->n_tokens; t += PMX_TOKEN_BLOCK / 2) {
        pmx_product part = pmx_product_from(*p, 0, t);
        const int64_t n = part.n_tokens < PMX_TOKEN_BLOCK / 2 ? part.n_tokens : PMX_TOKEN_BLOCK / 2;
        for (int64_t i = 0; i < n; i++) {
            tokens[i] = part.tokens[i];
            tokens[n + i] = part.tokens[i] + (int32_t)p->acts->n_tokens;
        }
        float *y = part.y;
        part.y = tile;
        part.ldy = p->n_rows;
        part.tokens = tokens;
        part.n_tokens = 2 * n;
        multiply(kernels, type, &part);
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < p->n_rows; r++)
                y[i * p->ldy + r] = tile[i * p->n_rows + r] + tile[(n + i) * p->n_rows + r];
    }
}

void pmx_multiply_rows(const pmx_kernels *kernels, const pmx_weight *w, int64_t first_row, pmx_product p) {
    p.w = (const uint8_t *)w->data + first_row * w->row_bytes;
    p.row_bytes = w->row_bytes;
    if (p.acts->planes == 2 && kernels->types[w->type].form != PMX_FORM_F32)
        multiply_planes(kernels, w->type, &p);
    else
        multiply(kernels, w->type, &p);
}

typedef struct {
    pmx_ctx *ctx;
    const pmx_projection *projections;
    const pmx_acts *acts;
    int64_t n_tokens;
    pmx_adapted adapted[PMX_MAX_PROJECTIONS];
} project_args;

static int64_t items_of(const pmx_weight *w) { return (w->rows + PMX_ROWS_PER_ITEM - 1) / PMX_ROWS_PER_ITEM; }

static void project_task(void *arg, int64_t item, int32_t thread) {
    const project_args *p = arg;
    const pmx_projection *to = p->projections;
    for (; item >= items_of(to->w); to++) item -= items_of(to->w);
    const int64_t first = item * PMX_ROWS_PER_ITEM, rows = to->w->rows;
    const int64_t n_rows = rows - first < PMX_ROWS_PER_ITEM ? rows - first : PMX_ROWS_PER_ITEM;
    char *scratch = pmx_thread_scratch(p->ctx, thread);
    float *tile = (float *)(void *)(scratch + PMX_ROWS_SCRATCH);
    int32_t tokens[PMX_TOKEN_BLOCK];
    for (int64_t t0 = 0; t0 < p->n_tokens; t0 += PMX_TOKEN_BLOCK) {
        const int64_t n = p->n_tokens - t0 < PMX_TOKEN_BLOCK ? p->n_tokens - t0 : PMX_TOKEN_BLOCK;
        for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)(t0 + i);
        float *y = to->y + t0 * rows + first;
        const pmx_product product = {.y = to->add ? tile : y,
                                     .ldy = to->add ? PMX_ROWS_PER_ITEM : rows,
                                     .n_rows = n_rows,
                                     .acts = p->acts,
                                     .tokens = tokens,
                                     .n_tokens = n,
                                     .scratch = scratch};
        pmx_multiply_rows(p->ctx->kernels, to->w, first, product);
        pmx_add_terms(p->ctx->kernels, &p->adapted[to - p->projections], product.y, product.ldy, t0, n, first, n_rows);
        for (int64_t i = 0; to->add && i < n; i++)
            for (int64_t r = 0; r < n_rows; r++) y[i * rows + r] += tile[i * PMX_ROWS_PER_ITEM + r];
    }
}

pmx_status pmx_project(pmx_ctx *ctx, const pmx_projection *projections, int32_t n_projections, const pmx_acts *acts,
                       int64_t n_tokens, pmx_scales scales) {
    pmx_status status = pmx_thread_scratch_reserve(ctx, PMX_ROWS_SCRATCH + PMX_TILE_BYTES);
    if (status != PMX_OK) return status;
    project_args args = {.ctx = ctx, .projections = projections, .acts = acts, .n_tokens = n_tokens};
    int64_t n_items = 0;
    for (int32_t i = 0; i < n_projections; i++) {
        n_items += items_of(projections[i].w);
        pmx_reads(ctx, &projections[i].w, 1);
        args.adapted[i] = (pmx_adapted){.w = projections[i].w, .n = n_tokens};
    }
    status = pmx_adapt(ctx, args.adapted, n_projections, acts, scales);
    if (status != PMX_OK) return status;
    return pmx_parallel(ctx, project_task, &args, n_items, PMX_ROWS_PER_ITEM * acts->cols * n_tokens);
}

pmx_status pmx_matmul(pmx_ctx *ctx, float *y, const float *x, const pmx_weight *w, int64_t n_tokens,
                      const float *scales, int32_t n_adapters) {
    const pmx_scales all = {scales, n_adapters};
    pmx_status status = PMX_NOT_NULL(ctx, y, x, w);
    if (status != PMX_OK) return status;
    if (n_tokens < 0 || n_tokens > INT32_MAX)
        return pmx_fail(PMX_EINVAL, "n_tokens: expected 0 to 2^31-1, found %lld", (long long)n_tokens);
    status = pmx_check_scales("", all, n_tokens);
    if (status == PMX_OK) status = pmx_check_weight(w, "w->", all);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    if (!call.inner) pmx_begin_part(ctx, PMX_PART_HEAD); /* a layer's router is a part of its own */
    pmx_acts acts;
    const pmx_projection projection = {w, y, 0};
    status = pmx_acts_prepare(ctx, &acts, x, n_tokens, &w, 1);
    if (status == PMX_OK) status = pmx_project(ctx, &projection, 1, &acts, n_tokens, all);
    if (status == PMX_OK) status = pmx_check_finite("y", y, n_tokens, w->rows);
    pmx_leave(ctx, call);
    return status;
}
