/* search_avx512.c: the search in vectors of sixteen. */
#if defined(__x86_64__)
#include "../kernels/avx512vnni/avx512vnni.h"

PMX_AVX512VNNI_BEGIN
#define LANES 16
#define SEARCH pmx_search_avx512

typedef __m512 vec;

PMX_INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
PMX_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }

#include "search.h"
PMX_AVX512VNNI_END
#endif
