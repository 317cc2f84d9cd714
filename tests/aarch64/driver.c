/* driver.c: replays calls of the C library, for a machine that this one only emulates.
 *
 *   driver list                               prints each instruction set and whether it is
 * available driver ISA THREADS < requests > replies   makes the calls, one after the other
 *
 * A request is int64 operation, n_ints, the ints, n_buffers, and each buffer's bytes and data; a
 * reply is int64 status, row, n_buffers, and likewise each buffer. Each operation's ints and
 * buffers stand at its function. Every buffer, in or out, ends where readable memory ends, and what
 * lies before an output must be left as it was. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pmx.h"

enum { MAX_INTS = 256, MAX_BUFFERS = 256, MAX_OUTPUTS = 4, MAX_ADAPTERS = 8 };

typedef struct {
    char *map, *data;
    size_t map_bytes, bytes;
} buffer;

typedef struct {
    int64_t ints[MAX_INTS];
    buffer in[MAX_BUFFERS];
    buffer out[MAX_OUTPUTS];
    int64_t n_in, n_out;
} call;

static void die(const char *why) {
    fprintf(stderr, "driver: %s\n", why);
    exit(2);
}

static buffer allocate(int64_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = ((size_t)bytes / page + 1) * page;
    buffer b = {.map_bytes = body + page, .bytes = (size_t)bytes};
    b.map = mmap(NULL, b.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.map == MAP_FAILED || mprotect(b.map + body, page, PROT_NONE) != 0) die("no memory");
    memset(b.map, 0xff, body);
    b.data = b.map + body - bytes;
    return b;
}

static void release(buffer *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        for (const char *p = b[i].map; p < b[i].data; p++)
            if (*p != (char)0xff) die("a call wrote before a buffer");
        munmap(b[i].map, b[i].map_bytes);
    }
}

static void *output(call *c, int64_t bytes) {
    c->out[c->n_out] = allocate(bytes);
    return c->out[c->n_out++].data;
}

static void *input(const call *c, int i) { return c->in[i].data; }

static float number(const call *c, int i) {
    float x;
    memcpy(&x, input(c, i), sizeof x);
    return x;
}

/* ints[at..]: type, rows, cols; the blocks in buffer i. */
static pmx_weight weight(const call *c, int at, int i) {
    const int64_t *n = c->ints + at;
    return (pmx_weight){input(c, i), (int32_t)n[0], n[1], n[2], pmx_row_bytes((int32_t)n[0], n[2]), NULL};
}

/* type, rows, cols, tokens, and the rank of each adapter; x, w, scales, and a and b of each adapter: y */
static pmx_status matmul(pmx_ctx *ctx, call *c) {
    pmx_weight w = weight(c, 0, 1);
    pmx_low_rank pairs[MAX_ADAPTERS];
    const int32_t n = (int32_t)c->n_in / 2 - 1; /* without adapters no scales */
    for (int32_t i = 0; i < n; i++)
        pairs[i] = (pmx_low_rank){input(c, 3 + 2 * i), input(c, 4 + 2 * i), (int32_t)c->ints[4 + i], i};
    const pmx_delta delta = {pairs, n};
    if (n > 0) w.delta = &delta;
    return pmx_matmul(ctx, output(c, c->ints[3] * w.rows * 4), input(c, 0), &w, c->ints[3], n > 0 ? input(c, 2) : NULL,
                      n);
}

/* type, rows, cols, n_ids; ids, w: y */
static pmx_status embed(pmx_ctx *ctx, call *c) {
    const pmx_weight w = weight(c, 0, 1);
    return pmx_embed(ctx, output(c, c->ints[3] * w.cols * 4), &w, input(c, 0), c->ints[3]);
}

/* tokens, n, block; x: q, d, sums */
static pmx_status quantize(pmx_ctx *ctx, call *c) {
    const int64_t n_tokens = c->ints[0], n = c->ints[1], block = c->ints[2];
    int8_t *q = output(c, n_tokens * n);
    float *d = output(c, n_tokens * (n / block) * 4);
    int32_t *sums = output(c, n_tokens * (n / (block == 32 ? 32 : 16)) * 4);
    return pmx_quantize_activations(ctx, q, d, sums, input(c, 0), n_tokens, n, (int32_t)block);
}

/* tokens, n; x, weight, eps: y */
static pmx_status rms_norm(pmx_ctx *ctx, call *c) {
    return pmx_rms_norm(ctx, output(c, c->ints[0] * c->ints[1] * 4), input(c, 0), input(c, 1), c->ints[0], c->ints[1],
                        number(c, 2));
}

/* n; x: y */
static pmx_status exponential(pmx_ctx *ctx, call *c) {
    return pmx_exp(ctx, output(c, c->ints[0] * 4), input(c, 0), c->ints[0]);
}

/* n; gate, up: y */
static pmx_status silu_mul(pmx_ctx *ctx, call *c) {
    return pmx_silu_mul(ctx, output(c, c->ints[0] * 4), input(c, 0), input(c, 1), c->ints[0]);
}

/* tokens, pairs; frequencies, positions, factor (float): cosines, sines */
static pmx_status rope_table(pmx_ctx *ctx, call *c) {
    const int64_t n_tokens = c->ints[0], n_pairs = c->ints[1];
    float *cosines = output(c, n_tokens * n_pairs * 4), *sines = output(c, n_tokens * n_pairs * 4);
    return pmx_rope_table(ctx, cosines, sines, input(c, 0), input(c, 1), n_tokens, n_pairs, (double)number(c, 2));
}

/* tokens, heads, head_dim; x, cosines, sines: x */
static pmx_status rope(pmx_ctx *ctx, call *c) {
    float *x = output(c, c->ints[0] * c->ints[1] * c->ints[2] * 4);
    memcpy(x, input(c, 0), c->in[0].bytes);
    return pmx_rope(ctx, x, input(c, 1), input(c, 2), c->ints[0], (int32_t)c->ints[1], (int32_t)c->ints[2]);
}

/* tokens, experts, used, dropped; logits, min_p: ids, weights */
static pmx_status route(pmx_ctx *ctx, call *c) {
    int32_t *ids = output(c, c->ints[0] * c->ints[2] * 4);
    float *weights = output(c, c->ints[0] * c->ints[2] * 4);
    return pmx_route(ctx, ids, weights, input(c, 0), c->ints[0], (int32_t)c->ints[1], (int32_t)c->ints[2],
                     (int32_t)c->ints[3], number(c, 1));
}

/* ints[at..]: type, key/value heads, head_dim, pages. Outputs: k, v, every byte 0xff. */
static pmx_cache cache(call *c, int at) {
    const int64_t *n = c->ints + at, bytes = n[1] * n[2] * n[3] * (n[0] == PMX_F32 ? 256 : n[0] == PMX_F16 ? 128 : 68);
    return (pmx_cache){output(c, bytes), output(c, bytes), (int32_t)n[0], (int32_t)n[1], (int32_t)n[2], (int32_t)n[3]};
}

/* ints[at..]: n_runs, then tokens, first position and pages of each; buffer i: all their pages. */
static int64_t read_runs(pmx_run *runs, const call *c, int at, int i) {
    const int64_t n_runs = c->ints[at], *n = c->ints + at + 1;
    const int32_t *pages = input(c, i);
    for (int64_t r = 0; r < n_runs; r++, n += 3) {
        runs[r] = (pmx_run){(int32_t)n[0], (int32_t)n[1], pages, (int32_t)n[2]};
        pages += n[2];
    }
    return n_runs;
}

/* cache (4), heads, window, query tokens, runs: the texts, then 3 more a run: the queries'; k, v,
 * q, pages: k, v, y. Keys and values of whole texts are written, then queries read them. */
static pmx_status attention(pmx_ctx *ctx, call *c) {
    pmx_run texts[8], queries[8];
    const pmx_cache pages = cache(c, 0);
    const int64_t n_runs = read_runs(texts, c, 7, 3);
    float *y = output(c, c->ints[6] * c->ints[4] * pages.head_dim * 4);
    const pmx_status status = pmx_cache_write(ctx, &pages, input(c, 0), input(c, 1), texts, n_runs);
    if (status != PMX_OK) return status;
    for (int64_t r = 0; r < n_runs; r++) {
        const int64_t *n = c->ints + 8 + 3 * (n_runs + r);
        queries[r] = (pmx_run){(int32_t)n[0], (int32_t)n[1], texts[r].pages, texts[r].n_pages};
    }
    return pmx_attention(ctx, y, input(c, 2), &pages, queries, n_runs, (int32_t)c->ints[4], (int32_t)c->ints[5]);
}

/* cache (4), heads, window, experts, used, tokens, runs (1: 4 ints), then type, rows, cols of each
 * matrix, in the order of pmx_layer; x, attn_norm, ffn_norm, eps, cosines, sines, pages, matrices:
 * k, v, x */
static pmx_status layer(pmx_ctx *ctx, call *c) {
    const int64_t n_tokens = c->ints[8], n_experts = c->ints[6], used = c->ints[7];
    pmx_run run;
    const pmx_cache pages = cache(c, 0);
    pmx_weight w[5 + 3 * 8];
    for (int i = 0; i < 5 + 3 * n_experts; i++) w[i] = weight(c, 13 + 3 * i, 7 + i);
    const int64_t hidden = w[0].cols;
    const pmx_layer l = {input(c, 1),
                         input(c, 2),
                         w[0],
                         w[1],
                         w[2],
                         w[3],
                         w[4],
                         w + 5,
                         (int32_t)n_experts,
                         (int32_t)used,
                         (int32_t)c->ints[4],
                         pages.n_kv_heads,
                         pages.head_dim,
                         (int32_t)hidden,
                         (int32_t)c->ints[5],
                         number(c, 3),
                         0,
                         0.0f};
    float *x = output(c, n_tokens * hidden * 4);
    memcpy(x, input(c, 0), c->in[0].bytes);
    float *normed = malloc((size_t)(n_tokens * hidden) * 4), *weights = malloc((size_t)(n_tokens * used) * 4);
    int32_t *ids = malloc((size_t)(n_tokens * used) * 4);
    if (!normed || !weights || !ids) die("no memory");
    const int64_t n_runs = read_runs(&run, c, 9, 6);
    const pmx_batch batch = {.x = x,
                             .normed = normed,
                             .ids = ids,
                             .weights = weights,
                             .n_tokens = n_tokens,
                             .cosines = input(c, 4),
                             .sines = input(c, 5),
                             .runs = &run,
                             .n_runs = n_runs};
    pmx_status status = pmx_layer_attention(ctx, &batch, &l, &pages, NULL);
    if (status == PMX_OK) status = pmx_layer_experts(ctx, &batch, &l, NULL);
    free(normed);
    free(weights);
    free(ids);
    return status;
}

static pmx_status (*const operations[])(pmx_ctx *, call *) = {
    matmul, embed, quantize, rms_norm, exponential, silu_mul, rope_table, rope, route, attention, layer};

static int64_t read_int(void) {
    int64_t x;
    if (fread(&x, sizeof x, 1, stdin) != 1) die("a request ends early");
    return x;
}

/* 0 at the end of the requests. */
static int read_call(call *c, int64_t *operation) {
    if (fread(operation, sizeof *operation, 1, stdin) != 1) return 0;
    const int64_t n_ints = read_int();
    if (*operation < 0 || *operation >= (int64_t)(sizeof operations / sizeof *operations) || n_ints > MAX_INTS)
        die("unknown operation");
    for (int64_t i = 0; i < n_ints; i++) c->ints[i] = read_int();
    c->n_in = read_int();
    if (c->n_in > MAX_BUFFERS) die("too many buffers");
    for (int64_t i = 0; i < c->n_in; i++) {
        c->in[i] = allocate(read_int());
        if (fread(c->in[i].data, 1, c->in[i].bytes, stdin) != c->in[i].bytes) die("a request ends early");
    }
    c->n_out = 0;
    return 1;
}

static void write_int(int64_t x) { fwrite(&x, sizeof x, 1, stdout); }

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        for (int32_t i = 0; pmx_isa_name(i); i++) printf("%s %d\n", pmx_isa_name(i), pmx_isa_available(i));
        return 0;
    }
    if (argc != 3) die("usage: driver list, or driver ISA THREADS");
    pmx_ctx *ctx;
    if (pmx_ctx_create(&ctx, atoi(argv[2]), argv[1]) != PMX_OK) die(pmx_message());
    static call c;
    for (int64_t operation; read_call(&c, &operation);) {
        const pmx_status status = operations[operation](ctx, &c);
        write_int(status);
        write_int(pmx_bad_row());
        write_int(c.n_out);
        for (int64_t i = 0; i < c.n_out; i++) {
            write_int((int64_t)c.out[i].bytes);
            fwrite(c.out[i].data, 1, c.out[i].bytes, stdout);
        }
        fflush(stdout);
        release(c.in, c.n_in);
        release(c.out, c.n_out);
    }
    pmx_ctx_destroy(ctx);
    return 0;
}
