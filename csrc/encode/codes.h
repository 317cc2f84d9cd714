/* codes.h: the codes that a candidate (inverse scale, offset) gives, and their sums: what search.h
 * compares candidates by. Included by it, once per instruction set: needs LANES, vec (LANES
 * floats), vec_min, vec_max and PMX_INLINE.
 *
 * A lane is a sub-block, and every sum runs over the elements of its own lane in order, so that the
 * width of the registers cannot change a bit. No fma. The functions are compiled once for each
 * kind, so that loops over elements, in which all time goes, hold no branch and no operation that
 * the kind has no need of: x + 0 and 1 * x are x. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../blocks.h"
#include "encode.h"

#define N PMX_SEARCH_LANES
#define EACH(j) for (int j = 0; j < N; j++)
#define EACH_VEC(j) for (int j = 0; j < N; j += LANES)
#define ALIGNED __attribute__((aligned(64)))

enum { NONLINEAR = 1, AFFINE = 2, WEIGHTED = 4, LATTICE = 8, EIGHTS = 16 /* of a lattice's groups of 8 */ };

typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

/* Of w*q, w*q*q and w*q*x; the first for AFFINE alone. */
typedef struct {
    vec q, qq, xq;
} vec_sums;

/* Adding and subtracting it rounds to nearest even; for magnitudes from 2^22 on the result is off,
 * and clamped. */
static const float round_magic = 12582912.0f;

PMX_INLINE vec splat(float a) { return a - (vec){0}; }

PMX_INLINE vec load(const float *p) { return *(const vec *)p; }

PMX_INLINE void store(float *p, vec a) { *(vec *)p = a; }

PMX_INLINE vec pick(ivec first, vec a, vec b) { return (vec)((first & (ivec)a) | (~first & (ivec)b)); }

PMX_INLINE vec magnitude(vec a) { return (vec)((ivec)a & 0x7fffffff); }

PMX_INLINE vec rounded(vec a) { return (a + splat(round_magic)) - splat(round_magic); }

PMX_INLINE vec clamped(vec a, float lo, float hi) { return vec_min(vec_max(a, splat(lo)), splat(hi)); }

/* a/b; 0 where that is not finite. */
PMX_INLINE vec finite_ratio(vec a, vec b) {
    const ivec r = (ivec)(a / b);
    return (vec)(r & ((r & 0x7fffffff) < 0x7f800000));
}

/* a/b for a positive b; else 0. */
PMX_INLINE vec ratio(vec a, vec b) { return (vec)((ivec)(a / b) & (b > splat(0.0f))); }

PMX_INLINE vec linear_codes(vec x, vec inverse, vec offset, const pmx_grid *g, int kind) {
    vec v = x * inverse;
    if (kind & AFFINE) v += offset;
    return clamped(rounded(v), g->lo, g->hi);
}

/* The value nearest to x * inverse, of two the lower. */
PMX_INLINE vec nonlinear_values(vec x, vec inverse) {
    static const float values[16] = {PMX_IQ4_VALUES};
    const vec v = x * inverse;
    vec value = splat(values[0]);
    for (int k = 1; k < 16; k++) {
        const vec middle = splat((values[k - 1] + values[k]) * 0.5f);
        value += (vec)((v > middle) & (ivec)splat(values[k] - values[k - 1]));
    }
    return value;
}

PMX_INLINE vec nonlinear_codes(vec x, vec inverse) {
    static const float values[16] = {PMX_IQ4_VALUES};
    const vec v = x * inverse;
    vec code = {0};
    for (int k = 1; k < 16; k++) code += (vec)((v > splat((values[k - 1] + values[k]) * 0.5f)) & (ivec)splat(1.0f));
    return code;
}

/* Of the lanes from j on. x: the tile's, or what AFFINE has in its place; offset: for AFFINE alone.
 */
PMX_INLINE vec_sums sums_of(const float (*x)[N], const pmx_tile *t, int j, vec inverse, vec offset, const pmx_grid *g,
                            int kind) {
    vec_sums s = {{0}, {0}, {0}};
    for (int i = 0; i < g->sub; i++) {
        const vec xi = load(x[i] + j);
        const vec code = kind & NONLINEAR ? nonlinear_values(xi, inverse) : linear_codes(xi, inverse, offset, g, kind);
        vec weighted = code;
        if (kind & WEIGHTED) weighted *= load(t->w[i] + j);
        if (kind & AFFINE) s.q += weighted;
        s.qq += weighted * code;
        s.xq += weighted * xi;
    }
    return s;
}

/* Of each lane the sums of w*x*x, w*x*q and, for AFFINE, w*x: how much of x the codes explain. */
typedef struct {
    float xx[N] ALIGNED, xq[N] ALIGNED, x[N] ALIGNED;
} explained;

/* The tile's codes, counted from 0. x: the tile's, or what AFFINE has in its place. */
PMX_INLINE void codes_of(explained *e, pmx_tile *t, const float (*x)[N], const float *inverse, const float *offset,
                         const pmx_grid *g, int kind) {
    memset(e, 0, sizeof *e);
    for (int i = 0; i < g->sub; i++) {
        float code[N] ALIGNED;
        EACH_VEC(j) {
            const vec u = load(x[i] + j), a = load(inverse + j), xi = load(t->x[i] + j);
            vec q, from_0, weighted = xi;
            if (kind & NONLINEAR) {
                q = nonlinear_values(u, a);
                from_0 = nonlinear_codes(u, a);
            } else {
                q = linear_codes(u, a, load(offset + j), g, kind);
                from_0 = q - splat(g->lo);
            }
            store(code + j, from_0);
            if (kind & WEIGHTED) weighted *= load(t->w[i] + j);
            store(e->xx + j, load(e->xx + j) + weighted * xi);
            store(e->xq + j, load(e->xq + j) + weighted * q);
            if (kind & AFFINE) store(e->x + j, load(e->x + j) + weighted);
        }
        EACH(j) t->codes[i][j] = (uint8_t)(int32_t)code[j];
    }
}
