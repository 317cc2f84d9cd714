/* search.c: the encoders' search in vectors of sixteen. */
#if defined(__x86_64__)
#include "avx512vnni.h"

PMX_AVX512VNNI_BEGIN
#define LANES 16
#define SEARCH pmx_avx512vnni_search

typedef __m512 vec;

PMX_INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
PMX_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }

#include "../../encode/search.h"
PMX_AVX512VNNI_END
#endif
