/* elementwise.c: norm, activation quantization, exp, SiLU, RoPE and conversions, 8 lanes at a time. */
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
    const float r = 1.0f / sqrtf(sum8_tree(s) / (float)n + eps);
    const __m256 r8 = _mm256_set1_ps(r);
    for (int64_t i = 0; i < whole; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), r8), _mm256_loadu_ps(w + i)));
    for (int64_t i = whole; i < n; i++) y[i] = (x[i] * r) * w[i];
}

int pmx_avx2_quantize(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    int nonfinite = 0;
    for (int64_t b = 0; b < n / PMX_BLOCK; b++, x += PMX_BLOCK, q += PMX_BLOCK) {
        __m256 v[4];
        __m256i most = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
        const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(m);
        const float amax = pmx_f32_from_bits(bits);
        const int bad = bits >= 0x7f800000u;
        nonfinite |= bad;
        if (bad || amax < PMX_TINY_AMAX) {
            memset(q, 0, PMX_BLOCK);
            d[b] = 0.0f;
            sums[b] = 0;
            continue;
        }
        const __m256 inverse = _mm256_set1_ps(127.0f / amax);
        __m256i i32[4];
        for (int i = 0; i < 4; i++) i32[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        const __m256i total = _mm256_add_epi32(_mm256_add_epi32(i32[0], i32[1]), _mm256_add_epi32(i32[2], i32[3]));
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
        /* packs works within 128-bit lanes: dwords come out as 0 2 4 6 1 3 5 7 */
        _mm256_storeu_si256((__m256i *)(void *)q, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        d[b] = amax / 127.0f;
        sums[b] = _mm_cvtsi128_si32(t);
    }
    return nonfinite;
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
        _mm256_maskstore_ps(y + i, tail, silu_mul8(_mm256_maskload_ps(gate + i, tail), _mm256_maskload_ps(up + i, tail)));
    }
}

void pmx_avx2_axpy(float *y, float a, const float *x, int64_t n) {
    const __m256 a8 = _mm256_set1_ps(a);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_fmadd_ps(a8, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
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
        _mm_storeu_si128((__m128i *)(void *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) y[i] = pmx_f32_to_f16(x[i]);
}

void pmx_avx2_widen(float *y, const uint16_t *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(x + i))));
    for (; i < n; i++) y[i] = pmx_f16_to_f32(x[i]);
}

PMX_AVX2_END
