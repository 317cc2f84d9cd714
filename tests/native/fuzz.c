/* fuzz.c: a libFuzzer target for the entry points of csrc/pmx.h. Built and run by
 * tests/native/sanitize.
 *
 * An input chooses an instruction set, a number of threads, the floating-point mode that the caller
 * is in, perhaps an allocation that fails or a cancellation, and a few calls: entry point, shapes,
 * types, data with NaN and infinities, ids, pages, and at most one thing that the contract forbids.
 * Every buffer is its own allocation of exactly the contract's size, so that AddressSanitizer sees
 * each overrun. */
#include "fuzz.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/internal.h"

static void expect(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz: %s; statuses %d and %d, the last message: %s\n", what, statuses[0], statuses[1],
            pmx_message());
    abort();
}

/* --- Choices */

uint32_t take(input *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->at++;
}

uint32_t below(input *in, uint32_t n) {
    uint32_t x = take(in);
    if (n > 256) x |= take(in) << 8;
    return x % n;
}

int breaks(input *in, int n) { return below(in, 4) == 3 ? 1 + (int)below(in, (uint32_t)n) : 0; }

int64_t no_count(input *in) { return PICK(in, -1, INT64_MAX, INT64_MIN); }

/* --- Data */

uint32_t number(input *in) {
    in->state = in->state * 1664525u + 1013904223u;
    return in->state ^ in->state >> 16;
}

static float bits_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float small(input *in) { return (float)(int32_t)number(in) * 0x1p-30f; }

float *floats(input *in, int64_t n) {
    static const uint32_t special[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff,
                                       1,          0x80000000, 0x477ff000, 0xffffffff};
    float *x = buffer((size_t)n * sizeof *x);
    const uint32_t mode = below(in, 8);
    for (int64_t i = 0; i < n; i++) {
        switch (mode) {
        case 0:
        case 1:
        case 2: x[i] = small(in); break;
        case 3: x[i] = ldexpf(small(in), (int)(number(in) % 200) - 100); break;
        case 4: x[i] = bits_as_float(number(in)); break;
        case 5: x[i] = bits_as_float((number(in) & 0x807fffffu) | 0x7e000000u); break; /* about 1e38 */
        case 6: x[i] = (float)((int32_t)number(in) % 3); break;
        default: x[i] = 0.0f; break;
        }
    }
    if (mode == 2 && n > 0)
        x[number(in) % (uint64_t)n] = bits_as_float(special[below(in, sizeof special / sizeof *special)]);
    return x;
}

float *moderate_floats(input *in, int64_t n) {
    float *x = buffer((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = small(in);
    return x;
}

double *doubles(input *in, int64_t n) {
    double *x = buffer((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (double)number(in) * 0x1p-32;
    return x;
}

void fill_bits(input *in, void *data, size_t bytes, int moderate) {
    uint8_t *out = data, keep = moderate ? 0xbf : 0xff;
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(number(in) & (i % 2 ? keep : 0xff));
}

/* --- Buffers */

enum { MAX_BUFFERS = 1024 };
static void *buffers[MAX_BUFFERS];
static int n_buffers;

void *buffer(size_t bytes) {
    expect(n_buffers < MAX_BUFFERS, "too many buffers");
    return buffers[n_buffers++] = malloc(bytes);
}

void release_buffers(void) {
    while (n_buffers > 0) free(buffers[--n_buffers]);
}

/* --- Weights */

enum { MAX_TYPES = 64 };

pmx_weight weight(input *in, int64_t rows, int64_t cols) {
    int32_t types[MAX_TYPES];
    uint32_t n = 0;
    for (int32_t type = 0; type < MAX_TYPES; type++)
        if (pmx_row_bytes(type, cols) > 0) types[n++] = type;
    const int32_t type = types[n - 1 - below(in, n)];
    const int64_t bytes = pmx_row_bytes(type, cols), element = type == PMX_F32 ? 4 : 2;
    const int64_t row_bytes = bytes + element * PICK(in, 0, 0, 0, 1, 32), offset = element * PICK(in, 0, 0, 1, 3);
    const size_t size = (size_t)((rows - 1) * row_bytes + bytes);
    uint8_t *data = (uint8_t *)buffer(size + (size_t)offset) + offset;
    if (type == PMX_F32) {
        const float *x = floats(in, (int64_t)(size / sizeof *x));
        memcpy(data, x, size);
    } else {
        fill_bits(in, data, size, below(in, 4) < 2);
    }
    return (pmx_weight){.data = data, .type = type, .rows = rows, .cols = cols, .row_bytes = row_bytes};
}

void add_adapters(input *in, pmx_weight *w, int32_t n_adapters) {
    const int64_t n = n_adapters == 0 || below(in, 2) ? 0 : 1 + below(in, (uint32_t)n_adapters);
    if (n == 0) return;
    pmx_low_rank *pairs = buffer((size_t)n * sizeof *pairs);
    pmx_delta *delta = buffer(sizeof *delta);
    for (int64_t i = 0; i < n; i++) {
        const int32_t rank = (int32_t)PICK(in, 1, 2, 3, 8, 9, 17);
        pairs[i] = (pmx_low_rank){floats(in, rank * w->cols), floats(in, rank * w->rows), rank, (int32_t)i};
        if (n < n_adapters && below(in, 2)) pairs[i].adapter++; /* one that is left out */
        if (i && pairs[i].adapter <= pairs[i - 1].adapter) pairs[i].adapter = pairs[i - 1].adapter + 1;
    }
    *delta = (pmx_delta){pairs, n};
    w->delta = delta;
}

float *scales(input *in, int64_t n_tokens, int32_t n_adapters) {
    if (n_adapters == 0) return NULL;
    float *x = buffer((size_t)(n_tokens * n_adapters) * sizeof *x);
    for (int64_t i = 0; i < n_tokens * n_adapters; i++) x[i] = number(in) % 2 ? (float)(number(in) % 5) - 2 : 0;
    return x;
}

void break_weight(input *in, pmx_weight *w) {
    switch (below(in, 6)) {
    case 0: w->data = NULL; break;
    case 1: {
        pmx_low_rank *pair = buffer(sizeof *pair);
        pmx_delta *delta = buffer(sizeof *delta);
        *pair = (pmx_low_rank){w->data, w->data, 1, 0};
        *delta = (pmx_delta){pair, 1};
        switch (below(in, 5)) {
        case 0: delta->pairs = NULL; break;
        case 1: delta->n_pairs = PICK(in, -1, INT64_MAX, INT64_MIN); break;
        case 2: pair->rank = (int32_t)PICK(in, 0, -1, 1025, INT32_MAX, INT32_MIN); break;
        case 3: pair->adapter = (int32_t)PICK(in, -1, 1 << 16, INT32_MAX, INT32_MIN); break;
        default: pair->b = NULL; break;
        }
        w->delta = delta;
        break;
    }
    case 2: w->type = (int32_t)PICK(in, -1, 4, 5, 9, 40, INT32_MAX, INT32_MIN); break;
    case 3: w->rows = PICK(in, 0, -1, INT64_C(1) << 31, INT64_MAX, INT64_MIN); break;
    case 4: w->cols = PICK(in, 0, -1, INT64_C(1) << 31, INT64_MAX, INT64_MIN); break;
    default: w->row_bytes = PICK(in, 0, -1, 1, INT64_MIN); break;
    }
}

/* --- Calls */

pmx_ctx *contexts[2];
pmx_status statuses[2];
int same_rows = 1;
static int64_t rows[2];
static int fail_at, cancel; /* of the second context: the allocation that fails, counted from 1; a
                               cancellation that was asked for */
static uint32_t fp_bits;    /* the caller's floating-point mode */

enum { MAX_RESULTS = 16 };
static struct {
    result result;
    size_t bytes;
    result_kind kind;
} results[MAX_RESULTS];
static int n_results;

result written(size_t bytes, const void *initial, result_kind kind) {
    expect(n_results < MAX_RESULTS, "too many results");
    result r;
    for (int v = 0; v < 2; v++) {
        r.of[v] = buffer(bytes);
        if (initial) memcpy(r.of[v], initial, bytes);
    }
    results[n_results].result = r;
    results[n_results].bytes = bytes;
    results[n_results++].kind = kind;
    return r;
}

static int failures; /* allocations left until one fails; 0: none fails */
static int fails(void) { return failures > 0 && --failures == 0; }

int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes) {
    return fails() ? 12 : __real_posix_memalign(out, alignment, bytes);
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes) { return fails() ? NULL : __real_calloc(n, bytes); }

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *), void *arg) {
    return fails() ? 11 : __real_pthread_create(thread, attributes, main, arg);
}

#if defined(__x86_64__)
static const uint32_t fp_modes[] = {0x1f80, 0x3f80, 0x5f80, 0x7f80,
                                    0x9fc0}; /* MXCSR: each rounding, and FTZ with DAZ */
static void set_fp_mode(uint32_t mode) { _mm_setcsr(mode); }
static uint32_t fp_mode(void) { return _mm_getcsr() & ~0x3fu; } /* without the sticky flags */
#else
static const uint32_t fp_modes[] = {0, 1u << 22, 2u << 22, 3u << 22,
                                    1u << 24}; /* FPCR: each rounding, and flush to zero */
static void set_fp_mode(uint32_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)mode)); }
static uint32_t fp_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return (uint32_t)mode;
}
#endif

void before_call(int v) {
    if (v == 0) return;
    failures = fail_at;
    pmx_ctx_cancel(contexts[1], cancel);
    set_fp_mode(fp_bits);
}

void after_call(int v) {
    rows[v] = pmx_bad_row();
    if (v == 0) return;
    const uint32_t found = fp_mode();
    set_fp_mode(fp_modes[0]);
    expect(found == fp_bits, "the caller's floating-point mode was not given back");
    failures = 0;
}

static int same_float(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

static void compare(void) {
    for (int i = 0; i < n_results; i++) {
        const void *a = results[i].result.of[0], *b = results[i].result.of[1];
        if (results[i].kind == BITS) {
            expect(memcmp(a, b, results[i].bytes) == 0, "results differ");
            continue;
        }
        const float *x = a, *y = b;
        for (size_t k = 0; k < results[i].bytes / sizeof *x; k++) {
            expect(same_float(x[k], y[k]), "results differ");
            expect(isfinite(x[k]) || results[i].kind == ANY_FLOATS, "a result is not finite");
        }
    }
}

void verdict(int broken, int64_t n_rows) {
    for (int v = 0; v < 2; v++) {
        const pmx_status status = statuses[v];
        if (broken) {
            expect(status == PMX_EINVAL || status == PMX_EUNSUPPORTED || (v == 1 && status == PMX_ENOMEM && fail_at),
                   "broken arguments were not refused");
            continue;
        }
        expect(status == PMX_OK || status == PMX_ENONFINITE || status == PMX_EOVERFLOW ||
                   (v == 1 && status == PMX_ENOMEM && fail_at) || (v == 1 && status == PMX_ECANCELED && cancel),
               "an unexpected status");
        if (status == PMX_ENONFINITE || status == PMX_EOVERFLOW)
            expect(rows[v] >= 0 && rows[v] < n_rows, "the bad row is no row");
    }
    if (!broken && statuses[1] != PMX_ENOMEM && statuses[1] != PMX_ECANCELED) {
        expect(statuses[0] == statuses[1], "statuses differ");
        if (statuses[0] == PMX_OK) compare();
        if (statuses[0] != PMX_OK && same_rows) expect(rows[0] == rows[1], "bad rows differ");
    }
    same_rows = 1;
    n_results = 0;
    release_buffers();
}

/* --- Inputs */

static target *const targets[] = {
    fuzz_matmul,          fuzz_rms_norm,      fuzz_quantize_activations,
    fuzz_embed,           fuzz_exp,           fuzz_silu_mul,
    fuzz_rope_table,      fuzz_rope,          fuzz_route,
    fuzz_encode,          fuzz_queries,       fuzz_cache_write,
    fuzz_attention,       fuzz_attention,     fuzz_layer_attention,
    fuzz_layer_attention, fuzz_layer_experts, fuzz_layer_experts,
    fuzz_sample,          fuzz_sample,        fuzz_sample,
    fuzz_run_layers,      fuzz_run_layers,    fuzz_read,
};

/* A context for the second call; NULL when the input made it fail, as it then must. */
static pmx_ctx *create(input *in) {
    const char *names[16];
    uint32_t n = 0;
    for (int32_t i = 0; pmx_isa_name(i); i++)
        if (pmx_isa_available(i)) names[n++] = pmx_isa_name(i);
    const char *isa = names[n - 1 - below(in, n)];
    const int32_t n_threads = (int32_t)PICK(in, 1, 1, 2, 3);
    pmx_ctx *ctx = NULL;
    failures = below(in, 16) == 15 ? 1 + (int)below(in, 6) : 0;
    const int may_fail = failures > 0;
    const pmx_status status = pmx_ctx_create(&ctx, n_threads, isa);
    failures = 0;
    expect(status == PMX_OK || (may_fail && (status == PMX_ENOMEM || status == PMX_ETHREAD)), "no context");
    expect(!ctx || (strcmp(pmx_ctx_isa(ctx), isa) == 0 && pmx_ctx_threads(ctx) == n_threads),
           "not the context that was asked for");
    expect(!ctx || pmx_ctx_prefetch(ctx, (int32_t)below(in, 2), (int32_t)below(in, PMX_MAX_AHEAD + 1)) == PMX_OK,
           "a prefetch hint was refused");
    expect(!ctx || pmx_ctx_timing(ctx, (int32_t)below(in, 2)) == PMX_OK, "timing was refused");
    return ctx;
}

/* Whatever the calls were, the times of a context that is timed add up. */
static void check_times(pmx_ctx *ctx) {
    pmx_part_time parts[PMX_PARTS];
    pmx_thread_time threads[PMX_PARTS * 3];
    if (pmx_ctx_times(ctx, parts, threads) != PMX_OK) return;
    const int32_t n = pmx_ctx_threads(ctx);
    for (int32_t i = 0; i < PMX_PARTS * n; i++) {
        const pmx_thread_time *t = &threads[i];
        const pmx_part_time *part = &parts[i / n];
        expect(t->late_ns >= 0 && t->busy_ns >= 0 && t->waiting_ns >= 0, "a time is negative");
        expect(t->late_ns + t->busy_ns + t->waiting_ns == part->region_ns, "times of a thread do not add up");
        expect(part->region_ns <= part->ns && part->bytes >= 0, "a region lasts longer than its part");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size, 0};
    contexts[1] = create(&in);
    if (!contexts[1]) return 0;
    expect(pmx_ctx_create(&contexts[0], 1, "scalar") == PMX_OK, "no scalar context");
    const int32_t planes = 1 + (int32_t)(below(&in, 4) == 3);
    for (int i = 0; i < 2; i++) expect(pmx_ctx_planes(contexts[i], planes) == PMX_OK, "planes were refused");
    for (int calls = 1 + (int)below(&in, 3); calls > 0; calls--) {
        fp_bits = fp_modes[below(&in, sizeof fp_modes / sizeof *fp_modes)];
        fail_at = below(&in, 16) == 15 ? 1 + (int)below(&in, 6) : 0;
        cancel = below(&in, 32) == 31;
        target *const call = targets[below(&in, sizeof targets / sizeof *targets)];
        in.state = take(&in) << 8 | take(&in);
        call(&in);
    }
    check_times(contexts[1]);
    pmx_ctx_destroy(contexts[1]);
    pmx_ctx_destroy(contexts[0]);
    return 0;
}
