/* fuzz_layer.c: fuzz targets of the cache, of attention, of a decoder layer's two calls, and of
 * several layers in one. */
#include <math.h>
#include <string.h>

#include "fuzz.h"

static size_t f32(int64_t n) { return (size_t)n * sizeof(float); }

/* --- A batch and its cache */

enum { MAX_RUNS = 4, PAGE = 64 };

typedef struct {
    pmx_run *runs;
    int64_t n_runs;
    int64_t n_tokens;
    pmx_cache cache;
    result k, v;
} batch;

static size_t cache_bytes(const pmx_cache *cache) {
    const int64_t n = (int64_t)cache->n_pages * cache->n_kv_heads * cache->head_dim;
    return (size_t)n * (cache->type == PMX_F32   ? PAGE * sizeof(float)
                        : cache->type == PMX_F16 ? PAGE * sizeof(uint16_t)
                                                 : 68);
}

static void *cache_data(input *in, const pmx_cache *cache) {
    const size_t bytes = cache_bytes(cache);
    if (cache->type == PMX_F32) return (same_rows ? moderate_floats : floats)(in, (int64_t)(bytes / sizeof(float)));
    void *data = buffer(bytes);
    fill_bits(in, data, bytes, same_rows);
    return data;
}

/* shared: runs may read the same pages, as sequences with a common beginning do. */
static batch make_batch(input *in, int32_t n_kv_heads, int32_t head_dim, int shared) {
    batch b = {.n_runs = (int64_t)below(in, MAX_RUNS + 1)};
    b.runs = buffer((size_t)b.n_runs * sizeof *b.runs);
    int32_t used = 0;
    for (int64_t i = 0; i < b.n_runs; i++) {
        pmx_run *run = &b.runs[i];
        run->n_tokens = (int32_t)PICK(in, 1, 1, 2, 3, 7, 8, 9, 17, 0);
        run->first_position = (int32_t)PICK(in, 0, 1, 55, 60, 63, 64, 100, 127, 128, 190, 300);
        run->n_pages = (run->first_position + run->n_tokens + PAGE - 1) / PAGE;
        used += run->n_pages;
        b.n_tokens += run->n_tokens;
    }
    b.cache = (pmx_cache){.type = head_dim % 32 ? (int32_t)PICK(in, PMX_F32, PMX_F16)
                                                : (int32_t)PICK(in, PMX_F32, PMX_F16, PMX_Q8_0),
                          .n_kv_heads = n_kv_heads,
                          .head_dim = head_dim};
    b.cache.n_pages = shared && used > 4 ? 4 : used + 1;
    int32_t next = 0;
    for (int64_t i = 0; i < b.n_runs; i++) {
        int32_t *pages = buffer((size_t)b.runs[i].n_pages * sizeof *pages);
        for (int32_t page = 0; page < b.runs[i].n_pages; page++) pages[page] = next++ % b.cache.n_pages;
        b.runs[i].pages = pages;
    }
    return b;
}

/* Gives the batch's cache memory: written by the call, or only read by it. */
static void fill_cache(input *in, batch *b, int writes) {
    same_rows = below(in, 4) > 0;
    void *k = cache_data(in, &b->cache), *v = cache_data(in, &b->cache);
    if (writes) {
        b->k = written(cache_bytes(&b->cache), k, BITS);
        b->v = written(cache_bytes(&b->cache), v, BITS);
    } else {
        b->k = (result){{k, k}};
        b->v = (result){{v, v}};
    }
}

static const pmx_cache *cache_of(batch *b, int v) {
    if (b->cache.k) b->cache.k = b->k.of[v];
    b->cache.v = b->v.of[v];
    return &b->cache;
}

/* Returns 1: every call with this batch is refused. */
static int break_batch(input *in, batch *b) {
    const uint32_t way = below(in, 6);
    if (way == 0) b->cache.type = (int32_t)PICK(in, -1, 2, 7, 30, INT32_MAX, INT32_MIN);
    if (way == 1) b->cache.n_kv_heads = (int32_t)PICK(in, 0, -1, INT32_MIN);
    if (way == 2) b->cache.head_dim = (int32_t)PICK(in, 0, 4, -8, 12, 1032, INT32_MAX, INT32_MIN);
    if (way == 3) b->n_runs = PICK(in, -1, INT64_MIN);
    if (way == 4) b->runs = NULL;
    if (way == 4 && b->n_runs == 0) b->n_runs = 1;
    if (way < 5) return 1;
    if (b->n_tokens == 0) return 0;
    pmx_run *run = b->runs;
    while (run->n_tokens == 0) run++;
    int32_t *pages = buffer((size_t)run->n_pages * sizeof *pages);
    memcpy(pages, run->pages, (size_t)run->n_pages * sizeof *pages);
    switch (below(in, 5)) {
    case 0: run->n_tokens = (int32_t)PICK(in, -1, INT32_MAX, INT32_MIN); break;
    case 1: run->first_position = (int32_t)PICK(in, -1, INT32_MAX, INT32_MIN); break;
    case 2: run->n_pages = (int32_t)PICK(in, run->n_pages - 1, 0, -1, INT32_MIN); break;
    case 3: run->pages = NULL; break;
    default:
        pages[below(in, (uint32_t)run->n_pages)] = (int32_t)PICK(in, -1, b->cache.n_pages, INT32_MAX, INT32_MIN);
        run->pages = pages;
        break;
    }
    return 1;
}

void fuzz_cache_write(input *in) {
    const int32_t n_kv_heads = 1 + (int32_t)below(in, 3), head_dim = (int32_t)PICK(in, 8, 16, 24, 64, 128, 1024);
    batch b = make_batch(in, n_kv_heads, head_dim, 0);
    fill_cache(in, &b, 1);
    b.cache.k = b.k.of[0];
    const int64_t n_rows = b.n_tokens;
    const float *k = floats(in, n_rows * n_kv_heads * head_dim), *v_ = floats(in, n_rows * n_kv_heads * head_dim);
    int broken = breaks(in, 3);
    if (broken == 1) k = NULL;
    if (broken == 2) b.cache.k = NULL;
    if (broken == 3) broken = break_batch(in, &b);
    CALL(pmx_cache_write(ctx, cache_of(&b, v), k, v_, b.runs, b.n_runs))
    verdict(broken, n_rows);
}

void fuzz_attention(input *in) {
    const int32_t n_kv_heads = 1 + (int32_t)below(in, 3), head_dim = (int32_t)PICK(in, 8, 16, 24, 40, 64, 128);
    int32_t n_heads = n_kv_heads * (1 + (int32_t)below(in, 5)),
            window = (int32_t)PICK(in, 0, 0, 1, 2, 63, 64, 65, 100, INT32_MAX);
    batch b = make_batch(in, n_kv_heads, head_dim, 1);
    fill_cache(in, &b, 0);
    b.cache.k = b.k.of[0];
    const int64_t n_rows = b.n_tokens;
    const float *q = floats(in, n_rows * n_heads * head_dim);
    const result y = written(f32(n_rows * n_heads * head_dim), NULL, FINITE);
    int broken = breaks(in, 4);
    if (broken == 1) q = NULL;
    if (broken == 2) n_heads = (int32_t)PICK(in, 0, -n_kv_heads, 1025 * n_kv_heads, INT32_MIN);
    if (broken == 3) window = (int32_t)PICK(in, -1, INT32_MIN);
    if (broken == 4) broken = break_batch(in, &b);
    CALL(pmx_attention(ctx, y.of[v], q, cache_of(&b, v), b.runs, b.n_runs, n_heads, window))
    verdict(broken, n_rows);
}

/* --- A layer */

typedef struct {
    pmx_layer layer;
    pmx_weight *experts;
    int64_t ffn;
    int32_t n_adapters;
} model;

static int64_t width(input *in) {
    switch (below(in, 3)) {
    case 0: return 32 * PICK(in, 1, 2, 3, 4);
    case 1: return 256;
    default: return PICK(in, 1, 7, 8, 9, 40, 67);
    }
}

enum { ATTENTION = 1, EXPERTS = 2 };

static model make_layer(input *in, int parts) {
    model m = {.ffn = parts & EXPERTS ? width(in) : 1, .n_adapters = (int32_t)PICK(in, 0, 1, 2, 3)};
    pmx_layer *layer = &m.layer;
    layer->n_experts = (int32_t)PICK(in, 8, 1, 2, 3, 5, 64);
    layer->n_experts_used = 1 + (int32_t)below(in, (uint32_t)(layer->n_experts < 4 ? layer->n_experts : 4));
    layer->n_experts_dropped = (int32_t)below(in, (uint32_t)layer->n_experts_used);
    layer->expert_min_p = (float)PICK(in, 0, 0, 1, 4) / 4;
    layer->hidden = (int32_t)width(in);
    layer->eps = 1e-5f;
    if (parts & EXPERTS) {
        m.experts = buffer((size_t)layer->n_experts * 3 * sizeof *m.experts);
        for (int32_t i = 0; i < layer->n_experts * 3; i++) {
            const int64_t rows = i % 3 == 2 ? layer->hidden : m.ffn, cols = i % 3 == 2 ? m.ffn : layer->hidden;
            m.experts[i] = i < 6 ? weight(in, rows, cols) : m.experts[i - 3]; /* two different experts are enough */
            if (i < 6) add_adapters(in, &m.experts[i], m.n_adapters);
        }
        layer->experts = m.experts;
    }
    if (!(parts & ATTENTION)) return m;
    layer->n_kv_heads = 1 + (int32_t)below(in, 2);
    layer->n_heads = layer->n_kv_heads * (1 + (int32_t)below(in, 3));
    layer->head_dim = (int32_t)PICK(in, 8, 16, 32, 40);
    layer->window = (int32_t)PICK(in, 0, 0, 1, 65);
    layer->attn_norm = floats(in, layer->hidden);
    layer->ffn_norm = floats(in, layer->hidden);
    layer->q = weight(in, layer->n_heads * layer->head_dim, layer->hidden);
    layer->k = weight(in, layer->n_kv_heads * layer->head_dim, layer->hidden);
    layer->v = weight(in, layer->n_kv_heads * layer->head_dim, layer->hidden);
    layer->output = weight(in, layer->hidden, layer->n_heads * layer->head_dim);
    if (layer->n_experts > 1) layer->router = weight(in, layer->n_experts, layer->hidden);
    pmx_weight *const matrices[] = {&layer->q, &layer->k, &layer->v, &layer->output, &layer->router};
    for (int i = 0; i < 5; i++)
        if (matrices[i]->data) add_adapters(in, matrices[i], m.n_adapters);
    return m;
}

/* n sums of squares that a call adds to, or NULL. */
static result observed(input *in, int64_t n) {
    if (below(in, 2) == 0) return (result){{NULL, NULL}};
    double *zeros = buffer((size_t)n * sizeof *zeros);
    memset(zeros, 0, (size_t)n * sizeof *zeros);
    return written((size_t)n * sizeof *zeros, zeros, BITS);
}

/* The arrays of a batch's tokens, which a call with attention writes; the tables it only reads. */
typedef struct {
    result x, normed, ids, weights;
    const float *cosines, *sines;
    result scales; /* that keeping rows changes */
    int32_t n_adapters;
} arrays;

static arrays make_arrays(input *in, const pmx_layer *layer, int64_t n, int32_t n_adapters) {
    const int64_t hidden = layer->hidden, n_chosen = n * layer->n_experts_used;
    const float *initial = floats(in, n * hidden);
    arrays a = {.cosines = floats(in, n * layer->head_dim / 2), .n_adapters = n_adapters};
    a.sines = floats(in, n * layer->head_dim / 2);
    a.x = written(f32(n * hidden), initial, FINITE);
    a.normed = written(f32(n * hidden), NULL, FINITE);
    a.ids = written((size_t)n_chosen * sizeof(int32_t), NULL, BITS);
    a.weights = written(f32(n_chosen), NULL, FINITE);
    if (n_adapters) a.scales = written(f32(n * n_adapters), scales(in, n, n_adapters), FINITE);
    return a;
}

static pmx_batch batch_of(const arrays *a, const batch *b, int64_t n_tokens, int v) {
    return (pmx_batch){.x = a->x.of[v],
                       .normed = a->normed.of[v],
                       .ids = a->ids.of[v],
                       .weights = a->weights.of[v],
                       .n_tokens = n_tokens,
                       .cosines = a->cosines,
                       .sines = a->sines,
                       .runs = b->runs,
                       .n_runs = b->n_runs,
                       .scales = a->scales.of[v],
                       .n_adapters = a->n_adapters};
}

void fuzz_layer_attention(input *in) {
    model m = make_layer(in, ATTENTION);
    pmx_layer *layer = &m.layer;
    const int64_t hidden = layer->hidden, q_dim = layer->n_heads * layer->head_dim;
    batch b = make_batch(in, layer->n_kv_heads, layer->head_dim, 0);
    fill_cache(in, &b, 1);
    b.cache.k = b.k.of[0];
    const int64_t n = b.n_tokens;
    arrays a = make_arrays(in, layer, n, m.n_adapters);
    const result qkv = observed(in, hidden), out = observed(in, q_dim);
    const pmx_observer observers[2] = {{.qkv_input = qkv.of[0], .output_input = out.of[0]},
                                       {.qkv_input = qkv.of[1], .output_input = out.of[1]}};
    int64_t n_tokens = n;
    int broken = breaks(in, 9);
    if (broken == 1) layer->attn_norm = NULL;
    if (broken == 2) a.cosines = NULL;
    if (broken == 3)
        break_weight(in, (pmx_weight *const[]){&layer->q, &layer->k, &layer->v, &layer->output}[below(in, 4)]);
    if (broken == 4) layer->q.rows++;
    if (broken == 5) layer->hidden = (int32_t)PICK(in, 0, -1, hidden + 1, INT32_MAX, INT32_MIN);
    if (broken == 6) layer->n_heads = (int32_t)PICK(in, 0, -1, 1025, INT32_MAX, INT32_MIN);
    if (broken == 7) layer->head_dim = (int32_t)PICK(in, 0, -8, 1032, INT32_MAX, INT32_MIN);
    if (broken == 8) broken = break_batch(in, &b);
    if (broken == 9) n_tokens = PICK(in, n + 1, n - 1, INT64_MAX, INT64_MIN);
    pmx_batch batches[2];
    for (int v = 0; v < 2; v++) batches[v] = batch_of(&a, &b, n_tokens, v);
    CALL(pmx_layer_attention(ctx, &batches[v], layer, cache_of(&b, v), &observers[v]))
    verdict(broken, n);
}

void fuzz_layer_experts(input *in) {
    model m = make_layer(in, EXPERTS);
    pmx_layer *layer = &m.layer;
    const int64_t hidden = layer->hidden, n_used = layer->n_experts_used;
    int64_t n_tokens = PICK(in, 1, 2, 3, 5, 0, 8, 9);
    if (hidden * m.ffn < 1000) n_tokens *= PICK(in, 1, 20);
    const int64_t n = n_tokens;
    const float *initial = floats(in, n * hidden);
    float *normed = floats(in, n * hidden), *weights = floats(in, n * n_used);
    int32_t *ids = buffer((size_t)(n * n_used) * sizeof *ids);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0, at = 0; j < n_used; j++, at++) {
            at += number(in) % (uint64_t)(layer->n_experts - (n_used - 1 - j) - at);
            ids[i * n_used + j] = (int32_t)at;
        }
    for (int64_t i = 0; i < n * n_used; i++)
        if (below(in, 4) == 0) weights[i] = 0.0f;
    const result x = written(f32(n * hidden), initial, FINITE);
    const result input_sums = observed(in, layer->n_experts * hidden), down = observed(in, layer->n_experts * m.ffn);
    const result counts = observed(in, layer->n_experts), norms = observed(in, layer->n_experts);
    const pmx_observer observers[2] = {{.expert_input = input_sums.of[0],
                                        .down_input = down.of[0],
                                        .n_tokens = counts.of[0],
                                        .output_norms = norms.of[0]},
                                       {.expert_input = input_sums.of[1],
                                        .down_input = down.of[1],
                                        .n_tokens = counts.of[1],
                                        .output_norms = norms.of[1]}};
    float *scaled = scales(in, n, m.n_adapters);
    int broken = breaks(in, 10);
    if (n == 0 && broken == 3) broken = 0;
    if ((broken == 9 && (!scaled || n == 0)) || (broken == 10 && !scaled)) broken = 0;
    if (broken == 9) scaled[below(in, (uint32_t)n)] = INFINITY;
    if (broken == 10) m.n_adapters = (int32_t)PICK(in, 0, -1, (1 << 16) + 1, INT32_MAX, INT32_MIN);
    if (broken == 1) normed = NULL;
    if (broken == 2) n_tokens = no_count(in);
    if (broken == 3)
        ids[below(in, (uint32_t)(n * n_used))] = (int32_t)PICK(in, -1, layer->n_experts, INT32_MAX, INT32_MIN);
    if (broken == 4) break_weight(in, &m.experts[below(in, (uint32_t)layer->n_experts * 3)]);
    if (broken == 5) layer->n_experts_used = (int32_t)PICK(in, 0, -1, layer->n_experts + 1, INT32_MAX, INT32_MIN);
    if (broken == 6) layer->n_experts = (int32_t)PICK(in, 0, -1, 65, INT32_MAX, INT32_MIN);
    if (broken == 7) m.experts[layer->n_experts * 3 - 1].rows++;
    if (broken == 8) layer->n_experts_dropped = (int32_t)PICK(in, -1, n_used, INT32_MAX, INT32_MIN);
    pmx_batch batches[2];
    for (int v = 0; v < 2; v++)
        batches[v] = (pmx_batch){.x = x.of[v],
                                 .normed = normed,
                                 .ids = ids,
                                 .weights = weights,
                                 .n_tokens = n_tokens,
                                 .scales = scaled,
                                 .n_adapters = m.n_adapters};
    CALL(pmx_layer_experts(ctx, &batches[v], layer, &observers[v]))
    verdict(broken, n);
}

void fuzz_run_layers(input *in) {
    model m = make_layer(in, ATTENTION | EXPERTS);
    pmx_layer *first = &m.layer, second = m.layer;
    const int64_t n_layers = PICK(in, 1, 2);
    batch b = make_batch(in, first->n_kv_heads, first->head_dim, 0);
    fill_cache(in, &b, 1);
    b.cache.k = b.k.of[0];
    const int64_t n = b.n_tokens, n_choices = n * n_layers * first->n_experts_used;
    const arrays a = make_arrays(in, first, n, m.n_adapters);
    int64_t *kept = buffer((size_t)n * sizeof *kept), n_kept = 0;
    for (int64_t t = 0; t < n; t++)
        if (below(in, 2)) kept[n_kept++] = t;
    const int some = below(in, 2) > 0, noted = below(in, 2) > 0;
    result choices = {{NULL, NULL}}, chosen = choices, logits = choices;
    if (noted) {
        choices = written((size_t)n_choices, NULL, BITS);
        chosen = written(f32(n_choices), NULL, FINITE);
        logits = written(f32(n * n_layers * first->n_experts), NULL, FINITE);
    }
    const pmx_layer *layers[2] = {first, &second};
    int64_t counts[2] = {n_layers, n_kept};
    int broken = breaks(in, 6); /* those that are refused before anything is computed */
    if ((broken == 4 || broken == 5) && (!some || n_kept == 0)) broken = 0;
    if (broken == 1) layers[below(in, (uint32_t)n_layers)] = NULL;
    if (broken == 2) counts[0] = PICK(in, 0, -1, INT64_MIN);
    if (broken == 3 && n_layers == 1) broken = 0;
    if (broken == 3) second.hidden++;
    if (broken == 4) counts[1] = PICK(in, -1, n + 1, INT64_MAX, INT64_MIN);
    if (broken == 5) kept[below(in, (uint32_t)n_kept)] = PICK(in, -1, n, INT64_MAX, INT64_MIN);
    if (broken == 6) broken = break_batch(in, &b);
    pmx_batch batches[2];
    pmx_layers passes[2];
    pmx_cache caches[2];
    const pmx_cache *pairs[2][2];
    for (int v = 0; v < 2; v++) {
        caches[v] = *cache_of(&b, v);
        pairs[v][0] = pairs[v][1] = &caches[v]; /* the second layer writes over the first one's */
        batches[v] = batch_of(&a, &b, n, v);
        passes[v] = (pmx_layers){.layers = layers, .caches = pairs[v], .n_layers = counts[0]};
        if (some) passes[v].kept = kept, passes[v].n_kept = counts[1];
        passes[v].choices = choices.of[v];
        passes[v].choices_weights = chosen.of[v];
        passes[v].choices_logits = logits.of[v];
    }
    CALL(pmx_run_layers(ctx, &batches[v], &passes[v]))
    verdict(broken, n);
}
