/* race.c: what the pool of threads must bear, for ThreadSanitizer: two threads with contexts of their
 * own and in one, calls cancelled by another thread, contexts made, and destroyed in the middle of a
 * call, and forks while others work. Every result is compared with that of one thread. Built and run
 * by tests/native/sanitize. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pmx.h"

enum {
    ROWS = 400,
    COLS = 96,
    TOKENS = 9,
    CALLS = 200,
    ROUNDS = 40,
    FORKS = 20,
    CANCELS = 6000,
    MEETINGS = 2000,
    DESTROYED = 60
};

static float x[TOKENS * COLS], w[ROWS * COLS], want[TOKENS * ROWS];
static const pmx_weight weight = {
    .data = w, .type = PMX_F32, .rows = ROWS, .cols = COLS, .row_bytes = COLS * sizeof(float)};

static void expect(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "race: %s: %s\n", what, pmx_message());
    _exit(1);
}

static pmx_ctx *create(int n_threads) {
    pmx_ctx *ctx = NULL;
    expect(pmx_ctx_create(&ctx, n_threads, NULL) == PMX_OK, "no context");
    return ctx;
}

/* One product; it may end with another status if there is one that it may have. Returns whether it did. */
static int multiply(pmx_ctx *ctx, pmx_status may_be) {
    float y[TOKENS * ROWS];
    memset(y, 0xff, sizeof y); /* so that no earlier result passes for this one */
    const pmx_status status = pmx_matmul(ctx, y, x, &weight, TOKENS, NULL, 0);
    if (status != PMX_OK && status == may_be) return 1;
    expect(status == PMX_OK, "a product failed");
    expect(memcmp(y, want, sizeof y) == 0, "a product is wrong");
    return 0;
}

/* --- Two users, each with contexts of its own */

static void *use_contexts(void *arg) {
    (void)arg;
    for (int round = 0; round < ROUNDS; round++) {
        pmx_ctx *ctx = create(1 + round % 4);
        expect(pmx_ctx_timing(ctx, round % 3) == PMX_OK, "no timing");
        for (int i = 0; i < CALLS; i++) {
            multiply(ctx, PMX_OK);
            if (i % 20 == 19) usleep(300); /* until idle threads sleep */
        }
        pmx_ctx_destroy(ctx);
    }
    return NULL;
}

/* --- Cancellation from another thread */

typedef struct {
    pmx_ctx *ctx;
    _Atomic int done;
} cancelled;

static void *cancel(void *arg) {
    cancelled *c = arg;
    while (!atomic_load(&c->done)) {
        pmx_ctx_cancel(c->ctx, 1);
        pmx_ctx_cancel(c->ctx, 0);
    }
    return NULL;
}

static void cancel_while_multiplying(int n_threads) {
    cancelled c = {.ctx = create(n_threads)};
    expect(pmx_ctx_timing(c.ctx, 1) == PMX_OK, "no timing");
    pthread_t thread;
    expect(pthread_create(&thread, NULL, cancel, &c) == 0, "no thread");
    int n = 0;
    for (int i = 0; n < CANCELS && i < 10 * CANCELS; i++) n += multiply(c.ctx, PMX_ECANCELED);
    expect(n > 0, "nothing was cancelled");
    atomic_store(&c.done, 1);
    pthread_join(thread, NULL);
    pmx_ctx_cancel(c.ctx, 0);
    multiply(c.ctx, PMX_OK);
    pmx_ctx_destroy(c.ctx);
}

/* --- Two users of one context: each call is refused or right */

typedef struct {
    pmx_ctx *ctx;
    _Atomic int refused, done;
} shared;

static void *meet(void *arg) {
    shared *s = arg;
    for (int i = 0; !atomic_load(&s->done); i++) {
        atomic_fetch_add(&s->refused, multiply(s->ctx, PMX_EBUSY));
        pmx_ctx_prefetch(s->ctx, i % 2, PMX_AHEAD);
        pmx_ctx_timing(s->ctx, i % 3);
    }
    return NULL;
}

static void share(int n_threads) {
    shared s = {.ctx = create(n_threads)};
    pthread_t thread;
    expect(pthread_create(&thread, NULL, meet, &s) == 0, "no thread");
    int refused = 0, worked = 0;
    while (worked < MEETINGS || refused + atomic_load(&s.refused) == 0) {
        const int busy = multiply(s.ctx, PMX_EBUSY);
        refused += busy;
        worked += !busy;
    }
    atomic_store(&s.done, 1);
    pthread_join(thread, NULL);
    multiply(s.ctx, PMX_OK);
    pmx_ctx_destroy(s.ctx);
}

/* --- Destroyed while another thread is in a call, or just after it */

static void *multiply_once(void *arg) {
    shared *s = arg;
    float y[TOKENS * ROWS];
    pmx_status status;
    do status = pmx_matmul(s->ctx, y, x, &weight, TOKENS, NULL, 0);
    while (status == PMX_EBUSY); /* with the look of the thread that waits for this call */
    expect(status == PMX_OK || status == PMX_ECANCELED, "a product failed");
    atomic_store(&s->done, 1);
    return NULL;
}

static void destroy_while_multiplying(int n_threads) {
    for (int i = 0; i < DESTROYED; i++) {
        shared s = {.ctx = create(n_threads)};
        pthread_t thread;
        expect(pthread_create(&thread, NULL, multiply_once, &s) == 0, "no thread");
        while (!atomic_load(&s.done) && pmx_ctx_prefetch(s.ctx, 0, PMX_AHEAD) != PMX_EBUSY) continue;
        pmx_ctx_destroy(s.ctx);
        pthread_join(thread, NULL);
    }
}

/* --- Fork */

static void fork_and_multiply(void) {
    pmx_ctx *ctx = create(3);
    expect(pmx_ctx_timing(ctx, 1) == PMX_OK, "no timing");
    multiply(ctx, PMX_OK);
    for (int i = 0; i < FORKS; i++) {
        const pid_t child = fork();
        expect(child >= 0, "no child");
        if (child == 0) {
            if (i % 2) { /* odd ones go on, the others only clean up */
                multiply(ctx, PMX_OK);
                multiply(ctx, PMX_OK);
            }
            pmx_ctx_destroy(ctx);
            _exit(0);
        }
        multiply(ctx, PMX_OK);
        int status = 1;
        expect(waitpid(child, &status, 0) == child && status == 0, "a child failed");
    }
    pmx_ctx_destroy(ctx);
}

int main(void) {
    for (int i = 0; i < TOKENS * COLS; i++) x[i] = (float)(i % 17 - 8);
    for (int i = 0; i < ROWS * COLS; i++) w[i] = (float)(i % 13 - 6);
    pmx_ctx *alone = create(1);
    expect(pmx_matmul(alone, want, x, &weight, TOKENS, NULL, 0) == PMX_OK, "no product");
    pmx_ctx_destroy(alone);

    pthread_t users[2];
    for (int i = 0; i < 2; i++) expect(pthread_create(&users[i], NULL, use_contexts, NULL) == 0, "no thread");
    cancel_while_multiplying(1);
    cancel_while_multiplying(3);
    share(1);
    share(3);
    destroy_while_multiplying(1);
    destroy_while_multiplying(3);
    fork_and_multiply();
    for (int i = 0; i < 2; i++) pthread_join(users[i], NULL);
    printf("race: all results as on one thread\n");
    return 0;
}
