/* search.c: the encoders' search in vectors of four, for any CPU of the platform. */
#include "scalar.h"

#define LANES 4
#define SEARCH pmx_scalar_search

typedef float vec __attribute__((vector_size(16)));
typedef int32_t mask __attribute__((vector_size(16)));

PMX_INLINE vec vec_min(vec a, vec b) {
    const mask m = a < b;
    return (vec)(((mask)a & m) | ((mask)b & ~m));
}

PMX_INLINE vec vec_max(vec a, vec b) {
    const mask m = a > b;
    return (vec)(((mask)a & m) | ((mask)b & ~m));
}

#include "../../encode/search.h"
