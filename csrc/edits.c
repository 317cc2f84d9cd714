/* edits.c: the steps of sampling that change logits. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "sample.h"

/* Bans the tokens whose bit is 0. */
static void mask(float *x, const uint32_t *allowed, int64_t n) {
    for (int64_t at = 0; at < n; at += 32) {
        const uint32_t word = allowed[at / 32];
        if (word == UINT32_MAX) continue;
        const int64_t end = n - at < 32 ? n : at + 32;
        for (int64_t i = at; i < end; i++) x[i] = word >> (i - at) & 1 ? x[i] : -INFINITY;
    }
}

static int penalizes(const pmx_sampler *s) {
    return s->repetition_penalty != 1.0f || s->presence_penalty != 0.0 || s->frequency_penalty != 0.0;
}

static int64_t last(int64_t window, int64_t n_text) { return window > 0 && window < n_text ? window : n_text; }

static int64_t penalties_seen(const pmx_sampler *s) { return penalizes(s) ? last(s->penalty_window, s->n_text) : 0; }

int64_t pmx_dry_seen(const pmx_sampler *s) { return s->dry_multiplier > 0.0 ? last(s->dry_window, s->n_text) : 0; }

int64_t pmx_text_seen(const pmx_sampler *s) {
    int64_t seen = penalties_seen(s);
    if (pmx_dry_seen(s) > seen) seen = pmx_dry_seen(s);
    for (int64_t i = 0; i < s->bad_words.n; i++) {
        const int64_t before = pmx_sequence_at(&s->bad_words, i).n - 1;
        if (before > seen && before <= s->n_text) seen = before;
    }
    return seen;
}

/* counts: [n_vocab], of which only those of ids in the window are used. */
static void penalize(float *x, int32_t *counts, const pmx_sampler *s) {
    const int64_t n = penalties_seen(s);
    const int32_t *ids = s->text + (s->n_text - n);
    for (int64_t i = 0; i < n; i++) counts[ids[i]] = 0;
    for (int64_t i = 0; i < n; i++) counts[ids[i]]++;
    for (int64_t i = 0; i < n; i++) {
        const int32_t count = counts[ids[i]];
        if (count == 0) continue; /* this id is done */
        counts[ids[i]] = 0;
        float *logit = &x[ids[i]];
        if (s->repetition_penalty != 1.0f) {
            const float changed = *logit > 0.0f ? *logit / s->repetition_penalty : *logit * s->repetition_penalty;
            *logit = changed < FLT_MAX ? changed : FLT_MAX;
        }
        *logit -= (float)(s->presence_penalty + s->frequency_penalty * (double)count);
    }
}

static void ban_words(float *x, const pmx_sampler *s) {
    for (int64_t i = 0; i < s->bad_words.n; i++) {
        const pmx_sequence word = pmx_sequence_at(&s->bad_words, i);
        if (pmx_ends_with(s->text, s->n_text, word.ids, word.n - 1)) x[word.ids[word.n - 1]] = -INFINITY;
    }
}

int pmx_row_edit(pmx_row *r) {
    const pmx_sampler *s = r->sampler;
    const int64_t n_end = s->n_text < s->min_text ? s->n_end : 0;
    if (!(s->n_bias || n_end || s->bad_words.n || s->allowed || s->mask || penalizes(s) || pmx_dry_seen(s))) return 0;
    float *x = r->edited;
    memcpy(x, r->logits, (size_t)r->n * sizeof *x);
    r->logits = x;
    for (int64_t i = 0; i < s->n_bias; i++) x[s->bias_ids[i]] += s->bias[i];
    for (int64_t i = 0; i < n_end; i++) x[s->end_ids[i]] = -INFINITY;
    ban_words(x, s);
    if (s->allowed) mask(x, s->allowed, r->n);
    if (s->mask) mask(x, s->mask, r->n);
    if (penalizes(s)) penalize(x, r->ids, s);
    if (pmx_dry_seen(s)) pmx_row_dry(r, x);
    return 1;
}
