/* dry.c: DRY, "don't repeat yourself": tokens are penalized that would continue a repetition of the
 * text's end, the more the longer it is. p-e-w 2024,
 * github.com/oobabooga/text-generation-webui/pull/5677. */
#include "sample.h"

#define MAX_PENALTY 1e9 /* far above any logit, and far below f32's largest number */

/* How many ids of a text are behind its last breaker. */
static int64_t n_unbroken(const pmx_sampler *s, const int32_t *text, int64_t n) {
    for (int64_t behind = 0; behind < n; behind++) {
        if (s->dry_breaker_tokens && pmx_in_mask(s->dry_breaker_tokens, text[n - 1 - behind])) return behind;
        for (int64_t i = 0; i < s->dry_breakers.n; i++) {
            const pmx_sequence breaker = pmx_sequence_at(&s->dry_breakers, i);
            if (pmx_ends_with(text, n - behind, breaker.ids, breaker.n)) return behind;
        }
    }
    return n;
}

/* matches[k]: how many ids the text's end and its part that ends k earlier have in common, backwards.
 * This is the Z-function of the text, read backwards (Gusfield 1997, "Algorithms on Strings, Trees, and
 * Sequences", 1.3): linear, since what lies inside of an earlier match is known from its copy. */
static void find_matches(int32_t *matches, const int32_t *text, int64_t n) {
    const int32_t *end = text + n - 1;
    matches[0] = 0;
    for (int64_t k = 1, begin = 0, behind = 0; k < n; k++) { /* the match that reaches farthest: begin to behind */
        int64_t match = 0;
        if (k < behind) match = matches[k - begin] < behind - k ? matches[k - begin] : behind - k;
        while (k + match < n && end[-match] == end[-(k + match)]) match++;
        matches[k] = (int32_t)match;
        if (k + match > behind) begin = k, behind = k + match;
    }
}

static double power(double base, int64_t exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent >>= 1, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

void pmx_row_dry(pmx_row *r, float *x) {
    const pmx_sampler *s = r->sampler;
    const int64_t n = pmx_dry_seen(s);
    const int32_t *text = s->text + (s->n_text - n), *end = text + n - 1;
    const int64_t most = n_unbroken(s, text, n);
    if (most < s->dry_allowed_length) return;
    find_matches(r->matches, text, n);
    int32_t *lengths = r->ids; /* of the longest repetition that a token would continue */
    for (int64_t k = 1; k < n; k++) lengths[end[1 - k]] = 0;
    for (int64_t k = 1; k < n; k++) {
        const int32_t match = r->matches[k] < most ? r->matches[k] : (int32_t)most;
        int32_t *length = &lengths[end[1 - k]];
        if (match > *length) *length = match;
    }
    for (int64_t k = 1; k < n; k++) {
        const int32_t id = end[1 - k];
        const int64_t beyond = lengths[id] - s->dry_allowed_length;
        lengths[id] = 0; /* this id is done */
        if (beyond < 0 || (s->dry_breaker_tokens && pmx_in_mask(s->dry_breaker_tokens, id))) continue;
        const double penalty = s->dry_multiplier * power(s->dry_base, beyond);
        x[id] -= (float)(penalty < MAX_PENALTY ? penalty : MAX_PENALTY);
    }
}
