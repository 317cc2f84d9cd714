/* few32.c: weights in blocks of 32 times a few tokens.
 *
 * Several tokens share the unpacking of a block, and memory is read meanwhile: a strip of matmul32.c is
 * unpacked as a whole, then multiplied, and memory rests so long. Here 16 rows x 4 blocks (2 of q8_0)
 * stay in registers: each row's bytes are one register, block i in 128-bit lane i, and the 16 x 16
 * dwords are transposed while they are still packed. Then a lane is a row: no sum is reduced, and a
 * block costs a token 8 vpdpbusd, a conversion, a product and a fma. From the cache one core multiplies
 * 130, 180 and 190 GMAC/s of 2, 4 and 8 tokens of q4_0, where strips reach 70, 109 and 170, and tokens
 * one by one 88. Tokens' sums lie in memory, which hides behind the vpdpbusd, so that one loop takes
 * any number of them; it is 14% slower for 2 to 4 than with that number as a constant. */
#if defined(__x86_64__)
#include <stddef.h>
#include <string.h>

#include "../avx2/blocks32.h"
#include "avx512vnni.h"

enum { ROWS = 16, MAX_BLOCKS = 4, QUADS = PMX_BLOCK / 4 };

/* What the kernel must know about a type; a constant where it is inlined. */
typedef struct {
    /* Dword k of 16 rows' blocks as unsigned bytes, from the lanes that hold a block; fifth: the rows'
     * fifth bits. */
    void (*unpack)(__m512i w[QUADS], const __m512i *packed, __m512i fifth);
    int block_bytes, n_blocks; /* size of a block; blocks at a time */
    int q_at;                  /* where its integers begin */
    int head_at;               /* and 8 bytes of interest: a dword with the scale, one of fifth bits */
    int scale_shift;           /* of that dword */
    int32_t offset;            /* subtracted from the integers */
    int has_min;               /* the minimum is the dword's upper half */
    int is_power;              /* the scale is a byte, the exponent of a power of two; a block's size is odd */
} type_few;

/* The sums of a few tokens, and their activations. */
typedef struct {
    float acc[PMX_FEW_TOKENS][ROWS];
    pmx_quantized x[PMX_FEW_TOKENS];
    int64_t n;
} few_tokens;

PMX_AVX512VNNI_BEGIN

/* --- 16 rows into registers */

/* Where the permutation of two registers finds n bytes at `at` of a row: the first one holds the 64 at
 * its beginning, the second one those at its end. */
PMX_INLINE int word_at(const int at, const int n, const int row_bytes) {
    return at + n <= 64 ? at / 2 : 32 + (at - (row_bytes - 64)) / 2;
}

/* n bytes at `at` of each of four blocks, n <= 16, one a lane. */
PMX_INLINE __m512i lanes_of_blocks(__m512i first, __m512i last, const int at, const int n, const type_few T) {
    const int size = T.block_bytes, all = MAX_BLOCKS * size;
    return _mm512_permutex2var_epi16(first,
                                     word_pattern(word_at(at, n, all), word_at(at + size, n, all),
                                                  word_at(at + 2 * size, n, all), word_at(at + 3 * size, n, all)),
                                     last);
}

/* Its integers by lanes, and the 8 bytes of interest of each block. */
PMX_INLINE void load_row(__m512i *packed, __m512i *head, const uint8_t *row, const type_few T) {
    const int size = T.block_bytes;
    const __m512i first = _mm512_loadu_si512(row);
    if (T.n_blocks == 2) {
        *packed = _mm512_inserti64x4(_mm512_castsi256_si512(load32(row + T.q_at)), load32(row + size + T.q_at), 1);
        *head = _mm512_permutexvar_epi16(word_pattern(0, size / 2, 0, 0), first);
        return;
    }
    const __m512i last = _mm512_loadu_si512(row + MAX_BLOCKS * size - 64);
    *head = lanes_of_blocks(first, last, T.head_at, 8, T);
    if (!T.is_power) {
        *packed = lanes_of_blocks(first, last, T.q_at, 16, T);
        return;
    }
    *packed = _mm512_castsi128_si512(load16(row + T.q_at));
#pragma GCC unroll 3
    for (int b = 1; b < MAX_BLOCKS; b++)
        *packed = _mm512_mask_broadcast_i32x4(*packed, (__mmask16)(0xf << 4 * b), load16(row + b * size + T.q_at));
}

/* 16 rows by lanes: [a lane's dword][four rows], and of the 8 bytes of interest both dwords. */
typedef struct {
    __m512i q[4][4], first[4], second[4];
} unit;

/* Four rows. Their registers become as few as they can be before those of the next four are loaded. */
PMX_INLINE void load_rows(unit *to, const int g, const uint8_t *const *rows, int64_t at, const char *next,
                          const type_few T) {
    __m512i v[4], heads[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) load_row(v + i, heads + i, rows[4 * g + i] + at, T);
    const int bytes = 4 * T.n_blocks * T.block_bytes;
    for (int line = 0; line < bytes; line += 64) pmx_prefetch_line(next + g * bytes + line, PMX_PREFETCH_NEAR);
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    to->q[0][g] = _mm512_unpacklo_epi64(a, c);
    to->q[1][g] = _mm512_unpackhi_epi64(a, c);
    to->q[2][g] = _mm512_unpacklo_epi64(b, d);
    to->q[3][g] = _mm512_unpackhi_epi64(b, d);
    const __m512i e = _mm512_unpacklo_epi32(heads[0], heads[1]), f = _mm512_unpacklo_epi32(heads[2], heads[3]);
    to->first[g] = _mm512_unpacklo_epi64(e, f);
    to->second[g] = _mm512_unpackhi_epi64(e, f);
    __asm__ volatile("" ::: "memory");
}

/* Then [dword][lane] of all rows. */
PMX_INLINE void transpose_unit(unit *u) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) transpose_lanes(u->q[k]);
    transpose_lanes(u->first);
    transpose_lanes(u->second);
}

/* --- Numbers of 16 rows, and their integers */

PMX_INLINE __m512 of_f16(__m512i dwords) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dwords)); }

/* pmx_e8m0_to_f32. */
PMX_INLINE __m512 of_exponents(__m512i e) {
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x00200000), e));
}

/* Of block b; word_at counts words, so that the scale of an odd block of odd size is a byte further. */
PMX_INLINE __m512 scales_of(__m512i heads, const int b, const type_few T) {
    if (!T.is_power) return of_f16(_mm512_srli_epi32(heads, (unsigned)T.scale_shift));
    return of_exponents(_mm512_and_si512(_mm512_srli_epi32(heads, (unsigned)(b % 2 * 8)), _mm512_set1_epi32(255)));
}

PMX_INLINE void unpack_nibbles(__m512i w[QUADS], const __m512i *packed, __m512i fifth) {
    (void)fifth;
    const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        w[k] = _mm512_and_si512(packed[k], mask);
        w[4 + k] = _mm512_and_si512(_mm512_srli_epi16(packed[k], 4), mask);
    }
}

PMX_INLINE void unpack_fives(__m512i w[QUADS], const __m512i *packed, __m512i fifth) {
    /* Four bits as 16 or 0 in four bytes. */
    const __m512i spread =
        _mm512_setr_epi32(0, 0x10, 0x1000, 0x1010, 0x100000, 0x100010, 0x101000, 0x101010, 0x10000000, 0x10000010,
                          0x10001000, 0x10001010, 0x10100000, 0x10100010, 0x10101000, 0x10101010);
    unpack_nibbles(w, packed, fifth);
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++)
        w[k] = _mm512_or_si512(w[k], _mm512_permutexvar_epi32(_mm512_srli_epi32(fifth, (unsigned)(4 * k)), spread));
}

PMX_INLINE void look_up(__m512i w[QUADS], const __m512i *packed, __m512i fifth, __m128i table) {
    unpack_nibbles(w, packed, fifth);
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) w[k] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), w[k]);
}

PMX_INLINE void unpack_values(__m512i w[QUADS], const __m512i *packed, __m512i fifth) {
    look_up(w, packed, fifth, _mm_xor_si128(_mm_setr_epi8(PMX_IQ4_VALUES), _mm_set1_epi8(-128)));
}

PMX_INLINE void unpack_floats4(__m512i w[QUADS], const __m512i *packed, __m512i fifth) {
    look_up(w, packed, fifth, mxfp4_table());
}

PMX_INLINE void unpack_bytes(__m512i w[QUADS], const __m512i *packed, __m512i fifth) {
    (void)fifth;
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) w[k] = _mm512_xor_si512(packed[k], _mm512_set1_epi8(-128));
}

/* --- The product */

PMX_INLINE __m512i load_dword(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return _mm512_set1_epi32(x);
}

/* The sums of token t += block b of 16 rows. */
PMX_INLINE void add_block(few_tokens *tokens, int64_t t, int64_t b, const __m512i w[QUADS], __m512 scale, __m512 min,
                          const type_few T) {
    const int8_t *q = tokens->x[t].q + b * PMX_BLOCK;
    const float d = tokens->x[t].d[b];
    const int32_t sum = tokens->x[t].sums[b];
    __asm__("" : "+r"(q)); /* one address, not eight that the compiler keeps for all tokens */
    __m512i isum = _mm512_set1_epi32(T.offset ? -T.offset * sum : 0);
#pragma GCC unroll 8
    for (int k = 0; k < QUADS; k++) isum = _mm512_dpbusd_epi32(isum, w[k], load_dword(q + 4 * k));
    __m512 acc = _mm512_load_ps(tokens->acc[t]);
    acc = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(d)), _mm512_cvtepi32_ps(isum), acc);
    if (T.has_min) acc = _mm512_fmadd_ps(min, _mm512_set1_ps(d * (float)sum), acc);
    _mm512_store_ps(tokens->acc[t], acc);
}

/* All tokens' sums += n blocks of 16 rows, the first of which is block b. next: what to prefetch
 * meanwhile. */
PMX_INLINE void add_blocks(few_tokens *tokens, const uint8_t *const *rows, int64_t at, int64_t b, int64_t n,
                           const char *next, const int N, const type_few T) {
    unit u;
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) load_rows(&u, g, rows, at, next, T);
    transpose_unit(&u);
#pragma GCC unroll 4
    for (int i = 0; i < T.n_blocks; i++) {
        if (i >= n) break;
        __m512i packed[QUADS], w[QUADS];
#pragma GCC unroll 8
        for (int k = 0; k < QUADS; k++) packed[k] = u.q[k % 4][T.n_blocks == 2 ? 2 * i + k / 4 : i];
        T.unpack(w, packed, u.second[i]);
        const __m512 scale = scales_of(u.first[i], i, T), min = of_f16(_mm512_srli_epi32(u.first[i], 16));
        if (N == 0) {
            for (int64_t t = 0; t < tokens->n; t++) add_block(tokens, t, b + i, w, scale, min, T);
            continue;
        }
#pragma GCC unroll 4
        for (int64_t t = 0; t < N; t++) add_block(tokens, t, b + i, w, scale, min, T);
    }
}

/* N: the tokens, or 0, which is any number of them. */
PMX_INLINE void few32(const pmx_product p, const int N, const type_few T) {
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK;
    _Alignas(64) few_tokens tokens;
    tokens.n = p.n_tokens;
    for (int64_t t = 0; t < p.n_tokens; t++) tokens.x[t] = pmx_token_q32(p.acts, p.tokens[t], 0);
    for (int64_t r = 0; r < p.n_rows; r += ROWS) {
        const uint8_t *rows[ROWS];
        for (int i = 0; i < ROWS; i++) rows[i] = p.w + (r + i < p.n_rows ? r + i : p.n_rows - 1) * p.row_bytes;
        const char *next = (const char *)p.w + (r + ROWS) * p.row_bytes;
        memset(tokens.acc, 0, (size_t)p.n_tokens * sizeof tokens.acc[0]);
        for (int64_t b = 0; b < n_blocks; b += T.n_blocks) {
            const int64_t n = n_blocks - b < T.n_blocks ? n_blocks - b : T.n_blocks;
            uint8_t copies[ROWS][96]; /* of the last blocks, where they are too few: nothing behind the row is read */
            int64_t at = b * T.block_bytes;
            const char *ahead = next + ROWS * at;
            if (n < T.n_blocks) {
                memset(copies, 0, sizeof copies);
                for (int i = 0; i < ROWS; i++) rows[i] = memcpy(copies[i], rows[i] + at, (size_t)(n * T.block_bytes));
                at = 0;
            }
            add_blocks(&tokens, rows, at, b, n, ahead, N, T);
        }
        const int64_t left = p.n_rows - r;
        const __mmask16 stored = left >= ROWS ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
        for (int64_t t = 0; t < p.n_tokens; t++)
            _mm512_mask_storeu_ps(p.y + t * p.ldy + r, stored, _mm512_load_ps(tokens.acc[t]));
    }
}

#define TYPE(T, UNPACK, N_BLOCKS, ...)                                                                                 \
    static const type_few T = {UNPACK, sizeof(pmx_block_##T), N_BLOCKS, offsetof(pmx_block_##T, qs), __VA_ARGS__};     \
    void pmx_avx512vnni_few_##T(const pmx_product *p) {                                                                \
        switch (p->n_tokens) {                                                                                         \
        case 2: few32(*p, 2, T); break;                                                                                \
        case 3: few32(*p, 3, T); break;                                                                                \
        case 4: few32(*p, 4, T); break;                                                                                \
        default: few32(*p, 0, T);                                                                                      \
        }                                                                                                              \
    }

TYPE(q4_0, unpack_nibbles, 4, .offset = 8)
TYPE(q4_1, unpack_nibbles, 4, .has_min = 1)
TYPE(q5_0, unpack_fives, 4, .head_at = -2, .scale_shift = 16, .offset = 16)
TYPE(q5_1, unpack_fives, 4, .has_min = 1)
TYPE(q8_0, unpack_bytes, 2, .offset = 128)
TYPE(iq4_nl, unpack_values, 4, .offset = 128)
TYPE(mxfp4, unpack_floats4, 4, .offset = 12, .is_power = 1)

PMX_AVX512VNNI_END
#endif
