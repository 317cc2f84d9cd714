/* searched.c: rows of the types whose scales are searched for: tiles of sub-blocks in, packed
 * blocks out. */
#include <math.h>
#include <string.h>

#include "../blocks.h"
#include "encode.h"

enum { LANES = PMX_SEARCH_LANES };

/* A block's results, in order. */
typedef struct {
    uint16_t d, m;
    uint8_t scales[16], minimums[16]; /* scales counted from scale_lo; q6_k: as they are, in two's complement */
    uint8_t codes[PMX_BLOCK256];
    uint16_t entries[PMX_BLOCK256 / 4]; /* of a lattice: of each group */
    uint8_t signs[PMX_BLOCK256 / 8];    /* the same: of each 8 */
} found_block;

/* --- Packing: the layouts of blocks.h */

static void pack_nibbles(uint8_t *y, const uint8_t *codes, int64_t n, int half) {
    for (int64_t p = 0; p < n; p += 2 * half, y += half)
        for (int i = 0; i < half; i++) y[i] = (uint8_t)((codes[p + i] & 15) | (codes[p + half + i] & 15) << 4);
}

static void pack_crumbs(uint8_t *y, const uint8_t *codes, int shift) {
    for (int h = 0; h < 2; h++, y += 32, codes += 128)
        for (int i = 0; i < 32; i++) {
            unsigned byte = 0;
            for (int s = 0; s < 4; s++) byte |= (codes[32 * s + i] >> shift & 3u) << 2 * s;
            y[i] = (uint8_t)byte;
        }
}

static void pack_bits(uint8_t *y, const uint8_t *codes, int shift) {
    for (int i = 0; i < 32; i++) {
        unsigned byte = 0;
        for (int c = 0; c < 8; c++) byte |= (codes[32 * c + i] >> shift & 1u) << c;
        y[i] = (uint8_t)byte;
    }
}

static void pack_fifth_bits(uint8_t *y, const uint8_t *codes) {
    memset(y, 0, 4);
    for (int i = 0; i < 32; i++) y[i / 8] = (uint8_t)(y[i / 8] | (codes[i] >> 4 & 1) << i % 8);
}

static void pack_six_bits(uint8_t *y, const found_block *f) {
    for (int j = 0; j < 4; j++) {
        const unsigned s = f->scales[j], m = f->minimums[j], s4 = f->scales[4 + j], m4 = f->minimums[4 + j];
        y[j] = (uint8_t)(s | s4 >> 4 << 6);
        y[4 + j] = (uint8_t)(m | m4 >> 4 << 6);
        y[8 + j] = (uint8_t)((s4 & 15) | (m4 & 15) << 4);
    }
}

static void pack_q4_0(void *y, const found_block *f) {
    pmx_block_q4_0 *b = y;
    b->d = f->d;
    pack_nibbles(b->qs, f->codes, 32, 16);
}

static void pack_q4_1(void *y, const found_block *f) {
    pmx_block_q4_1 *b = y;
    b->d = f->d;
    b->m = f->m;
    pack_nibbles(b->qs, f->codes, 32, 16);
}

static void pack_q5_0(void *y, const found_block *f) {
    pmx_block_q5_0 *b = y;
    b->d = f->d;
    pack_fifth_bits(b->qh, f->codes);
    pack_nibbles(b->qs, f->codes, 32, 16);
}

static void pack_q5_1(void *y, const found_block *f) {
    pmx_block_q5_1 *b = y;
    b->d = f->d;
    b->m = f->m;
    pack_fifth_bits(b->qh, f->codes);
    pack_nibbles(b->qs, f->codes, 32, 16);
}

static void pack_q2_k(void *y, const found_block *f) {
    pmx_block_q2_k *b = y;
    b->d = f->d;
    b->dmin = f->m;
    for (int j = 0; j < 16; j++) b->scales[j] = (uint8_t)(f->scales[j] | f->minimums[j] << 4);
    pack_crumbs(b->qs, f->codes, 0);
}

static void pack_q3_k(void *y, const found_block *f) {
    pmx_block_q3_k *b = y;
    b->d = f->d;
    memset(b->scales, 0, sizeof b->scales);
    for (int j = 0; j < 16; j++) {
        b->scales[j % 8] = (uint8_t)(b->scales[j % 8] | (f->scales[j] & 15) << 4 * (j / 8));
        b->scales[8 + j % 4] = (uint8_t)(b->scales[8 + j % 4] | f->scales[j] >> 4 << 2 * (j / 4));
    }
    pack_bits(b->hmask, f->codes, 2);
    pack_crumbs(b->qs, f->codes, 0);
}

static void pack_q4_k(void *y, const found_block *f) {
    pmx_block_q4_k *b = y;
    b->d = f->d;
    b->dmin = f->m;
    pack_six_bits(b->scales, f);
    pack_nibbles(b->qs, f->codes, 256, 32);
}

static void pack_q5_k(void *y, const found_block *f) {
    pmx_block_q5_k *b = y;
    b->d = f->d;
    b->dmin = f->m;
    pack_six_bits(b->scales, f);
    pack_bits(b->qh, f->codes, 4);
    pack_nibbles(b->qs, f->codes, 256, 32);
}

static void pack_q6_k(void *y, const found_block *f) {
    pmx_block_q6_k *b = y;
    b->d = f->d;
    memcpy(b->scales, f->scales, 16);
    pack_nibbles(b->ql, f->codes, 256, 64);
    pack_crumbs(b->qh, f->codes, 4);
}

static void pack_iq4_xs(void *y, const found_block *f) {
    pmx_block_iq4_xs *b = y;
    unsigned high = 0;
    b->d = f->d;
    for (int j = 0; j < 8; j++) high |= (unsigned)(f->scales[j] >> 4) << 2 * j;
    b->scales_h = (uint16_t)high;
    for (int j = 0; j < 4; j++) b->scales_l[j] = (uint8_t)((f->scales[2 * j] & 15) | (f->scales[2 * j + 1] & 15) << 4);
    pack_nibbles(b->qs, f->codes, 256, 16);
}

static void pack_scales(uint8_t *y, const found_block *f, int n) {
    for (int j = 0; j < n / 2; j++) y[j] = (uint8_t)(f->scales[2 * j] | f->scales[2 * j + 1] << 4);
}

/* Of each 32: four times 7 signs, and a scale of 4 bits. */
static uint32_t signs_and_scale(const found_block *f, int j) {
    uint32_t word = (uint32_t)f->scales[j] << 28;
    for (int i = 0; i < 4; i++) word |= (uint32_t)(f->signs[4 * j + i] & 127) << 7 * i;
    return word;
}

static void pack_iq2_xxs(void *y, const found_block *f) {
    pmx_block_iq2_xxs *b = y;
    b->d = f->d;
    for (int j = 0; j < 8; j++) {
        const uint32_t word = signs_and_scale(f, j);
        for (int i = 0; i < 4; i++) b->qs[8 * j + i] = (uint8_t)f->entries[4 * j + i];
        memcpy(b->qs + 8 * j + 4, &word, sizeof word);
    }
}

static void pack_iq2_xs(void *y, const found_block *f) {
    pmx_block_iq2_xs *b = y;
    b->d = f->d;
    for (int i = 0; i < 32; i++) b->qs[i] = (uint16_t)(f->entries[i] | (f->signs[i] & 127) << 9);
    pack_scales(b->scales, f, 16);
}

static void pack_iq2_s(void *y, const found_block *f) {
    pmx_block_iq2_s *b = y;
    b->d = f->d;
    memset(b->qh, 0, sizeof b->qh);
    for (int i = 0; i < 32; i++) {
        b->qs[i] = (uint8_t)f->entries[i];
        b->qh[i / 4] = (uint8_t)(b->qh[i / 4] | f->entries[i] >> 8 << 2 * (i % 4));
    }
    memcpy(b->signs, f->signs, sizeof b->signs);
    pack_scales(b->scales, f, 16);
}

static void pack_iq3_xxs(void *y, const found_block *f) {
    pmx_block_iq3_xxs *b = y;
    b->d = f->d;
    for (int i = 0; i < 64; i++) b->qs[i] = (uint8_t)f->entries[i];
    for (int j = 0; j < 8; j++) {
        const uint32_t word = signs_and_scale(f, j);
        memcpy(b->scales + 4 * j, &word, sizeof word);
    }
}

static void pack_iq3_s(void *y, const found_block *f) {
    pmx_block_iq3_s *b = y;
    b->d = f->d;
    memset(b->qh, 0, sizeof b->qh);
    for (int i = 0; i < 64; i++) {
        b->qs[i] = (uint8_t)f->entries[i];
        b->qh[i / 8] = (uint8_t)(b->qh[i / 8] | f->entries[i] >> 8 << i % 8);
    }
    memcpy(b->signs, f->signs, sizeof b->signs);
    pack_scales(b->scales, f, 8);
}

typedef void pack_function(void *y, const found_block *f);

/* --- The types. The ranges were chosen by error per time on Gaussian, Laplacian and trained
 * weights: twice the candidates gain under 0.5% of error. */

#define PLAIN .sub = 32, .n_sub = 1
#define SUBS(N_SUB, SCALE_LO, SCALE_HI) .sub = 256 / N_SUB, .n_sub = N_SUB, .scale_lo = SCALE_LO, .scale_hi = SCALE_HI
#define CODES(LO, HI) .lo = LO, .hi = HI
#define DOWN(FIRST, STEP, COUNT) .down = {FIRST, STEP, COUNT}
#define UP(FIRST, STEP, COUNT) .up = {FIRST, STEP, COUNT}
#define ENTRIES(LATTICE) .lattice = &pmx_lattices[LATTICE]
#define AFFINE(FIRST, STEP) .affine = 1, .steps = {FIRST, STEP, 6}, .offsets = {0.125f, -0.3125f, 4}

static const struct {
    pack_function *pack;
    pmx_grid grid;
} types[PMX_TYPE_SLOTS] = {
    [PMX_Q4_0] = {pack_q4_0, {PLAIN, CODES(-8, 7), DOWN(6.5f, 0.25f, 12), UP(6.5f, 0.25f, 6)}},
    [PMX_Q5_0] = {pack_q5_0, {PLAIN, CODES(-16, 15), DOWN(14.5f, 0.25f, 12), UP(14.5f, 0.25f, 6)}},
    [PMX_IQ4_NL] = {pack_q4_0, {PLAIN, .nonlinear = 1, DOWN(95, 4, 13), UP(95, 4, 9)}},
    [PMX_Q4_1] = {pack_q4_1, {PLAIN, CODES(0, 15), AFFINE(14.25f, 0.5f)}},
    [PMX_Q5_1] = {pack_q5_1, {PLAIN, CODES(0, 31), AFFINE(30.25f, 0.5f)}},
    [PMX_Q2_K] = {pack_q2_k, {SUBS(16, 0, 15), CODES(0, 3), AFFINE(2.25f, 0.375f)}},
    [PMX_Q3_K] = {pack_q3_k, {SUBS(16, -32, 31), CODES(-4, 3), DOWN(2.75f, 0.25f, 9), UP(2.75f, 0.25f, 5)}},
    [PMX_Q4_K] = {pack_q4_k, {SUBS(8, 0, 63), CODES(0, 15), AFFINE(14.25f, 0.5f)}},
    [PMX_Q5_K] = {pack_q5_k, {SUBS(8, 0, 63), CODES(0, 31), AFFINE(30.25f, 0.5f)}},
    [PMX_Q6_K] = {pack_q6_k, {SUBS(16, -128, 127), CODES(-32, 31), DOWN(31, 0.25f, 9)}},
    [PMX_IQ4_XS] = {pack_iq4_xs, {SUBS(8, -32, 31), .nonlinear = 1, DOWN(95, 4, 13), UP(95, 4, 9)}},
    [PMX_IQ2_XXS] = {pack_iq2_xxs, {SUBS(8, 0.5f, 15.5f), ENTRIES(PMX_LATTICE_IQ2_XXS), UP(2, 3, 7)}},
    [PMX_IQ2_XS] = {pack_iq2_xs, {SUBS(16, 0.5f, 15.5f), ENTRIES(PMX_LATTICE_IQ2_XS), UP(2, 3, 7)}},
    [PMX_IQ2_S] = {pack_iq2_s, {SUBS(16, 0.5f, 15.5f), ENTRIES(PMX_LATTICE_IQ2_S), UP(2, 3, 7)}},
    [PMX_IQ3_XXS] = {pack_iq3_xxs, {SUBS(8, 0.5f, 15.5f), ENTRIES(PMX_LATTICE_IQ3_XXS), UP(2, 6.5f, 8)}},
    [PMX_IQ3_S] = {pack_iq3_s, {SUBS(8, 0.5f, 15.5f), ENTRIES(PMX_LATTICE_IQ3_S), UP(2, 6.5f, 8)}},
};

/* --- Rows */

/* n numbers into [element][sub-block], and `beyond` after them. */
static void fill(float (*to)[LANES], const float *from, int32_t sub, int64_t n, float beyond) {
    if (n < (int64_t)LANES * sub)
        for (int i = 0; i < sub; i++)
            for (int j = 0; j < LANES; j++) to[i][j] = beyond;
    for (int j = 0; j < LANES && (int64_t)j * sub < n; j++)
        for (int i = 0; i < sub; i++) to[i][j] = from[j * sub + i];
}

/* The block whose first sub-block is `lane` of the tile. */
static void take(found_block *f, const pmx_tile *t, const pmx_grid *g, int lane, int32_t type) {
    const int offset = type == PMX_Q6_K ? 0 : (int)g->scale_lo;
    f->d = pmx_f32_to_f16(t->d[lane]);
    f->m = g->affine ? pmx_f32_to_f16(g->n_sub > 1 ? t->m[lane] : -t->m[lane]) : 0;
    for (int j = 0; j < g->n_sub; j++) {
        f->scales[j] = (uint8_t)((int)t->scale[lane + j] - offset); /* of a lattice without its half */
        f->minimums[j] = g->affine ? (uint8_t)t->minimum[lane + j] : 0;
        for (int i = 0; i < g->sub; i++) f->codes[j * g->sub + i] = t->codes[i][lane + j];
        if (!g->lattice) continue;
        const int groups = g->sub / g->lattice->group, eights = g->sub / 8;
        for (int i = 0; i < groups; i++) f->entries[j * groups + i] = t->entries[i][lane + j];
        for (int i = 0; i < eights; i++) f->signs[j * eights + i] = t->signs[i][lane + j];
    }
}

int pmx_encode_searches(int32_t type) { return types[type].pack != NULL; }

int pmx_encode_searched(const pmx_kernels *kernels, int32_t type, void *y, const float *x, const float *weight,
                        int64_t cols) {
    const pmx_grid *g = &types[type].grid;
    const int64_t block = (int64_t)g->sub * g->n_sub, block_bytes = pmx_row_bytes(type, block);
    pmx_tile tile __attribute__((aligned(64)));
    found_block found;
    int large = 0;
    if (g->lattice) pmx_lattices_prepare();
    tile.weighted = weight != NULL;
    for (int64_t i = 0; i < cols; i++) large |= fabsf(x[i]) >= 0x1p40f;
    if (large) return 1;
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < LANES; j++) tile.w[i][j] = 1.0f;
    for (int64_t at = 0; at < cols; at += (int64_t)LANES * g->sub) {
        const int64_t n = cols - at < (int64_t)LANES * g->sub ? cols - at : (int64_t)LANES * g->sub;
        fill(tile.x, x + at, g->sub, n, 0.0f);
        if (weight) fill(tile.w, weight + at, g->sub, n, 1.0f);
        if (kernels->search(&tile, g)) return 1;
        for (int lane = 0; lane < LANES && at + (int64_t)lane * g->sub < cols; lane += g->n_sub) {
            take(&found, &tile, g, lane, type);
            types[type].pack(y, &found);
            y = (uint8_t *)y + block_bytes;
        }
    }
    return 0;
}
