/* elementwise.c: norm, activation quantization, exp, SiLU, RoPE and conversions, 8 lanes at a time.
 */
#if defined(__x86_64__)
#include <math.h>
#include <string.h>

#include "avx2.h"

PMX_AVX2_BEGIN

void pmx_avx2_rms_norm(float *y, const float *x, const float *w, int64_t n, float eps) {
    const __m256i tail = first_lanes(n % 8);
    const int64_t whole = n - n % 8;
    __m256 s = _mm256_setzero_ps();
    for (int64_t i = 0; i < whole; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        s = _mm256_fmadd_ps(v, v, s);
    }
    if (whole < n) {
        const __m256 v = _mm256_maskload_ps(x + whole, tail);
        s = _mm256_fmadd_ps(v, v, s);
    }
    const float r = pmx_rms_scale(sum8_tree(s), n, eps);
    const __m256 r8 = _mm256_set1_ps(r);
    for (int64_t i = 0; i < whole; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), r8), _mm256_loadu_ps(w + i)));
    for (int64_t i = whole; i < n; i++) y[i] = (x[i] * r) * w[i];
}

/* The largest bits of |x| over n elements, as an integer. */
PMX_INLINE uint32_t magnitude_bits(const float *x, const int n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 8)
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), magnitude));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* 32 values times inverse, rounded; returns the sums of each half. */
PMX_INLINE __m128i quantize_32(int8_t *q, const float *x, __m256 inverse) {
    __m256i v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    /* packs works within 128-bit lanes: dwords come out as 0 2 4 6 1 3 5 7 */
    _mm256_storeu_si256((__m256i *)(void *)q,
                        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    const __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3]));
    const __m128i quads = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    return _mm_hadd_epi32(quads, quads);
}

PMX_INLINE int quantize(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n, const int block) {
    int nonfinite = 0;
    for (int64_t b = 0; b < n / block; b++, x += block, q += block) {
        const uint32_t bits = magnitude_bits(x, block);
        const float amax = pmx_f32_from_bits(bits);
        const int bad = bits >= 0x7f800000u, empty = bad || amax < PMX_TINY_AMAX;
        nonfinite |= bad;
        d[b] = empty ? 0.0f : amax / 127.0f;
        if (empty) {
            memset(q, 0, (size_t)block);
            memset(sums, 0, (block == 32 ? 1 : 16) * sizeof *sums);
        }
        const __m256 inverse = _mm256_set1_ps(127.0f / amax);
        for (int i = 0; i < block && !empty; i += 32) {
            const __m128i halves = quantize_32(q + i, x + i, inverse);
            if (block == 32)
                sums[0] = _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 1);
            else
                _mm_storel_epi64((__m128i *)(void *)(sums + i / 16), halves);
        }
        sums += block == 32 ? 1 : 16;
    }
    return nonfinite;
}

int pmx_avx2_quantize32(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    return quantize(q, d, sums, x, n, 32);
}

int pmx_avx2_quantize256(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    return quantize(q, d, sums, x, n, 256);
}

void pmx_avx2_exp(float *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, exp8(_mm256_loadu_ps(x + i)));
    if (i < n) _mm256_maskstore_ps(y + i, first_lanes(n - i), exp8(_mm256_maskload_ps(x + i, first_lanes(n - i))));
}

PMX_INLINE __m256 silu_mul8(__m256 gate, __m256 up) {
    const __m256 e = exp8(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), up);
}

void pmx_avx2_silu_mul(float *y, const float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, silu_mul8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i < n) {
        const __m256i tail = first_lanes(n - i);
        _mm256_maskstore_ps(y + i, tail,
                            silu_mul8(_mm256_maskload_ps(gate + i, tail), _mm256_maskload_ps(up + i, tail)));
    }
}

void pmx_avx2_axpy(float *y, float a, const float *x, int64_t n) {
    const __m256 a8 = _mm256_set1_ps(a);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(a8, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

/* N vectors of y stay in registers for all rows. */
PMX_INLINE void add_vectors(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, const int N) {
    __m256 sums[8];
    for (int k = 0; k < N; k++) sums[k] = _mm256_loadu_ps(y + 8 * k);
    for (int64_t r = 0; r < n_rows; r++, x += stride) {
        const __m256 a8 = _mm256_broadcast_ss(a + r);
        for (int k = 0; k < N; k++) sums[k] = _mm256_fmadd_ps(a8, _mm256_loadu_ps(x + 8 * k), sums[k]);
    }
    for (int k = 0; k < N; k++) _mm256_storeu_ps(y + 8 * k, sums[k]);
}

void pmx_avx2_add_rows(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n) {
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) add_vectors(y + i, a, x + i, stride, n_rows, 8);
    for (; i + 32 <= n; i += 32) add_vectors(y + i, a, x + i, stride, n_rows, 4);
    for (; i + 8 <= n; i += 8) add_vectors(y + i, a, x + i, stride, n_rows, 1);
    for (; i < n; i++)
        for (int64_t r = 0; r < n_rows; r++) y[i] = fmaf(a[r], x[r * stride + i], y[i]);
}

void pmx_avx2_rope(float *x, const float *cosines, const float *sines, int64_t n_pairs) {
    const __m256 negate_even = _mm256_setr_ps(-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f);
    int64_t i = 0;
    for (; i + 4 <= n_pairs; i += 4) {
        const __m256 v = _mm256_loadu_ps(x + 2 * i);
        const __m128 c = _mm_loadu_ps(cosines + i), s = _mm_loadu_ps(sines + i);
        const __m256 cs = _mm256_set_m128(_mm_unpackhi_ps(c, s), _mm_unpacklo_ps(c, s)); /* c0 s0 c1 s1 ... */
        const __m256 sc = _mm256_permute_ps(cs, 0xb1);                                   /* s0 c0 s1 c1 ... */
        const __m256 t = _mm256_xor_ps(_mm256_mul_ps(_mm256_movehdup_ps(v), sc), negate_even);
        _mm256_storeu_ps(x + 2 * i, _mm256_fmadd_ps(_mm256_moveldup_ps(v), cs, t));
    }
    for (; i < n_pairs; i++) {
        const float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = fmaf(x0, cosines[i], -(x1 * sines[i]));
        x[2 * i + 1] = fmaf(x0, sines[i], x1 * cosines[i]);
    }
}

void pmx_avx2_narrow(uint16_t *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(y + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) y[i] = pmx_f32_to_f16(x[i]);
}

void pmx_avx2_widen(float *y, const uint16_t *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(x + i))));
    for (; i < n; i++) y[i] = pmx_f16_to_f32(x[i]);
}

PMX_AVX2_END
#endif
