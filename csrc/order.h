/* order.h: the tokens of a row in descending order of logit, of equal ones the lower id first, sorted
 * only as far as somebody looks. A draw mostly looks at a few hundred of 32,000. */
#ifndef PMX_ORDER_H
#define PMX_ORDER_H

#include <stddef.h>
#include <stdint.h>

#include "blocks.h"

/* entries: the first n_sorted are the beginning of the order, the others undefined. */
typedef struct {
    const float *logits; /* [n], finite or -infinity */
    int64_t n, n_sorted;
    uint64_t *entries; /* [n] */
    uint64_t *spare;   /* [n] */
    uint16_t *buckets; /* [n], which bucket a token falls into */
    int32_t *starts;   /* where each bucket starts in entries, and n */
    int32_t *fills;    /* where its next token goes */
    int32_t next;      /* the first bucket that is not sorted */
} pmx_order;

/* Bytes of the arrays of n tokens, a multiple of 64. */
size_t pmx_order_bytes(int64_t n);
/* Places the arrays in memory, aligned to 64. */
void pmx_order_place(pmx_order *o, void *memory, int64_t n);
/* Begins the order of o->n tokens, of which none is sorted. largest: of the logits, finite; span:
 * how far below it tokens still matter; it decides about speed only. */
void pmx_order_begin(pmx_order *o, const float *logits, float largest, float span);
/* Sorts at least the first `want` tokens, 0 <= want <= n. */
void pmx_order_extend(pmx_order *o, int64_t want);

/* An entry: in its high half a word that ascends where logits descend, below it the id. */
static inline uint64_t pmx_order_entry(float logit, int64_t id) {
    const uint32_t bits = pmx_f32_bits(logit + 0.0f); /* of -0, too, those of +0 */
    const uint32_t descending = bits ^ (~(uint32_t)((int32_t)bits >> 31) >> 1);
    return (uint64_t)descending << 32 | (uint64_t)id;
}
static inline int32_t pmx_order_id(uint64_t entry) { return (int32_t)(uint32_t)entry; }
static inline float pmx_order_logit(uint64_t entry) {
    const uint32_t descending = (uint32_t)(entry >> 32);
    return pmx_f32_from_bits(descending ^ (~(uint32_t)((int32_t)descending >> 31) >> 1));
}

#endif
