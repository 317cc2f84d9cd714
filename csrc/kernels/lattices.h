/* lattices.h: weights that are entries of a table: what a block of the types IQ1 to IQ3 says,
 * in portable C. `type` is a constant wherever these are inlined.
 *
 * An entry is the magnitudes of 8 elements, or for IQ3 of 4. A block's element is a magnitude, with
 * a sign, times an integer scale of its sub-block, times d. IQ1's entries have signs, and instead of
 * others a shift by 1, up or down. */
#ifndef PMX_LATTICES_H
#define PMX_LATTICES_H

#include <stddef.h>
#include <string.h>

#include "../blocks.h"
#include "../kernels.h"

#define PMX_LATTICE extern const __attribute__((aligned(64)))

/* The entries' elements. Of IQ1 shifted down, plus 2 to LATTICE_OFFSET_BITS: 7, 15 and 23. */
PMX_LATTICE uint8_t pmx_lattice_iq1[2048][8], pmx_lattice_iq2_xxs[256][8], pmx_lattice_iq2_xs[512][8],
    pmx_lattice_iq2_s[1024][8], pmx_lattice_iq3_xxs[256][4], pmx_lattice_iq3_s[512][4];

/* The same in 16 bits: 2 bits of each element, or for IQ3 3 bits in 4; the first element lowest. */
PMX_LATTICE uint16_t pmx_codes_iq2_xxs[256], pmx_codes_iq2_xs[512], pmx_codes_iq2_s[1024], pmx_codes_iq3_xxs[256],
    pmx_codes_iq3_s[512];

/* The codes' low and high bytes. IQ1's high bytes ascend with the index, and change at most once in 16
 * entries: entry i's is high[first[i / 16] + (i % 16 >= step[i / 16])]. */
PMX_LATTICE uint8_t pmx_low_iq1[2048], pmx_low_iq2_xxs[256], pmx_low_iq2_xs[512], pmx_low_iq2_s[1024],
    pmx_low_iq3_xxs[256], pmx_low_iq3_s[512];
PMX_LATTICE uint8_t pmx_high_iq2_xxs[256], pmx_high_iq2_xs[512], pmx_high_iq2_s[1024], pmx_high_iq3_xxs[256],
    pmx_high_iq3_s[512];
PMX_LATTICE uint8_t pmx_first_iq1[128], pmx_step_iq1[128], pmx_high_iq1[128];

/* What the codes stand for; initializes an array of 8. IQ2's are 8, 25 and 43. */
#define PMX_IQ3_XXS_VALUES 4, 12, 20, 28, 36, 44, 52, 62
#define PMX_IQ3_S_VALUES 1, 3, 5, 7, 9, 11, 13, 15

/* Those of the types in types.h whose kernels read these tables; those of them whose entries are
 * shifted. */
#define LATTICE(type)                                                                                                  \
    (LATTICE_SHIFTED(type) || (type) == PMX_IQ2_XXS || (type) == PMX_IQ2_XS || (type) == PMX_IQ2_S ||                  \
     (type) == PMX_IQ3_XXS || (type) == PMX_IQ3_S)
#define LATTICE_SHIFTED(type) ((type) == PMX_IQ1_S || (type) == PMX_IQ1_M)
/* Elements of an entry, and of a sub-block. */
#define LATTICE_WIDTH(type) ((type) == PMX_IQ3_XXS || (type) == PMX_IQ3_S ? 4 : 8)
#define LATTICE_SUB(type) ((type) == PMX_IQ1_M || (type) == PMX_IQ2_XS || (type) == PMX_IQ2_S ? 16 : 32)
/* The power of two that is greater than all magnitudes: kernels of unsigned bytes add it. */
#define LATTICE_OFFSET_BITS(type) ((type) == PMX_IQ3_S || LATTICE_SHIFTED(type) ? 4 : 6)
/* A block's d is its f16 number times this, so that the elements are integers: exact. */
#define LATTICE_D(type) ((type) == PMX_IQ3_S ? 1.0f : (type) == PMX_IQ3_XXS ? 0.25f : 0.125f)

/* Word j of four times 7 signs and a scale of 4 bits, of iq2_xxs and iq3_xxs. */
PMX_INLINE uint32_t lattice_word(const int type, const void *block, int j) {
    const pmx_block_iq2_xxs *two = block;
    const pmx_block_iq3_xxs *three = block;
    uint32_t word;
    memcpy(&word, type == PMX_IQ2_XXS ? two->qs + 8 * j + 4 : three->scales + 4 * j, sizeof word);
    return word;
}

/* The bits of a block's f16 number. iq1_m has a nibble of it in the top of each of four words. */
PMX_INLINE uint16_t lattice_number(const int type, const void *block) {
    const pmx_block_iq1_m *b = block;
    uint16_t number;
    uint64_t scales;
    if (type != PMX_IQ1_M) {
        memcpy(&number, block, sizeof number);
        return number;
    }
    memcpy(&scales, b->scales, sizeof scales);
    return (uint16_t)((scales >> 12 & 0x000f000f000f000f) * 0x0001001001001000 >> 48);
}

/* Entry i's elements: LATTICE_WIDTH bytes. */
PMX_INLINE const uint8_t *lattice_entry(const int type, const void *block, int i) {
    switch (type) {
    case PMX_IQ1_S: {
        const pmx_block_iq1_s *b = block;
        return pmx_lattice_iq1[b->qs[i] | (b->qh[i / 4] >> 3 * (i % 4) & 7) << 8];
    }
    case PMX_IQ1_M: {
        const pmx_block_iq1_m *b = block;
        return pmx_lattice_iq1[b->qs[i] | (b->qh[i / 2] >> 4 * (i % 2) & 7) << 8];
    }
    case PMX_IQ2_XXS: {
        const pmx_block_iq2_xxs *b = block;
        return pmx_lattice_iq2_xxs[b->qs[8 * (i / 4) + i % 4]];
    }
    case PMX_IQ2_XS: {
        const pmx_block_iq2_xs *b = block;
        return pmx_lattice_iq2_xs[b->qs[i] & 511];
    }
    case PMX_IQ2_S: {
        const pmx_block_iq2_s *b = block;
        return pmx_lattice_iq2_s[b->qs[i] | (b->qh[i / 4] >> 2 * (i % 4) & 3) << 8];
    }
    case PMX_IQ3_XXS: {
        const pmx_block_iq3_xxs *b = block;
        return pmx_lattice_iq3_xxs[b->qs[i]];
    }
    default: {
        const pmx_block_iq3_s *b = block;
        return pmx_lattice_iq3_s[b->qs[i] | (b->qh[i / 8] >> i % 8 & 1) << 8];
    }
    }
}

/* Seven signs; the eighth makes their number even. */
PMX_INLINE uint8_t lattice_even(uint32_t bits) {
    return (uint8_t)((bits & 127) | (uint32_t)__builtin_parity(bits & 127) << 7);
}

/* Bit i: element 8 * j + i is negative. */
PMX_INLINE uint8_t lattice_signs(const int type, const void *block, int j) {
    const pmx_block_iq2_xs *xs = block;
    const pmx_block_iq2_s *two = block;
    const pmx_block_iq3_s *three = block;
    switch (type) {
    case PMX_IQ2_XS: return lattice_even((uint32_t)xs->qs[j] >> 9);
    case PMX_IQ2_S: return two->signs[j];
    case PMX_IQ3_S: return three->signs[j];
    default: return lattice_even(lattice_word(type, block, j / 4) >> 7 * (j % 4));
    }
}

/* Of IQ1: whether entry i is shifted up. */
PMX_INLINE int lattice_shift(const int type, const void *block, int i) {
    const pmx_block_iq1_s *s = block;
    const pmx_block_iq1_m *m = block;
    return type == PMX_IQ1_S ? !(s->qh[i / 4] >> 15) : !(m->qh[i / 2] >> 4 * (i % 2) & 8);
}

/* Of sub-block j: at most 31, of IQ1 15. */
PMX_INLINE int8_t lattice_scale(const int type, const void *block, int j) {
    const pmx_block_iq1_s *one = block;
    const pmx_block_iq1_m *one_m = block;
    if (type == PMX_IQ1_S) return (int8_t)(2 * (one->qh[j] >> 12 & 7) + 1);
    if (type == PMX_IQ1_M) return (int8_t)(2 * (one_m->scales[j / 4] >> 3 * (j % 4) & 7) + 1);
    const pmx_block_iq2_xs *xs = block;
    const pmx_block_iq2_s *two = block;
    const pmx_block_iq3_s *three = block;
    if (type == PMX_IQ2_XXS || type == PMX_IQ3_XXS) return (int8_t)(2 * (lattice_word(type, block, j) >> 28) + 1);
    const uint8_t *nibbles = type == PMX_IQ2_XS ? xs->scales : type == PMX_IQ2_S ? two->scales : three->scales;
    return (int8_t)(2 * (nibbles[j / 2] >> 4 * (j % 2) & 15) + 1);
}

#endif
