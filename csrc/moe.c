/* moe.c: the router's choice, and the experts.
 *
 * (token, slot) pairs are sorted by expert once, so that each expert is a plain matrix product over
 * its tokens. Two regions: gate, up, SiLU and the quantization for down over blocks of rows of each
 * expert; then down over blocks of output rows, each of which walks the experts in ascending order
 * and so owns the weighted sum of its rows. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "blocks.h"
#include "matmul.h"

/* Rows of the output that are one item of down: a strip of avx512vnni. With 16, half a strip, prompts
 * take 1.3 times as long. 64 save 2%, but leave a model of width 4096 only 64 items, too few for tens
 * of threads to end together. */
enum { DOWN_ROWS = 32 };

/* --- route */

typedef struct {
    pmx_ctx *ctx;
    int32_t *ids;
    float *weights;
    const float *logits;
    int32_t n_experts, n_used, n_dropped;
    float min_p;
} route_args;

static void route_task(void *arg, int64_t row, int32_t thread) {
    (void)thread;
    const route_args *p = arg;
    const float *logits = p->logits + row * p->n_experts;
    int32_t *ids = p->ids + row * p->n_used;
    float *weights = p->weights + row * p->n_used;
    if (pmx_first_nonfinite(logits, 1, p->n_experts) == 0) {
        pmx_fault(p->ctx, PMX_ENONFINITE, "logits", row);
        return;
    }
    uint64_t chosen = 0, dropped = 0;
    for (int32_t i = 0; i < p->n_used; i++) {
        int32_t best = -1;
        for (int32_t e = 0; e < p->n_experts; e++)
            if (!(chosen >> e & 1) && (best < 0 || logits[e] > logits[best])) best = e;
        chosen |= UINT64_C(1) << best;
        if (i >= p->n_used - p->n_dropped) dropped |= UINT64_C(1) << best;
    }
    float largest = -INFINITY, e[PMX_MAX_EXPERTS], sum = 0.0f;
    for (int32_t i = 0, expert = 0; expert < p->n_experts; expert++) {
        if (!(chosen >> expert & 1)) continue;
        ids[i] = expert;
        e[i++] = dropped >> expert & 1 ? -INFINITY : logits[expert]; /* whose exp is 0 */
        if (logits[expert] > largest) largest = logits[expert];
    }
    for (int32_t i = 0; i < p->n_used; i++) e[i] -= largest;
    p->ctx->kernels->exp(e, e, p->n_used);
    for (int32_t i = 0; i < p->n_used; i++) {
        if (e[i] < p->min_p) e[i] = 0.0f;
        sum += e[i];
    }
    for (int32_t i = 0; i < p->n_used; i++) weights[i] = e[i] / sum;
}

pmx_status pmx_check_experts_used(int32_t n_experts, int32_t n_experts_used, int32_t n_experts_dropped,
                                  float expert_min_p) {
    if (n_experts < 1 || n_experts > PMX_MAX_EXPERTS || n_experts_used < 1 || n_experts_used > n_experts)
        return pmx_fail(PMX_EINVAL, "n_experts, n_experts_used: expected 1 to %d, and 1 to as many, found %d, %d",
                        PMX_MAX_EXPERTS, n_experts, n_experts_used);
    if (n_experts_dropped < 0 || n_experts_dropped >= n_experts_used)
        return pmx_fail(PMX_EINVAL, "n_experts_dropped: expected 0 to %d, fewer than are used, found %d",
                        n_experts_used - 1, n_experts_dropped);
    if (!(expert_min_p >= 0.0f && expert_min_p <= 1.0f)) /* NaN is in no range */
        return pmx_fail(PMX_EINVAL, "expert_min_p: expected 0 to 1, found %g", (double)expert_min_p);
    return PMX_OK;
}

pmx_status pmx_route(pmx_ctx *ctx, int32_t *ids, float *weights, const float *logits, int64_t n_tokens,
                     int32_t n_experts, int32_t n_experts_used, int32_t n_experts_dropped, float expert_min_p) {
    pmx_status status = PMX_NOT_NULL(ctx, ids, weights, logits);
    if (status == PMX_OK) status = pmx_check_experts_used(n_experts, n_experts_used, n_experts_dropped, expert_min_p);
    if (status != PMX_OK) return status;
    if (n_tokens < 0 || n_tokens > INT32_MAX)
        return pmx_fail(PMX_EINVAL, "n_tokens: expected 0 to 2^31-1, found %lld", (long long)n_tokens);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    route_args args = {ctx, ids, weights, logits, n_experts, n_experts_used, n_experts_dropped, expert_min_p};
    status = pmx_parallel(ctx, route_task, &args, n_tokens, (int64_t)n_experts * n_experts_used);
    pmx_leave(ctx, call);
    return status;
}

/* --- experts */

/* The tokens of one expert that has any: pairs first .. first+n_tokens-1 of the sorted lists. */
typedef struct {
    int32_t expert;
    int32_t first;
    int32_t n_tokens;
} group;

typedef struct {
    pmx_ctx *ctx;
    const pmx_layer *layer;
    const pmx_observer *observer;
    const pmx_batch *batch;
    int64_t ffn, width; /* width of the residual stream */
    group groups[PMX_MAX_EXPERTS];
    int32_t n_groups;
    int64_t n_pairs;                          /* whose weight is not 0 */
    const int32_t *tokens, *pairs;            /* [n_pairs] sorted by expert: the token, and 0, 1, 2, ... */
    const float *weights;                     /* [n_pairs] sorted likewise */
    pmx_acts acts;                            /* the tokens */
    float *hidden;                            /* the experts' hidden activations [n_pairs][ffn] */
    pmx_acts hidden_acts;                     /* the same, down's input */
    pmx_adapted adapted[2 * PMX_MAX_EXPERTS]; /* of each group gate and up, then down */
    double *squares;                          /* [n_pairs][blocks of DOWN_ROWS] of the outputs, if they are observed */
} experts_args;

static const pmx_weight *expert_weight(const experts_args *p, int32_t expert, int which) {
    return &p->layer->experts[expert * 3 + which];
}

static void add_squares(double *sums, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) sums[i] += (double)x[i] * (double)x[i];
}

static double square_sum(const float *x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static int64_t down_blocks(const experts_args *p) { return (p->width + DOWN_ROWS - 1) / DOWN_ROWS; }

static void gate_up_task(void *arg, int64_t item, int32_t thread) {
    const experts_args *p = arg;
    const int64_t n_blocks = (p->ffn + PMX_ROWS_PER_ITEM - 1) / PMX_ROWS_PER_ITEM;
    const group *g = &p->groups[item / n_blocks];
    const int64_t first_row = item % n_blocks * PMX_ROWS_PER_ITEM;
    const int64_t n_rows = p->ffn - first_row < PMX_ROWS_PER_ITEM ? p->ffn - first_row : PMX_ROWS_PER_ITEM;
    const pmx_kernels *kernels = p->ctx->kernels;
    const pmx_weight *gate = expert_weight(p, g->expert, 0), *up = expert_weight(p, g->expert, 1);
    const pmx_adapted *adapted = &p->adapted[item / n_blocks * 2];
    char *scratch = pmx_thread_scratch(p->ctx, thread);
    float *a = (float *)(void *)(scratch + PMX_ROWS_SCRATCH),
          *b = (float *)(void *)(scratch + PMX_ROWS_SCRATCH + PMX_TILE_BYTES);
    for (int32_t done = 0; done < g->n_tokens; done += PMX_TOKEN_BLOCK) {
        const int64_t n = g->n_tokens - done < PMX_TOKEN_BLOCK ? g->n_tokens - done : PMX_TOKEN_BLOCK;
        const int64_t first = g->first + done;
        pmx_product product = {.y = a,
                               .ldy = PMX_ROWS_PER_ITEM,
                               .n_rows = n_rows,
                               .acts = &p->acts,
                               .tokens = p->tokens + first,
                               .n_tokens = n,
                               .scratch = scratch};
        pmx_multiply_rows(kernels, gate, first_row, product);
        pmx_add_terms(kernels, adapted, a, PMX_ROWS_PER_ITEM, done, n, first_row, n_rows);
        product.y = b;
        pmx_multiply_rows(kernels, up, first_row, product);
        pmx_add_terms(kernels, adapted + 1, b, PMX_ROWS_PER_ITEM, done, n, first_row, n_rows);
        for (int64_t i = 0; i < n; i++) {
            float *h = p->hidden + (first + i) * p->ffn + first_row;
            kernels->silu_mul(h, a + i * PMX_ROWS_PER_ITEM, b + i * PMX_ROWS_PER_ITEM, n_rows);
            if (p->observer && p->observer->down_input)
                add_squares(p->observer->down_input + g->expert * p->ffn + first_row, h, n_rows);
        }
    }
}

static void down_task(void *arg, int64_t item, int32_t thread) {
    const experts_args *p = arg;
    const int64_t first_row = item * DOWN_ROWS;
    const int64_t n_rows = p->width - first_row < DOWN_ROWS ? p->width - first_row : DOWN_ROWS;
    char *scratch = pmx_thread_scratch(p->ctx, thread);
    float *out = (float *)(void *)(scratch + PMX_ROWS_SCRATCH),
          *y = (float *)(void *)(scratch + PMX_ROWS_SCRATCH + PMX_TILE_BYTES);
    memset(y, 0, (size_t)(p->batch->n_tokens * DOWN_ROWS) * sizeof *y); /* fma(w, out, +0) is the contract's w * out */
    for (int32_t i = 0; i < p->n_groups; i++) {
        const group *g = &p->groups[i];
        for (int32_t done = 0; done < g->n_tokens; done += PMX_TOKEN_BLOCK) {
            const int64_t n = g->n_tokens - done < PMX_TOKEN_BLOCK ? g->n_tokens - done : PMX_TOKEN_BLOCK;
            const int64_t first = g->first + done;
            const pmx_product product = {.y = out,
                                         .ldy = DOWN_ROWS,
                                         .n_rows = n_rows,
                                         .acts = &p->hidden_acts,
                                         .tokens = p->pairs + first,
                                         .n_tokens = n,
                                         .scratch = scratch};
            pmx_multiply_rows(p->ctx->kernels, expert_weight(p, g->expert, 2), first_row, product);
            pmx_add_terms(p->ctx->kernels, &p->adapted[i], out, DOWN_ROWS, done, n, first_row, n_rows);
            if (p->squares)
                for (int64_t j = 0; j < n; j++)
                    p->squares[(first + j) * down_blocks(p) + item] = square_sum(out + j * DOWN_ROWS, n_rows);
            for (int64_t j = 0; j < n; j++)
                p->ctx->kernels->axpy(y + p->tokens[first + j] * DOWN_ROWS, p->weights[first + j], out + j * DOWN_ROWS,
                                      n_rows);
        }
    }
    for (int64_t t = 0; t < p->batch->n_tokens; t++)
        for (int64_t r = 0; r < n_rows; r++) p->batch->x[t * p->width + first_row + r] += y[t * DOWN_ROWS + r];
}

/* Sorts the pairs whose weight is not 0 by expert, tokens ascending within an expert. */
static pmx_status group_pairs(experts_args *p) {
    const int32_t *ids = p->batch->ids;
    const int64_t n_used = p->layer->n_experts_used, n_pairs = p->batch->n_tokens * n_used;
    int32_t counts[PMX_MAX_EXPERTS] = {0}, next[PMX_MAX_EXPERTS];
    for (int64_t i = 0; i < n_pairs; i++) {
        if (ids[i] < 0 || ids[i] >= p->layer->n_experts || (i % n_used && ids[i] <= ids[i - 1]))
            return pmx_fail(PMX_EINVAL, "row %lld of batch->ids: expected ascending experts below %d, found %d",
                            (long long)(i / n_used), p->layer->n_experts, ids[i]);
        counts[ids[i]] += p->batch->weights[i] != 0.0f;
    }
    int32_t *tokens = pmx_scratch(p->ctx, PMX_SCRATCH_GROUPS, (size_t)n_pairs * (2 * sizeof(int32_t) + sizeof(float)));
    if (!tokens) return PMX_ENOMEM;
    int32_t *pairs = tokens + n_pairs, first = 0;
    float *sorted = (float *)(void *)(pairs + n_pairs);
    for (int32_t e = 0; e < p->layer->n_experts; e++) {
        next[e] = first;
        if (counts[e]) p->groups[p->n_groups++] = (group){e, first, counts[e]};
        if (p->observer && p->observer->n_tokens) p->observer->n_tokens[e] += counts[e];
        first += counts[e];
    }
    for (int64_t i = 0; i < n_pairs; i++) {
        if (p->batch->weights[i] == 0.0f) continue;
        const int32_t at = next[ids[i]]++;
        tokens[at] = (int32_t)(i / n_used);
        sorted[at] = p->batch->weights[i];
        pairs[at] = at;
    }
    p->n_pairs = first;
    p->tokens = tokens;
    p->pairs = pairs;
    p->weights = sorted;
    return PMX_OK;
}

/* The matrices `which` of all experts that have tokens; returns how many. */
static int64_t matrices(const experts_args *p, const pmx_weight **out, int which) {
    for (int32_t i = 0; i < p->n_groups; i++) out[i] = expert_weight(p, p->groups[i].expert, which);
    return p->n_groups;
}

/* Adapters of n matrices `which`, .. of each expert, whose inputs are `inputs`. */
static pmx_status adapt(experts_args *p, const pmx_acts *acts, const int32_t *inputs, int which, int n) {
    for (int32_t i = 0; i < p->n_groups * n; i++) {
        const group *g = &p->groups[i / n];
        p->adapted[i] = (pmx_adapted){.w = expert_weight(p, g->expert, which + i % n),
                                      .inputs = inputs + g->first,
                                      .tokens = p->tokens + g->first,
                                      .n = g->n_tokens};
    }
    return pmx_adapt(p->ctx, p->adapted, p->n_groups * n, acts, pmx_scales_of(p->batch));
}

static pmx_status prepare(experts_args *p) {
    const pmx_weight *inputs[2 * PMX_MAX_EXPERTS];
    const int64_t n_gates = matrices(p, inputs, 0), n_ups = matrices(p, inputs + n_gates, 1);
    p->hidden = pmx_scratch(p->ctx, PMX_SCRATCH_HIDDEN, (size_t)(p->n_pairs * p->ffn) * sizeof *p->hidden);
    if (!p->hidden) return PMX_ENOMEM;
    if (p->observer && p->observer->output_norms) {
        p->squares =
            pmx_scratch(p->ctx, PMX_SCRATCH_SQUARES, (size_t)(p->n_pairs * down_blocks(p)) * sizeof *p->squares);
        if (!p->squares) return PMX_ENOMEM;
    }
    size_t tile = (size_t)p->batch->n_tokens * DOWN_ROWS * sizeof(float);
    if (tile < PMX_TILE_BYTES) tile = PMX_TILE_BYTES;
    pmx_status status = pmx_thread_scratch_reserve(p->ctx, PMX_ROWS_SCRATCH + PMX_TILE_BYTES + tile);
    if (status != PMX_OK) return status;
    pmx_reads(p->ctx, inputs, n_gates + n_ups);
    status = pmx_acts_prepare(p->ctx, &p->acts, p->batch->normed, p->batch->n_tokens, inputs, n_gates + n_ups);
    return status == PMX_OK ? adapt(p, &p->acts, p->tokens, 0, 2) : status;
}

/* down's input; a hidden row that is not finite is reported as the token it belongs to. */
static pmx_status prepare_hidden(experts_args *p) {
    const pmx_weight *downs[PMX_MAX_EXPERTS];
    const int64_t n_downs = matrices(p, downs, 2);
    const int64_t pair = pmx_first_nonfinite(p->hidden, p->n_pairs, p->ffn);
    if (pair >= 0)
        return pmx_fail_row(PMX_ENONFINITE, p->tokens[pair], PMX_NONFINITE, (long long)p->tokens[pair],
                            "the experts' hidden values");
    pmx_reads(p->ctx, downs, n_downs);
    const pmx_status status = pmx_acts_prepare(p->ctx, &p->hidden_acts, p->hidden, p->n_pairs, downs, n_downs);
    return status == PMX_OK ? adapt(p, &p->hidden_acts, p->pairs, 2, 1) : status;
}

static void observe_inputs(const experts_args *p) {
    if (!p->observer || !p->observer->expert_input) return;
    for (int32_t i = 0; i < p->n_groups; i++)
        for (int32_t j = 0; j < p->groups[i].n_tokens; j++)
            add_squares(p->observer->expert_input + p->groups[i].expert * p->width,
                        p->batch->normed + p->tokens[p->groups[i].first + j] * p->width, p->width);
}

/* Blocks of an output, then tokens, in ascending order: the same sums for any number of threads. */
static void observe_outputs(const experts_args *p) {
    for (int32_t i = 0; i < p->n_groups; i++)
        for (int32_t j = p->groups[i].first; j < p->groups[i].first + p->groups[i].n_tokens; j++) {
            double sum = 0.0;
            for (int64_t b = 0; b < down_blocks(p); b++) sum += p->squares[j * down_blocks(p) + b];
            p->observer->output_norms[p->groups[i].expert] += (double)p->weights[j] * sqrt(sum);
        }
}

static pmx_status check_experts(const pmx_layer *layer, pmx_scales scales) {
    pmx_status status =
        pmx_check_experts_used(layer->n_experts, layer->n_experts_used, layer->n_experts_dropped, layer->expert_min_p);
    if (status == PMX_OK) status = PMX_NOT_NULL(layer->experts);
    if (status != PMX_OK) return status;
    if (layer->hidden < 1) return pmx_fail(PMX_EINVAL, "layer->hidden: expected 1 or more, found %d", layer->hidden);
    const int64_t hidden = layer->hidden, ffn = layer->experts[0].rows;
    for (int32_t i = 0; i < layer->n_experts * 3; i++) {
        const pmx_weight *w = &layer->experts[i];
        const int64_t rows = i % 3 == 2 ? hidden : ffn, cols = i % 3 == 2 ? ffn : hidden;
        if (pmx_check_matrix(w, "", rows, cols, scales) == PMX_OK) continue;
        char name[32];
        snprintf(name, sizeof name, "layer->experts[%d].", i);
        return pmx_check_matrix(w, name, rows, cols, scales);
    }
    return PMX_OK;
}

pmx_status pmx_layer_experts(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layer *layer,
                             const pmx_observer *observer) {
    pmx_status status = PMX_NOT_NULL(ctx, batch, layer);
    if (status == PMX_OK) status = PMX_NOT_NULL(batch->x, batch->normed, batch->ids, batch->weights);
    if (status != PMX_OK) return status;
    const int64_t n_tokens = batch->n_tokens;
    if (n_tokens < 0 || n_tokens > PMX_MAX_TOKENS)
        return pmx_fail(PMX_EINVAL, "batch->n_tokens: expected 0 to 2^25, found %lld", (long long)n_tokens);
    status = pmx_check_scales("batch->", pmx_scales_of(batch), n_tokens);
    if (status == PMX_OK) status = check_experts(layer, pmx_scales_of(batch));
    if (status != PMX_OK || n_tokens == 0) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    experts_args args = {.ctx = ctx,
                         .layer = layer,
                         .observer = observer,
                         .batch = batch,
                         .ffn = layer->experts[0].rows,
                         .width = layer->hidden};
    pmx_begin_part(ctx, PMX_PART_GATE_UP);
    status = group_pairs(&args);
    const int some = args.n_pairs > 0; /* a caller's weights may all be 0 */
    if (status == PMX_OK && some) status = prepare(&args);
    if (status == PMX_OK && some) {
        observe_inputs(&args);
        const int64_t blocks = (args.ffn + PMX_ROWS_PER_ITEM - 1) / PMX_ROWS_PER_ITEM;
        const int64_t tokens_each = args.n_pairs / args.n_groups + 1;
        status = pmx_parallel(ctx, gate_up_task, &args, args.n_groups * blocks,
                              2 * PMX_ROWS_PER_ITEM * args.width * tokens_each);
    }
    pmx_begin_part(ctx, PMX_PART_DOWN);
    if (status == PMX_OK && some) status = prepare_hidden(&args);
    if (status == PMX_OK && some)
        status = pmx_parallel(ctx, down_task, &args, down_blocks(&args), DOWN_ROWS * args.ffn * args.n_pairs);
    if (status == PMX_OK) status = pmx_check_finite("batch->x", batch->x, n_tokens, args.width);
    if (status == PMX_OK && args.squares) observe_outputs(&args);
    pmx_leave(ctx, call);
    return status;
}
