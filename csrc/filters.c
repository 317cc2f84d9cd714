/* filters.c: the steps of sampling that keep some of the tokens, and the choice among them.
 *
 * The definition adds up probabilities in descending order of logit. That asks for the vocabulary,
 * sorted, and for 32,000 additions, each of which waits for the one before; and then mostly looks at
 * the first hundred tokens. Here the total is first taken in an order that is quick, which bounds
 * the one of the right order. The running sums, in the right order over the tokens that are sorted
 * so far, are compared with both bounds. Where the two disagree, which is rare, the rest is sorted and
 * added up. So every comparison ends as the definition says. */
#include <math.h>
#include <string.h>

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

#define SUM8(S) ((((S)[0] + (S)[4]) + ((S)[2] + (S)[6])) + (((S)[1] + (S)[5]) + ((S)[3] + (S)[7])))

/* --- Weights and their sums */

static void weigh_all(pmx_row *r, float divisor) {
    const float largest = logit_at(r, r->first);
    const int64_t n = r->n;
    float *w = r->weights;
    for (int64_t i = 0; i < n; i++) w[i] = r->logits[i] - largest;
    if (divisor != 1.0f)
        for (int64_t i = 0; i < n; i++) w[i] /= divisor;
    r->kernels->exp(w, w, n);
    for (int64_t rank = 0; rank < r->first; rank++) w[pmx_order_id(r->order.entries[rank])] = 0.0f; /* are gone */
    double sums[8] = {0};
    for (int64_t i = 0; i < n / 8 * 8; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)w[i + j];
    for (int64_t i = n / 8 * 8; i < n; i++) sums[0] += (double)w[i];
    const double sum = SUM8(sums);
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

/* Sets the total itself, in the right order, where its bounds do not decide. */
static void settle(pmx_row *r) {
    double sum = 0.0;
    for (int64_t rank = r->first; rank < r->end; rank++) {
        look(r, rank);
        sum += weight_at(r, rank);
    }
    r->low = r->high = sum;
}

/* The first rank whose running sum reaches a part of the total; beyond: is greater than it. */
static int64_t rank_reaching(pmx_row *r, double part, int beyond) {
    for (;;) {
        const double low = part * r->low, high = part * r->high;
        double sum = 0.0;
        for (int64_t rank = r->first; rank < r->end; rank++) {
            look(r, rank);
            sum += weight_at(r, rank);
            if (!passes(sum, low, beyond)) continue;
            if (passes(sum, high, beyond)) return rank;
            break;
        }
        if (r->low == r->high) return r->end - 1; /* never: the last sum is the total */
        settle(r);
    }
}

/* --- Filters */

/* The sum of x - mean, or of its square, over the logits that are finite. */
static double sum_finite(const float *x, int64_t n, double mean, int squared) {
    double sums[8] = {0};
    for (int64_t i = 0; i < n; i += 8)
        for (int64_t j = 0; j < (n - i < 8 ? n - i : 8); j++) {
            const double distance = x[i + j] == -INFINITY ? 0.0 : (double)x[i + j] - mean;
            sums[j] += squared ? distance * distance : distance;
        }
    return SUM8(sums);
}

static void top_n_sigma(pmx_row *r, double n_sigma) {
    int64_t n_finite = 0, n_kept = 0;
    for (int64_t i = 0; i < r->n; i++) n_finite += r->logits[i] != -INFINITY;
    const double mean = sum_finite(r->logits, r->n, 0.0, 0) / (double)n_finite;
    const double sigma = sqrt(sum_finite(r->logits, r->n, mean, 1) / (double)n_finite);
    look(r, 0);
    const double lowest = (double)logit_at(r, 0) - n_sigma * sigma;
    for (int64_t i = 0; i < r->n; i++) n_kept += (double)r->logits[i] >= lowest;
    close_at(r, n_kept);
}

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

/* Excludes the top choices: all but the least likely of the tokens that reach the threshold. */
static void xtc(pmx_row *r, double threshold) {
    weigh(r, 1.0f);
    for (;;) {
        const double low = threshold * r->low, high = threshold * r->high;
        int64_t rank = r->first;
        double weight = 0.0;
        for (; rank < r->end; rank++) {
            look(r, rank);
            weight = weight_at(r, rank);
            if (weight < high || weight == 0.0) break; /* a banned token is no choice */
        }
        if (rank < r->end && weight > 0.0 && weight >= low) { /* the bounds disagree */
            settle(r);
            continue;
        }
        if (rank - r->first >= 2) r->first = rank - 1;
        return;
    }
}

/* --- Mirostat */

/* The logarithm of x > 0, not subnormal, as the contract defines it. */
static double log2_contract(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & UINT64_C(0xfffffffffffff)) | UINT64_C(0x3ff0000000000000);
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp+0) { /* the root of 2 */
        m *= 0.5;
        exponent++;
    }
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 21.0;
    for (int k = 19; k > 0; k -= 2) p = p * z + 1.0 / (double)k;
    return (double)exponent + (s * p) * 0x1.71547652b82fep+1;
}

/* Draws a token, and moves the surprise that is allowed. */
static int64_t mirostat(pmx_row *r) {
    const pmx_sampler *s = r->sampler;
    weigh(r, s->temperature);
    int64_t end = r->first;
    for (;;) {
        /* The bounds differ by less than 2^-26 of the total, so their logarithms by less than this. */
        const double slack = r->low == r->high ? 0.0 : 1e-6, total = log2_contract(r->low);
        double beyond = 0.0; /* by how much a surprise is more than allowed */
        for (end = r->first + 1; end < r->end; end++) {
            look(r, end);
            const double weight = weight_at(r, end);
            beyond = weight > 0.0 ? (total - log2_contract(weight)) - r->state->surprise : INFINITY;
            if (beyond > -slack) break;
        }
        if (end == r->end || beyond > slack) break;
        settle(r);
    }
    close_at(r, end);
    weigh(r, s->temperature);
    const int64_t rank = rank_reaching(r, pmx_uniform(r->state), 1);
    const double surprise = log2_contract(r->high) - log2_contract(weight_at(r, rank));
    r->state->surprise -= s->mirostat_eta * (surprise - s->mirostat_tau);
    return rank;
}

/* --- The choice */

static int64_t choose(pmx_row *r) {
    const pmx_sampler *s = r->sampler;
    if (s->mirostat_tau > 0.0) return mirostat(r);
    if (s->top_n_sigma > 0.0) top_n_sigma(r, s->top_n_sigma);
    if (s->top_k > 0 && s->top_k < r->end) close_at(r, s->top_k);
    if (s->typical_p < 1.0) typical(r, s->typical_p);
    if (s->top_p < 1.0) {
        weigh(r, 1.0f);
        close_at(r, rank_reaching(r, s->top_p, 0) + 1);
    }
    if (s->min_p > 0.0) min_p(r, s->min_p);
    if (s->xtc_probability > 0.0 && pmx_uniform(r->state) < s->xtc_probability) xtc(r, s->xtc_threshold);
    weigh(r, s->temperature);
    return rank_reaching(r, pmx_uniform(r->state), 1);
}

int32_t pmx_row_draw(pmx_row *r) {
    r->first = 0;
    r->end = r->n;
    r->open = 1;
    return pmx_order_id(r->order.entries[choose(r)]);
}
