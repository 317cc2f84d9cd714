/* search.h: the search for scales and minimums, included once per instruction set by a file that defines LANES, vec (LANES floats),
 * vec_min, vec_max, PMX_INLINE and SEARCH (the name of the entry).
 *
 * A lane is a sub-block: 16 of them are searched side by side and every sum runs over the elements of its own lane in order, so that the
 * width of the registers cannot change a bit. No fma. The oracle is quantize/search.py.
 *
 * A candidate (inverse scale, offset) gives codes q; the sums of w*q, w*q*q, w*q*x over a lane give the best scale and minimum for these
 * codes and their error in closed form, by least squares. Hence a candidate costs one pass over the lane, and no pass needs a
 * division. */
#include <math.h>
#include <string.h>

#include "../blocks.h"
#include "encode.h"

#define N PMX_SEARCH_LANES
#define EACH(j) for (int j = 0; j < N; j++)

typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

typedef struct {
    float q[N], qq[N], xq[N];
} lane_sums;

/* Adding and subtracting it rounds to nearest even; for magnitudes from 2^22 on the result is off, and clamped. */
static const float round_magic = 12582912.0f;

PMX_INLINE float rounded(float v) { return (v + round_magic) - round_magic; }

PMX_INLINE float clamped(float v, float lo, float hi) {
    v = v > lo ? v : lo;
    return v < hi ? v : hi;
}

/* a/b; 0 where that is not finite. */
PMX_INLINE float finite_ratio(float a, float b) {
    const float r = a / b;
    return fabsf(r) <= 0x1.fffffep127f ? r : 0.0f;
}

/* a/b for a positive b; else 0. */
PMX_INLINE float ratio(float a, float b) {
    const float r = a / b;
    return b > 0.0f ? r : 0.0f;
}

/* The f16 nearest to d, as f32; what is not zero does not become zero. */
PMX_INLINE float scale16(float d) {
    if (d != 0.0f && fabsf(d) < 0x1p-24f) d = d < 0.0f ? -0x1p-24f : 0x1p-24f;
    return pmx_f16_to_f32(pmx_f32_to_f16(d));
}

PMX_INLINE vec splat(float a) { return a - (vec){0}; }

/* inverse[j] = finite_ratio(a, b[j]), which compilers leave scalar. */
static void inverses(float *inverse, float a, const float *b) {
    for (int j = 0; j < N; j += LANES) {
        const ivec ratios = (ivec)(splat(a) / *(const vec *)(b + j));
        *(vec *)(inverse + j) = (vec)(ratios & ((ratios & 0x7fffffff) < 0x7f800000));
    }
}

PMX_INLINE vec linear_codes(vec x, vec inverse, vec offset, vec lo, vec hi) {
    const vec magic = splat(round_magic);
    return vec_min(vec_max((x * inverse + offset + magic) - magic, lo), hi);
}

/* The value nearest to x * inverse, of two the lower. */
PMX_INLINE vec nonlinear_values(vec x, vec inverse) {
    static const float values[16] = {PMX_IQ4_VALUES};
    const vec v = x * inverse;
    vec value = splat(values[0]);
    for (int k = 1; k < 16; k++) {
        const vec middle = splat((values[k - 1] + values[k]) * 0.5f);
        value += (vec)((ivec)(v > middle) & (ivec)splat(values[k] - values[k - 1]));
    }
    return value;
}

PMX_INLINE void sums_of(lane_sums *s, const float (*x)[N], const float (*w)[N], const float *inverse, const float *offset,
                        const pmx_grid *g, int nonlinear) {
    const vec lo = splat(g->lo), hi = splat(g->hi);
    for (int j = 0; j < N; j += LANES) {
        const vec a = *(const vec *)(inverse + j), b = *(const vec *)(offset + j);
        vec q = {0}, qq = {0}, xq = {0};
        for (int i = 0; i < g->sub; i++) {
            const vec xi = *(const vec *)(x[i] + j);
            const vec code = nonlinear ? nonlinear_values(xi, a) : linear_codes(xi, a, b, lo, hi);
            const vec weighted = *(const vec *)(w[i] + j) * code;
            q += weighted;
            qq += weighted * code;
            xq += weighted * xi;
        }
        *(vec *)(s->q + j) = q;
        *(vec *)(s->qq + j) = qq;
        *(vec *)(s->xq + j) = xq;
    }
}

static void sums(lane_sums *s, const float (*x)[N], const pmx_tile *t, const float *inverse, const float *offset, const pmx_grid *g) {
    if (g->nonlinear)
        sums_of(s, x, t->w, inverse, offset, g, 1);
    else
        sums_of(s, x, t->w, inverse, offset, g, 0);
}

PMX_INLINE void codes_of(pmx_tile *t, const float (*x)[N], const float *inverse, const float *offset, const pmx_grid *g, int nonlinear) {
    static const float values[16] = {PMX_IQ4_VALUES};
    const vec lo = splat(g->lo), hi = splat(g->hi);
    for (int i = 0; i < g->sub; i++) {
        float code[N] __attribute__((aligned(64)));
        for (int j = 0; j < N; j += LANES) {
            const vec xi = *(const vec *)(x[i] + j), a = *(const vec *)(inverse + j);
            vec c = {0};
            if (nonlinear)
                for (int k = 1; k < 16; k++) c += (vec)((ivec)(xi * a > splat((values[k - 1] + values[k]) * 0.5f)) & (ivec)splat(1.0f));
            else
                c = linear_codes(xi, a, *(const vec *)(offset + j), lo, hi) - lo;
            *(vec *)(code + j) = c;
        }
        EACH(j) t->codes[i][j] = (uint8_t)(int32_t)code[j];
    }
}

static void codes(pmx_tile *t, const float (*x)[N], const float *inverse, const float *offset, const pmx_grid *g) {
    if (g->nonlinear)
        codes_of(t, x, inverse, offset, g, 1);
    else
        codes_of(t, x, inverse, offset, g, 0);
}

/* --- Symmetric: x is about scale * code */

static const float no_offset[N] __attribute__((aligned(64)));

/* Keeps the scale that least squares gives for the codes of an inverse scale, if it explains more of x. */
static void try_scale(float *scale, float *best, const pmx_tile *t, const float *inverse, const pmx_grid *g) {
    lane_sums s __attribute__((aligned(64)));
    sums(&s, t->x, t, inverse, no_offset, g);
    EACH(j) {
        const float a = ratio(s.xq[j], s.qq[j]), gain = s.xq[j] * a;
        const int better = gain > best[j];
        best[j] = better ? gain : best[j];
        scale[j] = better ? a : scale[j];
    }
}

static void find_scales(float *scale, const pmx_tile *t, const pmx_grid *g) {
    float extreme[N] __attribute__((aligned(64))), best[N] = {0}, inverse[N] __attribute__((aligned(64)));
    memset(scale, 0, N * sizeof *scale);
    memcpy(extreme, t->x[0], sizeof extreme);
    for (int i = 1; i < g->sub; i++) EACH(j) extreme[j] = fabsf(t->x[i][j]) > fabsf(extreme[j]) ? t->x[i][j] : extreme[j];
    for (int k = 0; k < g->down.count + g->up.count; k++) {
        const int up = k - g->down.count;
        const float c = up < 0 ? -(g->down.first + g->down.step * (float)k) : g->up.first + g->up.step * (float)up;
        inverses(inverse, c, extreme);
        try_scale(scale, best, t, inverse, g);
    }
    for (int k = 0; k < 2; k++) {
        inverses(inverse, 1.0f, scale);
        try_scale(scale, best, t, inverse, g);
    }
}

/* The integer scales of one d per block, and a better d: twice. found: the scales of the sub-blocks. */
static int fit_scales(pmx_tile *t, const float *found, const pmx_grid *g) {
    float d[N], total[N];
    int overflow = 0;
    for (int b = 0; b < N; b += g->n_sub) {
        float extreme = found[b];
        for (int j = b + 1; j < b + g->n_sub; j++) extreme = fabsf(found[j]) > fabsf(extreme) ? found[j] : extreme;
        const float first = scale16(extreme / g->scale_lo);
        overflow |= isinf(first);
        for (int j = b; j < b + g->n_sub; j++) d[j] = first;
    }
    if (overflow) return 1;
    for (int round = 0; round < 2; round++) {
        float best[N], integer[N], qq[N], xq[N];
        for (int k = 0; k < 3; k++) {
            static const float deltas[3] = {0.0f, -1.0f, 1.0f};
            float candidate[N], inverse[N] __attribute__((aligned(64)));
            lane_sums s __attribute__((aligned(64)));
            EACH(j) {
                candidate[j] = clamped(rounded(found[j] * finite_ratio(1.0f, d[j])) + deltas[k], g->scale_lo, g->scale_hi);
                inverse[j] = finite_ratio(1.0f, d[j] * candidate[j]);
            }
            sums(&s, t->x, t, inverse, no_offset, g);
            EACH(j) {
                const float a = d[j] * candidate[j], error = a * (a * s.qq[j] - (s.xq[j] + s.xq[j]));
                const int better = k == 0 || error < best[j];
                best[j] = better ? error : best[j];
                integer[j] = better ? candidate[j] : integer[j];
                qq[j] = better ? s.qq[j] : qq[j];
                xq[j] = better ? s.xq[j] : xq[j];
            }
        }
        for (int b = 0; b < N; b += g->n_sub) {
            float error = 0.0f, above = 0.0f, below = 0.0f;
            for (int j = b; j < b + g->n_sub; j++) {
                error += best[j];
                above += integer[j] * xq[j];
                below += integer[j] * integer[j] * qq[j];
            }
            if (round == 0 || error < total[b]) {
                total[b] = error;
                for (int j = b; j < b + g->n_sub; j++) {
                    t->d[j] = d[j];
                    t->scale[j] = integer[j];
                }
            }
            const float next = scale16(ratio(above, below));
            if (!isinf(next))
                for (int j = b; j < b + g->n_sub; j++) d[j] = next;
        }
    }
    return 0;
}

static int search_symmetric(pmx_tile *t, const pmx_grid *g) {
    float found[N] __attribute__((aligned(64))), inverse[N] __attribute__((aligned(64)));
    int overflow = 0;
    find_scales(found, t, g);
    if (g->n_sub > 1)
        overflow = fit_scales(t, found, g);
    else
        EACH(j) {
            t->scale[j] = 1.0f;
            t->d[j] = scale16(found[j]);
            overflow |= isinf(t->d[j]);
        }
    if (overflow) return 1;
    EACH(j) inverse[j] = finite_ratio(1.0f, t->d[j] * t->scale[j]);
    codes(t, t->x, inverse, no_offset, g);
    return 0;
}

/* --- Affine: x is about scale * code - minimum, searched for as u = x - lowest, about scale * code - shift, shift = minimum + lowest */

typedef struct {
    float u[32][N] __attribute__((aligned(64)));
    float lowest[N];   /* of blocks with integer minimums, which are not negative: at most 0; the shift is not below it */
    float w[N], wu[N]; /* sums of weights, of weighted u */
    float scale[N] __attribute__((aligned(64))), shift[N], best[N];
} affine;

/* The weighted squared error of scale * q - shift, less that of 0. */
PMX_INLINE float affine_error(const affine *f, const lane_sums *s, int j, float scale, float shift) {
    const float cross = s->xq[j] + shift * s->q[j];
    return scale * (scale * s->qq[j] - (cross + cross)) + shift * (shift * f->w[j] + (f->wu[j] + f->wu[j]));
}

static void try_affine(affine *f, const pmx_tile *t, const float *inverse, const float *offset, const pmx_grid *g) {
    lane_sums s __attribute__((aligned(64)));
    const int bounded = g->n_sub > 1;
    sums(&s, (const float(*)[N])f->u, t, inverse, offset, g);
    EACH(j) {
        const float det = f->w[j] * s.qq[j] - s.q[j] * s.q[j];
        float scale = ratio(f->w[j] * s.xq[j] - f->wu[j] * s.q[j], det);
        float shift = ratio(s.q[j] * s.xq[j] - s.qq[j] * f->wu[j], det);
        const float bound = f->lowest[j], at_bound = ratio(s.xq[j] + bound * s.q[j], s.qq[j]);
        /* Codes that hardly differ determine a scale alone. */
        const int below = bounded & ((shift < bound) | (det <= f->w[j] * s.qq[j] * 0x1p-16f));
        scale = below ? at_bound : scale;
        shift = below ? bound : shift;
        const float error = affine_error(f, &s, j, scale, shift);
        const int better = (error < f->best[j]) & (scale > 0.0f);
        f->best[j] = better ? error : f->best[j];
        f->scale[j] = better ? scale : f->scale[j];
        f->shift[j] = better ? shift : f->shift[j];
    }
}

static void find_affine(affine *f, const pmx_tile *t, const pmx_grid *g) {
    const int bounded = g->n_sub > 1;
    float largest[N] __attribute__((aligned(64))) = {0}, inverse[N] __attribute__((aligned(64))), offset[N] __attribute__((aligned(64)));
    EACH(j) f->lowest[j] = bounded && t->x[0][j] > 0.0f ? 0.0f : t->x[0][j];
    for (int i = 1; i < g->sub; i++) EACH(j) f->lowest[j] = t->x[i][j] < f->lowest[j] ? t->x[i][j] : f->lowest[j];
    EACH(j) f->w[j] = f->wu[j] = 0.0f;
    for (int i = 0; i < g->sub; i++) EACH(j) {
            const float u = t->x[i][j] - f->lowest[j];
            f->u[i][j] = u;
            f->w[j] += t->w[i][j];
            f->wu[j] += t->w[i][j] * u;
            largest[j] = u > largest[j] ? u : largest[j];
        }
    EACH(j) { /* without a scale */
        const float shift = -f->wu[j] / f->w[j];
        f->scale[j] = 0.0f;
        f->shift[j] = bounded && shift < f->lowest[j] ? f->lowest[j] : shift;
        f->best[j] = f->shift[j] * (f->shift[j] * f->w[j] + (f->wu[j] + f->wu[j]));
    }
    for (int k = 0; k < g->steps.count; k++) {
        const float c = g->steps.first + g->steps.step * (float)k;
        inverses(inverse, c, largest);
        for (int o = 0; o < g->offsets.count; o++) {
            EACH(j) offset[j] = g->offsets.first + g->offsets.step * (float)o;
            try_affine(f, t, inverse, offset, g);
        }
    }
    for (int k = 0; k < 2; k++) {
        inverses(inverse, 1.0f, f->scale);
        EACH(j) offset[j] = f->shift[j] * inverse[j];
        try_affine(f, t, inverse, offset, g);
    }
}

/* The integer scales and minimums of one d and one dmin per block, and better ones: twice. */
static int fit_affine(pmx_tile *t, const affine *f, const pmx_grid *g) {
    float d[N], m[N], minimum[N], total[N];
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
            d[j] = scale;
            m[j] = least;
        }
    }
    if (overflow) return 1;
    EACH(j) minimum[j] = clamped(rounded((f->shift[j] - f->lowest[j]) * finite_ratio(1.0f, m[j])), 0.0f, g->scale_hi);
    for (int round = 0; round < 2; round++) {
        float best[N], integer[N], least[N], start[N];
        lane_sums chosen;
        memcpy(start, minimum, sizeof start);
        for (int k = 0; k < 3; k++) {
            static const float deltas[3] = {0.0f, -1.0f, 1.0f};
            float candidate[N], inverse[N] __attribute__((aligned(64))), offset[N] __attribute__((aligned(64)));
            lane_sums s __attribute__((aligned(64)));
            EACH(j) {
                candidate[j] = clamped(rounded(f->scale[j] * finite_ratio(1.0f, d[j])) + deltas[k], 0.0f, g->scale_hi);
                inverse[j] = finite_ratio(1.0f, d[j] * candidate[j]);
                offset[j] = (m[j] * start[j] + f->lowest[j]) * inverse[j];
            }
            sums(&s, (const float(*)[N])f->u, t, inverse, offset, g);
            EACH(j) {
                const float scale = d[j] * candidate[j], wanted = (scale * s.q[j] - f->wu[j]) / f->w[j] - f->lowest[j];
                const float integral = clamped(rounded(wanted * finite_ratio(1.0f, m[j])), 0.0f, g->scale_hi);
                const float error = affine_error(f, &s, j, scale, m[j] * integral + f->lowest[j]);
                const int better = k == 0 || error < best[j];
                best[j] = better ? error : best[j];
                integer[j] = better ? candidate[j] : integer[j];
                least[j] = better ? integral : least[j];
                chosen.q[j] = better ? s.q[j] : chosen.q[j];
                chosen.qq[j] = better ? s.qq[j] : chosen.qq[j];
                chosen.xq[j] = better ? s.xq[j] : chosen.xq[j];
            }
        }
        memcpy(minimum, least, sizeof minimum);
        for (int b = 0; b < N; b += g->n_sub) {
            float error = 0.0f, aa = 0.0f, ab = 0.0f, bb = 0.0f, xa = 0.0f, xb = 0.0f;
            for (int j = b; j < b + g->n_sub; j++) {
                error += best[j];
                aa += integer[j] * integer[j] * chosen.qq[j];
                ab += integer[j] * least[j] * chosen.q[j];
                bb += least[j] * least[j] * f->w[j];
                xa += integer[j] * (chosen.xq[j] + f->lowest[j] * chosen.q[j]);
                xb += least[j] * (f->wu[j] + f->lowest[j] * f->w[j]);
            }
            if (round == 0 || error < total[b]) {
                total[b] = error;
                for (int j = b; j < b + g->n_sub; j++) {
                    t->d[j] = d[j];
                    t->m[j] = m[j];
                    t->scale[j] = integer[j];
                    t->minimum[j] = least[j];
                }
            }
            const float det = aa * bb - ab * ab;
            const float next_d = scale16(ratio(bb * xa - ab * xb, det)), next_m = scale16(ratio(ab * xa - aa * xb, det));
            if (next_d > 0.0f && next_m > 0.0f && !isinf(next_d) && !isinf(next_m))
                for (int j = b; j < b + g->n_sub; j++) {
                    d[j] = next_d;
                    m[j] = next_m;
                }
        }
    }
    return 0;
}

static int search_affine(pmx_tile *t, const pmx_grid *g) {
    affine f;
    float inverse[N] __attribute__((aligned(64))), offset[N] __attribute__((aligned(64)));
    int overflow = 0;
    find_affine(&f, t, g);
    if (g->n_sub > 1)
        overflow = fit_affine(t, &f, g);
    else
        EACH(j) {
            t->scale[j] = 1.0f;
            t->minimum[j] = 1.0f;
            t->d[j] = scale16(f.scale[j]);
            t->m[j] = pmx_f16_to_f32(pmx_f32_to_f16(f.shift[j] - f.lowest[j]));
            overflow |= isinf(t->d[j]) | isinf(t->m[j]);
        }
    if (overflow) return 1;
    EACH(j) {
        inverse[j] = finite_ratio(1.0f, t->d[j] * t->scale[j]);
        offset[j] = (t->m[j] * t->minimum[j] + f.lowest[j]) * inverse[j];
    }
    codes(t, (const float(*)[N])f.u, inverse, offset, g);
    return 0;
}

int SEARCH(pmx_tile *tile, const pmx_grid *grid) { return grid->affine ? search_affine(tile, grid) : search_symmetric(tile, grid); }
