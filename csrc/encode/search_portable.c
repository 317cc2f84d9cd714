/* search_portable.c: the search in vectors of four, for any CPU of the platform. */
#include <stdint.h>

#define PMX_INLINE static inline __attribute__((always_inline))
#define LANES 4
#define SEARCH pmx_search_portable

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

#include "search.h"
