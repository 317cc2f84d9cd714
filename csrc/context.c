/* context.c: contexts, their scratch memory, and the checks that several entry points share. */
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "internal.h"

/* Slowest first. */
static const pmx_kernels *const all_kernels[] = {
    &pmx_kernels_scalar,
#if defined(__x86_64__)
    &pmx_kernels_avx2,   &pmx_kernels_avxvnni, &pmx_kernels_avx512vnni, &pmx_kernels_avx512vbmi,
#elif defined(__aarch64__)
    &pmx_kernels_neon,
    &pmx_kernels_neon_i8mm,
#endif
};
enum { N_ISAS = (int)(sizeof all_kernels / sizeof all_kernels[0]) };

const char *pmx_isa_name(int32_t i) { return i >= 0 && i < N_ISAS ? all_kernels[i]->name : NULL; }

int32_t pmx_isa_available(int32_t i) { return i >= 0 && i < N_ISAS && all_kernels[i]->available(); }

static pmx_status choose_kernels(const pmx_kernels **kernels, const char *isa) {
    for (int i = N_ISAS - 1; i >= 0; i--) {
        if (isa && strcmp(isa, all_kernels[i]->name) != 0) continue;
        if (all_kernels[i]->available()) {
            *kernels = all_kernels[i];
            return PMX_OK;
        }
        if (isa)
            return pmx_fail(PMX_EUNSUPPORTED, "isa: expected an instruction set that this CPU runs, found '%s'", isa);
    }
    return pmx_fail(PMX_EUNSUPPORTED, "isa: expected an instruction set of this build, found '%.32s'", isa ? isa : "");
}

pmx_status pmx_ctx_create(pmx_ctx **ctx, int32_t n_threads, const char *isa) {
    pmx_status status = PMX_NOT_NULL(ctx);
    if (status != PMX_OK) return status;
    if (n_threads < 1 || n_threads > PMX_MAX_THREADS)
        return pmx_fail(PMX_EINVAL, "n_threads: expected 1 to %d, found %d", PMX_MAX_THREADS, n_threads);
    const pmx_kernels *kernels = NULL;
    status = choose_kernels(&kernels, isa);
    if (status != PMX_OK) return status;
    pmx_ctx *made = calloc(1, sizeof *made);
    if (!made) return pmx_fail(PMX_ENOMEM, "ctx: expected memory for a context, found none");
    made->kernels = kernels;
    made->n_threads = n_threads;
    made->planes = 1;
    made->ahead = PMX_AHEAD;
    status = pmx_pool_create(&made->pool, n_threads);
    if (status != PMX_OK) {
        free(made);
        return status;
    }
    *ctx = made;
    return PMX_OK;
}

/* --- One user at a time */

enum { DESTROYED = 1 }; /* in pmx_ctx.user */

/* This thread's number. No later thread has it again, as it would have an address: a context that was
 * in a call at a fork stays that thread's, which the child does not have. */
static uint64_t this_thread(void) {
    static _Atomic uint64_t n_numbers;
    static _Thread_local uint64_t number;
    if (!number) number = 2 * (atomic_fetch_add(&n_numbers, 1) + 1);
    return number;
}

static void free_context(pmx_ctx *ctx) {
    pmx_pool_destroy(ctx->pool);
    for (int i = 0; i < PMX_SCRATCH_SLOTS; i++) free(ctx->scratch[i].data);
    free(ctx->timing);
    free(ctx);
}

pmx_status pmx_enter(pmx_ctx *ctx, pmx_call *call) {
    const uint64_t me = this_thread();
    uint64_t user = atomic_load_explicit(&ctx->user, memory_order_relaxed);
    call->inner = (user & ~(uint64_t)DESTROYED) == me;
    if (!call->inner) {
        user = 0;
        if (!atomic_compare_exchange_strong(&ctx->user, &user, me)) {
            pmx_fail(PMX_EBUSY, "ctx: expected a context that no other thread is using, found one in a call: give each "
                                "thread its own");
            return PMX_EBUSY;
        }
    }
    call->mode = pmx_fp_enter();
    if (!call->inner && ctx->timing) {
        ctx->timing->since = pmx_now();
        ctx->timing->part = PMX_PART_OTHER;
    }
    return PMX_OK;
}

void pmx_leave(pmx_ctx *ctx, pmx_call call) {
    pmx_fp_leave(call.mode);
    if (call.inner) return;
    pmx_begin_part(ctx, PMX_PART_OTHER); /* ends the last one */
    uint64_t user = this_thread();
    if (!atomic_compare_exchange_strong(&ctx->user, &user, 0)) free_context(ctx);
}

void pmx_ctx_destroy(pmx_ctx *ctx) {
    if (!ctx) return;
    pmx_pool_cancel(ctx->pool, 1); /* before the mark, after which a call that ends frees everything */
    if (atomic_fetch_or(&ctx->user, DESTROYED) == 0) free_context(ctx);
}

void pmx_ctx_cancel(pmx_ctx *ctx, int32_t on) {
    if (ctx) pmx_pool_cancel(ctx->pool, on);
}

pmx_status pmx_ctx_prefetch(pmx_ctx *ctx, int32_t hint, int32_t ahead) {
    pmx_status status = PMX_NOT_NULL(ctx);
    if (status != PMX_OK) return status;
    if (hint != PMX_PREFETCH_NEAR && hint != PMX_PREFETCH_FAR)
        return pmx_fail(PMX_EINVAL, "hint: expected PMX_PREFETCH_NEAR or PMX_PREFETCH_FAR, found %d", hint);
    if (ahead < 0 || ahead > PMX_MAX_AHEAD)
        return pmx_fail(PMX_EINVAL, "ahead: expected 0 to %d bytes, found %d", PMX_MAX_AHEAD, ahead);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    ctx->prefetch = (pmx_prefetch)hint;
    ctx->ahead = ahead;
    pmx_leave(ctx, call);
    return PMX_OK;
}

pmx_status pmx_ctx_planes(pmx_ctx *ctx, int32_t planes) {
    pmx_status status = PMX_NOT_NULL(ctx);
    if (status != PMX_OK) return status;
    if (planes != 1 && planes != 2) return pmx_fail(PMX_EINVAL, "planes: expected 1 or 2, found %d", planes);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    ctx->planes = planes;
    pmx_leave(ctx, call);
    return PMX_OK;
}

const char *pmx_ctx_isa(const pmx_ctx *ctx) { return ctx ? ctx->kernels->name : NULL; }

int32_t pmx_ctx_threads(const pmx_ctx *ctx) { return ctx ? ctx->n_threads : 0; }

void *pmx_scratch(pmx_ctx *ctx, pmx_scratch_slot slot, size_t bytes) {
    if (ctx->scratch[slot].bytes >= bytes && ctx->scratch[slot].data) return ctx->scratch[slot].data;
    free(ctx->scratch[slot].data);
    ctx->scratch[slot].data = NULL;
    ctx->scratch[slot].bytes = 0;
    void *data = NULL;
    if (posix_memalign(&data, 64, bytes ? bytes : 64) != 0) {
        pmx_fail(PMX_ENOMEM, "ctx: expected memory for %zu bytes of scratch, found none: use a smaller batch", bytes);
        return NULL;
    }
    ctx->scratch[slot].data = data;
    ctx->scratch[slot].bytes = bytes;
    return data;
}

pmx_status pmx_thread_scratch_reserve(pmx_ctx *ctx, size_t bytes) {
    bytes = (bytes + 4095) & ~(size_t)4095; /* threads do not share pages */
    if (ctx->thread_bytes >= bytes) return PMX_OK;
    if (!pmx_scratch(ctx, PMX_SCRATCH_THREAD, bytes * (size_t)ctx->n_threads)) {
        ctx->thread_bytes = 0;
        return PMX_ENOMEM;
    }
    ctx->thread_bytes = bytes;
    return PMX_OK;
}

int64_t pmx_first_nonfinite(const float *x, int64_t n_rows, int64_t n) {
    for (int64_t row = 0; row < n_rows; row++) {
        uint32_t any = 0; /* the sign bit is set once an exponent of all ones was met */
        for (int64_t i = 0; i < n; i++) any |= (pmx_f32_bits(x[row * n + i]) & 0x7f800000u) + 0x00800000u;
        if (any & 0x80000000u) return row;
    }
    return -1;
}

/* Elements and bytes of a type's block. */
static const struct {
    int32_t elements, bytes;
} blocks[PMX_TYPE_SLOTS] = {
#define BLOCK(NAME, T, FORM, ELEMENTS) [PMX_##NAME] = {ELEMENTS, sizeof(pmx_block_##T)},
    PMX_TYPES(BLOCK)
#undef BLOCK
};

int64_t pmx_row_bytes(int32_t type, int64_t n) {
    if (type < 0 || type >= PMX_TYPE_SLOTS || blocks[type].bytes == 0) return -1;
    if (n < 0 || n > INT64_MAX / 64 || n % blocks[type].elements) return -1;
    return n / blocks[type].elements * blocks[type].bytes;
}

pmx_status pmx_check_weight(const pmx_weight *w, const char *name, pmx_scales scales) {
    if (!w->data) return pmx_fail(PMX_EINVAL, "%sdata: expected a pointer, found NULL", name);
    if (w->rows < 1 || w->cols < 1 || w->rows > INT32_MAX || w->cols > INT32_MAX)
        return pmx_fail(PMX_EINVAL, "%srows, cols: expected 1 to 2^31-1, found %lld x %lld", name, (long long)w->rows,
                        (long long)w->cols);
    if (pmx_row_bytes(w->type, 0) < 0)
        return pmx_fail(PMX_EUNSUPPORTED, "%stype: expected one that this library has kernels for, found %d", name,
                        w->type);
    const int64_t bytes = pmx_row_bytes(w->type, w->cols);
    if (bytes < 0)
        return pmx_fail(PMX_EINVAL, "%scols: expected a multiple of %d, found %lld", name, blocks[w->type].elements,
                        (long long)w->cols);
    int64_t total;
    if (w->row_bytes < bytes || pmx_mul(&total, w->rows, w->row_bytes))
        return pmx_fail(PMX_EINVAL, "%srow_bytes: expected at least %lld, and less than 2^63 in all, found %lld", name,
                        (long long)bytes, (long long)w->row_bytes);
    return pmx_check_delta(w, name, scales);
}

pmx_status pmx_check_matrix(const pmx_weight *w, const char *name, int64_t rows, int64_t cols, pmx_scales scales) {
    const pmx_status status = pmx_check_weight(w, name, scales);
    if (status != PMX_OK || (w->rows == rows && w->cols == cols)) return status;
    return pmx_fail(PMX_EINVAL, "%srows, cols: expected %lld x %lld, found %lld x %lld", name, (long long)rows,
                    (long long)cols, (long long)w->rows, (long long)w->cols);
}
