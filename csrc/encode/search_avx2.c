/* search_avx2.c: the search in vectors of eight. */
#if defined(__x86_64__)
#include "../kernels/avx2/avx2.h"

PMX_AVX2_BEGIN
#define LANES 8
#define SEARCH pmx_search_avx2

typedef __m256 vec;

PMX_INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
PMX_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }

#include "search.h"
PMX_AVX2_END
#endif
