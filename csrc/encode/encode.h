/* encode.h: what the files of the encoders share. */
#ifndef PMX_ENCODE_H
#define PMX_ENCODE_H

#include <stdint.h>

#include "../kernels.h"

/* --- blocks32.c: the types in blocks of 32 as gguf-py encodes them, without a search. Nonzero: a
 * scale overflows f16. */
int pmx_encode_q8_0(void *y, const float *x, int64_t cols);
int pmx_encode_q4_0(void *y, const float *x, int64_t cols);
int pmx_encode_q4_1(void *y, const float *x, int64_t cols);
int pmx_encode_q5_0(void *y, const float *x, int64_t cols);
int pmx_encode_q5_1(void *y, const float *x, int64_t cols);

/* --- searched.c: the types whose scales are searched for. */
int pmx_encode_searches(int32_t type);
/* One row. weight: [cols], positive, what the squared error of a column counts; NULL: 1. Nonzero: a
 * scale overflows f16. */
int pmx_encode_searched(const pmx_kernels *kernels, int32_t type, void *y, const float *x, const float *weight,
                        int64_t cols);

/* --- search.h and codes.h, once per instruction set */

enum { PMX_SEARCH_LANES = 16 };

/* Values first, first + step, ...: all of them exact. */
typedef struct {
    float first, step;
    int32_t count;
} pmx_range;

/* lattices.c: a type whose codes are entries of a table of 4 or 8 magnitudes. quantize/encoders/lattices.py
 * says what they are and how they are chosen. */
enum { PMX_NEIGHBOURS = 16 };
typedef struct {
    int32_t group, levels; /* weights of an entry; different magnitudes */
    int32_t even;          /* of each 8 weights an even number is negative */
    int32_t n_entries;
    const uint16_t *entries; /* codes of kernels/lattices.h */
    uint8_t values[8];       /* magnitudes in units */
    float unit;              /* over the scale: a power of two */
    float least, per_step;   /* over the scale: the least magnitude; 1 / the distance of two */
    uint32_t *near_values;   /* [points][group / 4][PMX_NEIGHBOURS]: magnitudes of the entries nearest to a point,
                                those of four weights in a word, the first one lowest */
    uint16_t *near;          /* [points][PMX_NEIGHBOURS] their numbers */
} pmx_lattice;
enum {
    PMX_LATTICE_IQ2_XXS,
    PMX_LATTICE_IQ2_XS,
    PMX_LATTICE_IQ2_S,
    PMX_LATTICE_IQ3_XXS,
    PMX_LATTICE_IQ3_S,
    PMX_N_LATTICES
};
extern const pmx_lattice pmx_lattices[PMX_N_LATTICES];
/* Fills near_values and near of all of them, once in a process; some 0.1 s. */
void pmx_lattices_prepare(void);

/* How a type represents 16 or 32 weights with one scale, and what the search tries. */
struct pmx_grid {
    int32_t sub;                /* weights of a sub-block */
    int32_t n_sub;              /* sub-blocks that share d (and dmin), 8 or 16; 1: a block of 32, which has a
                                 scale of its own */
    int32_t nonlinear;          /* codes stand for PMX_IQ4_VALUES, else for lo..hi */
    int32_t affine;             /* a minimum is subtracted */
    float lo, hi;               /* codes */
    float scale_lo, scale_hi;   /* integer scales, and minimums */
    pmx_range down, up;         /* symmetric: inverse scales times the weight of largest magnitude, negative
                                 and positive */
    pmx_range steps, offsets;   /* affine: inverse scales times the range of the weights; offsets in codes */
    const pmx_lattice *lattice; /* or NULL. Codes are its entries, `up` what is tried, integer scales whole numbers
                                   and a half */
};

/* Up to 16 sub-blocks side by side, those of one block next to each other. Aligned to 64 bytes. */
struct pmx_tile {
    float x[32][PMX_SEARCH_LANES], w[32][PMX_SEARCH_LANES]; /* element i of sub-block j; its weight */
    float wx[32][PMX_SEARCH_LANES];                         /* scratch of a lattice's search: w * x */
    float scale[PMX_SEARCH_LANES],
        minimum[PMX_SEARCH_LANES]; /* out, of each sub-block, integers (of a lattice and a half); n_sub 1: none */
    float d[PMX_SEARCH_LANES], m[PMX_SEARCH_LANES]; /* out, of each sub-block its block's: exact in f16 */
    uint8_t codes[32][PMX_SEARCH_LANES];            /* out, from 0 */
    uint16_t entries[8][PMX_SEARCH_LANES];          /* out, of a lattice: of each group */
    uint8_t signs[4][PMX_SEARCH_LANES];             /* the same, of each 8: bit i: weight i is negative */
    int32_t weighted;                               /* 0: every w is 1 */
};

/* pmx_search (kernels.h) finds what `out` says. It returns nonzero when a d or m overflows f16; the
 * rest is then undefined. Of a lattice it overwrites x. |x| below 2^40; w from 2^-20 to 2^20. */

#endif
