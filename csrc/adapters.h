/* adapters.h: what low-rank adapters add to the products of a matrix.
 *
 * A term is a pair of an adapter with the rows of one product in which it counts. The products of its
 * a come first, in a region of their own, for a sum is never divided among threads; its b is added
 * where a task has finished a part of the product. */
#ifndef PMX_ADAPTERS_H
#define PMX_ADAPTERS_H

#include "internal.h"

typedef struct pmx_term pmx_term;

/* A matrix, and the rows that it is multiplied with. */
typedef struct {
    const pmx_weight *w;
    const int32_t *inputs; /* [n], of the activations; NULL: 0, 1, 2, ... */
    const int32_t *tokens; /* [n], of the scales; NULL: 0, 1, 2, ... */
    int64_t n;
    const pmx_term *terms; /* [n_terms], that pmx_adapt finds, adapters ascending */
    int64_t n_terms;
} pmx_adapted;

struct pmx_term {
    const pmx_adapted *product;
    const pmx_low_rank *pair;
    int32_t *rows; /* [n], ascending, of the product */
    int64_t n;
    float *t; /* [n][rank], a times the row, times what the adapter counts in it */
};

/* Finds the terms of products, and computes what pmx_add_terms takes. They are valid until the next call. */
pmx_status pmx_adapt(pmx_ctx *ctx, pmx_adapted *products, int64_t n_products, const pmx_acts *acts, pmx_scales scales);

/* Adds its terms to a part of a product that is finished but for them: y[i * ldy + r] is of row first + i and output
 * first_output + r. */
void pmx_add_terms(const pmx_kernels *kernels, const pmx_adapted *product, float *y, int64_t ldy, int64_t first,
                   int64_t n, int64_t first_output, int64_t n_outputs);

#endif
