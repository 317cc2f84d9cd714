/* kquants_mat.h: blocks of 256 times many tokens: the strips and tiles of matmul32.h, with the
 * sub-blocks' scales kept as integers.
 *
 * A strip of 16 rows is unpacked once per K_BLOCK columns: bytes [k/4][16 rows][4], scales as
 * (scale, scale) in the two int16 of a dword [sub-block][16 rows]. An instruction set gives the
 * kernel that sums and scales a block's products as int32; they are converted to float once per 256
 * columns. No int32 overflows: see kquants_vec.c. Offsets and minimums are vpmaddwd of pairs of
 * sub-blocks' scales or minimums with pairs of the activations' sums (int16).
 */
#ifndef PMX_AVX2_KQUANTS_MAT_H
#define PMX_AVX2_KQUANTS_MAT_H

#include "kquants.h"
#include "matmul32.h"

enum { STRIP_BLOCKS256 = K_BLOCK / PMX_BLOCK256 };

/* What a strip knows of a block beside its bytes. */
typedef struct {
    int32_t scales[16][STRIP_ROWS]; /* of each sub-block, twice in a dword */
    int32_t pairs[8][STRIP_ROWS];   /* what is multiplied with the activations' sums, of two consecutive
                                       sub-blocks a dword: the minimums, or the scales of a type with an
                                       offset; of 8 sub-blocks: minimums last, scales first */
    float d[STRIP_ROWS], dmin[STRIP_ROWS];
} strip_block;
_Static_assert(sizeof(strip_block) % 64 == 0, "aligned loads");

typedef struct {
    _Alignas(64) uint8_t q[K_BLOCK * STRIP_ROWS];
    strip_block blocks[STRIP_BLOCKS256];
    float acc[PMX_TOKEN_BLOCK * STRIP_ROWS];
} mat_scratch;
_Static_assert(sizeof(mat_scratch) <= PMX_MAT_SCRATCH, "scratch");

PMX_AVX2_BEGIN

PMX_INLINE __m256i load_epi32(const int32_t *p) { return _mm256_load_si256((const __m256i *)(const void *)p); }
PMX_INLINE void store_epi32(int32_t *p, __m256i v) { _mm256_store_si256((__m256i *)(void *)p, v); }

/* Eight rows' 16 signed bytes as int16, two consecutive ones a dword: [8][8 rows], into every
 * second half of pairs. */
PMX_INLINE void store_pairs(int32_t (*pairs)[STRIP_ROWS], int half, const __m128i *bytes) {
    __m256i v[8];
    for (int i = 0; i < 8; i++) v[i] = _mm256_cvtepi8_epi16(bytes[i]);
    transpose8((uint8_t *)(void *)&pairs[0][half], sizeof pairs[0], v);
}

PMX_INLINE void unpack_block(const int type, uint8_t *q, strip_block *out, int half, const uint8_t *const *rows,
                             int64_t offset) {
    __m256i signs[8];
    for (int i = 0; i < 8; i++) signs[i] = kquant_signs(type, rows[i] + offset);
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        __m256i v[8];
        for (int i = 0; i < 8; i++) v[i] = kquant_load(type, rows[i] + offset, signs[i], c);
        transpose8(q + 32 * c * STRIP_ROWS + 4 * half, 4 * STRIP_ROWS, v);
    }
    __m256 d, dmin;
    kquant_load_d(type, &d, &dmin, rows, offset);
    _mm256_store_ps(out->d + half, d);
    _mm256_store_ps(out->dmin + half, dmin);
    if (KQUANT_WHOLE(type)) return;
    __m128i bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = kquant_scales(type, rows[i] + offset);
    store_pairs(out->pairs, half, bytes);
    const __m256i first = _mm256_set1_epi32(0x01000100), second = _mm256_set1_epi32(0x03020302),
                  lane =
                      _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    for (int p = 0; p < 128 / KQUANT_SUB(type); p++) {
        const __m256i pair = load_epi32(&out->pairs[p][half]);
        store_epi32(&out->scales[2 * p][half], _mm256_shuffle_epi8(pair, _mm256_add_epi8(lane, first)));
        store_epi32(&out->scales[2 * p + 1][half], _mm256_shuffle_epi8(pair, _mm256_add_epi8(lane, second)));
    }
    if (type == PMX_Q2_K) {
        for (int i = 0; i < 8; i++) bytes[i] = kquant_mins_q2_k(rows[i] + offset);
        store_pairs(out->pairs, half, bytes);
    }
}

/* sum over pairs of scales or minimums times the activations' sums, for 8 rows. Without sub-blocks
 * there is one sum, of all activations. */
PMX_INLINE __m256i dot_pairs(const int type, const strip_block *block, int half, const int32_t *sums) {
    if (KQUANT_WHOLE(type)) return _mm256_set1_epi32(sums[0]);
    __m256i total = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int p = KQUANT_SUB(type) == 16 ? 0 : 4; p < 8; p++) {
        const int32_t *pairs = block->pairs[KQUANT_SUB(type) == 32 && !KQUANT_HAS_MIN(type) ? p - 4 : p];
        total = _mm256_add_epi32(total, _mm256_madd_epi16(load_epi32(pairs + half), _mm256_set1_epi32(sums[p])));
    }
    return total;
}

PMX_INLINE void finish(const int type, float *acc, int32_t *isum, const strip_block *block, int half,
                       const int32_t *sums, float dx_) {
    const __m256 dx = _mm256_set1_ps(dx_);
    __m256i total = load_epi32(isum + half);
    if (KQUANT_OFFSET_BITS(type) >= 0)
        total =
            _mm256_sub_epi32(total, _mm256_slli_epi32(dot_pairs(type, block, half, sums), KQUANT_OFFSET_BITS(type)));
    __m256 y = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(block->d + half), dx), _mm256_cvtepi32_ps(total),
                               _mm256_load_ps(acc + half));
    if (KQUANT_HAS_MIN(type))
        y = _mm256_fnmadd_ps(_mm256_mul_ps(_mm256_load_ps(block->dmin + half), dx),
                             _mm256_cvtepi32_ps(dot_pairs(type, block, half, sums)), y);
    _mm256_store_ps(acc + half, y);
}

/* isum [4 tokens][16 rows] = the scaled products of a block of 256, without offsets. q: the strip's
 * bytes, x: of each token. */
typedef void (*block_kernel)(const int type, int32_t (*isum)[STRIP_ROWS], const uint8_t *q, const strip_block *block,
                             const int8_t *const *x);

/* acc [4 tokens][16 rows] += the strip's first n_blocks blocks. */
PMX_INLINE void tile256(const int type, block_kernel kernel, float *acc, const mat_scratch *strip,
                        const pmx_quantized *x, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const strip_block *block = &strip->blocks[b];
        _Alignas(32) int32_t isum[TILE_TOKENS][STRIP_ROWS];
        const int8_t *q[TILE_TOKENS];
        for (int t = 0; t < TILE_TOKENS; t++) q[t] = x[t].q + b * PMX_BLOCK256;
        kernel(type, isum, strip->q + b * PMX_BLOCK256 * STRIP_ROWS, block, q);
        for (int t = 0; t < TILE_TOKENS; t++) {
            _Alignas(32) int32_t sums[8];
            if (KQUANT_WHOLE(type))
                sums[0] = kquant_sum(x[t].sums + 16 * b);
            else if (!KQUANT_SIGNED(type))
                store_epi32(sums, KQUANT_SUB(type) == 16 ? kquant_sums16(x[t].sums + 16 * b)
                                                         : kquant_sums32(x[t].sums + 16 * b));
            for (int half = 0; half < STRIP_ROWS; half += 8)
                finish(type, acc + t * STRIP_ROWS, isum[t], block, half, sums, x[t].d[b]);
        }
    }
}

/* Blocks first .. first + n_blocks - 1 of the rows from r on. The same share of the next strip is
 * prefetched. */
PMX_INLINE void unpack_strip256(const int type, mat_scratch *strip, const pmx_product *p, int64_t r, int64_t first,
                                int64_t n_blocks) {
    const int64_t bytes = kquant_bytes(type);
    const uint8_t *next = p->w + (r + STRIP_ROWS) * p->row_bytes + first * STRIP_ROWS * bytes;
    for (int half = 0; half < STRIP_ROWS; half += 8) {
        const uint8_t *rows[8];
        row_pointers(rows, p, r + half);
        for (int64_t b = 0; b < n_blocks; b++, next += 8 * bytes) {
            uint8_t *q = strip->q + b * PMX_BLOCK256 * STRIP_ROWS;
            prefetch_bytes(next, 8 * bytes);
            unpack_block(type, q, strip->blocks + b, half, rows, (first + b) * bytes);
        }
    }
}

PMX_INLINE void mat256(const int type, block_kernel kernel, const pmx_product p) {
    mat_scratch *strip = p.scratch;
    const int64_t n_blocks = p.acts->cols / PMX_BLOCK256, tiles = (p.n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t r = 0; r < p.n_rows; r += STRIP_ROWS) {
        const int64_t rows = p.n_rows - r < STRIP_ROWS ? p.n_rows - r : STRIP_ROWS;
        memset(strip->acc, 0, (size_t)(tiles * TILE_TOKENS * STRIP_ROWS) * sizeof *strip->acc);
        for (int64_t first = 0; first < n_blocks; first += STRIP_BLOCKS256) {
            const int64_t n = n_blocks - first < STRIP_BLOCKS256 ? n_blocks - first : STRIP_BLOCKS256;
            unpack_strip256(type, strip, &p, r, first, n);
            for (int64_t t = 0; t < p.n_tokens; t += TILE_TOKENS) {
                pmx_quantized x[TILE_TOKENS]; /* tokens past the end repeat the last one */
                for (int i = 0; i < TILE_TOKENS; i++)
                    x[i] = pmx_token_q256(p.acts, p.tokens[t + i < p.n_tokens ? t + i : p.n_tokens - 1], first);
                tile256(type, kernel, strip->acc + t * STRIP_ROWS, strip, x, n);
            }
        }
        for (int64_t t = 0; t < p.n_tokens; t++)
            memcpy(p.y + t * p.ldy + r, strip->acc + t * STRIP_ROWS, (size_t)rows * sizeof *strip->acc);
    }
}

PMX_AVX2_END

#endif
