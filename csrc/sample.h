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
    pmx_sampler_state *state;
    float *edited;    /* [n] */
    float *weights;   /* [n] */
    int32_t *ids;     /* [n], of any integers */
    int32_t *matches; /* [pmx_dry_seen] */
    int64_t first, end;
    int open;         /* first to end are all tokens, few of which are sorted; weights are by id, else by rank */
    double low, high; /* bounds of the sum of the weights from first to end */
} pmx_row;

/* edits.c: the steps that change logits. Returns 0 if there is nothing to do. */
int pmx_row_edit(pmx_row *r);
/* How many of the text's last ids they look at, all together and DRY alone. */
int64_t pmx_text_seen(const pmx_sampler *s);
int64_t pmx_dry_seen(const pmx_sampler *s);

/* dry.c: the penalty on tokens that would continue a repetition. */
void pmx_row_dry(pmx_row *r, float *x);

/* filters.c: the steps that keep some of the tokens, and the choice of one. r->order has begun. */
int32_t pmx_row_draw(pmx_row *r);

/* random.c: the next number of a generator, 53 bits from 0 to below 1. */
double pmx_uniform(pmx_sampler_state *s);

/* A sequence's ids, and how many they are. */
typedef struct {
    const int32_t *ids;
    int64_t n;
} pmx_sequence;
static inline pmx_sequence pmx_sequence_at(const pmx_sequences *s, int64_t i) {
    const int64_t begin = i ? s->ends[i - 1] : 0;
    return (pmx_sequence){s->ids + begin, s->ends[i] - begin};
}
/* Whether n ids end with the first n_first ones of a sequence. */
static inline int pmx_ends_with(const int32_t *ids, int64_t n, const int32_t *sequence, int64_t n_first) {
    if (n < n_first) return 0;
    for (int64_t i = 0; i < n_first; i++)
        if (ids[n - n_first + i] != sequence[i]) return 0;
    return 1;
}
static inline int pmx_in_mask(const uint32_t *mask, int32_t id) { return mask[id / 32] >> id % 32 & 1; }

#endif
