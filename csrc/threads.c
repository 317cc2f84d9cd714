/* threads.c: the pool of a context: parallel regions of items that are handed out in runs.
 *
 * A region is opened by storing (epoch, open, 0 active) into `gate`. A worker that sees a new epoch
 * registers by incrementing `active`, takes items until none are left and unregisters. The caller
 * takes items too and then closes the gate as soon as nobody is active: it waits only for items in
 * flight, never for a worker that the system has not scheduled yet, so stolen cores or more threads
 * than cores slow a region down no further than the run of items they hold.
 *
 * Idle workers spin for a while, then sleep. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "internal.h"

#if defined(__linux__) && !defined(PMX_NO_FUTEX)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#define PMX_FUTEX 1
#else
#define PMX_FUTEX 0
#endif

enum {
    /* Looks at the gate before a thread sleeps. With a pause of 40 to 140 cycles they take 25 to 90
     * microseconds: longer than the gaps between the regions of a layer. */
    SPINS = 2000,
    /* Multiply-adds that are not worth a region: 1 microsecond of a matrix product, 8 of work on
     * single elements. A region costs its caller 0.3 microseconds while the workers spin, but 2 when
     * they sleep, and then they come too late for less than 20. */
    SERIAL_WORK = 50000,
    /* Of what is left for each thread, a run is one part in so many: the runs shrink to single items,
     * so that the threads end together. */
    RUN_PARTS = 4
};

#define OPEN (UINT64_C(1) << 31)
#define ACTIVE(gate) ((gate) & (OPEN - 1))
#define EPOCH(gate) ((uint32_t)((gate) >> 32))

/* A word that threads sleep on until it changes. */
typedef struct {
    _Atomic uint32_t value;
    _Atomic int32_t sleepers;
#if !PMX_FUTEX
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
} event;

struct pmx_pool {
    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic int64_t next;
    _Alignas(64) event opened;
    _Alignas(64) event finished;
    _Alignas(64) pmx_task task;
    void *arg;
    int64_t n_items;
    uint32_t epoch;
    int32_t n_threads;
    uint32_t forks; /* of the process when the threads were started */
    _Atomic int32_t cancel;
    _Atomic int32_t stopped; /* a thread saw cancel and left items undone, though cancel may be off
                                again by the region's end */
    _Atomic int32_t quit;
    _Atomic int64_t fault;            /* lowest of row * 16 + status, INT64_MAX for none */
    _Atomic(const char *) fault_name; /* of the argument that the row is of */
    pthread_t *threads;
    int32_t timed; /* as long as a region lasts */
    struct worker {
        pmx_pool *pool;
        int32_t index;
        uint32_t timed_epoch; /* of the last region that was timed, and when it worked on it */
        int64_t begin, end;
    } *workers;
};

static _Atomic uint32_t fork_count;
static void count_fork(void) { atomic_fetch_add(&fork_count, 1); }
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

static void event_init(event *e) {
    atomic_store(&e->value, 0);
    atomic_store(&e->sleepers, 0);
#if !PMX_FUTEX
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->changed, NULL);
#endif
}

/* Sleeps until the value differs from `seen` (spurious returns allowed). */
static void event_wait(event *e, uint32_t seen) {
    atomic_fetch_add(&e->sleepers, 1);
#if PMX_FUTEX
    syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#else
    pthread_mutex_lock(&e->mutex);
    while (atomic_load(&e->value) == seen) pthread_cond_wait(&e->changed, &e->mutex);
    pthread_mutex_unlock(&e->mutex);
#endif
    atomic_fetch_sub(&e->sleepers, 1);
}

static void event_signal(event *e) {
    atomic_fetch_add(&e->value, 1);
    if (atomic_load(&e->sleepers) == 0) return; /* a sleeper that registers after this sees the new value */
#if PMX_FUTEX
    syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
    pthread_mutex_lock(&e->mutex);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
#endif
}

/* Items are taken in runs, since neighbours lie side by side in memory and kernels prefetch what
 * comes next. */
static void take_items(pmx_pool *pool, int32_t thread) {
    for (;;) {
        const int64_t left = pool->n_items - atomic_load_explicit(&pool->next, memory_order_relaxed);
        if (left <= 0) return;
        const int64_t run = left / (RUN_PARTS * pool->n_threads) + 1;
        int64_t item = atomic_fetch_add_explicit(&pool->next, run, memory_order_relaxed);
        const int64_t end = item + run < pool->n_items ? item + run : pool->n_items;
        if (item >= end) return;
        for (; item < end; item++) {
            if (atomic_load_explicit(&pool->cancel, memory_order_relaxed)) {
                atomic_store_explicit(&pool->stopped, 1, memory_order_relaxed);
                return;
            }
            pool->task(pool->arg, item, thread);
        }
    }
}

static void *worker_main(void *arg) {
    struct worker *self = arg;
    pmx_pool *pool = self->pool;
    uint32_t done = 0; /* epoch of the last region taken part in */
    pmx_fp_enter();
    for (int32_t spins = 0;;) {
        const uint32_t seen = atomic_load(&pool->opened.value);
        uint64_t gate = atomic_load(&pool->gate);
        if ((gate & OPEN) && EPOCH(gate) != done) {
            if (!atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) continue;
            done = EPOCH(gate);
            const int64_t begin = pool->timed ? pmx_now() : 0;
            take_items(pool, self->index);
            if (pool->timed) {
                self->begin = begin;
                self->end = pmx_now();
                self->timed_epoch = done;
            }
            gate = atomic_fetch_sub(&pool->gate, 1);
            if (ACTIVE(gate) == 1) event_signal(&pool->finished);
            spins = 0;
        } else if (atomic_load(&pool->quit)) {
            return NULL;
        } else if (++spins < SPINS) {
            pause_cpu();
        } else {
            event_wait(&pool->opened, seen);
            spins = 0;
        }
    }
}

static pmx_status start_threads(pmx_pool *pool) {
    event_init(&pool->opened);
    event_init(&pool->finished);
    atomic_store(&pool->gate, 0);
    atomic_store(&pool->quit, 0);
    pool->epoch = 0;
    pool->forks = atomic_load(&fork_count);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals belong to the caller's threads */
    int32_t i = 1;
    for (; i < pool->n_threads; i++) {
        pool->workers[i].pool = pool;
        pool->workers[i].index = i;
        pool->workers[i].timed_epoch = 0;
        if (pthread_create(&pool->threads[i], NULL, worker_main, &pool->workers[i]) != 0) break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (i == pool->n_threads) return PMX_OK;
    const int32_t wanted = pool->n_threads;
    pool->n_threads = i;
    return pmx_fail(PMX_ETHREAD, "n_threads: expected %d threads to start, found %d that do: ask for fewer", wanted, i);
}

static void stop_threads(pmx_pool *pool) {
    if (pool->forks != atomic_load(&fork_count)) return; /* they stayed in the parent */
    atomic_store(&pool->quit, 1);
    event_signal(&pool->opened);
    for (int32_t i = 1; i < pool->n_threads; i++) pthread_join(pool->threads[i], NULL);
}

pmx_status pmx_pool_create(pmx_pool **out, int32_t n_threads) {
    pthread_once(&fork_once, watch_forks);
    pmx_pool *pool = NULL;
    if (posix_memalign((void **)&pool, 64, sizeof *pool) != 0)
        return pmx_fail(PMX_ENOMEM, "ctx: expected memory for a pool of threads, found none");
    *pool = (pmx_pool){.n_threads = n_threads};
    pool->threads = calloc((size_t)n_threads, sizeof *pool->threads);
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    pmx_status status = PMX_OK;
    if (!pool->threads || !pool->workers)
        status = pmx_fail(PMX_ENOMEM, "n_threads: expected memory for %d threads, found none", n_threads);
    else if ((status = start_threads(pool)) != PMX_OK)
        stop_threads(pool);
    if (status != PMX_OK) {
        free(pool->threads);
        free(pool->workers);
        free(pool);
        return status;
    }
    *out = pool;
    return PMX_OK;
}

void pmx_pool_destroy(pmx_pool *pool) {
    stop_threads(pool);
    free(pool->threads);
    free(pool->workers);
    free(pool);
}

void pmx_pool_cancel(pmx_pool *pool, int32_t on) { atomic_store(&pool->cancel, on != 0); }

void pmx_fault(pmx_ctx *ctx, pmx_status status, const char *name, int64_t row) {
    const int64_t fault = row * 16 + (int64_t)status;
    atomic_store(&ctx->pool->fault_name, name);
    int64_t lowest = atomic_load(&ctx->pool->fault);
    while (fault < lowest && !atomic_compare_exchange_weak(&ctx->pool->fault, &lowest, fault)) continue;
}

/* Waits until no worker is active and closes the gate. */
static void close_gate(pmx_pool *pool) {
    for (int32_t spins = 0;;) {
        const uint32_t seen = atomic_load(&pool->finished.value);
        uint64_t gate = atomic_load(&pool->gate);
        if (ACTIVE(gate) == 0) {
            if (atomic_compare_exchange_weak(&pool->gate, &gate, gate & ~OPEN)) return;
        } else if (++spins < SPINS) {
            pause_cpu();
        } else {
            event_wait(&pool->finished, seen);
            spins = 0;
        }
    }
}

/* Adds up the region that lasted from `opened` to `closed`, with all times of all threads. */
static void note_region(const pmx_ctx *ctx, int64_t opened, int64_t closed) {
    const pmx_pool *pool = ctx->pool;
    pmx_thread_time *times = ctx->timing->threads + (int64_t)ctx->timing->part * ctx->n_threads;
    ctx->timing->parts[ctx->timing->part].region_ns += closed - opened;
    ctx->timing->parts[ctx->timing->part].n_regions++;
    for (int32_t i = 0; i < pool->n_threads; i++) {
        const struct worker *w = &pool->workers[i];
        const int took_part = i == 0 || w->timed_epoch == pool->epoch;
        times[i].late_ns += (took_part ? w->begin : closed) - opened;
        times[i].busy_ns += took_part ? w->end - w->begin : 0;
        times[i].waiting_ns += took_part ? closed - w->end : 0;
    }
}

/* All items of a region, by the caller alone or by all threads. */
static void share(pmx_pool *pool, int serial) {
    if (!serial) {
        pool->epoch++;
        atomic_store(&pool->gate, (uint64_t)pool->epoch << 32 | OPEN);
        event_signal(&pool->opened);
    }
    struct worker *caller = pool->workers;
    if (pool->timed) caller->begin = pmx_now();
    take_items(pool, 0);
    if (pool->timed) caller->end = pmx_now();
    if (!serial) close_gate(pool);
}

pmx_status pmx_parallel(pmx_ctx *ctx, pmx_task task, void *arg, int64_t n_items, int64_t work) {
    pmx_pool *pool = ctx->pool;
    if (pool->forks != atomic_load_explicit(&fork_count, memory_order_relaxed)) {
        const pmx_status status = start_threads(pool);
        if (status != PMX_OK) return status;
    }
    atomic_store_explicit(&pool->fault, INT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&pool->stopped, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->task = task;
    pool->arg = arg;
    pool->n_items = n_items;
    int64_t total;
    const int serial = n_items < 2 || pool->n_threads == 1 || (!pmx_mul(&total, n_items, work) && total < SERIAL_WORK);
    pool->timed = ctx->timing && (!serial || pool->n_threads == 1);
    const int64_t opened = pool->timed ? pmx_now() : 0;
    share(pool, serial);
    if (pool->timed) note_region(ctx, opened, pmx_now());
    if (atomic_load(&pool->stopped) || atomic_load(&pool->cancel))
        return pmx_fail(PMX_ECANCELED, "ctx: expected a context that runs, found it canceled");
    const int64_t fault = atomic_load(&pool->fault);
    if (fault == INT64_MAX) return PMX_OK;
    const long long row = fault / 16;
    const char *name = atomic_load(&pool->fault_name);
    if (fault % 16 == PMX_EOVERFLOW)
        return pmx_fail_row(
            PMX_EOVERFLOW, row,
            "row %lld of %s: expected numbers that fit the cache's type, found larger ones: use an f32 cache", row,
            name);
    return pmx_fail_row(PMX_ENONFINITE, row, PMX_NONFINITE, row, name);
}
