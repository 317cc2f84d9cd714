/* sample.h: what the files of pmx_sample share: one row, and its parts by file. */
#ifndef PMX_SAMPLE_H
#define PMX_SAMPLE_H

#include "internal.h"
#include "order.h"

/* A row in a thread's scratch. Ranks are places in the order of its logits; those from first to end
 * are of the tokens that are left. */
typedef struct {
    const pmx_kernels *kernels;
    const pmx_sampler *sampler;
    const float *logits; /* [n]: the caller's, then perhaps edited */
    int64_t n;
    pmx_order order;
    float *edited;  /* [n] */
    float *weights; /* [n] */
    int32_t *ids;   /* [n], of any integers */
    int64_t first, end;
    int open;         /* first to end are all tokens, few of which are sorted; weights are by id, else by rank */
    double low, high; /* bounds of the sum of the weights from first to end */
} pmx_row;

/* edits.c: the steps that change logits. Returns 0 if there is nothing to do. */
int pmx_row_edit(pmx_row *r);
/* How many of the text's last ids they look at. */
int64_t pmx_text_seen(const pmx_sampler *s);

/* filters.c: the steps that keep some of the tokens, and the choice among them. r->order has begun. */
void pmx_row_filter(pmx_row *r);
/* The token of a number from 0 to below 1. */
int32_t pmx_row_choose(pmx_row *r, double uniform);

/* sample.c: the next number of a generator, 53 bits from 0 to below 1. */
double pmx_uniform(pmx_sampler_state *s);

#endif
