/* cache.c: writes into the pages of the key/value cache; an item is one token. */
#include <math.h>
#include <string.h>

#include "blocks.h"
#include "internal.h"

/* The least that rounds to infinity. A scale, amax / 127, stays below it exactly if amax stays
 * below 127 times it. */
#define F16_LIMIT 65520.0f

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static pmx_status check_cache(const pmx_cache *cache) {
    pmx_status status = PMX_NOT_NULL(cache);
    if (status == PMX_OK) status = PMX_NOT_NULL(cache->k, cache->v);
    if (status != PMX_OK) return status;
    if (cache->type != PMX_F32 && cache->type != PMX_F16 && cache->type != PMX_Q8_0)
        return pmx_fail(PMX_EUNSUPPORTED, "cache->type: expected f32 (0), f16 (1) or q8_0 (8), found %d", cache->type);
    if (cache->n_kv_heads < 1)
        return pmx_fail(PMX_EINVAL, "cache->n_kv_heads: expected 1 or more, found %d", cache->n_kv_heads);
    const int32_t multiple = cache->type == PMX_Q8_0 ? 32 : 8;
    if (cache->head_dim < 1 || cache->head_dim % multiple || cache->head_dim > PMX_MAX_HEAD_DIM)
        return pmx_fail(PMX_EINVAL, "cache->head_dim: expected a multiple of %d up to %d, found %d", multiple,
                        PMX_MAX_HEAD_DIM, cache->head_dim);
    return PMX_OK;
}

static pmx_status check_run(const pmx_run *run, int64_t i, int32_t cache_pages) {
    if (run->n_tokens < 0 || run->first_position < 0 || run->n_pages < 0)
        return pmx_fail(PMX_EINVAL,
                        "runs[%lld]: expected n_tokens, first_position and n_pages of 0 or more, found %d, %d and %d",
                        (long long)i, run->n_tokens, run->first_position, run->n_pages);
    const int64_t end = (int64_t)run->first_position + run->n_tokens, n_pages = ceil_div(end, PMX_PAGE);
    if (end > INT32_MAX)
        return pmx_fail(PMX_EINVAL, "runs[%lld]: expected positions below 2^31, found %lld", (long long)i,
                        (long long)end);
    if (run->n_pages < n_pages)
        return pmx_fail(PMX_EINVAL, "runs[%lld].n_pages: expected %lld for %lld positions, found %d", (long long)i,
                        (long long)n_pages, (long long)end, run->n_pages);
    if (!run->pages && run->n_pages > 0)
        return pmx_fail(PMX_EINVAL, "runs[%lld].pages: expected a pointer, found NULL", (long long)i);
    for (int32_t page = 0; page < n_pages; page++)
        if (run->pages[page] < 0 || run->pages[page] >= cache_pages)
            return pmx_fail(PMX_EINVAL, "runs[%lld].pages[%d]: expected 0 to %d, found %d", (long long)i, page,
                            cache_pages - 1, run->pages[page]);
    return PMX_OK;
}

pmx_status pmx_check_runs(const pmx_cache *cache, const pmx_run *runs, int64_t n_runs, int64_t *n_tokens) {
    pmx_status status = check_cache(cache);
    if (status != PMX_OK) return status;
    if (n_runs < 0) return pmx_fail(PMX_EINVAL, "n_runs: expected 0 or more, found %lld", (long long)n_runs);
    if (n_runs > 0 && (status = PMX_NOT_NULL(runs)) != PMX_OK) return status;
    *n_tokens = 0;
    for (int64_t i = 0; i < n_runs; i++) {
        status = check_run(&runs[i], i, cache->n_pages);
        if (status != PMX_OK) return status;
        *n_tokens += runs[i].n_tokens;
        if (*n_tokens > PMX_MAX_TOKENS) return pmx_fail(PMX_EINVAL, "runs: expected at most 2^25 tokens, found more");
    }
    return PMX_OK;
}

typedef struct {
    pmx_ctx *ctx;
    const pmx_cache *cache;
    const float *k, *v;
    const pmx_run *runs;
} write_args;

static int all_below(float limit, const float *x, int64_t n) {
    int below = 1;
    for (int64_t i = 0; i < n; i++) below &= fabsf(x[i]) < limit;
    return below;
}

/* A token's n values of one head, at position j of a page. */
static void write_f32(float *k_page, float *v_page, int64_t j, const float *k, const float *v, int64_t dim) {
    for (int64_t d = 0; d < dim; d++) k_page[d * PMX_PAGE + j] = k[d];
    memcpy(v_page + j * dim, v, (size_t)dim * sizeof *v);
}

static void write_f16(const pmx_kernels *kernels, uint16_t *k_page, uint16_t *v_page, int64_t j, const float *k,
                      const float *v, int64_t dim) {
    uint16_t narrow[PMX_MAX_HEAD_DIM];
    kernels->narrow(narrow, k, dim);
    for (int64_t d = 0; d < dim; d++) k_page[d * PMX_PAGE + j] = narrow[d];
    kernels->narrow(v_page + j * dim, v, dim);
}

static void write_q8_0(const pmx_kernels *kernels, uint8_t *k_page, uint8_t *v_page, int64_t j, const float *k,
                       const float *v, int64_t dim) {
    int8_t q[PMX_MAX_HEAD_DIM];
    float scales[PMX_MAX_HEAD_DIM / 32];
    int32_t sums[PMX_MAX_HEAD_DIM / 32];
    uint16_t *dk = (uint16_t *)(void *)(k_page + dim * PMX_PAGE), *dv = (uint16_t *)(void *)(v_page + dim * PMX_PAGE);
    kernels->quantize32(q, scales, sums, k, dim);
    for (int64_t d = 0; d < dim; d += 4) memcpy(k_page + d * PMX_PAGE + 4 * j, q + d, 4);
    for (int64_t b = 0; b < dim / 32; b++) dk[b * PMX_PAGE + j] = pmx_f32_to_f16(scales[b]);
    kernels->quantize32((int8_t *)v_page + j * dim, scales, sums, v, dim);
    for (int64_t b = 0; b < dim / 32; b++) dv[b * PMX_PAGE + j] = pmx_f32_to_f16(scales[b]);
}

static void write_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const write_args *p = arg;
    const pmx_cache *cache = p->cache;
    const int64_t dim = cache->head_dim, n = cache->n_kv_heads * dim;
    const float *k = p->k + row * n, *v = p->v + row * n;
    if (pmx_first_nonfinite(k, 1, n) == 0 || pmx_first_nonfinite(v, 1, n) == 0) {
        pmx_fault(p->ctx, PMX_ENONFINITE, "k or v", row);
        return;
    }
    const float limit = cache->type == PMX_F16 ? F16_LIMIT : cache->type == PMX_Q8_0 ? 127 * F16_LIMIT : INFINITY;
    if (!all_below(limit, k, n) || !all_below(limit, v, n)) {
        pmx_fault(p->ctx, PMX_EOVERFLOW, "k or v", row);
        return;
    }
    const pmx_run *run = p->runs;
    int64_t in_run = row;
    for (; in_run >= run->n_tokens; run++) in_run -= run->n_tokens;
    const int64_t position = run->first_position + in_run, j = position % PMX_PAGE;
    const int64_t page = run->pages[position / PMX_PAGE];
    for (int64_t head = 0; head < cache->n_kv_heads; head++) {
        const int64_t block = page * cache->n_kv_heads + head, at = block * dim * PMX_PAGE,
                      bytes = block * pmx_q8_0_page_bytes(dim);
        const float *key = k + head * dim, *value = v + head * dim;
        if (cache->type == PMX_F32)
            write_f32((float *)cache->k + at, (float *)cache->v + at, j, key, value, dim);
        else if (cache->type == PMX_F16)
            write_f16(p->ctx->kernels, (uint16_t *)cache->k + at, (uint16_t *)cache->v + at, j, key, value, dim);
        else
            write_q8_0(p->ctx->kernels, (uint8_t *)cache->k + bytes, (uint8_t *)cache->v + bytes, j, key, value, dim);
    }
}

pmx_status pmx_cache_write(pmx_ctx *ctx, const pmx_cache *cache, const float *k, const float *v, const pmx_run *runs,
                           int64_t n_runs) {
    int64_t n_tokens = 0;
    pmx_status status = PMX_NOT_NULL(ctx, k, v);
    if (status == PMX_OK) status = pmx_check_runs(cache, runs, n_runs, &n_tokens);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    write_args args = {ctx, cache, k, v, runs};
    status = pmx_parallel(ctx, write_task, &args, n_tokens, (int64_t)cache->n_kv_heads * cache->head_dim * 4);
    pmx_leave(ctx, call);
    return status;
}
