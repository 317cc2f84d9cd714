/* fuzz_ops.c: fuzz targets of the single operations. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "fuzz.h"

enum { WORK = 1 << 17, NUMBERS = 1 << 15 }; /* multiply-adds of one call, and numbers of one array, at most */

static int64_t some_tokens(input *in) { return PICK(in, 1, 2, 3, 4, 5, 7, 8, 9, 0, 16, 17, 31, 127, 128, 129, 258); }
static int64_t some_rows(input *in) { return PICK(in, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130); }
static int64_t some_cols(input *in) {
    switch (below(in, 3)) {
    case 0: return 32 * PICK(in, 1, 2, 3, 4, 5, 7, 31, 32, 33, 65);
    case 1: return 256 * PICK(in, 1, 2, 3, 4, 5, 9);
    default: return PICK(in, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 67, 100, 1025, 2001);
    }
}

/* Fewer rows when there would be too many numbers. */
static int64_t fewer(int64_t n_rows, int64_t n, int64_t most) {
    while (n_rows * n > most && n_rows > 1) n_rows /= 2;
    return n_rows;
}

static size_t f32(int64_t n) { return (size_t)n * sizeof(float); }

void fuzz_rms_norm(input *in) {
    int64_t n = some_cols(in), n_tokens = fewer(some_tokens(in), n, NUMBERS);
    const float *x = floats(in, n_tokens * n), *w = floats(in, n), *x_at[2] = {x, x};
    const result y = written(f32(n_tokens * n), x, FINITE);
    const float eps = (float)PICK(in, 1, 0, -1) * 1e-5f;
    if (below(in, 4) == 0) x_at[0] = y.of[0], x_at[1] = y.of[1];
    const int broken = breaks(in, 4);
    const int64_t n_rows = n_tokens;
    if (broken == 1) x_at[0] = x_at[1] = NULL;
    if (broken == 2) w = NULL;
    if (broken == 3) n_tokens = no_count(in);
    if (broken == 4) n = PICK(in, 0, -1, INT64_MIN);
    CALL(pmx_rms_norm(ctx, y.of[v], x_at[v], w, n_tokens, n, eps))
    verdict(broken, n_rows);
}

void fuzz_quantize_activations(input *in) {
    int32_t block = (int32_t)PICK(in, 32, 256);
    int64_t n = block * PICK(in, 1, 2, 3, 5), n_tokens = fewer(some_tokens(in), n, NUMBERS);
    const float *x = floats(in, n_tokens * n);
    const result q = written((size_t)(n_tokens * n), NULL, BITS);
    const result d = written(f32(n_tokens * (n / block)), NULL, FINITE);
    const result sums = written((size_t)(n_tokens * (n / (block == 32 ? 32 : 16))) * sizeof(int32_t), NULL, BITS);
    const int broken = breaks(in, 4);
    const int64_t n_rows = n_tokens;
    if (broken == 1) x = NULL;
    if (broken == 2) n_tokens = no_count(in);
    if (broken == 3) n = PICK(in, 0, -256, 33, 1);
    if (broken == 4) block = (int32_t)PICK(in, 0, -32, 1, 64, 128, 512, INT32_MIN);
    CALL(pmx_quantize_activations(ctx, q.of[v], d.of[v], sums.of[v], x, n_tokens, n, block))
    verdict(broken, n_rows);
}

void fuzz_matmul(input *in) {
    const int64_t cols = some_cols(in), n_rows = fewer(some_rows(in), cols, NUMBERS);
    int64_t n_tokens = fewer(some_tokens(in), n_rows * cols, WORK);
    pmx_weight w = weight(in, n_rows, cols);
    const float *x = floats(in, n_tokens * cols);
    const result y = written(f32(n_tokens * n_rows), NULL, FINITE);
    int32_t n_adapters = (int32_t)PICK(in, 0, 1, 2, 4);
    add_adapters(in, &w, n_adapters);
    float *counts = scales(in, n_tokens, n_adapters);
    int broken = breaks(in, 6);
    const int64_t n = n_tokens;
    if ((broken == 5 && (!counts || n == 0)) || (broken == 6 && !counts)) broken = 0;
    if (broken == 5) counts[below(in, (uint32_t)n)] = NAN;
    if (broken == 6) n_adapters = (int32_t)PICK(in, 0, -1, (1 << 16) + 1, INT32_MAX, INT32_MIN);
    if (broken == 1) x = NULL;
    if (broken == 2) n_tokens = no_count(in);
    if (broken == 3) break_weight(in, &w);
    if (broken == 4) w.rows = 2, w.row_bytes = INT64_MAX - 1; /* the second row lies beyond the address space */
    CALL(pmx_matmul(ctx, y.of[v], x, &w, n_tokens, counts, n_adapters))
    verdict(broken, n);
}

void fuzz_embed(input *in) {
    int64_t n_ids = 1 + (int64_t)below(in, 40);
    const int64_t cols = some_cols(in), n_rows = fewer(some_rows(in), cols, NUMBERS);
    pmx_weight w = weight(in, n_rows, cols);
    int32_t *ids = buffer((size_t)n_ids * sizeof *ids);
    for (int64_t i = 0; i < n_ids; i++) ids[i] = (int32_t)(number(in) % (uint64_t)n_rows);
    const result y = written(f32(n_ids * cols), NULL, FINITE);
    const int broken = breaks(in, 3);
    const int64_t n = n_ids;
    if (broken == 1) ids[below(in, (uint32_t)n_ids)] = (int32_t)PICK(in, -1, n_rows, INT32_MAX, INT32_MIN);
    if (broken == 2) n_ids = no_count(in);
    if (broken == 3) break_weight(in, &w);
    CALL(pmx_embed(ctx, y.of[v], &w, ids, n_ids))
    verdict(broken, n);
}

void fuzz_exp(input *in) {
    int64_t n = PICK(in, 0, 1, 7, 8, 9, 100, 16383, 16384, 16385, 33000);
    const float *x = floats(in, n), *x_at[2] = {x, x};
    const result y = written(f32(n), x, ANY_FLOATS);
    if (below(in, 2)) x_at[0] = y.of[0], x_at[1] = y.of[1];
    const int broken = breaks(in, 2);
    if (broken == 1) x_at[0] = x_at[1] = NULL;
    if (broken == 2) n = no_count(in);
    CALL(pmx_exp(ctx, y.of[v], x_at[v], n))
    verdict(broken, 0);
}

void fuzz_silu_mul(input *in) {
    int64_t n = PICK(in, 0, 1, 7, 8, 9, 100, 16383, 16384, 16385, 33000);
    const float *gate = floats(in, n), *up = floats(in, n), *gate_at[2] = {gate, gate};
    const result y = written(f32(n), gate, FINITE);
    if (below(in, 2)) gate_at[0] = y.of[0], gate_at[1] = y.of[1];
    const int broken = breaks(in, 3);
    const int64_t n_rows = n;
    if (broken == 1) gate_at[0] = gate_at[1] = NULL;
    if (broken == 2) up = NULL;
    if (broken == 3) n = no_count(in);
    CALL(pmx_silu_mul(ctx, y.of[v], gate_at[v], up, n))
    verdict(broken, n_rows);
}

void fuzz_rope_table(input *in) {
    int64_t n_tokens = 1 + (int64_t)below(in, 20), n_pairs = PICK(in, 4, 1, 16, 17, 64);
    double *frequencies = doubles(in, n_pairs), factor = (double)PICK(in, 1, 2, 0, -1, 1000) * 0.5;
    int32_t *positions = buffer((size_t)n_tokens * sizeof *positions);
    for (int64_t i = 0; i < n_tokens; i++) positions[i] = (int32_t)(number(in) >> 12);
    const result cosines = written(f32(n_tokens * n_pairs), NULL, FINITE),
                 sines = written(f32(n_tokens * n_pairs), NULL, FINITE);
    const int broken = breaks(in, 6);
    if (broken == 1) frequencies = NULL;
    if (broken == 2) n_tokens = no_count(in);
    if (broken == 3) n_pairs = PICK(in, 0, -1, INT64_MIN);
    if (broken == 4)
        frequencies[below(in, (uint32_t)n_pairs)] = (const double[]){NAN, -1.0, INFINITY, -INFINITY}[below(in, 4)];
    if (broken == 5) factor = (const double[]){NAN, INFINITY, 1e39, -1e300}[below(in, 4)];
    if (broken == 6) {
        frequencies[0] = 1.0;
        positions[below(in, (uint32_t)n_tokens)] = (int32_t)PICK(in, -1, 1 + (1 << 20), INT32_MAX, INT32_MIN);
    }
    CALL(pmx_rope_table(ctx, cosines.of[v], sines.of[v], frequencies, positions, n_tokens, n_pairs, factor))
    verdict(broken, 0);
}

void fuzz_rope(input *in) {
    int64_t n_tokens = some_tokens(in);
    int32_t n_heads = 1 + (int32_t)below(in, 5), head_dim = 2 * (1 + (int32_t)below(in, 40));
    const int64_t n_pairs = head_dim / 2;
    const float *x = floats(in, n_tokens * n_heads * head_dim);
    const float *cosines = floats(in, n_tokens * n_pairs), *sines = floats(in, n_tokens * n_pairs);
    const result y = written(f32(n_tokens * n_heads * head_dim), x, FINITE);
    const int broken = breaks(in, 5);
    const int64_t n_rows = n_tokens;
    if (broken == 1) cosines = NULL;
    if (broken == 2) sines = NULL;
    if (broken == 3) n_tokens = no_count(in);
    if (broken == 4) n_heads = (int32_t)PICK(in, 0, -1, INT32_MIN);
    if (broken == 5) head_dim = (int32_t)PICK(in, 0, -2, 1, 3, INT32_MAX, INT32_MIN);
    CALL(pmx_rope(ctx, y.of[v], cosines, sines, n_tokens, n_heads, head_dim))
    verdict(broken, n_rows);
}

void fuzz_route(input *in) {
    int64_t n_tokens = some_tokens(in);
    int32_t n_experts = (int32_t)PICK(in, 8, 1, 2, 5, 16, 63, 64), n_used = 1 + (int32_t)below(in, (uint32_t)n_experts);
    const float *logits = floats(in, n_tokens * n_experts);
    const result ids = written((size_t)(n_tokens * n_used) * sizeof(int32_t), NULL, BITS);
    const result weights = written(f32(n_tokens * n_used), NULL, FINITE);
    int32_t n_dropped = (int32_t)below(in, (uint32_t)n_used);
    float min_p = (float)PICK(in, 0, 0, 1, 3, 4) / 4;
    const int broken = breaks(in, 6);
    const int64_t n_rows = n_tokens;
    if (broken == 1) logits = NULL;
    if (broken == 2) n_tokens = no_count(in);
    if (broken == 3) n_experts = (int32_t)PICK(in, 0, -1, 65, INT32_MAX, INT32_MIN);
    if (broken == 4) n_used = (int32_t)PICK(in, 0, -1, n_experts + 1, INT32_MAX, INT32_MIN);
    if (broken == 5) n_dropped = (int32_t)PICK(in, -1, n_used, INT32_MAX, INT32_MIN);
    if (broken == 6) min_p = (float)PICK(in, -1, 2, INT32_MAX) * (below(in, 2) ? 1.0f : INFINITY);
    CALL(pmx_route(ctx, ids.of[v], weights.of[v], logits, n_tokens, n_experts, n_used, n_dropped, min_p))
    verdict(broken, n_rows);
}

void fuzz_read(input *in) {
    int64_t n = PICK(in, 0, 1, 2, 3, 5, 4095, 4096, 4097, 9000);
    const size_t offset = below(in, 64), bytes = (size_t)n * 64 + offset;
    uint8_t *filled = buffer(bytes);
    fill_bits(in, filled, bytes, 0);
    const uint8_t *data = filled + offset;
    const uint32_t zero = 0;
    const result sum = written(sizeof zero, &zero, BITS);
    int32_t n_streams = (int32_t)PICK(in, 1, 2, 4), hint = (int32_t)PICK(in, -1, 0, 1);
    const int broken = breaks(in, 4);
    if (broken == 1) data = NULL;
    if (broken == 2) n = no_count(in);
    if (broken == 3) n_streams = (int32_t)PICK(in, 0, -1, 3, 5, 8, INT32_MAX, INT32_MIN);
    if (broken == 4) hint = (int32_t)PICK(in, -2, 2, INT32_MAX, INT32_MIN);
    CALL(pmx_read(ctx, sum.of[v], data, n, n_streams, hint))
    verdict(broken, 0);
}

static int32_t *ids_below(input *in, int64_t n, int64_t n_vocab) {
    int32_t *ids = buffer((size_t)n * sizeof *ids);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(number(in) % (uint64_t)n_vocab);
    return ids;
}

static uint32_t *some_mask(input *in, int64_t n_vocab) {
    if (below(in, 2)) return NULL;
    uint32_t *mask = buffer((size_t)((n_vocab + 31) / 32) * sizeof *mask);
    const uint32_t density = below(in, 4);
    for (int64_t i = 0; i < (n_vocab + 31) / 32; i++) mask[i] = density == 0 ? 0 : density == 1 ? ~0u : number(in);
    return mask;
}

static double some_part(input *in) { return PICK(in, 4, 4, 0, 1, 2, 3) * 0.25; }

static pmx_sequences some_sequences(input *in, int64_t n_vocab) {
    const int64_t n = PICK(in, 0, 0, 1, 3);
    int64_t *ends = buffer((size_t)n * sizeof *ends);
    for (int64_t i = 0; i < n; i++) ends[i] = (i ? ends[i - 1] : 0) + 1 + (int64_t)below(in, 3);
    return (pmx_sequences){ids_below(in, n ? ends[n - 1] : 0, n_vocab), ends, n};
}

static pmx_sampler some_sampler(input *in, int64_t n_vocab) {
    pmx_sampler s = {.state = {{number(in), number(in)}, {number(in) | 1, number(in)}}};
    s.temperature = (float)PICK(in, 4, 0, 1, 400) * 0.25f;
    s.repetition_penalty = (float)PICK(in, 4, 1, 5, 400) * 0.25f;
    s.presence_penalty = (double)PICK(in, 0, 0, 1, -100, 1000000000);
    s.frequency_penalty = (double)PICK(in, 0, 0, 1, -100, 1000000000);
    s.typical_p = some_part(in);
    s.top_p = some_part(in);
    s.min_p = 1.0 - some_part(in);
    s.top_k = PICK(in, 0, 0, 1, 2, 40, INT64_MAX);
    s.penalty_window = PICK(in, 0, 1, 7, INT64_MAX);
    s.dry_multiplier = (double)PICK(in, 0, 0, 1, 1000000000);
    s.dry_base = (double)PICK(in, 2, 1, 1000000000);
    s.dry_allowed_length = PICK(in, 2, 1, INT64_MAX);
    s.dry_window = PICK(in, 0, 1, 7, INT64_MAX);
    s.dry_breakers = some_sequences(in, n_vocab);
    s.dry_breaker_tokens = some_mask(in, n_vocab);
    s.bad_words = some_sequences(in, n_vocab);
    s.top_n_sigma = (double)PICK(in, 0, 0, 1, 1000000000);
    s.xtc_probability = 1.0 - some_part(in);
    s.xtc_threshold = 1.0 - some_part(in);
    s.mirostat_tau = (double)PICK(in, 0, 0, 1, 4);
    s.mirostat_eta = some_part(in);
    s.state.surprise = (double)PICK(in, 2, 8, -3);
    s.n_bias = PICK(in, 0, 1, 5);
    s.bias_ids = ids_below(in, s.n_bias, n_vocab);
    float *bias = moderate_floats(in, s.n_bias);
    if (s.n_bias) bias[0] = (float[]){-INFINITY, FLT_MAX, -FLT_MAX, 0.0f}[below(in, 4)];
    s.bias = bias;
    s.n_end = PICK(in, 0, 1, 2);
    s.end_ids = ids_below(in, s.n_end, n_vocab);
    s.min_text = PICK(in, 0, 3, INT64_MAX);
    s.allowed = some_mask(in, n_vocab);
    s.mask = some_mask(in, n_vocab);
    s.n_text = PICK(in, 0, 1, 2, 30, 200);
    s.text = ids_below(in, s.n_text, below(in, 2) ? n_vocab : 1 + n_vocab / 16); /* with repetitions */
    return s;
}

static void break_sampler(input *in, pmx_sampler *s) {
    const double bad = (double[]){NAN, INFINITY, -INFINITY, -1e10}[below(in, 4)];
    switch (below(in, 21)) {
    case 14: s->dry_multiplier = bad; break;
    case 15: s->dry_multiplier = 1.0, s->dry_base = bad; break;
    case 16: s->dry_multiplier = 1.0, s->dry_allowed_length = PICK(in, 0, -1, INT64_MIN); break;
    case 17: s->xtc_probability = bad; break;
    case 18: s->mirostat_tau = 1.0, s->state.surprise = (double[]){NAN, INFINITY}[below(in, 2)]; break;
    case 19: s->bad_words.n = PICK(in, -1, INT64_MIN); break;
    case 20: s->dry_breakers = (pmx_sequences){NULL, NULL, 1}; break;
    case 0: s->temperature = (float)bad; break;
    case 1: s->repetition_penalty = (float[]){NAN, INFINITY, 0.0f, -1.0f}[below(in, 4)]; break;
    case 2: s->presence_penalty = bad; break;
    case 3: s->frequency_penalty = bad; break;
    case 4: s->typical_p = bad; break;
    case 5: s->top_p = bad; break;
    case 6: s->min_p = bad; break;
    case 7: s->top_k = PICK(in, -1, INT64_MIN); break;
    case 8: s->penalty_window = PICK(in, -1, INT64_MIN); break;
    case 9: s->n_bias = PICK(in, -1, INT64_MIN); break;
    case 10: s->n_end = PICK(in, -1, INT64_MIN); break;
    case 11: s->n_text = PICK(in, -1, INT64_MIN); break;
    case 12: s->min_text = PICK(in, -1, INT64_MIN); break;
    default: s->n_bias = 1, s->bias_ids = NULL; break;
    }
}

void fuzz_sample(input *in) {
    enum { MOST_ROWS = 9 };
    int64_t n_vocab = PICK(in, 40, 1, 2, 31, 32, 33, 255, 257, 1000, 3000), n_rows = PICK(in, 1, 2, 3, 9, 0);
    const float *logits = floats(in, n_rows * n_vocab);
    pmx_sampler samplers[2][MOST_ROWS], *pointers[2][MOST_ROWS];
    for (int64_t i = 0; i < n_rows; i++) {
        samplers[0][i] = samplers[1][i] = some_sampler(in, n_vocab);
        for (int v = 0; v < 2; v++) pointers[v][i] = &samplers[v][i];
    }
    const result ids = written((size_t)n_rows * sizeof(int32_t), NULL, BITS);
    const result row_statuses = written((size_t)n_rows * sizeof(int32_t), NULL, BITS);
    const int broken = breaks(in, n_rows ? 5 : 2);
    if (broken == 1) n_rows = no_count(in);
    if (broken == 2) n_vocab = PICK(in, 0, -1, (1 << 24) + 1, INT64_MAX, INT64_MIN);
    if (broken == 3) pointers[0][n_rows - 1] = pointers[1][n_rows - 1] = NULL;
    if (broken == 4) break_sampler(in, &samplers[0][0]), samplers[1][0] = samplers[0][0];
    if (broken == 5) logits = NULL;
    CALL(pmx_sample(ctx, ids.of[v], row_statuses.of[v], logits, pointers[v], n_rows, n_vocab))
    verdict(broken, n_rows);
}

void fuzz_encode(input *in) {
    int32_t types[64];
    uint32_t n_types = 0;
    int64_t cols = some_cols(in), n_rows = fewer(some_rows(in), cols, NUMBERS);
    const float *x = floats(in, n_rows * cols);
    for (int32_t type = 0; type < 64; type++)
        if (pmx_row_bytes(type, cols) > 0) types[n_types++] = type;
    int32_t type = types[below(in, n_types)];
    float *importance = below(in, 2) ? moderate_floats(in, cols) : NULL;
    for (int64_t i = 0; importance && i < cols; i++) importance[i] = fabsf(importance[i]);
    const result y = written((size_t)(n_rows * pmx_row_bytes(type, cols)), NULL, BITS);
    int broken = breaks(in, 4);
    const int64_t n = n_rows;
    if (broken == 1) x = NULL;
    if (broken == 2) n_rows = no_count(in);
    if (broken == 3) cols = PICK(in, 0, -256, INT64_MIN, INT64_MAX);
    if (broken == 4) type = (int32_t)PICK(in, -1, 4, 9, 40, INT32_MAX, INT32_MIN);
    CALL(pmx_encode(ctx, y.of[v], type, x, importance, n_rows, cols))
    verdict(broken || statuses[0] == PMX_EUNSUPPORTED, n); /* not every type has an encoder */
}

/* What takes no context. */
void fuzz_queries(input *in) {
    const int32_t type = (int32_t)below(in, 66) - 1, i = (int32_t)PICK(in, 0, 1, 2, 3, 9, -1, INT32_MAX, INT32_MIN);
    const int64_t n = PICK(in, 0, 1, 32, 256, 257, -1, -256, INT64_MAX, INT64_MIN, INT64_MAX & ~INT64_C(255));
    pmx_ctx *none = NULL;
    const char *name = pmx_isa_name(i);
    const int64_t bytes = pmx_row_bytes(type, n);
    statuses[0] = statuses[1] = pmx_ctx_create(&none, (int32_t)PICK(in, 0, -1, 257, INT32_MAX, INT32_MIN), name);
    int refused = statuses[0] == PMX_EINVAL && !none;
    refused &= pmx_ctx_create(NULL, 1, NULL) == PMX_EINVAL;
    refused &= pmx_ctx_prefetch(NULL, PMX_PREFETCH_FAR, PMX_AHEAD) == PMX_EINVAL;
    refused &= pmx_ctx_prefetch(contexts[1], (int32_t)PICK(in, 2, -1, INT32_MAX, INT32_MIN), PMX_AHEAD) == PMX_EINVAL;
    refused &=
        pmx_ctx_prefetch(contexts[1], 0, (int32_t)PICK(in, -1, PMX_MAX_AHEAD + 1, INT32_MAX, INT32_MIN)) == PMX_EINVAL;
    refused &= pmx_ctx_planes(NULL, 1) == PMX_EINVAL;
    refused &= pmx_ctx_planes(contexts[1], (int32_t)PICK(in, 0, 3, -1, INT32_MAX, INT32_MIN)) == PMX_EINVAL;
    refused &= pmx_ctx_create(&none, 1, "no such thing") == PMX_EUNSUPPORTED && !none;
    refused &= bytes >= -1 && (bytes == -1 || n >= 0) && (name || !pmx_isa_available(i));
    pmx_ctx_destroy(NULL);
    pmx_ctx_cancel(NULL, 1);
    verdict(refused, 0); /* when something was not refused, "an unexpected status" */
}
