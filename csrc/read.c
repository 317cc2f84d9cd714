/* read.c: reads memory as fast as it can be read: the limit of all products of one token.
 *
 * One load of each line of 64 bytes is enough, as the whole line comes from memory: loads of all its
 * bytes were as fast at best, and up to a sixth slower with several streams. Which pattern is fastest
 * depends on the machine and on the hour, by a few percent, so the caller tries several. */
#include <string.h>

#include "internal.h"

enum {
    LINE = 64,
    /* Lines of an item: 256 KB. With 64 KB, several streams were 5 to 10% slower on Zen 5. */
    ITEM_LINES = 4096,
    AHEAD = 1024 /* bytes between a line and the one that is asked for; 4096 are as fast */
};

typedef struct {
    const uint8_t *data;
    int64_t n;
    int32_t n_streams, hint;
    _Atomic uint32_t sum;
} read_args;

/* hint and n_streams are constants where this is inlined. */
PMX_INLINE uint32_t read_lines(const uint8_t *data, int64_t n, int32_t n_streams, int32_t hint) {
    const int64_t each = n / n_streams;
    uint32_t sum = 0, first;
    for (int64_t i = 0; i < each; i++)
        for (int32_t s = 0; s < n_streams; s++) {
            const uint8_t *line = data + (s * each + i) * LINE;
            if (hint >= 0) pmx_prefetch_line(line + AHEAD, (pmx_prefetch)hint);
            memcpy(&first, line, sizeof first);
            sum += first;
        }
    for (int64_t i = each * n_streams; i < n; i++) {
        memcpy(&first, data + i * LINE, sizeof first);
        sum += first;
    }
    return sum;
}

PMX_INLINE uint32_t read_streams(const uint8_t *data, int64_t n, int32_t n_streams, int32_t hint) {
    if (n_streams == 1) return read_lines(data, n, 1, hint);
    return n_streams == 2 ? read_lines(data, n, 2, hint) : read_lines(data, n, 4, hint);
}

static void read_task(void *arg, int64_t item, int32_t thread) {
    (void)thread;
    read_args *p = arg;
    const uint8_t *data = p->data + item * ITEM_LINES * LINE;
    const int64_t left = p->n - item * ITEM_LINES, n = left < ITEM_LINES ? left : ITEM_LINES;
    const uint32_t sum = p->hint == PMX_PREFETCH_NEAR  ? read_streams(data, n, p->n_streams, PMX_PREFETCH_NEAR)
                         : p->hint == PMX_PREFETCH_FAR ? read_streams(data, n, p->n_streams, PMX_PREFETCH_FAR)
                                                       : read_streams(data, n, p->n_streams, -1);
    atomic_fetch_add_explicit(&p->sum, sum, memory_order_relaxed);
}

pmx_status pmx_read(pmx_ctx *ctx, uint32_t *sum, const void *data, int64_t n, int32_t n_streams, int32_t hint) {
    pmx_status status = PMX_NOT_NULL(ctx, sum, data);
    if (status != PMX_OK) return status;
    if (n < 0 || n > INT64_MAX / LINE)
        return pmx_fail(PMX_EINVAL, "n: expected 0 or more lines of 64 bytes, found %lld", (long long)n);
    if (n_streams != 1 && n_streams != 2 && n_streams != 4)
        return pmx_fail(PMX_EINVAL, "n_streams: expected 1, 2 or 4, found %d", n_streams);
    if (hint != -1 && hint != PMX_PREFETCH_NEAR && hint != PMX_PREFETCH_FAR)
        return pmx_fail(PMX_EINVAL, "hint: expected PMX_PREFETCH_NEAR, PMX_PREFETCH_FAR or -1, found %d", hint);
    pmx_call call;
    status = pmx_enter(ctx, &call);
    if (status != PMX_OK) return status;
    read_args args = {.data = data, .n = n, .n_streams = n_streams, .hint = hint};
    status = pmx_parallel(ctx, read_task, &args, (n + ITEM_LINES - 1) / ITEM_LINES, ITEM_LINES * LINE);
    if (status == PMX_OK) *sum += atomic_load(&args.sum);
    pmx_leave(ctx, call);
    return status;
}
