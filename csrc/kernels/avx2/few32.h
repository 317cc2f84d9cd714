/* few32.h: weights in blocks of 32 times a few tokens, for all types that a few_type describes.
 *
 * Several tokens share the unpacking of a block, and memory is read meanwhile: a strip of matmul32.h is
 * unpacked as a whole, then multiplied, and memory rests so long. Here 8 rows x 2 blocks (1 of q8_0)
 * stay in registers: each row's bytes are one register, and the 8 x 8 dwords are transposed while they
 * are still packed. Then a lane is a row, and no sum is reduced. From the cache one core multiplies 73
 * and 86 GMAC/s of 2 and 4 tokens of q4_0, where tokens one by one reach 46. Tokens' sums lie in
 * memory, so that one loop takes any number of them; those of 2 to 4 know it as a constant. An
 * instruction set gives the product of a block. */
#ifndef PMX_AVX2_FEW32_H
#define PMX_AVX2_FEW32_H

#include "blocks32.h"

enum { FEW_ROWS = 8, QUADS = PMX_BLOCK / 4 };

/* What the kernel must know about a type; a constant wherever it is inlined. */
typedef struct {
    /* Dword k of 8 rows' blocks as bytes, from the four or eight dwords of a packed block; fifth: the
     * rows' fifth bits. */
    void (*unpack)(__m256i w[QUADS], const __m256i *packed, __m256i fifth);
    int block_bytes, n_blocks; /* size of a block; blocks at a time */
    int q_at, fifth_at;        /* where its integers and its fifth bits begin; 0: it has none of these */
    int32_t offset;            /* subtracted from the integers */
    int has_min;               /* the scale is followed by a minimum */
    int is_power;              /* the scale is a byte, the exponent of a power of two */
} few_type;

/* Of 8 rows the dot products of a block with a token's, before the offset. */
typedef __m256i (*few_dot)(const __m256i w[QUADS], const int8_t *q);

/* The sums of a few tokens, and their activations. */
typedef struct {
    float acc[PMX_FEW_TOKENS][FEW_ROWS];
    pmx_quantized x[PMX_FEW_TOKENS];
    int64_t n;
} few_tokens;

PMX_AVX2_BEGIN

/* --- 8 rows into registers */

PMX_INLINE __m256i load_packed(const uint8_t *block, const few_type T) {
    if (T.n_blocks == 1) return load32(block + T.q_at);
    return _mm256_set_m128i(load16(block + T.block_bytes + T.q_at), load16(block + T.q_at));
}

/* q[4 * h + k] = dword k of 128-bit lane h of eight rows. */
PMX_INLINE void load_unit(__m256i q[QUADS], const uint8_t *const *rows, int64_t at, const few_type T) {
    __m256i quads[2][4]; /* [four rows][dword], lane by lane */
#pragma GCC unroll 2
    for (int g = 0; g < 2; g++) {
        __m256i v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) v[i] = load_packed(rows[4 * g + i] + at, T);
        const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
        const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
        quads[g][0] = _mm256_unpacklo_epi64(a, c);
        quads[g][1] = _mm256_unpackhi_epi64(a, c);
        quads[g][2] = _mm256_unpacklo_epi64(b, d);
        quads[g][3] = _mm256_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        q[k] = _mm256_permute2x128_si256(quads[0][k], quads[1][k], 0x20);
        q[4 + k] = _mm256_permute2x128_si256(quads[0][k], quads[1][k], 0x31);
    }
}

PMX_INLINE __m256i load_fifths(const uint8_t *const *rows, int64_t at) {
    int32_t bits[FEW_ROWS];
    for (int i = 0; i < FEW_ROWS; i++) memcpy(&bits[i], rows[i] + at, sizeof bits[i]);
    return _mm256_setr_epi32(bits[0], bits[1], bits[2], bits[3], bits[4], bits[5], bits[6], bits[7]);
}

/* --- Their integers */

PMX_INLINE void few_nibbles(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    (void)fifth;
    const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        w[k] = _mm256_and_si256(packed[k], mask);
        w[4 + k] = _mm256_and_si256(_mm256_srli_epi16(packed[k], 4), mask);
    }
}

PMX_INLINE void few_fives(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    few_nibbles(w, packed, fifth);
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) { /* bits 4k .. 4k + 3 to four bytes */
        const __m256i byte =
            _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
        const __m256i copies = _mm256_shuffle_epi8(fifth, _mm256_add_epi8(byte, _mm256_set1_epi8((char)(k / 2))));
        const __m256i bit = _mm256_set1_epi32(k % 2 ? (int32_t)0x80402010 : 0x08040201);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(copies, bit), bit);
        w[k] = _mm256_or_si256(w[k], _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
}

PMX_INLINE void few_look_up(__m256i w[QUADS], const __m256i *packed, __m128i table) {
    few_nibbles(w, packed, packed[0]);
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) w[k] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), w[k]);
}

PMX_INLINE void few_iq4_nl(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    (void)fifth;
    few_look_up(w, packed, _mm_setr_epi8(PMX_IQ4_VALUES));
}

PMX_INLINE void few_mxfp4(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    (void)fifth;
    few_look_up(w, packed, mxfp4_table());
}

PMX_INLINE void few_q8_0(__m256i w[QUADS], const __m256i *packed, __m256i fifth) {
    (void)fifth;
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) w[k] = packed[k];
}

/* --- The product */

/* The sums of token t += block b of 8 rows. */
PMX_INLINE void add_few(few_tokens *tokens, int64_t t, int64_t b, const __m256i w[QUADS], __m256 scales, __m256 mins,
                        few_dot dot, const few_type T) {
    const int8_t *q = tokens->x[t].q + b * PMX_BLOCK;
    const float d = tokens->x[t].d[b];
    const int32_t sum = tokens->x[t].sums[b];
    __asm__("" : "+r"(q)); /* one address, not eight that the compiler keeps for all tokens */
    __m256i isum = dot(w, q);
    if (T.offset) isum = _mm256_add_epi32(isum, _mm256_set1_epi32(-T.offset * sum));
    __m256 acc = _mm256_load_ps(tokens->acc[t]);
    acc = _mm256_fmadd_ps(_mm256_mul_ps(scales, _mm256_set1_ps(d)), _mm256_cvtepi32_ps(isum), acc);
    if (T.has_min) acc = _mm256_fmadd_ps(mins, _mm256_set1_ps(d * (float)sum), acc);
    _mm256_store_ps(tokens->acc[t], acc);
}

/* All tokens' sums += n blocks of 8 rows, `at` bytes from their beginnings; the first is block b. */
PMX_INLINE void add_unit(few_tokens *tokens, const uint8_t *const *rows, int64_t at, int64_t b, int64_t n, const int N,
                         few_dot dot, const few_type T) {
    __m256i q[QUADS];
    load_unit(q, rows, at, T);
#pragma GCC unroll 2
    for (int i = 0; i < T.n_blocks; i++, at += T.block_bytes) {
        if (i >= n) break;
        __m256i w[QUADS];
        T.unpack(w, q + 4 * i, T.fifth_at ? load_fifths(rows, at + T.fifth_at) : q[0]);
        __m256 scales, mins;
        if (T.has_min)
            load_scale_pairs(&scales, &mins, rows, at);
        else
            scales = mins = load_scales32(rows, at, T.is_power);
        if (N == 0) {
            for (int64_t t = 0; t < tokens->n; t++) add_few(tokens, t, b + i, w, scales, mins, dot, T);
            continue;
        }
#pragma GCC unroll 4
        for (int64_t t = 0; t < N; t++) add_few(tokens, t, b + i, w, scales, mins, dot, T);
    }
}

/* N: the tokens, or 0, which is any number of them. */
PMX_INLINE void few32(const pmx_product p, const int N, few_dot dot, const few_type T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    _Alignas(32) few_tokens tokens;
    tokens.n = p.n_tokens;
    for (int64_t t = 0; t < p.n_tokens; t++) tokens.x[t] = pmx_token_q32(p.acts, p.tokens[t], 0);
    for (int64_t r = 0; r < p.n_rows; r += FEW_ROWS) {
        const uint8_t *rows[FEW_ROWS];
        row_pointers(rows, &p, r);
        const char *next = (const char *)p.w + (r + FEW_ROWS) * p.row_bytes;
        memset(tokens.acc, 0, (size_t)p.n_tokens * sizeof tokens.acc[0]);
        for (int64_t b = 0; b < n_blocks; b += T.n_blocks) {
            const int64_t n = n_blocks - b < T.n_blocks ? n_blocks - b : T.n_blocks;
            uint8_t copies[FEW_ROWS][48]; /* of a last block without a second: nothing behind it is read */
            int64_t at = b * T.block_bytes;
            for (int line = 0; line < FEW_ROWS * T.n_blocks * T.block_bytes; line += 64)
                pmx_prefetch_line(next + FEW_ROWS * at + line, PMX_PREFETCH_NEAR);
            if (n < T.n_blocks) {
                memset(copies, 0, sizeof copies);
                for (int i = 0; i < FEW_ROWS; i++) rows[i] = memcpy(copies[i], rows[i] + at, (size_t)T.block_bytes);
                at = 0;
            }
            add_unit(&tokens, rows, at, b, n, N, dot, T);
        }
        for (int64_t t = 0; t < p.n_tokens; t++) {
            float *y = p.y + t * p.ldy + r;
            if (p.n_rows - r >= FEW_ROWS)
                _mm256_storeu_ps(y, _mm256_load_ps(tokens.acc[t]));
            else
                _mm256_maskstore_ps(y, first_lanes(p.n_rows - r), _mm256_load_ps(tokens.acc[t]));
        }
    }
}

/* By the number of tokens, which the compiler knows where they are fewest. */
#define PMX_FEW32(P, DOT, T)                                                                                           \
    switch ((P)->n_tokens) {                                                                                           \
    case 2: few32(*(P), 2, DOT, T); break;                                                                             \
    case 3: few32(*(P), 3, DOT, T); break;                                                                             \
    case 4: few32(*(P), 4, DOT, T); break;                                                                             \
    default: few32(*(P), 0, DOT, T);                                                                                   \
    }

PMX_AVX2_END

#endif
