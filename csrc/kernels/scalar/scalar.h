/* scalar.h: what the files of the scalar kernels share. */
#ifndef PMX_SCALAR_H
#define PMX_SCALAR_H

#include <stddef.h>

#include "../../kernels.h"

/* search.c */
pmx_search pmx_scalar_search;

/* types_float.c, types32.c, kquants.c, dequantized.c */
#define PMX_SCALAR_VEC(NAME, T, FORM, ELEMENTS) pmx_multiply pmx_scalar_vec_##T;
#define PMX_SCALAR_DEQUANTIZE(NAME, T, FORM, ELEMENTS) pmx_dequantize pmx_scalar_dequantize_##T;
PMX_TYPES_MULTIPLIED(PMX_SCALAR_VEC)
PMX_TYPES(PMX_SCALAR_DEQUANTIZE)

/* A type without products of its own, in the table of an instruction set. */
#define PMX_DEQUANTIZED(NAME, T, FORM, ELEMENTS) [PMX_##NAME] = {FORM, NULL, NULL, NULL, 0, pmx_scalar_dequantize_##T},

/* The tree of sum8 over its eight partials. */
static inline float pmx_sum8_tree(const float s[8]) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

#endif
