/* search.h: the search for scales and minimums, included once per instruction set by a file that
 * defines what codes.h needs and SEARCH, the name of the entry. 16 sub-blocks are searched side by
 * side, a lane each. The oracle is quantize/encoders/search.py.
 *
 * A candidate (inverse scale, offset) gives codes q; the sums of w*q, w*q*q, w*q*x over a lane give
 * the best scale and minimum for these codes and their error in closed form, by least squares.
 * Hence a candidate costs one pass over the lane, and no pass needs a division. What is best so far
 * stays in registers while the candidates of a few lanes are tried. */
#include <string.h>

#include "codes.h"
#include "nearest.h"

/* The f16 nearest to d, as f32; what is not zero does not become zero. */
PMX_INLINE float scale16(float d) {
    if (d != 0.0f && fabsf(d) < 0x1p-24f) d = d < 0.0f ? -0x1p-24f : 0x1p-24f;
    return pmx_f16_to_f32(pmx_f32_to_f16(d));
}

/* a/b for a positive b; else 0. */
PMX_INLINE float ratio1(float a, float b) {
    const float r = a / b;
    return b > 0.0f ? r : 0.0f;
}

static const float deltas[3] = {0.0f, -1.0f, 1.0f}; /* around the nearest integer scale */

/* Makes blocks longer until their error is orthogonal to x: what least squares decodes is a
 * projection of x, shorter than x by the part that is error, 7% at 2 bits. All outputs of a matrix
 * would be too small by that, in every layer; the predictions of a model suffer more from it than
 * from the larger squared error. Blocks that are mostly error grow by a quarter at most. */
PMX_INLINE void lengthen(pmx_tile *t, const explained *e, const pmx_grid *g, int kind) {
    for (int b = 0; b < N; b += g->n_sub) {
        float xx = 0.0f, xq = 0.0f, xm = 0.0f;
        for (int j = b; j < b + g->n_sub; j++) {
            xx += e->xx[j];
            xq += t->scale[j] * e->xq[j];
            if (kind & AFFINE) xm += t->minimum[j] * e->x[j];
        }
        float factor = ratio1(xx, kind & AFFINE ? t->d[b] * xq - t->m[b] * xm : t->d[b] * xq);
        factor = factor > 1.25f ? 1.25f : factor;
        const float d = scale16(t->d[b] * factor), m = kind & AFFINE ? scale16(t->m[b] * factor) : 0.0f;
        if (factor == 0.0f || isinf(d) || isinf(m)) continue;
        for (int j = b; j < b + g->n_sub; j++) {
            t->d[j] = d;
            t->m[j] = m;
        }
    }
}

/* --- Symmetric: x is about scale * code */

PMX_INLINE vec_sums symmetric_sums(const pmx_tile *t, int j, vec inverse, const pmx_grid *g, int kind) {
    if (kind & LATTICE) return nearest_sums(t, j, inverse, g, NULL, kind & EIGHTS ? 8 : 4);
    return sums_of(t->x, t, j, inverse, inverse, g, kind);
}

/* Keeps the scale that least squares gives for the codes of an inverse scale, if it explains more
 * of x. */
PMX_INLINE void try_scale(vec *scale, vec *best, const pmx_tile *t, int j, vec inverse, const pmx_grid *g, int kind) {
    const vec_sums s = symmetric_sums(t, j, inverse, g, kind);
    const vec a = ratio(kind & LATTICE ? vec_max(s.xq, splat(0.0f)) : s.xq, s.qq), gain = s.xq * a;
    const ivec better = gain > *best;
    *best = pick(better, gain, *best);
    *scale = pick(better, a, *scale);
}

PMX_INLINE void find_scales(float *scale, const pmx_tile *t, const pmx_grid *g, int kind) {
    EACH_VEC(j) {
        vec extreme = load(t->x[0] + j), found = {0}, best = {0};
        for (int i = 1; i < g->sub; i++) {
            const vec xi = load(t->x[i] + j);
            extreme = pick(magnitude(xi) > magnitude(extreme), xi, extreme);
        }
        if (kind & LATTICE) extreme = magnitude(extreme);
        for (int k = 0; k < g->down.count + g->up.count; k++) {
            const int up = k - g->down.count;
            const float c = up < 0 ? -(g->down.first + g->down.step * (float)k) : g->up.first + g->up.step * (float)up;
            try_scale(&found, &best, t, j, finite_ratio(splat(c), extreme), g, kind);
        }
        for (int k = 0; k < 2; k++) try_scale(&found, &best, t, j, finite_ratio(splat(1.0f), found), g, kind);
        store(scale + j, found);
    }
}

/* What the sub-blocks make of a block's d, and the sums of the codes. */
typedef struct {
    float error[N] ALIGNED, integer[N] ALIGNED, qq[N] ALIGNED, xq[N] ALIGNED;
} chosen_scales;

PMX_INLINE void choose_scales(chosen_scales *c, const pmx_tile *t, const float *found, const float *d,
                              const pmx_grid *g, int kind) {
    EACH_VEC(j) {
        const vec dj = load(d + j), half = splat(kind & LATTICE ? 0.5f : 0.0f);
        const vec nearest = rounded(load(found + j) * finite_ratio(splat(1.0f), dj) - half) + half;
        vec best = {0}, integer = {0}, qq = {0}, xq = {0};
        for (int k = 0; k < 3; k++) {
            const vec candidate = clamped(nearest + splat(deltas[k]), g->scale_lo, g->scale_hi), a = dj * candidate;
            const vec inverse = finite_ratio(splat(1.0f), a);
            const vec_sums s = symmetric_sums(t, j, inverse, g, kind);
            const vec error = a * (a * s.qq - (s.xq + s.xq));
            const ivec better = k == 0 ? (ivec){0} == 0 : error < best;
            best = pick(better, error, best);
            integer = pick(better, candidate, integer);
            qq = pick(better, s.qq, qq);
            xq = pick(better, s.xq, xq);
        }
        store(c->error + j, best);
        store(c->integer + j, integer);
        store(c->qq + j, qq);
        store(c->xq + j, xq);
    }
}

/* The integer scales of one d per block, and a better d: twice. found: the scales of the sub-blocks.
 * No code of a lattice is 0: of weights far below the least d, all 0 is nearer than any entry. */
PMX_INLINE int fit_scales(pmx_tile *t, const float *found, const pmx_grid *g, int kind) {
    float d[N] ALIGNED, total[N];
    int overflow = 0;
    for (int b = 0; b < N; b += g->n_sub) {
        float extreme = found[b];
        for (int j = b + 1; j < b + g->n_sub; j++) extreme = fabsf(found[j]) > fabsf(extreme) ? found[j] : extreme;
        const float first = scale16(extreme / (kind & LATTICE ? g->scale_hi : g->scale_lo));
        overflow |= isinf(first);
        for (int j = b; j < b + g->n_sub; j++) {
            d[j] = first;
            t->d[j] = t->scale[j] = 0.0f;
        }
        total[b] = 0.0f; /* the error of all 0 */
    }
    if (overflow) return 1;
    for (int round = 0; round < 2; round++) {
        chosen_scales c;
        choose_scales(&c, t, found, d, g, kind);
        for (int b = 0; b < N; b += g->n_sub) {
            float error = 0.0f, above = 0.0f, below = 0.0f;
            for (int j = b; j < b + g->n_sub; j++) {
                error += c.error[j];
                above += c.integer[j] * c.xq[j];
                below += c.integer[j] * c.integer[j] * c.qq[j];
            }
            if ((round == 0 && !(kind & LATTICE)) || error < total[b]) {
                total[b] = error;
                for (int j = b; j < b + g->n_sub; j++) {
                    t->d[j] = d[j];
                    t->scale[j] = c.integer[j];
                }
            }
            const float next = scale16(ratio1(above, below));
            if (!isinf(next) && (next > 0.0f || !(kind & LATTICE)))
                for (int j = b; j < b + g->n_sub; j++) d[j] = next;
        }
    }
    return 0;
}

PMX_INLINE int search_symmetric(pmx_tile *t, const pmx_grid *g, int kind) {
    float found[N] ALIGNED, inverse[N] ALIGNED;
    explained e;
    int overflow = 0;
    if (kind & LATTICE) take_signs(t, g);
    find_scales(found, t, g, kind);
    if (g->n_sub > 1)
        overflow = fit_scales(t, found, g, kind);
    else
        EACH(j) {
            t->scale[j] = 1.0f;
            t->d[j] = scale16(found[j]);
            overflow |= isinf(t->d[j]);
        }
    if (overflow) return 1;
    EACH_VEC(j) store(inverse + j, finite_ratio(splat(1.0f), load(t->d + j) * load(t->scale + j)));
    if (kind & LATTICE)
        entries_of(&e, t, inverse, g, kind & EIGHTS ? 8 : 4);
    else
        codes_of(&e, t, t->x, inverse, inverse, g, kind);
    lengthen(t, &e, g, kind);
    return 0;
}

/* --- Affine: x is about scale * code - minimum, searched for as u = x - lowest, about scale * code
 * - shift, shift = minimum + lowest */

typedef struct {
    float u[32][N] ALIGNED;
    float lowest[N] ALIGNED;                  /* of blocks with integer minimums, which are not negative: at most 0;
                                                 the shift is not below it */
    float w[N] ALIGNED, wu[N] ALIGNED;        /* sums of weights, of weighted u */
    float scale[N] ALIGNED, shift[N] ALIGNED; /* found */
} affine;

/* The same of a few lanes. */
typedef struct {
    vec lowest, w, wu, scale, shift, best;
} affine_lanes;

/* The weighted squared error of scale * q - shift, less that of 0. */
PMX_INLINE vec affine_error(const affine_lanes *f, const vec_sums *s, vec scale, vec shift) {
    const vec cross = s->xq + shift * s->q;
    return scale * (scale * s->qq - (cross + cross)) + shift * (shift * f->w + (f->wu + f->wu));
}

PMX_INLINE void try_affine(affine_lanes *f, const vec_sums *s, ivec bounded) {
    const vec det = f->w * s->qq - s->q * s->q;
    vec scale = ratio(f->w * s->xq - f->wu * s->q, det);
    vec shift = ratio(s->q * s->xq - s->qq * f->wu, det);
    /* Codes that hardly differ determine a scale alone. */
    const ivec below = bounded & ((shift < f->lowest) | (det <= f->w * s->qq * splat(0x1p-16f)));
    scale = pick(below, ratio(s->xq + f->lowest * s->q, s->qq), scale);
    shift = pick(below, f->lowest, shift);
    const vec error = affine_error(f, s, scale, shift);
    const ivec better = (error < f->best) & (scale > splat(0.0f));
    f->best = pick(better, error, f->best);
    f->scale = pick(better, scale, f->scale);
    f->shift = pick(better, shift, f->shift);
}

PMX_INLINE void find_affine(affine *f, const pmx_tile *t, const pmx_grid *g, int kind) {
    const float(*u)[N] = (const float(*)[N])f->u;
    const ivec bounded = -((ivec){0} + (g->n_sub > 1));
    EACH_VEC(j) {
        affine_lanes v = {.lowest = load(t->x[0] + j)};
        v.lowest = pick(bounded & (v.lowest > splat(0.0f)), splat(0.0f), v.lowest);
        for (int i = 1; i < g->sub; i++) v.lowest = vec_min(load(t->x[i] + j), v.lowest);
        vec largest = {0};
        for (int i = 0; i < g->sub; i++) {
            const vec wi = load(t->w[i] + j), ui = load(t->x[i] + j) - v.lowest;
            store(f->u[i] + j, ui);
            v.w += wi;
            v.wu += wi * ui;
            largest = vec_max(ui, largest);
        }
        v.shift = -v.wu / v.w; /* without a scale */
        v.shift = pick(bounded & (v.shift < v.lowest), v.lowest, v.shift);
        v.best = v.shift * (v.shift * v.w + (v.wu + v.wu));
        for (int k = 0; k < g->steps.count; k++) {
            const vec inverse = finite_ratio(splat(g->steps.first + g->steps.step * (float)k), largest);
            for (int o = 0; o < g->offsets.count; o++) {
                const vec_sums s =
                    sums_of(u, t, j, inverse, splat(g->offsets.first + g->offsets.step * (float)o), g, kind);
                try_affine(&v, &s, bounded);
            }
        }
        for (int k = 0; k < 2; k++) {
            const vec inverse = finite_ratio(splat(1.0f), v.scale);
            const vec_sums s = sums_of(u, t, j, inverse, v.shift * inverse, g, kind);
            try_affine(&v, &s, bounded);
        }
        store(f->lowest + j, v.lowest);
        store(f->w + j, v.w);
        store(f->wu + j, v.wu);
        store(f->scale + j, v.scale);
        store(f->shift + j, v.shift);
    }
}

/* What the sub-blocks make of a block's d and dmin, and the sums of the codes. */
typedef struct {
    float error[N] ALIGNED, integer[N] ALIGNED, least[N] ALIGNED, q[N] ALIGNED, qq[N] ALIGNED, xq[N] ALIGNED;
} chosen_affine;

/* What they are chosen with: d and dmin of the block, and the integer minimums so far. */
typedef struct {
    float d[N] ALIGNED, m[N] ALIGNED, minimum[N] ALIGNED;
} affine_given;

PMX_INLINE void choose_affine(chosen_affine *c, const pmx_tile *t, const affine *f, const affine_given *given,
                              const pmx_grid *g, int kind) {
    EACH_VEC(j) {
        const affine_lanes v = {.lowest = load(f->lowest + j), .w = load(f->w + j), .wu = load(f->wu + j)};
        const vec dj = load(given->d + j), mj = load(given->m + j), per_m = finite_ratio(splat(1.0f), mj);
        const vec nearest = rounded(load(f->scale + j) * finite_ratio(splat(1.0f), dj)),
                  shift = mj * load(given->minimum + j) + v.lowest;
        vec best = {0}, integer = {0}, least = {0};
        vec_sums of_best = {{0}, {0}, {0}};
        for (int k = 0; k < 3; k++) {
            const vec candidate = clamped(nearest + splat(deltas[k]), 0.0f, g->scale_hi), scale = dj * candidate;
            const vec inverse = finite_ratio(splat(1.0f), scale);
            const vec_sums s = sums_of((const float(*)[N])f->u, t, j, inverse, shift * inverse, g, kind);
            const vec wanted = (scale * s.q - v.wu) / v.w - v.lowest;
            const vec integral = clamped(rounded(wanted * per_m), 0.0f, g->scale_hi);
            const vec error = affine_error(&v, &s, scale, mj * integral + v.lowest);
            const ivec better = k == 0 ? (ivec){0} == 0 : error < best;
            best = pick(better, error, best);
            integer = pick(better, candidate, integer);
            least = pick(better, integral, least);
            of_best.q = pick(better, s.q, of_best.q);
            of_best.qq = pick(better, s.qq, of_best.qq);
            of_best.xq = pick(better, s.xq, of_best.xq);
        }
        store(c->error + j, best);
        store(c->integer + j, integer);
        store(c->least + j, least);
        store(c->q + j, of_best.q);
        store(c->qq + j, of_best.qq);
        store(c->xq + j, of_best.xq);
    }
}

/* The integer scales and minimums of one d and one dmin per block, and better ones: twice. */
PMX_INLINE int fit_affine(pmx_tile *t, const affine *f, const pmx_grid *g, int kind) {
    affine_given given;
    float total[N];
    int overflow = 0;
    for (int b = 0; b < N; b += g->n_sub) {
        float scale = 0.0f, least = 0.0f;
        for (int j = b; j < b + g->n_sub; j++) {
            const float found = f->shift[j] - f->lowest[j];
            scale = f->scale[j] > scale ? f->scale[j] : scale;
            least = found > least ? found : least;
        }
        scale = scale16(scale / g->scale_hi);
        least = scale16(least / g->scale_hi);
        overflow |= isinf(scale) | isinf(least);
        for (int j = b; j < b + g->n_sub; j++) {
            given.d[j] = scale;
            given.m[j] = least;
        }
    }
    if (overflow) return 1;
    EACH_VEC(j) {
        const vec found = load(f->shift + j) - load(f->lowest + j);
        const vec nearest = rounded(found * finite_ratio(splat(1.0f), load(given.m + j)));
        store(given.minimum + j, clamped(nearest, 0.0f, g->scale_hi));
    }
    for (int round = 0; round < 2; round++) {
        chosen_affine c;
        choose_affine(&c, t, f, &given, g, kind);
        memcpy(given.minimum, c.least, sizeof given.minimum);
        for (int b = 0; b < N; b += g->n_sub) {
            float error = 0.0f, aa = 0.0f, ab = 0.0f, bb = 0.0f, xa = 0.0f, xb = 0.0f;
            for (int j = b; j < b + g->n_sub; j++) {
                const float integer = c.integer[j], least = c.least[j];
                error += c.error[j];
                aa += integer * integer * c.qq[j];
                ab += integer * least * c.q[j];
                bb += least * least * f->w[j];
                xa += integer * (c.xq[j] + f->lowest[j] * c.q[j]);
                xb += least * (f->wu[j] + f->lowest[j] * f->w[j]);
            }
            if (round == 0 || error < total[b]) {
                total[b] = error;
                for (int j = b; j < b + g->n_sub; j++) {
                    t->d[j] = given.d[j];
                    t->m[j] = given.m[j];
                    t->scale[j] = c.integer[j];
                    t->minimum[j] = c.least[j];
                }
            }
            const float det = aa * bb - ab * ab;
            const float next_d = scale16(ratio1(bb * xa - ab * xb, det)),
                        next_m = scale16(ratio1(ab * xa - aa * xb, det));
            if (next_d > 0.0f && next_m > 0.0f && !isinf(next_d) && !isinf(next_m))
                for (int j = b; j < b + g->n_sub; j++) {
                    given.d[j] = next_d;
                    given.m[j] = next_m;
                }
        }
    }
    return 0;
}

PMX_INLINE int search_affine(pmx_tile *t, const pmx_grid *g, int kind) {
    affine f;
    explained e;
    float inverse[N] ALIGNED, offset[N] ALIGNED;
    int overflow = 0;
    find_affine(&f, t, g, kind);
    if (g->n_sub > 1)
        overflow = fit_affine(t, &f, g, kind);
    else
        EACH(j) {
            t->scale[j] = 1.0f;
            t->minimum[j] = 1.0f;
            t->d[j] = scale16(f.scale[j]);
            t->m[j] = pmx_f16_to_f32(pmx_f32_to_f16(f.shift[j] - f.lowest[j]));
            overflow |= isinf(t->d[j]) | isinf(t->m[j]);
        }
    if (overflow) return 1;
    EACH_VEC(j) {
        const vec per_scale = finite_ratio(splat(1.0f), load(t->d + j) * load(t->scale + j));
        store(inverse + j, per_scale);
        store(offset + j, (load(t->m + j) * load(t->minimum + j) + load(f.lowest + j)) * per_scale);
    }
    codes_of(&e, t, (const float(*)[N])f.u, inverse, offset, g, kind);
    lengthen(t, &e, g, kind);
    return 0;
}

/* --- One function for each kind */

#define KIND(name, search, kind)                                                                                       \
    static int name(pmx_tile *t, const pmx_grid *g) { return search(t, g, kind); }

KIND(plain, search_symmetric, 0)
KIND(plain_weighted, search_symmetric, WEIGHTED)
KIND(table, search_symmetric, NONLINEAR)
KIND(table_weighted, search_symmetric, NONLINEAR | WEIGHTED)
KIND(fours, search_symmetric, LATTICE | WEIGHTED)
KIND(eights, search_symmetric, LATTICE | WEIGHTED | EIGHTS)
KIND(shifted, search_affine, AFFINE)
KIND(shifted_weighted, search_affine, AFFINE | WEIGHTED)

int SEARCH(pmx_tile *t, const pmx_grid *g) {
    if (g->lattice) return g->lattice->group == 8 ? eights(t, g) : fours(t, g);
    if (g->affine) return t->weighted ? shifted_weighted(t, g) : shifted(t, g);
    if (g->nonlinear) return t->weighted ? table_weighted(t, g) : table(t, g);
    return t->weighted ? plain_weighted(t, g) : plain(t, g);
}
