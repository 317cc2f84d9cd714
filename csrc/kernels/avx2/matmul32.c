/* matmul32.c: the types in blocks of 32: how their integers become bytes, and the kernels of matmul32.h for each. */
#if defined(__x86_64__)
#include "matmul32.h"

#include <stddef.h>

PMX_AVX2_BEGIN

PMX_INLINE __m256i unpack_q4_0(const uint8_t *block) { return load_nibbles(block + offsetof(pmx_block_q4_0, qs)); }

PMX_INLINE __m256i unpack_q4_1(const uint8_t *block) { return load_nibbles(block + offsetof(pmx_block_q4_1, qs)); }

PMX_INLINE __m256i unpack_q5_0(const uint8_t *block) {
    return _mm256_or_si256(load_nibbles(block + offsetof(pmx_block_q5_0, qs)), load_fifth_bits(block + offsetof(pmx_block_q5_0, qh)));
}

PMX_INLINE __m256i unpack_q5_1(const uint8_t *block) {
    return _mm256_or_si256(load_nibbles(block + offsetof(pmx_block_q5_1, qs)), load_fifth_bits(block + offsetof(pmx_block_q5_1, qh)));
}

PMX_INLINE __m256i unpack_q8_0(const uint8_t *block) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(block + offsetof(pmx_block_q8_0, qs)));
}

PMX_INLINE __m256i unpack_iq4_nl(const uint8_t *block) {
    const __m256i values = _mm256_setr_epi8(PMX_IQ4_VALUES, PMX_IQ4_VALUES);
    return _mm256_shuffle_epi8(values, load_nibbles(block + offsetof(pmx_block_iq4_nl, qs)));
}

#define TYPE(T, ...)                                                                                                                       \
    static const type32 T = {unpack_##T, sizeof(pmx_block_##T), __VA_ARGS__};                                                              \
    void pmx_avx2_vec_##T(float *y, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts, int64_t token) {            \
        vec32(y, w, row_bytes, n_rows, acts, token, T);                                                                                    \
    }                                                                                                                                      \
    void pmx_avx2_mat_##T(float *y, int64_t ldy, const uint8_t *w, int64_t row_bytes, int64_t n_rows, const pmx_acts *acts,                \
                          const int32_t *tokens, int64_t n_tokens, void *scratch) {                                                        \
        mat32(y, ldy, w, row_bytes, n_rows, acts, tokens, n_tokens, scratch, T);                                                           \
    }                                                                                                                                      \
    void pmx_avx2_dequantize_##T(float *y, const uint8_t *w, int64_t n) { dequantize32(y, w, n, T); }

TYPE(q4_0, .n_sums = 8, .offset = 8)
TYPE(q4_1, .n_sums = 8, .has_min = 1)
TYPE(q5_0, .n_sums = 4, .offset = 16)
TYPE(q5_1, .n_sums = 4, .has_min = 1)
TYPE(q8_0, .n_sums = 1)
TYPE(iq4_nl, .n_sums = 1)

PMX_AVX2_END
#endif
