/* timing.c: where the time of a context's calls goes. The caller's thread is always in one part of a
 * pass; each thread notes when it begins and ends its work in a region (threads.c). */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

int64_t pmx_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void pmx_switch_part(pmx_timing *timing, pmx_part part) {
    const int64_t now = pmx_now();
    timing->parts[timing->part].ns += now - timing->since;
    timing->since = now;
    timing->part = part;
}

void pmx_count_bytes(pmx_timing *timing, const pmx_weight *const *weights, int64_t n) {
    for (int64_t i = 0; i < n; i++) timing->parts[timing->part].bytes += weights[i]->rows * weights[i]->row_bytes;
}

static size_t threads_bytes(const pmx_ctx *ctx) { return PMX_PARTS * (size_t)ctx->n_threads * sizeof(pmx_thread_time); }

pmx_status pmx_ctx_timing(pmx_ctx *ctx, int32_t on) {
    pmx_status status = PMX_NOT_NULL(ctx);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    free(ctx->timing);
    ctx->timing = on ? calloc(1, sizeof *ctx->timing + threads_bytes(ctx)) : NULL;
    if (on && !ctx->timing) status = pmx_fail(PMX_ENOMEM, "ctx: expected memory for its times, found none");
    if (ctx->timing) ctx->timing->since = pmx_now();
    pmx_leave(ctx, call);
    return status;
}

pmx_status pmx_ctx_times(pmx_ctx *ctx, pmx_part_time *parts, pmx_thread_time *threads) {
    pmx_status status = PMX_NOT_NULL(ctx, parts, threads);
    if (status != PMX_OK) return status;
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    if (ctx->timing) {
        memcpy(parts, ctx->timing->parts, sizeof ctx->timing->parts);
        memcpy(threads, ctx->timing->threads, threads_bytes(ctx));
    } else {
        status =
            pmx_fail(PMX_EINVAL, "ctx: expected one that is timed, found one that is not: switch pmx_ctx_timing on");
    }
    pmx_leave(ctx, call);
    return status;
}
