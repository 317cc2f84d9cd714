/* adapters.c: low-rank adapters of a matrix: their checks, and what they add to its products. */
#include "matmul.h"

/* Of the products of a, an item: as many rows of it as float kernels take at once, and so many rows of
 * activations. */
enum { RANKS_PER_ITEM = 8, ROWS_PER_ITEM = 48 };

pmx_status pmx_check_scales(const char *name, pmx_scales scales, int64_t n_tokens) {
    if (!scales.of) return PMX_OK;
    if (scales.n_adapters < 1 || scales.n_adapters > PMX_MAX_ADAPTERS)
        return pmx_fail(PMX_EINVAL, "%sn_adapters: expected 1 to %d, found %d", name, PMX_MAX_ADAPTERS,
                        scales.n_adapters);
    const int64_t row = pmx_first_nonfinite(scales.of, n_tokens, scales.n_adapters);
    if (row < 0) return PMX_OK;
    return pmx_fail(PMX_EINVAL, "row %lld of %sscales: expected finite numbers, found NaN or infinity", (long long)row,
                    name);
}

pmx_status pmx_check_delta(const pmx_weight *w, const char *name, pmx_scales scales) {
    if (!w->delta) return PMX_OK;
    const pmx_low_rank *pairs = w->delta->pairs;
    const int64_t n = w->delta->n_pairs;
    if (!pairs) return pmx_fail(PMX_EINVAL, "%sdelta->pairs: expected a pointer, found NULL", name);
    if (n < 0 || n > PMX_MAX_ADAPTERS)
        return pmx_fail(PMX_EINVAL, "%sdelta->n_pairs: expected 0 to %d, found %lld", name, PMX_MAX_ADAPTERS,
                        (long long)n);
    const int32_t end = scales.of ? scales.n_adapters : PMX_MAX_ADAPTERS;
    for (int64_t i = 0, first = 0; i < n; first = pairs[i++].adapter + 1) {
        if (!pairs[i].a || !pairs[i].b)
            return pmx_fail(PMX_EINVAL, "%sdelta->pairs[%lld].%s: expected a pointer, found NULL", name, (long long)i,
                            pairs[i].a ? "b" : "a");
        if (pairs[i].rank < 1 || pairs[i].rank > PMX_MAX_RANK)
            return pmx_fail(PMX_EINVAL, "%sdelta->pairs[%lld].rank: expected 1 to %d, found %d", name, (long long)i,
                            PMX_MAX_RANK, pairs[i].rank);
        if (pairs[i].adapter < first || pairs[i].adapter >= end)
            return pmx_fail(PMX_EINVAL,
                            "%sdelta->pairs[%lld].adapter: expected ascending columns from %lld to %d, "
                            "found %d",
                            name, (long long)i, (long long)first, end - 1, pairs[i].adapter);
    }
    return PMX_OK;
}

static float scale_of(const pmx_adapted *product, const pmx_low_rank *pair, pmx_scales scales, int64_t row) {
    return scales.of[(product->tokens ? product->tokens[row] : row) * scales.n_adapters + pair->adapter];
}

typedef struct {
    pmx_ctx *ctx;
    const pmx_acts *acts;
    pmx_scales scales;
    const pmx_term *terms;
} terms_args;

static int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

static int64_t items_of(const pmx_term *term) {
    return blocks(term->pair->rank, RANKS_PER_ITEM) * blocks(term->n, ROWS_PER_ITEM);
}

static void term_task(void *arg, int64_t item, int32_t thread) {
    (void)thread;
    const terms_args *p = arg;
    const pmx_term *term = p->terms;
    for (; item >= items_of(term); term++) item -= items_of(term);
    const int64_t rank = term->pair->rank, cols = p->acts->cols;
    const int64_t first_rank = item % blocks(rank, RANKS_PER_ITEM) * RANKS_PER_ITEM;
    const int64_t first = item / blocks(rank, RANKS_PER_ITEM) * ROWS_PER_ITEM;
    const int64_t n = term->n - first < ROWS_PER_ITEM ? term->n - first : ROWS_PER_ITEM;
    const int64_t n_ranks = rank - first_rank < RANKS_PER_ITEM ? rank - first_rank : RANKS_PER_ITEM;
    const int32_t *rows = term->rows + first, *inputs = term->product->inputs;
    int32_t tokens[ROWS_PER_ITEM];
    for (int64_t i = 0; i < n; i++) tokens[i] = inputs ? inputs[rows[i]] : rows[i];
    float *t = term->t + first * rank + first_rank;
    const pmx_weight a = {.data = term->pair->a, .type = PMX_F32, .row_bytes = cols * (int64_t)sizeof(float)};
    const pmx_product product = {
        .y = t, .ldy = rank, .n_rows = n_ranks, .acts = p->acts, .tokens = tokens, .n_tokens = n};
    pmx_multiply_rows(p->ctx->kernels, &a, first_rank, product);
    for (int64_t i = 0; i < n; i++) {
        const float scale = scale_of(term->product, term->pair, p->scales, rows[i]);
        for (int64_t r = 0; r < n_ranks; r++) t[i * rank + r] *= scale;
    }
}

/* Where the terms lie in scratch: all of them, then their rows, then their t. */
typedef struct {
    int64_t n_terms, n_rows, n_floats;
} room;

/* Counts the terms of a product, or sets them, with the room before them in *at. */
static void find_terms(pmx_adapted *product, pmx_scales scales, room *at, pmx_term *terms, int32_t *rows, float *t) {
    const pmx_delta *delta = product->w->delta;
    const int64_t before = at->n_terms;
    for (int64_t i = 0; delta && i < delta->n_pairs; i++) {
        const pmx_low_rank *pair = &delta->pairs[i];
        int64_t n = 0;
        for (int64_t row = 0; row < product->n; row++) {
            if (scale_of(product, pair, scales, row) == 0.0f) continue;
            if (terms) rows[at->n_rows + n] = (int32_t)row;
            n++;
        }
        if (n == 0) continue;
        if (terms) terms[at->n_terms] = (pmx_term){product, pair, rows + at->n_rows, n, t + at->n_floats};
        at->n_terms++;
        at->n_rows += n;
        at->n_floats += n * pair->rank;
    }
    product->terms = terms ? terms + before : NULL;
    product->n_terms = at->n_terms - before;
}

pmx_status pmx_adapt(pmx_ctx *ctx, pmx_adapted *products, int64_t n_products, const pmx_acts *acts, pmx_scales scales) {
    room all = {0}, at = {0};
    if (!scales.of) return PMX_OK;
    for (int64_t i = 0; i < n_products; i++) find_terms(&products[i], scales, &all, NULL, NULL, NULL);
    if (all.n_terms == 0) return PMX_OK;
    char *scratch = pmx_scratch(ctx, PMX_SCRATCH_TERMS,
                                (size_t)all.n_terms * sizeof(pmx_term) + (size_t)all.n_rows * sizeof(int32_t) +
                                    (size_t)all.n_floats * sizeof(float));
    if (!scratch) return PMX_ENOMEM;
    pmx_term *terms = (pmx_term *)(void *)scratch;
    int32_t *rows = (int32_t *)(void *)(terms + all.n_terms);
    for (int64_t i = 0; i < n_products; i++)
        find_terms(&products[i], scales, &at, terms, rows, (float *)(void *)(rows + all.n_rows));
    int64_t n_items = 0;
    for (int64_t i = 0; i < all.n_terms; i++) {
        n_items += items_of(&terms[i]);
        if (ctx->timing)
            ctx->timing->parts[ctx->timing->part].bytes +=
                terms[i].pair->rank * (acts->cols + terms[i].product->w->rows) * (int64_t)sizeof(float);
    }
    terms_args args = {ctx, acts, scales, terms};
    return pmx_parallel(ctx, term_task, &args, n_items, all.n_floats * acts->cols / n_items);
}

void pmx_add_terms(const pmx_kernels *kernels, const pmx_adapted *product, float *y, int64_t ldy, int64_t first,
                   int64_t n, int64_t first_output, int64_t n_outputs) {
    for (int64_t i = 0; i < product->n_terms; i++) {
        const pmx_term *term = &product->terms[i];
        const int64_t rank = term->pair->rank, rows = product->w->rows;
        int64_t at = 0;
        for (int64_t end = term->n; at < end;) { /* the first of the rows that is not below `first` */
            const int64_t middle = (at + end) / 2;
            if (term->rows[middle] < first)
                at = middle + 1;
            else
                end = middle;
        }
        for (; at < term->n && term->rows[at] < first + n; at++)
            kernels->add_rows(y + (term->rows[at] - first) * ldy, term->t + at * rank, term->pair->b + first_output,
                              rows, rank, n_outputs);
    }
}
