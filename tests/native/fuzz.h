/* fuzz.h: what the fuzz targets are made of: choices and data out of the input's bytes, buffers
 * that end where the contract says, and the verdict over a call that was made twice. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "pmx.h"

/* --- Choices: each takes a byte or two; a spent input answers 0, the plainest choice. */

typedef struct {
    const uint8_t *at;
    size_t left;
    uint32_t state; /* of the numbers that fill buffers */
} input;

uint32_t take(input *in);
uint32_t below(input *in, uint32_t n);
#define PICK(in, ...)                                                                                                  \
    (((const int64_t[]){__VA_ARGS__})[below(in, (uint32_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))])

/* Which of n ways to break the arguments: mostly 0, none. */
int breaks(input *in, int n);
/* No count that an entry point takes: negative, or beyond any memory. */
int64_t no_count(input *in);

/* --- Buffers: each a malloc of exactly its bytes, freed by release_buffers. */

void *buffer(size_t bytes);
void release_buffers(void);
float *floats(input *in, int64_t n);
float *moderate_floats(input *in, int64_t n);
double *doubles(input *in, int64_t n);
/* Weight bytes: any bits; when moderate, such that no f16 or bf16 is NaN, infinite, or 2 and more.
 */
void fill_bits(input *in, void *data, size_t bytes, int moderate);
uint32_t number(input *in);

/* --- Results: a call is made twice, by the scalar kernels on one thread and by another context; v
 * says which. */

typedef enum { BITS, FINITE, ANY_FLOATS } result_kind;
/* A buffer that the call writes, once for each v; initial: its contents before, or NULL for
 * undefined ones. */
typedef struct {
    void *of[2];
} result;
result written(size_t bytes, const void *initial, result_kind kind);

extern pmx_ctx *contexts[2];
extern pmx_status statuses[2];
void before_call(int v);
void after_call(int v);
#define CALL(EXPRESSION)                                                                                               \
    for (int v = 0; v < 2; v++) {                                                                                      \
        pmx_ctx *const ctx = contexts[v];                                                                              \
        before_call(v);                                                                                                \
        statuses[v] = (EXPRESSION);                                                                                    \
        after_call(v);                                                                                                 \
    }
/* Whether pmx_bad_row must be equal too: not for numbers in a cache that pmx_cache_write refuses.
 * Set again by each verdict. */
extern int same_rows;
/* Broken arguments must have been refused; others give the same status, row and results twice, and
 * only finite numbers. n_rows: what pmx_bad_row may name. */
void verdict(int broken, int64_t n_rows);

/* --- Targets: fuzz_ops.c, fuzz_layer.c */

typedef void target(input *in);
target fuzz_rms_norm, fuzz_quantize_activations, fuzz_matmul, fuzz_embed, fuzz_exp, fuzz_silu_mul, fuzz_rope_table,
    fuzz_rope, fuzz_route, fuzz_encode, fuzz_read, fuzz_sample, fuzz_queries, fuzz_cache_write, fuzz_attention,
    fuzz_layer_attention, fuzz_layer_experts, fuzz_run_layers;

/* A weight of a type that runs and divides cols into blocks, in memory that ends with its last row.
 */
pmx_weight weight(input *in, int64_t rows, int64_t cols);
/* Perhaps gives it pairs of some of n adapters, or of none. */
void add_adapters(input *in, pmx_weight *w, int32_t n_adapters);
/* What n adapters count in rows; NULL without any. */
float *scales(input *in, int64_t n_tokens, int32_t n_adapters);
/* Makes a weight that every entry point refuses. */
void break_weight(input *in, pmx_weight *w);

#endif
