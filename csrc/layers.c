/* layers.c: all layers of a pass in one call. Between two calls Python takes its lock anew, for which another thread
 * may let it wait for milliseconds. */
#include <string.h>

#include "internal.h"

static pmx_status check_layers(const pmx_batch *batch, const pmx_layers *layers) {
    pmx_status status = PMX_NOT_NULL(layers->layers, layers->caches);
    if (status != PMX_OK) return status;
    if (layers->n_layers < 1)
        return pmx_fail(PMX_EINVAL, "layers->n_layers: expected 1 or more, found %lld", (long long)layers->n_layers);
    for (int64_t i = 0; i < layers->n_layers; i++) {
        if (!layers->layers[i] || !layers->caches[i])
            return pmx_fail(PMX_EINVAL, "layers->%s[%lld]: expected a pointer, found NULL",
                            layers->layers[i] ? "caches" : "layers", (long long)i);
        const pmx_layer *first = layers->layers[0], *layer = layers->layers[i];
        if (layer->hidden != first->hidden || layer->n_experts != first->n_experts ||
            layer->n_experts_used != first->n_experts_used)
            return pmx_fail(PMX_EINVAL,
                            "layers->layers[%lld]->hidden, n_experts, n_experts_used: expected %d, %d, %d as in the "
                            "first layer, found %d, %d, %d",
                            (long long)i, first->hidden, first->n_experts, first->n_experts_used, layer->hidden,
                            layer->n_experts, layer->n_experts_used);
    }
    if (!layers->kept) return PMX_OK;
    if (layers->n_kept < 0 || layers->n_kept > batch->n_tokens)
        return pmx_fail(PMX_EINVAL, "layers->n_kept: expected 0 to %lld, found %lld", (long long)batch->n_tokens,
                        (long long)layers->n_kept);
    for (int64_t i = 0; i < layers->n_kept; i++)
        if (layers->kept[i] < (i ? layers->kept[i - 1] + 1 : 0) || layers->kept[i] >= batch->n_tokens)
            return pmx_fail(PMX_EINVAL, "layers->kept[%lld]: expected ascending rows below %lld, found %lld",
                            (long long)i, (long long)batch->n_tokens, (long long)layers->kept[i]);
    return PMX_OK;
}

static void note_choices(pmx_ctx *ctx, const pmx_batch *b, const pmx_layers *p, int64_t at) {
    const pmx_layer *layer = p->layers[at];
    const int64_t n_used = layer->n_experts_used, n_experts = layer->n_experts;
    for (int64_t t = 0; t < b->n_tokens; t++) {
        const int64_t to = t * p->n_layers + at;
        for (int64_t i = 0; p->choices && i < n_used; i++)
            p->choices[to * n_used + i] = (uint8_t)b->ids[t * n_used + i];
        if (p->choices_weights)
            memcpy(p->choices_weights + to * n_used, b->weights + t * n_used, (size_t)n_used * sizeof(float));
        if (!p->choices_logits) continue;
        float *logits = p->choices_logits + to * n_experts;
        memset(logits, 0, (size_t)n_experts * sizeof *logits);
        if (layer->router.data) /* where the router has left them */
            memcpy(logits, (float *)pmx_scratch(ctx, PMX_SCRATCH_LOGITS, 0) + t * n_experts,
                   (size_t)n_experts * sizeof *logits);
    }
}

static void keep_rows(pmx_batch *b, const pmx_layer *layer, const pmx_layers *p) {
    const size_t hidden = (size_t)layer->hidden, n_used = (size_t)layer->n_experts_used;
    const size_t n_adapters = b->scales ? (size_t)b->n_adapters : 0;
    for (int64_t i = 0; i < p->n_kept; i++) {
        const size_t to = (size_t)i, from = (size_t)p->kept[i];
        if (from == to) continue;
        memcpy(b->x + to * hidden, b->x + from * hidden, hidden * sizeof *b->x);
        memcpy(b->normed + to * hidden, b->normed + from * hidden, hidden * sizeof *b->normed);
        memcpy(b->ids + to * n_used, b->ids + from * n_used, n_used * sizeof *b->ids);
        memcpy(b->weights + to * n_used, b->weights + from * n_used, n_used * sizeof *b->weights);
        for (size_t j = 0; j < n_adapters; j++) b->scales[to * n_adapters + j] = b->scales[from * n_adapters + j];
    }
    b->n_tokens = p->n_kept;
}

pmx_status pmx_run_layers(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layers *layers) {
    pmx_status status = PMX_NOT_NULL(ctx, batch, layers);
    if (status == PMX_OK) status = check_layers(batch, layers);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    pmx_batch b = *batch;
    for (int64_t i = 0; status == PMX_OK && i < layers->n_layers; i++) {
        const pmx_observer *observer = layers->observers ? layers->observers[i] : NULL;
        pmx_begin_part(ctx, PMX_PART_OTHER);
        status = pmx_layer_attention(ctx, &b, layers->layers[i], layers->caches[i], observer);
        if (status != PMX_OK) break;
        pmx_begin_part(ctx, PMX_PART_OTHER);
        note_choices(ctx, &b, layers, i);
        if (layers->kept && i == layers->n_layers - 1) keep_rows(&b, layers->layers[i], layers);
        status = pmx_layer_experts(ctx, &b, layers->layers[i], observer);
    }
    pmx_leave(ctx, call);
    return status;
}
