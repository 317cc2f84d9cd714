/* matmul32.c: the kernels of matmul32.h for each type in blocks of 32. */
#if defined(__x86_64__)
#include "matmul32.h"

PMX_AVX2_BEGIN

#define TYPE(T, TILE, ...)                                                                                             \
    static const type32 T = {unpack_##T, sizeof(pmx_block_##T), __VA_ARGS__};                                          \
    void pmx_avx2_vec_##T(const pmx_product *p) { PMX_WITH_HINT(vec32, *p, T); }                                       \
    void pmx_avx2_mat_##T(const pmx_product *p) { mat32(*p, TILE, T); }                                                \
    void pmx_avx2_dequantize_##T(float *y, const uint8_t *w, int64_t n) { dequantize32(y, w, n, T); }

TYPE(q4_0, tile_unsigned, .n_sums = 8, .offset = 8)
TYPE(q4_1, tile_unsigned, .n_sums = 8, .has_min = 1)
TYPE(q5_0, tile_unsigned, .n_sums = 4, .offset = 16)
TYPE(q5_1, tile_unsigned, .n_sums = 4, .has_min = 1)
TYPE(q8_0, tile_signed, .n_sums = 1)
TYPE(iq4_nl, tile_signed, .n_sums = 1)
TYPE(mxfp4, tile_unsigned, .n_sums = 4, .offset = 12, .is_power = 1)

PMX_AVX2_END
#endif
