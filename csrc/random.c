/* random.c: NumPy's PCG64, which is XSL-RR 128/64 of O'Neill 2014, "PCG: A Family of Simple Fast
 * Space-Efficient Statistically Good Algorithms for Random Number Generation". */
#include "sample.h"

__extension__ typedef unsigned __int128 word128;

static uint64_t next_number(pmx_sampler_state *s) {
    const word128 multiplier = (word128)UINT64_C(0x2360ed051fc65da4) << 64 | UINT64_C(0x4385df649fccf645);
    const word128 increment = (word128)s->increment[1] << 64 | s->increment[0];
    const word128 state = ((word128)s->state[1] << 64 | s->state[0]) * multiplier + increment;
    const uint64_t low = (uint64_t)state, high = (uint64_t)(state >> 64), mixed = high ^ low;
    const unsigned turn = (unsigned)(high >> 58);
    s->state[0] = low;
    s->state[1] = high;
    return mixed >> turn | mixed << (-turn & 63);
}

double pmx_uniform(pmx_sampler_state *s) { return (double)(next_number(s) >> 11) * 0x1p-53; }
