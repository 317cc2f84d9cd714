/* layer.c: the attention half of a decoder layer in one call: norm, QKV, RoPE, cache write,
 * attention, output, norm, router. */
#include <string.h>

#include "matmul.h"

static pmx_status check_layer(const pmx_layer *layer, const pmx_cache *cache, pmx_scales scales) {
    pmx_status status = PMX_NOT_NULL(layer->attn_norm, layer->ffn_norm);
    if (status != PMX_OK) return status;
    if (layer->hidden < 1 || layer->n_heads < 1 || layer->n_kv_heads < 1 || layer->head_dim < 1 ||
        layer->n_heads > PMX_MAX_HEADS || layer->head_dim > PMX_MAX_HEAD_DIM)
        return pmx_fail(PMX_EINVAL,
                        "layer->hidden, n_heads, n_kv_heads, head_dim: expected 1 or more, n_heads and head_dim up to "
                        "1024, found %d, %d, %d, %d",
                        layer->hidden, layer->n_heads, layer->n_kv_heads, layer->head_dim);
    if (cache->n_kv_heads != layer->n_kv_heads || cache->head_dim != layer->head_dim)
        return pmx_fail(PMX_EINVAL, "cache->n_kv_heads, head_dim: expected %d, %d as in the layer, found %d, %d",
                        layer->n_kv_heads, layer->head_dim, cache->n_kv_heads, cache->head_dim);
    if (layer->n_heads % layer->n_kv_heads)
        return pmx_fail(PMX_EINVAL, "layer->n_heads: expected a multiple of the %d key/value heads, found %d",
                        layer->n_kv_heads, layer->n_heads);
    if (layer->window < 0) return pmx_fail(PMX_EINVAL, "layer->window: expected 0 or more, found %d", layer->window);
    const int64_t hidden = layer->hidden, q_dim = (int64_t)layer->n_heads * layer->head_dim;
    const int64_t kv_dim = (int64_t)layer->n_kv_heads * layer->head_dim;
    status = pmx_check_matrix(&layer->q, "layer->q.", q_dim, hidden, scales);
    if (status == PMX_OK) status = pmx_check_matrix(&layer->k, "layer->k.", kv_dim, hidden, scales);
    if (status == PMX_OK) status = pmx_check_matrix(&layer->v, "layer->v.", kv_dim, hidden, scales);
    if (status == PMX_OK) status = pmx_check_matrix(&layer->output, "layer->output.", hidden, q_dim, scales);
    if (status == PMX_OK)
        status = pmx_check_experts_used(layer->n_experts, layer->n_experts_used, layer->n_experts_dropped,
                                        layer->expert_min_p);
    if (status == PMX_OK && (layer->router.data || layer->n_experts > 1)) /* a dense layer has none */
        status = pmx_check_matrix(&layer->router, "layer->router.", layer->n_experts, hidden, scales);
    return status;
}

static void observe(double *sums, const float *x, int64_t n_tokens, int64_t n) {
    if (!sums) return;
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t i = 0; i < n; i++) sums[i] += (double)x[t * n + i] * (double)x[t * n + i];
}

/* x += output(attention(norm(x))) */
static pmx_status attend(pmx_ctx *ctx, const pmx_batch *b, const pmx_layer *layer, const pmx_cache *cache,
                         const pmx_observer *observer) {
    const int64_t n = b->n_tokens, hidden = layer->hidden;
    const pmx_scales scales = pmx_scales_of(b);
    const int64_t q_dim = (int64_t)layer->n_heads * layer->head_dim,
                  kv_dim = (int64_t)layer->n_kv_heads * layer->head_dim;
    float *q = pmx_scratch(ctx, PMX_SCRATCH_QKV, (size_t)(n * (q_dim + 2 * kv_dim)) * sizeof *q);
    float *attended = pmx_scratch(ctx, PMX_SCRATCH_ATTENTION, (size_t)(n * q_dim) * sizeof *attended);
    if (!q || !attended) return PMX_ENOMEM;
    float *k = q + n * q_dim, *v = k + n * kv_dim;

    pmx_status status = pmx_rms_norm(ctx, b->normed, b->x, layer->attn_norm, n, hidden, layer->eps);
    if (status != PMX_OK) return status;
    if (observer) observe(observer->qkv_input, b->normed, n, hidden);
    pmx_acts acts;
    const pmx_weight *qkv[3] = {&layer->q, &layer->k, &layer->v}, *output = &layer->output;
    const pmx_projection projections[3] = {{&layer->q, q, 0}, {&layer->k, k, 0}, {&layer->v, v, 0}};
    pmx_begin_part(ctx, PMX_PART_QKV);
    status = pmx_acts_prepare(ctx, &acts, b->normed, n, qkv, 3);
    if (status == PMX_OK) status = pmx_project(ctx, projections, 3, &acts, n, scales);
    pmx_begin_part(ctx, PMX_PART_ROPE);
    if (status == PMX_OK) status = pmx_rope(ctx, q, b->cosines, b->sines, n, layer->n_heads, layer->head_dim);
    if (status == PMX_OK) status = pmx_rope(ctx, k, b->cosines, b->sines, n, layer->n_kv_heads, layer->head_dim);
    if (status == PMX_OK) status = pmx_cache_write(ctx, cache, k, v, b->runs, b->n_runs);
    pmx_begin_part(ctx, PMX_PART_ATTENTION);
    if (status == PMX_OK)
        status = pmx_attention(ctx, attended, q, cache, b->runs, b->n_runs, layer->n_heads, layer->window);
    if (status != PMX_OK) return status;
    if (observer) observe(observer->output_input, attended, n, q_dim);
    const pmx_projection projection = {output, b->x, 1};
    pmx_begin_part(ctx, PMX_PART_OUTPUT);
    status = pmx_acts_prepare(ctx, &acts, attended, n, &output, 1);
    if (status == PMX_OK) status = pmx_project(ctx, &projection, 1, &acts, n, scales);
    return status;
}

static pmx_status route(pmx_ctx *ctx, const pmx_batch *b, const pmx_layer *layer) {
    const int64_t n = b->n_tokens;
    if (!layer->router.data) {
        for (int64_t i = 0; i < n; i++) {
            b->ids[i] = 0;
            b->weights[i] = 1.0f;
        }
        return PMX_OK;
    }
    float *logits = pmx_scratch(ctx, PMX_SCRATCH_LOGITS, (size_t)(n * layer->n_experts) * sizeof *logits);
    if (!logits) return PMX_ENOMEM;
    const pmx_status status = pmx_matmul(ctx, logits, b->normed, &layer->router, n, b->scales, b->n_adapters);
    if (status != PMX_OK) return status;
    return pmx_route(ctx, b->ids, b->weights, logits, n, layer->n_experts, layer->n_experts_used,
                     layer->n_experts_dropped, layer->expert_min_p);
}

pmx_status pmx_layer_attention(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layer *layer, const pmx_cache *cache,
                               const pmx_observer *observer) {
    int64_t n = 0;
    pmx_status status = PMX_NOT_NULL(ctx, batch, layer, cache);
    if (status == PMX_OK)
        status = PMX_NOT_NULL(batch->x, batch->normed, batch->ids, batch->weights, batch->cosines, batch->sines);
    if (status == PMX_OK) status = pmx_check_runs(cache, batch->runs, batch->n_runs, &n);
    if (status == PMX_OK && batch->n_tokens != n)
        status = pmx_fail(PMX_EINVAL, "batch->n_tokens: expected %lld, as the runs hold, found %lld", (long long)n,
                          (long long)batch->n_tokens);
    if (status == PMX_OK) status = pmx_check_scales("batch->", pmx_scales_of(batch), n);
    if (status == PMX_OK) status = check_layer(layer, cache, pmx_scales_of(batch));
    if (status != PMX_OK || n == 0) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    status = attend(ctx, batch, layer, cache, observer);
    if (status == PMX_OK)
        status = pmx_rms_norm(ctx, batch->normed, batch->x, layer->ffn_norm, n, layer->hidden, layer->eps);
    pmx_begin_part(ctx, PMX_PART_ROUTER);
    if (status == PMX_OK) status = route(ctx, batch, layer);
    pmx_leave(ctx, call);
    return status;
}
