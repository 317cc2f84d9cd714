/* cache.c: writes into the pages of the key/value cache; an item is one token. */
#include <math.h>
#include <string.h>

#include "blocks.h"
#include "internal.h"

/* The least that rounds to infinity. A scale, amax / 127, stays below it exactly if amax stays
 * below 127 times it. */
#define F16_LIMIT 65520.0f

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

pmx_status pmx_check_runs(const pmx_cache *cache, const pmx_run *runs, int64_t n_runs, int64_t *n_tokens) {
    if (!cache || !cache->k || !cache->v || (!runs && n_runs > 0) || n_runs < 0)
        return pmx_fail(PMX_EINVAL, "cache or runs are NULL");
    if (cache->type != PMX_F32 && cache->type != PMX_F16 && cache->type != PMX_Q8_0)
        return pmx_fail(PMX_EUNSUPPORTED, "the cache has type %d: expected f32 (0), f16 (1) or q8_0 (8)", cache->type);
    if (cache->n_kv_heads < 1 || cache->head_dim < 8 || cache->head_dim % 8 || cache->head_dim > PMX_MAX_HEAD_DIM)
        return pmx_fail(PMX_EINVAL, "%d heads of %d: expected a multiple of 8 up to 1024", cache->n_kv_heads,
                        cache->head_dim);
    if (cache->type == PMX_Q8_0 && cache->head_dim % 32)
        return pmx_fail(PMX_EINVAL, "heads of %d: expected a multiple of 32 for a cache of q8_0", cache->head_dim);
    int64_t total = 0;
    for (int64_t i = 0; i < n_runs; i++) {
        const pmx_run *run = &runs[i];
        if (run->n_tokens < 0 || run->first_position < 0 || run->n_pages < 0 || (!run->pages && run->n_pages > 0))
            return pmx_fail(PMX_EINVAL, "run %lld has a negative number or no pages", (long long)i);
        const int64_t end = (int64_t)run->first_position + run->n_tokens;
        if (end > INT32_MAX)
            return pmx_fail(PMX_EINVAL, "run %lld ends at position %lld: expected at most 2^31-1", (long long)i,
                            (long long)end);
        if ((int64_t)run->n_pages * PMX_PAGE < end)
            return pmx_fail(PMX_EINVAL, "run %lld has %d pages: expected %lld for %lld positions", (long long)i,
                            run->n_pages, (long long)ceil_div(end, PMX_PAGE), (long long)end);
        for (int32_t page = 0; page < ceil_div(end, PMX_PAGE); page++)
            if (run->pages[page] < 0 || run->pages[page] >= cache->n_pages)
                return pmx_fail(PMX_EINVAL, "run %lld names page %d: expected 0 to %d", (long long)i, run->pages[page],
                                cache->n_pages - 1);
        total += run->n_tokens;
        if (total > INT32_MAX / 64) return pmx_fail(PMX_EINVAL, "the runs hold more than 2^25 tokens");
    }
    *n_tokens = total;
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
        pmx_fault(p->ctx, PMX_ENONFINITE, row);
        return;
    }
    const float limit = cache->type == PMX_F16 ? F16_LIMIT : cache->type == PMX_Q8_0 ? 127 * F16_LIMIT : INFINITY;
    if (!all_below(limit, k, n) || !all_below(limit, v, n)) {
        pmx_fault(p->ctx, PMX_EOVERFLOW, row);
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
    if (!ctx || !k || !v) return pmx_fail(PMX_EINVAL, "a pointer is NULL");
    pmx_status status = pmx_check_runs(cache, runs, n_runs, &n_tokens);
    if (status != PMX_OK) return status;
    const pmx_fp_mode mode = pmx_fp_enter();
    write_args args = {ctx, cache, k, v, runs};
    status = pmx_parallel(ctx, write_task, &args, n_tokens, (int64_t)cache->n_kv_heads * cache->head_dim * 4);
    pmx_fp_leave(mode);
    return status;
}
