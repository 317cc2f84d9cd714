/* search.c: the encoders' search in vectors of eight. */
#if defined(__x86_64__)
#include "avx2.h"

PMX_AVX2_BEGIN
#define LANES 8
#define SEARCH pmx_avx2_search

typedef __m256 vec;

PMX_INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
PMX_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }

#include "../../encode/search.h"
PMX_AVX2_END
#endif
