/* filters.c: the steps of sampling that keep some of the tokens, and the choice among them.
 *
 * The definition adds up probabilities in descending order of logit. That asks for the vocabulary,
 * sorted, and for 32,000 additions, each of which waits for the one before; and then mostly looks at
 * the first hundred tokens. Here the total is first taken in an order that is quick, which bounds
 * the one of the right order. The running sums, in the right order over the tokens that are sorted
 * so far, are compared with both bounds. Where the two disagree, which is rare, the rest is sorted and
 * added up. So every comparison ends as the definition says. */
#include <math.h>

#include "sample.h"

enum {
    FIRST_TOKENS = 256, /* are sorted first: fewer save nothing, since the pass over all tokens remains */
    GROWTH = 4          /* times as many are sorted next */
};

static inline float logit_at(const pmx_row *r, int64_t rank) { return pmx_order_logit(r->order.entries[rank]); }

/* How far a logit lies below the largest that is left. */
static inline float below_at(const pmx_row *r, int64_t rank) { return logit_at(r, rank) - logit_at(r, r->first); }

static inline double weight_at(const pmx_row *r, int64_t rank) {
    return (double)r->weights[r->open ? pmx_order_id(r->order.entries[rank]) : rank];
}

/* Sorts so far that a rank is sorted. */
static void look(pmx_row *r, int64_t rank) {
    if (rank < r->order.n_sorted) return;
    const int64_t more = r->order.n_sorted ? GROWTH * r->order.n_sorted : FIRST_TOKENS;
    pmx_order_extend(&r->order, more < r->n ? more : r->n);
}

/* Keeps the ranks before `end`, all sorted. */
static void close_at(pmx_row *r, int64_t end) {
    pmx_order_extend(&r->order, end);
    r->end = end;
    r->open = 0;
}

/* --- Weights and their sums */

static void weigh_all(pmx_row *r, float divisor) {
    const float largest = logit_at(r, r->first);
    const int64_t n = r->n;
    float *w = r->weights;
    for (int64_t i = 0; i < n; i++) w[i] = r->logits[i] - largest;
    if (divisor != 1.0f)
        for (int64_t i = 0; i < n; i++) w[i] /= divisor;
    r->kernels->exp(w, w, n);
    double sums[8] = {0};
    for (int64_t i = 0; i < n / 8 * 8; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)w[i + j];
    for (int64_t i = n / 8 * 8; i < n; i++) sums[0] += (double)w[i];
    double sum = 0.0;
    for (int j = 0; j < 8; j++) sum += sums[j];
    /* A sum of n numbers that are not negative differs from the exact one by less than n * 2^-53 of it, in
     * any order, so two orders differ by less than twice that. Four times covers the rounding here. */
    const double part = (double)(4 * n) * 0x1p-53;
    r->low = sum * (1.0 - part);
    r->high = sum * (1.0 + part);
}

static void weigh_left(pmx_row *r, float divisor) {
    float *w = r->weights;
    for (int64_t i = r->first; i < r->end; i++) w[i] = below_at(r, i) / divisor;
    r->kernels->exp(w + r->first, w + r->first, r->end - r->first);
    double sum = 0.0;
    for (int64_t i = r->first; i < r->end; i++) sum += (double)w[i];
    r->low = r->high = sum;
}

/* Sets the weights, exp((logit - largest) / divisor), and the bounds of their sum. */
static void weigh(pmx_row *r, float divisor) {
    look(r, r->first);
    if (r->open)
        weigh_all(r, divisor);
    else
        weigh_left(r, divisor);
}

static int passes(double sum, double limit, int beyond) { return beyond ? sum > limit : sum >= limit; }

/* The first rank whose running sum reaches a part of the total; beyond: is greater than it. */
static int64_t rank_reaching(pmx_row *r, double part, int beyond) {
    for (;;) {
        const double low = part * r->low, high = part * r->high;
        double sum = 0.0;
        int doubtful = 0;
        for (int64_t rank = r->first; rank < r->end; rank++) {
            look(r, rank);
            sum += weight_at(r, rank);
            if (doubtful || !passes(sum, low, beyond)) continue;
            if (passes(sum, high, beyond)) return rank;
            doubtful = 1; /* go on to the total */
        }
        if (r->low == r->high) return r->end - 1; /* never: the last sum is the total */
        r->low = r->high = sum;
    }
}

/* --- Filters */

static void typical(pmx_row *r, double p) {
    close_at(r, r->end);
    weigh(r, 1.0f);
    const int64_t n = r->end;
    float *w = r->weights;
    double product = 0.0;
    for (int64_t i = 0; i < n && w[i] > 0.0f; i++) product += (double)w[i] * (double)below_at(r, i);
    const double mean = product / r->high;
#define DISTANCE(RANK) fabs((double)below_at(r, RANK) - mean)
    /* Distances fall up to the mean and rise behind it, so the order by distance is merged from both sides.
     * Equals come by rank: on the left, where ranks are met downwards, a run of them is found first. */
    int32_t *ranks = r->ids;
    int64_t right = 0, n_ranks = 0;
    while (right < n && (double)below_at(r, right) > mean) right++;
    for (int64_t left = right; left > 0 || right < n;) {
        if (left > 0 && (right == n || DISTANCE(left - 1) <= DISTANCE(right))) {
            int64_t begin = left - 1;
            while (begin > 0 && DISTANCE(begin - 1) == DISTANCE(left - 1)) begin--;
            for (int64_t rank = begin; rank < left; rank++) ranks[n_ranks++] = (int32_t)rank;
            left = begin;
        } else {
            ranks[n_ranks++] = (int32_t)right++;
        }
    }
#undef DISTANCE
    double total = 0.0, sum = 0.0;
    for (int64_t i = 0; i < n; i++) total += (double)w[ranks[i]];
    for (int64_t i = 0; i < n && (i == 0 || sum < p * total); i++) {
        sum += (double)w[ranks[i]];
        w[ranks[i]] = -1.0f; /* stays */
    }
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (w[i] < 0.0f) r->order.entries[n_kept++] = r->order.entries[i];
    r->end = n_kept;
}

static void min_p(pmx_row *r, double p) {
    /* exp is within an ulp of e**x but need not be monotone: where a weight is so far below p, none behind
     * it reaches p. */
    const double hopeless = p * (1.0 - 0x1p-20);
    weigh(r, 1.0f);
    int64_t n_kept = 0;
    for (int64_t rank = 0; rank < r->end; rank++) {
        look(r, rank);
        const double weight = weight_at(r, rank);
        if (weight < hopeless) break;
        if (weight >= p) r->order.entries[n_kept++] = r->order.entries[rank];
    }
    close_at(r, n_kept);
}

void pmx_row_filter(pmx_row *r) {
    const pmx_sampler *s = r->sampler;
    r->first = 0;
    r->end = r->n;
    r->open = 1;
    if (s->top_k > 0 && s->top_k < r->n) close_at(r, s->top_k);
    if (s->typical_p < 1.0) typical(r, s->typical_p);
    if (s->top_p < 1.0) {
        weigh(r, 1.0f);
        close_at(r, rank_reaching(r, s->top_p, 0) + 1);
    }
    if (s->min_p > 0.0) min_p(r, s->min_p);
}

int32_t pmx_row_choose(pmx_row *r, double uniform) {
    weigh(r, r->sampler->temperature);
    return pmx_order_id(r->order.entries[rank_reaching(r, uniform, 1)]);
}
