/* internal.h: what the C library's own files share: the context, its threads and scratch, errors,
 * the floating-point mode. */
#ifndef PMX_INTERNAL_H
#define PMX_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "pmx.h"

#ifdef __FAST_MATH__
#error "the numerics contract does not hold under fast-math"
#endif
_Static_assert(sizeof(void *) == 8, "64-bit targets only");

/* Bounds of arguments. */
enum {
    PMX_MAX_THREADS = 256,                        /* beyond it is a mistake: each has a stack and scratch */
    PMX_MAX_HEADS = 1024,                         /* with heads of 1024 a token has 2^20 numbers */
    PMX_MAX_EXPERTS = 64,                         /* bits of a word, in which the router marks its choice */
    PMX_MAX_TOKENS = INT32_MAX / PMX_MAX_EXPERTS, /* of a batch: pairs of a token and an expert have 32 bits */
    PMX_MAX_RANK = 1024,                          /* published adapters have up to 256 */
    PMX_MAX_ADAPTERS = 65536
};

/* Buffers that live in the context and only grow. */
typedef enum {
    PMX_SCRATCH_THREAD, /* one block per thread, pmx_thread_scratch */
    PMX_SCRATCH_Q32,    /* activations in blocks of 32 */
    PMX_SCRATCH_Q256,   /* activations in blocks of 256 */
    PMX_SCRATCH_HIDDEN,
    PMX_SCRATCH_SQUARES, /* between the experts' two regions */
    PMX_SCRATCH_QKV,
    PMX_SCRATCH_ATTENTION,
    PMX_SCRATCH_PARTIALS,
    PMX_SCRATCH_TILES,
    PMX_SCRATCH_LOGITS,
    PMX_SCRATCH_GROUPS,
    PMX_SCRATCH_TERMS, /* of adapters */
    PMX_SCRATCH_IMPORTANCE,
    PMX_SCRATCH_STATES, /* of samplers, until all rows are drawn */
    PMX_SCRATCH_SLOTS
} pmx_scratch_slot;

/* What adapters count in rows: those of a batch; of NULL: no adapters. */
typedef struct {
    const float *of; /* [n_tokens][n_adapters] */
    int32_t n_adapters;
} pmx_scales;

static inline pmx_scales pmx_scales_of(const pmx_batch *b) { return (pmx_scales){b->scales, b->n_adapters}; }

typedef struct pmx_pool pmx_pool;
typedef struct pmx_timing pmx_timing;

struct pmx_ctx {
    const pmx_kernels *kernels;
    pmx_pool *pool;
    _Atomic uint64_t user; /* the number of the thread whose call is running, or 0; its lowest bit: destroyed */
    int32_t n_threads;
    pmx_prefetch prefetch;
    int32_t ahead;
    int32_t planes;     /* of quantized activations */
    pmx_timing *timing; /* NULL: off */
    struct {
        void *data;
        size_t bytes;
    } scratch[PMX_SCRATCH_SLOTS];
    size_t thread_bytes; /* of each thread's part of PMX_SCRATCH_THREAD */
};

/* --- status.c: a message says which argument: "name: expected this, found that", and perhaps what to do. */
pmx_status pmx_fail(pmx_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
pmx_status pmx_fail_row(pmx_status status, int64_t row, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Refuses the first of the pointers that is NULL, by its name: PMX_NOT_NULL(ctx, y, layer->attn_norm). */
#define PMX_NOT_NULL(...)                                                                                              \
    pmx_not_null(#__VA_ARGS__, (const void *const[]){__VA_ARGS__},                                                     \
                 sizeof((const void *const[]){__VA_ARGS__}) / sizeof(void *))
pmx_status pmx_not_null(const char *names, const void *const *pointers, size_t n);
#define PMX_NONFINITE                                                                                                  \
    "row %lld of %s: expected finite numbers, found NaN or infinity: the weights are damaged or overflow"
/* Refuses the first row of x [n_rows][n] that holds a NaN or infinity. */
pmx_status pmx_check_finite(const char *name, const float *x, int64_t n_rows, int64_t n);

/* --- cpu.c */
int pmx_cpu_avx2(void);
int pmx_cpu_avxvnni(void);
int pmx_cpu_avx512vnni(void);
int pmx_cpu_avx512vbmi(void);
int pmx_cpu_neon(void);
int pmx_cpu_neon_i8mm(void);

/* --- context.c */
/* At least `bytes` of 64-byte aligned memory in a slot, contents undefined; NULL (and a message)
 * when memory is short. */
void *pmx_scratch(pmx_ctx *ctx, pmx_scratch_slot slot, size_t bytes);
/* Makes every thread's own scratch at least `bytes`. */
pmx_status pmx_thread_scratch_reserve(pmx_ctx *ctx, size_t bytes);
static inline void *pmx_thread_scratch(const pmx_ctx *ctx, int32_t thread) {
    return (char *)ctx->scratch[PMX_SCRATCH_THREAD].data + (size_t)thread * ctx->thread_bytes;
}
/* First row of x [n_rows][n] that holds a NaN or infinity, or -1. */
int64_t pmx_first_nonfinite(const float *x, int64_t n_rows, int64_t n);
/* Whether a weight keeps the contract, its adapters too; name is for the message, with what its members
 * follow: "w->". */
pmx_status pmx_check_weight(const pmx_weight *w, const char *name, pmx_scales scales);
/* Whether it is rows x cols, too. */
pmx_status pmx_check_matrix(const pmx_weight *w, const char *name, int64_t rows, int64_t cols, pmx_scales scales);

/* --- adapters.c */
pmx_status pmx_check_scales(const char *name, pmx_scales scales, int64_t n_tokens);
pmx_status pmx_check_delta(const pmx_weight *w, const char *name, pmx_scales scales);

/* --- cache.c */
/* Whether cache and runs fit each other; *n_tokens: of all runs. */
pmx_status pmx_check_runs(const pmx_cache *cache, const pmx_run *runs, int64_t n_runs, int64_t *n_tokens);

/* --- moe.c */
pmx_status pmx_check_experts_used(int32_t n_experts, int32_t n_experts_used, int32_t n_experts_dropped,
                                  float expert_min_p);

/* --- threads.c: the only owner of threads */
typedef void (*pmx_task)(void *arg, int64_t item, int32_t thread);
pmx_status pmx_pool_create(pmx_pool **pool, int32_t n_threads);
void pmx_pool_destroy(pmx_pool *pool);
void pmx_pool_cancel(pmx_pool *pool, int32_t on);
/* Runs task(arg, item, thread) for each item, on all threads, in any order. work: about how many
 * multiply-adds an item costs; little work runs on the caller alone. PMX_ECANCELED when the cancel
 * flag was seen; a row faulted by a task gives that status. */
pmx_status pmx_parallel(pmx_ctx *ctx, pmx_task task, void *arg, int64_t n_items, int64_t work);
/* Called by a task: this row of an argument failed. The lowest row is reported when the region ends. */
void pmx_fault(pmx_ctx *ctx, pmx_status status, const char *name, int64_t row);

/* --- timing.c: the time of the calls of a context that is timed, by parts. Times are nanoseconds of a
 * clock that only goes forward. */
struct pmx_timing {
    pmx_part part; /* that the caller's thread is in */
    int64_t since;
    pmx_part_time parts[PMX_PARTS];
    pmx_thread_time threads[]; /* [PMX_PARTS][n_threads] */
};
int64_t pmx_now(void);
void pmx_switch_part(pmx_timing *timing, pmx_part part);
void pmx_count_bytes(pmx_timing *timing, const pmx_weight *const *weights, int64_t n);
/* What follows belongs to this part. */
static inline void pmx_begin_part(const pmx_ctx *ctx, pmx_part part) {
    if (ctx->timing) pmx_switch_part(ctx->timing, part);
}
/* All rows of these weights are read in this part. */
static inline void pmx_reads(const pmx_ctx *ctx, const pmx_weight *const *weights, int64_t n) {
    if (ctx->timing) pmx_count_bytes(ctx->timing, weights, n);
}

/* --- The floating-point mode of the contract: nearest even, subnormals kept. Every entry point and
 * every worker runs inside. */
#if defined(__x86_64__)
#include <xmmintrin.h>
typedef uint32_t pmx_fp_mode;
static inline pmx_fp_mode pmx_fp_enter(void) {
    const pmx_fp_mode old = _mm_getcsr();
    _mm_setcsr(0x1f80u);
    return old;
}
static inline void pmx_fp_leave(pmx_fp_mode old) { _mm_setcsr(old); }
#elif defined(__aarch64__)
typedef uint64_t pmx_fp_mode;
static inline pmx_fp_mode pmx_fp_enter(void) {
    pmx_fp_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"((pmx_fp_mode)0));
    return old;
}
static inline void pmx_fp_leave(pmx_fp_mode old) { __asm__ volatile("msr fpcr, %0" : : "r"(old)); }
#else
#error "unsupported architecture: pymixtral runs on x86-64 and aarch64"
#endif

/* --- context.c: every entry point that works in a context does so between these two, once its arguments
 * are checked. One that calls another is in the same call. pmx_enter takes the context for this thread,
 * or fails with PMX_EBUSY. After pmx_leave the context may be gone. */
typedef struct {
    pmx_fp_mode mode;
    int inner; /* part of a call that this thread has begun already */
} pmx_call;
pmx_status pmx_enter(pmx_ctx *ctx, pmx_call *call);
void pmx_leave(pmx_ctx *ctx, pmx_call call);

/* a*b into *out; nonzero on overflow or a negative operand. Sizes come from callers, so every
 * product is checked. */
static inline int pmx_mul(int64_t *out, int64_t a, int64_t b) {
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, out);
}

/* Whether n_rows rows of n numbers of up to 8 bytes fit the address space. */
static inline int pmx_rows_fit(int64_t n_rows, int64_t n) {
    int64_t total;
    return !pmx_mul(&total, n_rows, n) && total <= INT64_MAX / 8;
}

#endif
