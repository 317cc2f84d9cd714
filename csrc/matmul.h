/* matmul.h: products of activations with weight rows, as the layer's parts share them. */
#ifndef PMX_MATMUL_H
#define PMX_MATMUL_H

#include "adapters.h"

enum {
    /* Rows of an item: two strips of avx512vnni. With 16, half a strip, prompts take 1.5 times as
     * long; with 32 and 128 they differ by 2% at most. */
    PMX_ROWS_PER_ITEM = 64,
    /* One tile of results. Each thread's scratch has those of its task after what pmx_multiply_rows needs. */
    PMX_TILE_BYTES = PMX_TOKEN_BLOCK * PMX_ROWS_PER_ITEM * (int)sizeof(float),
    /* Of each thread's scratch, what pmx_multiply_rows needs at its start: a mat kernel's, and the
     * results of two planes. */
    PMX_ROWS_SCRATCH = PMX_MAT_SCRATCH + PMX_TILE_BYTES
};

/* Activations with the forms that the given weights need: x as is, quantized once into scratch when
 * a weight wants it. x: [n_tokens][cols]. */
pmx_status pmx_acts_prepare(pmx_ctx *ctx, pmx_acts *acts, const float *x, int64_t n_tokens,
                            const pmx_weight *const *weights, int64_t n_weights);

/* Rows of a weight from first_row on times tokens, by the kernel that is fastest for so many tokens.
 * p: all but w and row_bytes; p.scratch: PMX_ROWS_SCRATCH bytes. */
void pmx_multiply_rows(const pmx_kernels *kernels, const pmx_weight *w, int64_t first_row, pmx_product p);

/* One of several matrices that the same activations are multiplied with: y [n_tokens][w->rows],
 * stored, or added to what is there. */
typedef struct {
    const pmx_weight *w;
    float *y;
    int add;
} pmx_projection;

enum { PMX_MAX_PROJECTIONS = 3 };

/* All of them in one region, with one before it where an adapter counts. */
pmx_status pmx_project(pmx_ctx *ctx, const pmx_projection *projections, int32_t n_projections, const pmx_acts *acts,
                       int64_t n_tokens, pmx_scales scales);

#endif
