/* lattices.c: for each point of a lattice's magnitudes the entries nearest to it. */
#include <pthread.h>

#include "../kernels/lattices.h"
#include "encode.h"

enum { POINTS2 = 6561 /* 3^8 */, POINTS3 = 4096 /* 8^4 */ };

static uint32_t values_iq2_xxs[POINTS2 * 2 * PMX_NEIGHBOURS] __attribute__((aligned(64)));
static uint32_t values_iq2_xs[POINTS2 * 2 * PMX_NEIGHBOURS] __attribute__((aligned(64)));
static uint32_t values_iq2_s[POINTS2 * 2 * PMX_NEIGHBOURS] __attribute__((aligned(64)));
static uint32_t values_iq3_xxs[POINTS3 * PMX_NEIGHBOURS] __attribute__((aligned(64)));
static uint32_t values_iq3_s[POINTS3 * PMX_NEIGHBOURS] __attribute__((aligned(64)));
static uint16_t near_iq2_xxs[POINTS2 * PMX_NEIGHBOURS];
static uint16_t near_iq2_xs[POINTS2 * PMX_NEIGHBOURS], near_iq2_s[POINTS2 * PMX_NEIGHBOURS];
static uint16_t near_iq3_xxs[POINTS3 * PMX_NEIGHBOURS], near_iq3_s[POINTS3 * PMX_NEIGHBOURS];

#define TABLES(T)                                                                                                      \
    .entries = pmx_codes_##T, .n_entries = sizeof pmx_codes_##T / sizeof *pmx_codes_##T, .near_values = values_##T,    \
    .near = near_##T
#define BITS2 .group = 8, .levels = 3, .values = {8, 25, 43}, .unit = 0.25f, .least = 2, .per_step = 2 / 8.75f
#define BITS3 .group = 4, .levels = 8, .least = 2, .per_step = 0.25f

const pmx_lattice pmx_lattices[PMX_N_LATTICES] = {
    [PMX_LATTICE_IQ2_XXS] = {BITS2, .even = 1, TABLES(iq2_xxs)},
    [PMX_LATTICE_IQ2_XS] = {BITS2, .even = 1, TABLES(iq2_xs)},
    [PMX_LATTICE_IQ2_S] = {BITS2, TABLES(iq2_s)},
    [PMX_LATTICE_IQ3_XXS] = {BITS3, .even = 1, .values = {PMX_IQ3_XXS_VALUES}, .unit = 0.5f, TABLES(iq3_xxs)},
    [PMX_LATTICE_IQ3_S] = {BITS3, .values = {PMX_IQ3_S_VALUES}, .unit = 2, TABLES(iq3_s)},
};

static int magnitude(const pmx_lattice *l, int entry, int i) {
    const int bits = 16 / l->group;
    return l->values[l->entries[entry] >> bits * i & ((1 << bits) - 1)];
}

/* The entries nearest to a point, of two as near the first one first. */
static void find_near(uint16_t *near, const pmx_lattice *l, const int *point) {
    int found[PMX_NEIGHBOURS], n = 0;
    for (int entry = 0; entry < l->n_entries; entry++) {
        int distance = 0;
        for (int i = 0; i < l->group; i++) {
            const int d = point[i] - magnitude(l, entry, i);
            distance += d * d;
        }
        if (n == PMX_NEIGHBOURS && distance >= found[n - 1]) continue;
        int at = n < PMX_NEIGHBOURS ? n++ : n - 1;
        for (; at > 0 && distance < found[at - 1]; at--) {
            found[at] = found[at - 1];
            near[at] = near[at - 1];
        }
        found[at] = distance;
        near[at] = (uint16_t)entry;
    }
}

static void prepare(void) {
    for (const pmx_lattice *l = pmx_lattices; l < pmx_lattices + PMX_N_LATTICES; l++)
        for (int p = 0; p < (l->group == 8 ? POINTS2 : POINTS3); p++) {
            uint16_t *near = l->near + p * PMX_NEIGHBOURS;
            uint32_t *values = l->near_values + p * (l->group / 4) * PMX_NEIGHBOURS;
            int point[8];
            for (int i = l->group - 1, rest = p; i >= 0; i--, rest /= l->levels) point[i] = l->values[rest % l->levels];
            find_near(near, l, point);
            for (int i = 0; i < l->group; i++)
                for (int k = 0; k < PMX_NEIGHBOURS; k++)
                    values[i / 4 * PMX_NEIGHBOURS + k] |= (uint32_t)magnitude(l, near[k], i) << 8 * (i % 4);
        }
}

void pmx_lattices_prepare(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);
}
