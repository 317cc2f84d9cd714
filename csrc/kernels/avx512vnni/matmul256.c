/* matmul256.c: weights in blocks of 256 (k-quants, iq4_xs, tq1_0, tq2_0) times 8-bit activations with VNNI.
 *
 * Integer scales stay in the integer domain: vpdpbusd gives a sub-block's dot products, which are
 * scaled as integers, and one conversion and fma ends the block of 256. Offsets and minimums are
 * vpdpwssd of int16: scales or minimums times the activations' sums, which fit (32 * 127).
 *
 * vec: q4_k, q5_k and q6_k row by row (rows256.h). Others: 8 rows of up to 4 tokens (vec256.h); the
 * rows' 16 lanes are reduced together once per block of 256, and so are the products of the sums, which
 * are formed for four rows in one register. mat takes a few tokens so. mat of more (strips256.h, tiles256.c):
 * strips of 32 rows as bytes [k/4][32 rows][4] times 6 tokens: 12
 * accumulators of a sub-block and 12 of the block. On Zen 5 two units do all that multiplies, so
 * that a tile takes as long as its multiplications: of a block 768 vpdpbusd, and beside them 96
 * vpmulld of 8 sub-blocks or 192 of 16, 48 vpdpwssd of minimums or 96, and 24 or 48 of the floats. What
 * an offset adds is where a sub-block's accumulator begins, which takes none. Chains of 8
 * accumulators wait for their own results. */
#if defined(__x86_64__)
#include "../avx2/blocks32.h"
#include "avx512vnni.h"
#include "strips256.h"

PMX_AVX512VNNI_BEGIN

TYPE(q2_k, scales4_q2_k, 0, ORDER_CRUMBS, .n_sub = 16, .has_min = 1)
TYPE(q3_k, scales4_q3_k, sizeof(pmx_block_q3_k) - 16, ORDER_CRUMBS, .n_sub = 16, .offset_bits = 2)
TYPE(q4_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q5_k, scales4_k4, 0, ORDER_NIBBLES, .n_sub = 8, .has_min = 1, .by_row = 1)
TYPE(q6_k, scales4_q6_k, offsetof(pmx_block_q6_k, scales), ORDER_PLAIN, .n_sub = 16, .offset_bits = 5, .by_row = 1)
TYPE(iq4_xs, scales4_iq4_xs, 0, ORDER_NIBBLES16, .n_sub = 8, .offset_bits = 7, .wide = 1)
TYPE(tq1_0, NULL, 0, ORDER_DIGITS, .n_sub = 1)
TYPE(tq2_0, NULL, 0, ORDER_CRUMBS, .n_sub = 1)

PMX_AVX512VNNI_END
#endif
