/* sample.c: pmx_sample: checks, and the rows among the threads. The steps of a row are in edits.c,
 * dry.c and filters.c. */
#include "sample.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

enum {
    MAX_VOCAB = 1 << 24, /* far beyond any; what is allocated for one stays in 32 bits */
    SCAN_BLOCK = 256,    /* logits of which the largest is found before one is looked for by value */
    WORK_PER_TOKEN = 10  /* multiply-adds in the time that a row takes for a token of the vocabulary */
};
#define MAX_NUMBER 1e9 /* of parameters: far beyond any use, and an f32 holds it times the length of a text */

/* --- Checks */

static pmx_status check_pointer(int64_t row, const char *name, const void *pointer, int64_t n) {
    if (n == 0 || pointer) return PMX_OK;
    return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s: expected a pointer, found NULL", (long long)row, name);
}

/* Those from first to n - 1. */
static pmx_status check_ids(int64_t row, const char *name, const int32_t *ids, int64_t first, int64_t n,
                            int64_t n_vocab) {
    const pmx_status status = check_pointer(row, name, ids, n - first);
    if (status != PMX_OK) return status;
    int outside = 0;
    for (int64_t i = first; i < n; i++) outside |= (uint32_t)ids[i] >= (uint32_t)n_vocab;
    if (!outside) return PMX_OK;
    while ((uint32_t)ids[first] < (uint32_t)n_vocab) first++;
    return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s[%lld]: expected 0 to %lld, found %d", (long long)row, name,
                    (long long)first, (long long)n_vocab - 1, ids[first]);
}

static pmx_status check_sequences(int64_t row, const char *name, const pmx_sequences *s, int64_t n_vocab) {
    if (s->n < 0)
        return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s.n: expected 0 or more, found %lld", (long long)row, name,
                        (long long)s->n);
    if (s->n == 0) return PMX_OK;
    if (!s->ids || !s->ends)
        return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s.%s: expected a pointer, found NULL", (long long)row, name,
                        s->ids ? "ends" : "ids");
    for (int64_t i = 0; i < s->n; i++)
        if (s->ends[i] <= (i ? s->ends[i - 1] : 0))
            return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s.ends[%lld]: expected more than %lld, found %lld",
                            (long long)row, name, (long long)i, (long long)(i ? s->ends[i - 1] : 0),
                            (long long)s->ends[i]);
    char ids[64];
    snprintf(ids, sizeof ids, "%s.ids", name);
    return check_ids(row, ids, s->ids, 0, s->ends[s->n - 1], n_vocab);
}

typedef struct {
    const char *name;
    double found, lowest, highest;
} number;

static pmx_status check_numbers(int64_t row, const number *numbers, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(numbers[i].found >= numbers[i].lowest && numbers[i].found <= numbers[i].highest))
            return pmx_fail(PMX_EINVAL, "samplers[%lld]->%s: expected %g to %g, found %g", (long long)row,
                            numbers[i].name, numbers[i].lowest, numbers[i].highest, numbers[i].found);
    return PMX_OK;
}
#define CHECK_NUMBERS(ROW, NUMBERS) check_numbers(ROW, NUMBERS, sizeof(NUMBERS) / sizeof(number))

static pmx_status check_parameters(const pmx_sampler *s, int64_t row) {
    const number numbers[] = {
        {"temperature", (double)s->temperature, 0.0, FLT_MAX},
        {"repetition_penalty", (double)s->repetition_penalty, FLT_MIN, FLT_MAX},
        {"presence_penalty", s->presence_penalty, -MAX_NUMBER, MAX_NUMBER},
        {"frequency_penalty", s->frequency_penalty, -MAX_NUMBER, MAX_NUMBER},
        {"dry_multiplier", s->dry_multiplier, 0.0, MAX_NUMBER},
        {"top_n_sigma", s->top_n_sigma, 0.0, MAX_NUMBER},
        {"typical_p", s->typical_p, 0.0, 1.0},
        {"top_p", s->top_p, 0.0, 1.0},
        {"min_p", s->min_p, 0.0, 1.0},
        {"xtc_probability", s->xtc_probability, 0.0, 1.0},
        {"mirostat_tau", s->mirostat_tau, 0.0, MAX_NUMBER},
    };
    const number of_dry[] = {{"dry_base", s->dry_base, 1.0, MAX_NUMBER}};
    const number of_xtc[] = {{"xtc_threshold", s->xtc_threshold, 0.0, 1.0}};
    const number of_mirostat[] = {{"mirostat_eta", s->mirostat_eta, 0.0, 1.0},
                                  {"state.surprise", s->state.surprise, -DBL_MAX, DBL_MAX}};
    const struct {
        const char *name;
        int64_t found, lowest, highest;
    } counts[] = {
        {"top_k", s->top_k, 0, INT64_MAX},
        {"penalty_window", s->penalty_window, 0, INT64_MAX},
        {"dry_window", s->dry_window, 0, INT64_MAX},
        {"dry_allowed_length", s->dry_allowed_length, s->dry_multiplier > 0.0, INT64_MAX},
        {"n_bias", s->n_bias, 0, INT64_MAX},
        {"n_end", s->n_end, 0, INT64_MAX},
        {"n_text", s->n_text, 0, INT32_MAX},
        {"min_text", s->min_text, 0, INT64_MAX},
    };
    pmx_status status = CHECK_NUMBERS(row, numbers);
    if (status == PMX_OK && s->dry_multiplier > 0.0) status = CHECK_NUMBERS(row, of_dry);
    if (status == PMX_OK && s->xtc_probability > 0.0) status = CHECK_NUMBERS(row, of_xtc);
    if (status == PMX_OK && s->mirostat_tau > 0.0) status = CHECK_NUMBERS(row, of_mirostat);
    for (size_t i = 0; i < sizeof counts / sizeof *counts && status == PMX_OK; i++)
        if (counts[i].found < counts[i].lowest || counts[i].found > counts[i].highest)
            status = pmx_fail(PMX_EINVAL, "samplers[%lld]->%s: expected %lld to %lld, found %lld", (long long)row,
                              counts[i].name, (long long)counts[i].lowest, (long long)counts[i].highest,
                              (long long)counts[i].found);
    return status;
}

static pmx_status check_sampler(const pmx_sampler *s, int64_t row, int64_t n_vocab) {
    if (!s) return pmx_fail(PMX_EINVAL, "samplers[%lld]: expected a pointer, found NULL", (long long)row);
    pmx_status status = check_parameters(s, row);
    if (status == PMX_OK) status = check_ids(row, "bias_ids", s->bias_ids, 0, s->n_bias, n_vocab);
    if (status == PMX_OK) status = check_pointer(row, "bias", s->bias, s->n_bias);
    for (int64_t i = 0; i < s->n_bias && status == PMX_OK; i++)
        if (!(s->bias[i] < INFINITY))
            status = pmx_fail(PMX_EINVAL, "samplers[%lld]->bias[%lld]: expected less than infinity, found %g",
                              (long long)row, (long long)i, (double)s->bias[i]);
    if (status == PMX_OK) status = check_ids(row, "end_ids", s->end_ids, 0, s->n_end, n_vocab);
    if (status == PMX_OK) status = check_sequences(row, "bad_words", &s->bad_words, n_vocab);
    if (status == PMX_OK) status = check_sequences(row, "dry_breakers", &s->dry_breakers, n_vocab);
    if (status != PMX_OK) return status;
    return check_ids(row, "text", s->text, s->n_text - pmx_text_seen(s), s->n_text, n_vocab);
}

/* --- The largest logit */

static int has_nan(const float *x, int64_t n) {
    uint32_t nan = 0;
    for (int64_t i = 0; i < n; i++) nan |= (uint32_t)(x[i] != x[i]);
    return nan != 0;
}

/* Of up to SCAN_BLOCK numbers, none of them NaN. In lanes, which the compiler makes vectors of. */
static float largest_of(const float *x, int64_t n) {
    float lanes[16];
    for (int j = 0; j < 16; j++) lanes[j] = x[0];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (; i < n; i++) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    for (int j = 1; j < 16; j++) lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
    return lanes[0];
}

/* The first of the largest numbers, or of those that are NaN. */
static int64_t scan(const float *x, int64_t n) {
    int64_t best = 0;
    float largest = -INFINITY;
    for (int64_t at = 0; at < n; at += SCAN_BLOCK) {
        const int64_t n_block = n - at < SCAN_BLOCK ? n - at : SCAN_BLOCK;
        if (has_nan(x + at, n_block)) {
            while (x[at] == x[at]) at++;
            return at;
        }
        const float found = largest_of(x + at, n_block);
        if (found > largest) largest = found, best = at;
    }
    while (x[best] != largest) best++;
    return best;
}

/* --- Rows */

typedef struct {
    pmx_ctx *ctx;
    int32_t *ids, *statuses;
    const float *logits;
    pmx_sampler *const *samplers;
    pmx_sampler_state *states;
    int64_t n;
    int64_t n_seen; /* the most ids that DRY looks at */
} sample_args;

static size_t rounded(int64_t n, size_t size) { return ((size_t)n * size + 63) & ~(size_t)63; }

static size_t row_bytes(int64_t n, int64_t n_seen) {
    return 3 * rounded(n, sizeof(float)) + pmx_order_bytes(n) + rounded(n_seen, sizeof(int32_t));
}

static pmx_row place_row(void *memory, int64_t n) {
    char *at = memory;
    pmx_row r = {.n = n};
    r.edited = (float *)(void *)at;
    r.weights = (float *)(void *)(at + rounded(n, sizeof(float)));
    r.ids = (int32_t *)(void *)(at + 2 * rounded(n, sizeof(float)));
    pmx_order_place(&r.order, at + 3 * rounded(n, sizeof(float)), n);
    r.matches = (int32_t *)(void *)(at + row_bytes(n, 0));
    return r;
}

static pmx_status sample_row(pmx_row *r, int32_t *id) {
    const pmx_sampler *s = r->sampler;
    *id = (int32_t)scan(r->logits, r->n);
    if (!isfinite(r->logits[*id])) return PMX_ENONFINITE;
    if (pmx_row_edit(r)) {
        *id = (int32_t)scan(r->logits, r->n);
        if (r->logits[*id] == -INFINITY) return PMX_EBANNED;
        if (!isfinite(r->logits[*id])) return PMX_ENONFINITE;
    }
    if (s->temperature == 0.0f || (s->top_k == 1 && s->mirostat_tau == 0.0)) return PMX_OK;
    const float matters = 40.0f * (s->temperature > 1.0f ? s->temperature : 1.0f); /* exp(-40) = 4e-18 */
    pmx_order_begin(&r->order, r->logits, r->logits[*id], matters);
    *id = pmx_row_draw(r);
    return PMX_OK;
}

static void sample_task(void *arg, int64_t item, int32_t thread) {
    const sample_args *p = arg;
    pmx_row r = place_row(pmx_thread_scratch(p->ctx, thread), p->n);
    r.kernels = p->ctx->kernels;
    r.sampler = p->samplers[item];
    r.logits = p->logits + item * p->n;
    r.state = &p->states[item];
    *r.state = r.sampler->state;
    p->statuses[item] = (int32_t)sample_row(&r, &p->ids[item]);
}

pmx_status pmx_sample(pmx_ctx *ctx, int32_t *ids, int32_t *statuses, const float *logits, pmx_sampler *const *samplers,
                      int64_t n_rows, int64_t n_vocab) {
    pmx_status status = PMX_NOT_NULL(ctx, ids, statuses, logits, samplers);
    if (status != PMX_OK) return status;
    if (n_vocab < 1 || n_vocab > MAX_VOCAB || !pmx_rows_fit(n_rows, n_vocab))
        return pmx_fail(PMX_EINVAL, "n_rows, n_vocab: expected 0 or more rows of 1 to %d, found %lld rows of %lld",
                        MAX_VOCAB, (long long)n_rows, (long long)n_vocab);
    sample_args args = {ctx, ids, statuses, logits, samplers, NULL, n_vocab, 0};
    for (int64_t i = 0; i < n_rows; i++) {
        if ((status = check_sampler(samplers[i], i, n_vocab)) != PMX_OK) return status;
        const int64_t n_seen = pmx_dry_seen(samplers[i]);
        if (n_seen > args.n_seen) args.n_seen = n_seen;
    }
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    pmx_begin_part(ctx, PMX_PART_SAMPLING);
    args.states = pmx_scratch(ctx, PMX_SCRATCH_STATES, (size_t)n_rows * sizeof *args.states);
    if (!args.states) status = PMX_ENOMEM;
    if (status == PMX_OK) status = pmx_thread_scratch_reserve(ctx, row_bytes(n_vocab, args.n_seen));
    if (status == PMX_OK) status = pmx_parallel(ctx, sample_task, &args, n_rows, n_vocab * WORK_PER_TOKEN);
    for (int64_t i = 0; i < n_rows && status == PMX_OK; i++) samplers[i]->state = args.states[i];
    pmx_leave(ctx, call); /* after what is in the context's scratch was read */
    return status;
}
