/* order.c: a bucket sort that sorts a bucket when it is needed. A token's bucket grows with its
 * distance from the largest logit, and all arithmetic on the way is monotone, so the buckets are in
 * order whatever the rounding. */
#include "order.h"

#include <string.h>

enum {
    /* Of 32,000 logits of a model 30 fall into the fullest bucket; their counts and places, 32 KB, stay in
     * the first cache. */
    BUCKETS = 4096,
    INSERTION = 32 /* entries that are sorted by insertion: a merge of fewer is slower */
};

static size_t rounded(int64_t n, size_t size) { return ((size_t)n * size + 63) & ~(size_t)63; }

size_t pmx_order_bytes(int64_t n) {
    return 2 * rounded(n, sizeof(uint64_t)) + rounded(n, sizeof(uint16_t)) + 2 * rounded(BUCKETS + 1, sizeof(int32_t));
}

void pmx_order_place(pmx_order *o, void *memory, int64_t n) {
    char *at = memory;
    o->n = n;
    o->entries = (uint64_t *)(void *)at;
    at += rounded(n, sizeof(uint64_t));
    o->spare = (uint64_t *)(void *)at;
    at += rounded(n, sizeof(uint64_t));
    o->buckets = (uint16_t *)(void *)at;
    at += rounded(n, sizeof(uint16_t));
    o->starts = (int32_t *)(void *)at;
    at += rounded(BUCKETS + 1, sizeof(int32_t));
    o->fills = (int32_t *)(void *)at;
}

void pmx_order_begin(pmx_order *o, const float *logits, float largest, float span) {
    const float last = BUCKETS - 1, scale = last / span;
    const int64_t n = o->n;
    uint16_t *buckets = o->buckets;
    o->logits = logits;
    o->n_sorted = 0;
    o->next = 0;
    for (int64_t i = 0; i < n; i++) {
        const float place = (largest - logits[i]) * scale;
        buckets[i] = (uint16_t)(int32_t)(place < last ? place : last); /* of NaN, too, the last */
    }
    memset(o->starts, 0, (BUCKETS + 1) * sizeof *o->starts);
    for (int64_t i = 0; i < n; i++) o->starts[buckets[i] + 1]++;
    for (int32_t b = 0; b < BUCKETS; b++) o->starts[b + 1] += o->starts[b];
    memcpy(o->fills, o->starts, BUCKETS * sizeof *o->fills);
}

static void insertion_sort(uint64_t *x, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        const uint64_t entry = x[i];
        int64_t j = i;
        for (; j > 0 && x[j - 1] > entry; j--) x[j] = x[j - 1];
        x[j] = entry;
    }
}

/* Merges the sorted runs x[0..half) and x[half..n). spare: [half]. */
static void merge(uint64_t *x, int64_t half, int64_t n, uint64_t *spare) {
    if (x[half - 1] < x[half]) return; /* equal logits come by id already */
    memcpy(spare, x, (size_t)half * sizeof *x);
    for (int64_t at = 0, i = 0, j = half; i < half; at++) x[at] = j < n && x[j] < spare[i] ? x[j++] : spare[i++];
}

/* Entries are unequal, so there is one order. */
static void sort(uint64_t *x, int64_t n, uint64_t *spare) {
    if (n <= INSERTION) {
        insertion_sort(x, n);
        return;
    }
    for (int64_t at = 0; at < n; at += INSERTION) insertion_sort(x + at, n - at < INSERTION ? n - at : INSERTION);
    for (int64_t half = INSERTION; half < n; half *= 2)
        for (int64_t at = 0; at + half < n; at += 2 * half)
            merge(x + at, half, n - at < 2 * half ? n - at : 2 * half, spare);
}

void pmx_order_extend(pmx_order *o, int64_t want) {
    if (want <= o->n_sorted) return;
    const int32_t first = o->next;
    int32_t end = first;
    while (o->starts[end] < want) end++;
    const uint32_t n_buckets = (uint32_t)(end - first);
    for (int64_t i = 0; i < o->n; i++) {
        const int32_t bucket = o->buckets[i];
        if ((uint32_t)(bucket - first) < n_buckets) o->entries[o->fills[bucket]++] = pmx_order_entry(o->logits[i], i);
    }
    for (int32_t b = first; b < end; b++) sort(o->entries + o->starts[b], o->starts[b + 1] - o->starts[b], o->spare);
    o->n_sorted = o->starts[end];
    o->next = end;
}
