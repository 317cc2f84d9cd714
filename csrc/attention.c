/* attention.c: attention over the pages of the key/value cache.
 *
 * A tile is some tokens of one run with one key/value head: all queries that share its keys and
 * values. With enough tiles for all threads a tile walks its pages and combines them as it goes;
 * the tiles of one head follow each other, so that its pages come from the shared cache. Otherwise
 * (a few tokens far into a context) pages are the items: each leaves its partial result, and a
 * second region combines them in the same order. Same bits either way. */
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    /* Of a tile, at most: with heads of 128 they and a page take 250 KB of L2. 64 are 2% slower, 256
     * are 2% faster where L2 has a megabyte. */
    TILE_QUERIES = 128,
    TILE_TOKENS = 8, /* of a tile, at least, where the queries allow it: a page is read once for them */
    /* Tiles for each thread: so many if the tokens allow it, so that all threads end at about the
     * same time. With fewer than needed, as a single token has, pages are the items. */
    TILES_WANTED = 8,
    TILES_NEEDED = 4,
    /* From so many queries on a page of f16 is widened once for all, and not by each few of them as
     * they load it. On Zen 5, which widens at no cost, all values are within 2%. */
    WIDENED_QUERIES = 48,
    /* Of all partial results, 64 MB: one token with 32 heads of 128 at 250,000 positions. Beyond it
     * tiles are the items. */
    MAX_PARTIAL_FLOATS = 16 << 20
};

typedef struct {
    const pmx_run *run;
    int64_t row; /* of the tile's first token in q and y */
    int32_t position;
    int32_t n_tokens;
    int32_t first_page, end_page; /* pages that hold a visible position */
} tile;

typedef struct {
    pmx_ctx *ctx;
    const pmx_cache *cache;
    float *y;
    const float *q;
    const tile *tiles;
    int64_t n_tiles;
    int64_t group;       /* query heads of a key/value head */
    int64_t tile_tokens; /* at most */
    int32_t n_heads, window;
    float scale;
    int64_t max_pages;   /* of any tile, when pages are the items */
    int64_t part_floats; /* of one partial result */
    float *partials;
} attention_args;

/* What a tile's queries have of the pages that were folded in: maximum, sum and weighted values. */
typedef struct {
    float *m, *l, *o;
} folded;

/* One thread's scratch; every array for n_q = tile_tokens * group queries. */
typedef struct {
    float *k, *v; /* a page in f32 */
    float *q, *s;
    folded far; /* the pages so far */
    int8_t *q8; /* q for a cache of q8_0, its scales and sums */
    float *dq;
    int32_t *sums;
    int32_t *lo, *hi;
} workspace;

static size_t workspace_floats(int64_t n_q, int64_t dim) {
    return (size_t)(2 * dim * PMX_PAGE + n_q * (2 * dim + PMX_ATTEND_SCRATCH + 4 + dim / 4 + 2 * (dim / 32)));
}

static workspace workspace_at(const attention_args *p, int32_t thread) {
    const int64_t dim = p->cache->head_dim, n_q = p->tile_tokens * p->group;
    workspace w;
    w.k = pmx_thread_scratch(p->ctx, thread);
    w.v = w.k + dim * PMX_PAGE;
    w.q = w.v + dim * PMX_PAGE;
    w.s = w.q + n_q * dim;
    w.far.o = w.s + n_q * PMX_ATTEND_SCRATCH;
    w.far.m = w.far.o + n_q * dim;
    w.far.l = w.far.m + n_q;
    w.lo = (int32_t *)(void *)(w.far.l + n_q);
    w.hi = w.lo + n_q;
    w.sums = w.hi + n_q;
    w.dq = (float *)(void *)(w.sums + n_q * (dim / 32));
    w.q8 = (int8_t *)(void *)(w.dq + n_q * (dim / 32));
    return w;
}

/* Query i of a tile is head kv*group + i % group of token i / group. */
static const float *query_at(const attention_args *p, const tile *t, int64_t kv, int64_t i) {
    return p->q + ((t->row + i / p->group) * p->n_heads + kv * p->group + i % p->group) * p->cache->head_dim;
}

static void scale_queries(const attention_args *p, const workspace *w, const tile *t, int64_t kv) {
    const int64_t dim = p->cache->head_dim;
    for (int64_t i = 0; i < t->n_tokens * p->group; i++) {
        const float *q = query_at(p, t, kv, i);
        for (int64_t d = 0; d < dim; d++) w->q[i * dim + d] = q[d] * p->scale;
        if (p->cache->type != PMX_Q8_0) continue;
        const int64_t block = i * (dim / 32);
        if (p->ctx->kernels->quantize32(w->q8 + i * dim, w->dq + block, w->sums + block, w->q + i * dim, dim))
            w->dq[block] = NAN; /* so that the result is, which is where rows are found */
    }
}

/* Which of a page's positions each query sees. */
static void see(const attention_args *p, const workspace *w, const tile *t, int32_t page) {
    for (int64_t i = 0; i < t->n_tokens * p->group; i++) {
        const int32_t position = t->position + (int32_t)(i / p->group), start = page * PMX_PAGE;
        int32_t lo = p->window && position - p->window + 1 > start ? position - p->window + 1 - start : 0;
        int32_t hi = position + 1 - start;
        if (hi < 0) hi = 0; /* of a tile's tokens the first may end before a page that the last one sees */
        if (hi > PMX_PAGE) hi = PMX_PAGE;
        if (lo > hi) lo = hi;
        w->lo[i] = lo;
        w->hi[i] = hi;
    }
}

/* Before any page. */
static void clear(folded f, int64_t n_q, int64_t dim) {
    for (int64_t i = 0; i < n_q; i++) f.m[i] = -INFINITY;
    memset(f.l, 0, (size_t)n_q * sizeof *f.l);
    memset(f.o, 0, (size_t)(n_q * dim) * sizeof *f.o);
}

/* All but the page of what a tile's queries are folded by. */
static pmx_attend attend_args(const attention_args *p, const workspace *w, const tile *t, folded to) {
    return (pmx_attend){.n_q = t->n_tokens * p->group,
                        .head_dim = p->cache->head_dim,
                        .q = w->q,
                        .q8 = {w->q8, w->dq, w->sums},
                        .lo = w->lo,
                        .hi = w->hi,
                        .m = to.m,
                        .l = to.l,
                        .o = to.o,
                        .s = w->s};
}

/* Folds one page. */
static void attend_page(const attention_args *p, const workspace *w, const tile *t, int64_t kv, int32_t page,
                        pmx_attend *a) {
    const pmx_cache *cache = p->cache;
    const pmx_kernels *kernels = p->ctx->kernels;
    const int64_t dim = cache->head_dim, n = dim * PMX_PAGE;
    const int64_t block = (int64_t)t->run->pages[page] * cache->n_kv_heads + kv;
    see(p, w, t, page);
    if (cache->type == PMX_F32) {
        a->k = (const float *)cache->k + block * n;
        a->v = (const float *)cache->v + block * n;
        kernels->attend_f32(a);
        return;
    }
    if (cache->type == PMX_Q8_0) {
        a->k = (const uint8_t *)cache->k + block * pmx_q8_0_page_bytes(dim);
        a->v = (const uint8_t *)cache->v + block * pmx_q8_0_page_bytes(dim);
        kernels->attend_q8_0(a);
        return;
    }
    const uint16_t *k = (const uint16_t *)cache->k + block * n, *v = (const uint16_t *)cache->v + block * n;
    if (kernels->attend_f16 && a->n_q < WIDENED_QUERIES) {
        a->k = k;
        a->v = v;
        kernels->attend_f16(a);
        return;
    }
    kernels->widen(w->k, k, n);
    kernels->widen(w->v, v, n);
    a->k = w->k;
    a->v = w->v;
    kernels->attend_f32(a);
}

static void store(const attention_args *p, const workspace *w, const tile *t, int64_t kv) {
    const int64_t dim = p->cache->head_dim;
    for (int64_t i = 0; i < t->n_tokens * p->group; i++) {
        float *y = p->y + (query_at(p, t, kv, i) - p->q);
        const float inverse = 1.0f / w->far.l[i];
        for (int64_t d = 0; d < dim; d++) y[d] = w->far.o[i * dim + d] * inverse;
    }
}

static void tile_task(void *arg, int64_t item, int32_t thread) {
    const attention_args *p = arg;
    const tile *t = &p->tiles[item % p->n_tiles];
    const int64_t kv = item / p->n_tiles;
    const workspace w = workspace_at(p, thread);
    scale_queries(p, &w, t, kv);
    clear(w.far, t->n_tokens * p->group, p->cache->head_dim);
    pmx_attend args = attend_args(p, &w, t, w.far);
    for (int32_t page = t->first_page; page < t->end_page; page++) attend_page(p, &w, t, kv, page, &args);
    store(p, &w, t, kv);
}

/* The partial result of one page for n_q queries; l is 0 where a query sees nothing of it. */
static folded partial_at(const attention_args *p, int64_t tile_and_head, int64_t page, int64_t n_q) {
    float *l = p->partials + (tile_and_head * p->max_pages + page) * p->part_floats;
    return (folded){.l = l, .m = l + n_q, .o = l + 2 * n_q};
}

static void page_task(void *arg, int64_t item, int32_t thread) {
    const attention_args *p = arg;
    const int64_t tile_and_head = item / p->max_pages, index = item % p->max_pages;
    const tile *t = &p->tiles[tile_and_head % p->n_tiles];
    const int64_t kv = tile_and_head / p->n_tiles, n_q = t->n_tokens * p->group;
    const int32_t page = t->first_page + (int32_t)index;
    if (page >= t->end_page) return;
    const workspace w = workspace_at(p, thread);
    const folded part = partial_at(p, tile_and_head, index, n_q);
    scale_queries(p, &w, t, kv);
    clear(part, n_q, p->cache->head_dim);
    pmx_attend args = attend_args(p, &w, t, part);
    attend_page(p, &w, t, kv, page, &args);
}

static void combine_task(void *arg, int64_t item, int32_t thread) {
    const attention_args *p = arg;
    const tile *t = &p->tiles[item % p->n_tiles];
    const int64_t kv = item / p->n_tiles, n_q = t->n_tokens * p->group, dim = p->cache->head_dim;
    const workspace w = workspace_at(p, thread);
    clear(w.far, n_q, dim);
    for (int64_t page = 0; page < t->end_page - t->first_page; page++) {
        const folded part = partial_at(p, item, page, n_q);
        for (int64_t i = 0; i < n_q; i++) {
            if (part.l[i] == 0.0f) continue; /* NaN when a score overflowed */
            p->ctx->kernels->combine(w.far.m + i, w.far.l + i, w.far.o + i * dim, part.m[i], part.l[i],
                                     part.o + i * dim, dim);
        }
    }
    store(p, &w, t, kv);
}

/* Tokens of a tile: many, as a page is then read and widened less often, but no more than give
 * every thread a few tiles. */
static int64_t tile_tokens(int64_t group, int64_t n_tokens_and_heads, int32_t n_threads) {
    const int64_t most = group < TILE_QUERIES ? TILE_QUERIES / group : 1,
                  least = most < TILE_TOKENS ? most : TILE_TOKENS;
    const int64_t fair = n_tokens_and_heads / (TILES_WANTED * n_threads);
    return fair > most ? most : fair < least ? least : fair;
}

/* Cuts the runs into tiles and finds the most pages of one. */
static void make_tiles(attention_args *p, tile *tiles, const pmx_run *runs, int64_t n_runs) {
    int64_t row = 0;
    p->tiles = tiles;
    p->n_tiles = p->max_pages = 0;
    for (int64_t i = 0; i < n_runs; i++) {
        for (int64_t at = 0; at < runs[i].n_tokens; at += p->tile_tokens) {
            tile *t = &tiles[p->n_tiles++];
            const int64_t left = runs[i].n_tokens - at;
            t->run = &runs[i];
            t->row = row + at;
            t->position = runs[i].first_position + (int32_t)at;
            t->n_tokens = (int32_t)(left < p->tile_tokens ? left : p->tile_tokens);
            const int32_t oldest = p->window && t->position - p->window + 1 > 0 ? t->position - p->window + 1 : 0;
            t->first_page = oldest / PMX_PAGE;
            t->end_page = (t->position + t->n_tokens - 1) / PMX_PAGE + 1;
            if (t->end_page - t->first_page > p->max_pages) p->max_pages = t->end_page - t->first_page;
        }
        row += runs[i].n_tokens;
    }
}

static pmx_status attention(attention_args *p, const pmx_run *runs, int64_t n_runs, int64_t n_tokens) {
    const int64_t dim = p->cache->head_dim;
    tile *tiles = pmx_scratch(p->ctx, PMX_SCRATCH_TILES, (size_t)n_tokens * sizeof *tiles);
    if (!tiles) return PMX_ENOMEM;
    p->tile_tokens = tile_tokens(p->group, n_tokens * p->cache->n_kv_heads, p->ctx->n_threads);
    pmx_status status =
        pmx_thread_scratch_reserve(p->ctx, workspace_floats(p->tile_tokens * p->group, dim) * sizeof(float));
    if (status != PMX_OK) return status;
    make_tiles(p, tiles, runs, n_runs);
    const int64_t n_tiles = p->n_tiles * p->cache->n_kv_heads;
    int64_t widest = 0; /* tokens of the widest tile */
    for (int64_t i = 0; i < p->n_tiles; i++)
        if (tiles[i].n_tokens > widest) widest = tiles[i].n_tokens;
    p->part_floats = widest * p->group * (dim + 2);
    int64_t partial_floats;
    const int64_t work = widest * p->group * dim * PMX_PAGE * 2; /* of one page */
    if (n_tiles >= TILES_NEEDED * p->ctx->n_threads || p->max_pages < 2 ||
        pmx_mul(&partial_floats, n_tiles * p->max_pages, p->part_floats) || partial_floats > MAX_PARTIAL_FLOATS)
        return pmx_parallel(p->ctx, tile_task, p, n_tiles, work * p->max_pages);
    p->partials = pmx_scratch(p->ctx, PMX_SCRATCH_PARTIALS, (size_t)partial_floats * sizeof *p->partials);
    if (!p->partials) return PMX_ENOMEM;
    status = pmx_parallel(p->ctx, page_task, p, n_tiles * p->max_pages, work);
    if (status != PMX_OK) return status;
    return pmx_parallel(p->ctx, combine_task, p, n_tiles, p->max_pages * p->part_floats);
}

pmx_status pmx_attention(pmx_ctx *ctx, float *y, const float *q, const pmx_cache *cache, const pmx_run *runs,
                         int64_t n_runs, int32_t n_heads, int32_t window) {
    int64_t n_tokens = 0;
    pmx_status status = PMX_NOT_NULL(ctx, y, q);
    if (status == PMX_OK) status = pmx_check_runs(cache, runs, n_runs, &n_tokens);
    if (status != PMX_OK) return status;
    if (n_heads < 1 || n_heads > PMX_MAX_HEADS || n_heads % cache->n_kv_heads)
        return pmx_fail(PMX_EINVAL, "n_heads: expected a multiple of the %d key/value heads up to 1024, found %d",
                        cache->n_kv_heads, n_heads);
    if (window < 0) return pmx_fail(PMX_EINVAL, "window: expected 0 or more, found %d", window);
    if (n_tokens == 0) return PMX_OK;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    attention_args args = {.ctx = ctx,
                           .cache = cache,
                           .y = y,
                           .q = q,
                           .group = n_heads / cache->n_kv_heads,
                           .n_heads = n_heads,
                           .window = window,
                           .scale = (float)(1.0 / sqrt((double)cache->head_dim))};
    status = attention(&args, runs, n_runs, n_tokens);
    if (status == PMX_OK) status = pmx_check_finite("y", y, n_tokens, (int64_t)n_heads * cache->head_dim);
    pmx_leave(ctx, call);
    return status;
}
