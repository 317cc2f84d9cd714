/* nearest.h: the entries of a lattice that are nearest to groups of weights: what a candidate costs in
 * search.h. Included by it after codes.h, once per instruction set. The oracle is quantize/encoders/lattices.py.
 *
 * The lanes of a register are not sub-blocks here but the neighbours of one group's point, of which
 * the one with the least error is sought. All 16 are read in order from one place, 64 or 128 bytes
 * that are mostly in the second cache; a table of floats would be four times as large. */

_Static_assert((int)PMX_NEIGHBOURS == (int)N,
               "a group's neighbours are as many as sub-blocks are searched side by side");

typedef int32_t quad __attribute__((vector_size(16)));

/* Takes the signs off x, and makes the number of negative ones of each 8 even, if the type wants that:
 * by a wrong sign for that of least w * |x| * (|x| + mean), the first of several. */
PMX_INLINE void take_signs(pmx_tile *t, const pmx_grid *g) {
    const ivec one = -((ivec){0} == 0);
    for (int e = 0; e < g->sub / 8; e++) EACH_VEC(j) {
            float(*x)[N] = t->x + 8 * e;
            ivec signs = {0}, odd = {0}, at = {0};
            vec total = {0}, least = {0};
            for (int i = 0; i < 8; i++) {
                const vec xi = load(x[i] + j);
                const ivec negative = (ivec)xi < 0;
                signs |= negative & one << i;
                odd ^= negative;
                total += magnitude(xi);
                store(x[i] + j, magnitude(xi));
            }
            if (g->lattice->even) {
                for (int i = 0; i < 8; i++) {
                    const vec xi = load(x[i] + j);
                    const vec cost = load(t->w[8 * e + i] + j) * xi * (xi + total * splat(0.125f));
                    const ivec lower = i == 0 ? (ivec){0} == 0 : cost < least;
                    least = pick(lower, cost, least);
                    at = (at & ~lower) | ((one << i) & lower);
                }
                at &= odd;
                signs ^= at;
                for (int i = 0; i < 8; i++) {
                    const ivec wrong = (at & one << i) != 0;
                    const ivec flipped = (ivec)load(x[i] + j) ^ (wrong & INT32_MIN);
                    store(x[i] + j, (vec)flipped);
                }
            }
            for (int i = 0; i < 8; i++) store(t->wx[8 * e + i] + j, load(t->w[8 * e + i] + j) * load(x[i] + j));
            for (int k = 0; k < LANES; k++) t->signs[e][j + k] = (uint8_t)signs[k];
        }
}

/* The numbers of the points that the groups of the lanes from j on are rounded to. */
PMX_INLINE void find_points(int32_t (*point)[LANES], const pmx_tile *t, int j, vec inverse, const pmx_grid *g,
                            int group) {
    const pmx_lattice *l = g->lattice;
    const vec least = splat(l->least), per_step = splat(l->per_step), levels = splat((float)l->levels);
    for (int at = 0; at < g->sub / group; at++) {
        vec number = {0};
        for (int i = 0; i < group; i++) {
            const vec v = (load(t->x[at * group + i] + j) * inverse - least) * per_step;
            number = number * levels + clamped(rounded(v), 0.0f, (float)(l->levels - 1));
        }
        const ivec whole = __builtin_convertvector(number, ivec);
        memcpy(point[at], &whole, sizeof whole);
    }
}

/* Of each neighbour the sums of w*q*q and w*q*x over a group, q in units. */
typedef struct {
    float qq[N] ALIGNED, xq[N] ALIGNED;
} neighbour_sums;

/* The neighbour of least error; of those that agree but for the last 4 bits of it the first. values:
 * its point's; x: the sub-block's first magnitude of the group, w, wx likewise. */
PMX_INLINE int nearest_of(neighbour_sums *s, const uint32_t *values, const float (*w)[N], const float (*wx)[N],
                          int lane, float twice, int group) {
    static const int32_t numbers[N] ALIGNED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    ivec lowest = {0};
    EACH_VEC(k) {
        vec qq = {0}, xq = {0};
        for (int i = 0; i < group; i++) {
            const ivec words = *(const ivec *)(values + i / 4 * N + k) >> 8 * (i % 4);
            const vec q = __builtin_convertvector(words & 255, vec);
            qq += splat(w[i][lane]) * (q * q);
            xq += splat(wx[i][lane]) * q;
        }
        store(s->qq + k, qq);
        store(s->xq + k, xq);
        ivec key = (ivec)(qq - splat(twice) * xq);
        key ^= key >> 31 & 0x7fffffff; /* ordered as the floats are */
        key = (key & ~(N - 1)) | *(const ivec *)(numbers + k);
        lowest = k == 0 ? key : (lowest & (lowest < key)) | (key & ~(lowest < key));
    }
    quad four;
    memcpy(&four, &lowest, sizeof four);
    for (int k = 4; k < LANES; k += 4) {
        quad others;
        memcpy(&others, (const char *)&lowest + 4 * k, sizeof others);
        four = (four & (four < others)) | (others & ~(four < others));
    }
    const int32_t a = four[0] < four[1] ? four[0] : four[1], b = four[2] < four[3] ? four[2] : four[3];
    const int32_t least = a < b ? a : b;
    return least & (N - 1);
}

/* Of the lanes from j on the sums of w*q*q and w*q*x over the sub-blocks; entries and codes (q in units)
 * are written to keep, if it is not NULL. */
PMX_INLINE vec_sums nearest_sums(const pmx_tile *t, int j, vec inverse, const pmx_grid *g, pmx_tile *keep, int group) {
    const pmx_lattice *l = g->lattice;
    int32_t point[8][LANES] ALIGNED;
    float qq[LANES] ALIGNED = {0}, xq[LANES] ALIGNED = {0}, twice[LANES] ALIGNED;
    const ivec bits = (ivec)((inverse + inverse) * splat(1.0f / l->unit));
    store(twice, (vec)(bits & ((bits & 0x7fffffff) < 0x7f800000)));
    find_points(point, t, j, inverse, g, group);
    for (int at = 0; at < g->sub / group; at++)
        for (int k = 0; k < LANES; k++) {
            const int32_t p = point[at][k];
            const uint32_t *values = l->near_values + p * (group / 4) * N;
            neighbour_sums s;
            const int best = nearest_of(&s, values, (const float(*)[N])t->w + at * group,
                                        (const float(*)[N])t->wx + at * group, j + k, twice[k], group);
            qq[k] += s.qq[best];
            xq[k] += s.xq[best];
            if (!keep) continue;
            keep->entries[at][j + k] = l->near[p * N + best];
            for (int i = 0; i < group; i++)
                keep->codes[at * group + i][j + k] = (uint8_t)(values[i / 4 * N + best] >> 8 * (i % 4));
        }
    return (vec_sums){.qq = load(qq) * splat(l->unit * l->unit), .xq = load(xq) * splat(l->unit)};
}

/* As codes_of. */
PMX_INLINE void entries_of(explained *e, pmx_tile *t, const float *inverse, const pmx_grid *g, int group) {
    EACH_VEC(j) nearest_sums(t, j, load(inverse + j), g, t, group);
    memset(e, 0, sizeof *e);
    for (int i = 0; i < g->sub; i++) {
        float q[N] ALIGNED;
        EACH(j) q[j] = (float)t->codes[i][j] * g->lattice->unit;
        EACH_VEC(j) {
            const vec xi = load(t->x[i] + j), weighted = xi * load(t->w[i] + j);
            store(e->xx + j, load(e->xx + j) + weighted * xi);
            store(e->xq + j, load(e->xq + j) + weighted * load(q + j));
        }
    }
}
