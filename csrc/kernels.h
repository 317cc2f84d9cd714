/* kernels.h: what an instruction set provides. Kernels assume valid arguments (the entry points
 * checked them) and are void. */
#ifndef PMX_KERNELS_H
#define PMX_KERNELS_H

#include <math.h>
#include <stdint.h>

#include "pmx.h"
#include "types.h"

enum {
    PMX_TYPE_SLOTS = 40, /* types are GGUF's numbers, 0..39 */
    PMX_PAGE = 64,       /* positions of a cache page, as pmx.h says */
    /* Most tokens of one product. A strip of weights is unpacked once for them: with 128 prompts take
     * 1 to 3% longer, with 512 as long. */
    PMX_TOKEN_BLOCK = 256,
    PMX_FEW_TOKENS = 16, /* the most that a few kernel takes */
    /* Bytes. avx512vnni/matmul32.c needs most, 73,728: a strip of 40,960, and its results. */
    PMX_MAT_SCRATCH = 80 * 1024,
    PMX_ATTEND_SCRATCH = PMX_PAGE + 2, /* floats of each query of attend: its scores, and two factors */
    PMX_MAX_HEAD_DIM = 1024            /* kernels have a few arrays of so many floats on the stack */
};

#define PMX_INLINE static inline __attribute__((always_inline))
/* Of look-ups, which sanitizers check one by one: compilers took minutes over all their copies. */
#ifdef __SANITIZE_ADDRESS__ /* gcc's */
#define PMX_LOOKUP static __attribute__((noinline))
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define PMX_LOOKUP static __attribute__((noinline))
#endif
#endif
#ifndef PMX_LOOKUP
#define PMX_LOOKUP PMX_INLINE
#endif

/* In which form a weight type wants its activations. */
typedef enum { PMX_FORM_F32, PMX_FORM_Q32, PMX_FORM_Q256, PMX_FORMS } pmx_form;

/* Quantized activations: q [n_tokens][cols]; d [n_tokens][cols / block], block 32 or 256; sums of q
 * [n_tokens][cols / 32] with block 32, [n_tokens][cols / 16] with block 256. */
typedef struct {
    const int8_t *q;
    const float *d;
    const int32_t *sums;
} pmx_quantized;

/* Activations [n_tokens][cols], in the forms that were prepared. With 2 planes, quantized ones have
 * 2 * n_tokens rows: behind those of the tokens, what the rounding of each left, quantized likewise. */
typedef struct {
    const float *x;
    pmx_quantized q32, q256;
    int64_t cols, n_tokens;
    int32_t planes;
    pmx_prefetch prefetch; /* of the rows that they are multiplied with */
    int32_t ahead;         /* bytes before a line is read, it is asked for; where rows are read one by one */
} pmx_acts;

/* Prefetches the line at p, which need not be readable. */
PMX_INLINE void pmx_prefetch_line(const void *p, pmx_prefetch hint) {
    if (hint == PMX_PREFETCH_FAR)
        __builtin_prefetch(p, 0, 2);
    else
        __builtin_prefetch(p, 0, 3);
}

/* An inlined kernel, called with the hint of product P as a constant: a branch in the loops makes
 * what is in the caches up to 7% slower. */
#define PMX_WITH_HINT(KERNEL, P, ...)                                                                                  \
    ((P).acts->prefetch == PMX_PREFETCH_FAR ? KERNEL(P, PMX_PREFETCH_FAR, __VA_ARGS__)                                 \
                                            : KERNEL(P, PMX_PREFETCH_NEAR, __VA_ARGS__))

/* A token's activations, from one of its blocks on. */
PMX_INLINE pmx_quantized pmx_token_q32(const pmx_acts *acts, int64_t token, int64_t block) {
    const int64_t at = token * (acts->cols / 32) + block;
    return (pmx_quantized){acts->q32.q + 32 * at, acts->q32.d + at, acts->q32.sums + at};
}
PMX_INLINE pmx_quantized pmx_token_q256(const pmx_acts *acts, int64_t token, int64_t block) {
    const int64_t at = token * (acts->cols / 256) + block;
    return (pmx_quantized){acts->q256.q + 256 * at, acts->q256.d + at, acts->q256.sums + 16 * at};
}

/* Rows of weights times tokens: y[i * ldy + r] = row r . activations of tokens[i]. */
typedef struct {
    float *y;
    int64_t ldy;
    const uint8_t *w; /* the first row */
    int64_t row_bytes, n_rows;
    const pmx_acts *acts;
    const int32_t *tokens;
    int64_t n_tokens; /* 1 to PMX_TOKEN_BLOCK */
    void *scratch;    /* PMX_MAT_SCRATCH bytes, aligned to 64; vec and few have no use for it */
} pmx_product;

typedef void pmx_multiply(const pmx_product *p);

/* n weights, whole blocks. */
typedef void pmx_dequantize(float *y, const uint8_t *w, int64_t n);

/* The part of a product from row r and token t on. */
PMX_INLINE pmx_product pmx_product_from(pmx_product p, int64_t r, int64_t t) {
    p.y += t * p.ldy + r;
    p.w += r * p.row_bytes;
    p.n_rows -= r;
    p.tokens += t;
    p.n_tokens -= t;
    return p;
}

typedef struct {
    pmx_form form;
    pmx_multiply *vec;      /* one token */
    pmx_multiply *few;      /* 2 to PMX_FEW_TOKENS tokens; NULL: vec takes them one by one */
    pmx_multiply *mat;      /* NULL: there are only these two */
    int64_t mat_min_tokens; /* from so many tokens on, mat beats them */
    pmx_dequantize *dequantize;
} pmx_type_kernels;

/* A page of the cache, and queries of one key/value head that it is folded into. */
typedef struct {
    int64_t n_q, head_dim;
    const float *q;         /* [n_q][head_dim], scaled; for pages of f32 and f16 */
    pmx_quantized q8;       /* the same in blocks of 32; for pages of q8_0 */
    const void *k, *v;      /* [head_dim][64], [64][head_dim]; of q8_0 as pmx.h says */
    const int32_t *lo, *hi; /* query i sees positions lo[i] <= j < hi[i] of the page; lo == hi: none */
    float *m, *l, *o;       /* maximum, sum and weighted values [n_q][head_dim] of the pages so far;
                               -infinity, 0 and 0 before the first */
    float *s;               /* scratch, n_q * PMX_ATTEND_SCRATCH */
} pmx_attend;

typedef void pmx_attend_kernel(const pmx_attend *a);

/* The queries from i on. */
PMX_INLINE pmx_attend pmx_attend_from(pmx_attend a, int64_t i) {
    const int64_t n_blocks = a.head_dim / 32;
    a.n_q -= i;
    a.q += i * a.head_dim;
    a.q8 = (pmx_quantized){a.q8.q + i * a.head_dim, a.q8.d + i * n_blocks, a.q8.sums + i * n_blocks};
    a.lo += i;
    a.hi += i;
    a.m += i;
    a.l += i;
    a.o += i * a.head_dim;
    a.s += i * PMX_PAGE;
    return a;
}

/* csrc/encode: finds the scales of 16 sub-blocks side by side, in vectors of 4, 8 and 16 floats. */
typedef struct pmx_tile pmx_tile;
typedef struct pmx_grid pmx_grid;
typedef int pmx_search(pmx_tile *tile, const pmx_grid *grid);

typedef struct {
    const char *name;
    int (*available)(void);
    pmx_type_kernels types[PMX_TYPE_SLOTS];

    void (*rms_norm)(float *y, const float *x, const float *w, int64_t n, float eps);
    /* In blocks of 32 and 256. Returns 1 when a block holds a NaN or infinity (its q, d and sums
     * are then 0), else 0. */
    int (*quantize32)(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
    int (*quantize256)(int8_t *q, float *d, int32_t *sums, const float *x, int64_t n);
    void (*exp)(float *y, const float *x, int64_t n);
    void (*silu_mul)(float *y, const float *gate, const float *up, int64_t n);
    void (*axpy)(float *y, float a, const float *x, int64_t n); /* y = fma(a, x, y) */
    /* The same with a[0], a[1], .. and the rows of x [n_rows][n], which are `stride` floats apart. */
    void (*add_rows)(float *y, const float *a, const float *x, int64_t stride, int64_t n_rows, int64_t n);
    void (*rope)(float *x, const float *cosines, const float *sines, int64_t n_pairs);
    void (*narrow)(uint16_t *y, const float *x, int64_t n); /* f32 to f16 */
    void (*widen)(float *y, const uint16_t *x, int64_t n);  /* f16 to f32 */

    pmx_attend_kernel *attend_f32, *attend_q8_0;
    pmx_attend_kernel *attend_f16; /* NULL: the page is widened first */
    /* Folds a page's own (m, l, o) into those so far. */
    void (*combine)(float *m, float *l, float *o, float page_m, float page_l, const float *page_o, int64_t head_dim);
    pmx_search *search;
} pmx_kernels;

extern const pmx_kernels pmx_kernels_scalar;
#if defined(__x86_64__)
extern const pmx_kernels pmx_kernels_avx2, pmx_kernels_avxvnni, pmx_kernels_avx512vnni, pmx_kernels_avx512vbmi;
#elif defined(__aarch64__)
extern const pmx_kernels pmx_kernels_neon, pmx_kernels_neon_i8mm;
#endif

/* One head's keys or values of a q8_0 page: its bytes, and where its scales begin. */
static inline int64_t pmx_q8_0_page_bytes(int64_t head_dim) {
    return head_dim * PMX_PAGE + head_dim / 32 * PMX_PAGE * 2;
}
static inline const uint16_t *pmx_q8_0_page_scales(const uint8_t *page, int64_t head_dim) {
    return (const uint16_t *)(const void *)(page + head_dim * PMX_PAGE);
}

/* The positions of a page that at least one of n queries sees. */
typedef struct {
    int32_t first, end;
} pmx_positions;
static inline pmx_positions pmx_positions_seen(const int32_t *lo, const int32_t *hi, int64_t n) {
    pmx_positions seen = {PMX_PAGE, 0};
    for (int64_t i = 0; i < n; i++) {
        if (lo[i] < hi[i] && lo[i] < seen.first) seen.first = lo[i];
        if (lo[i] < hi[i] && hi[i] > seen.end) seen.end = hi[i];
    }
    return seen;
}

/* Constants of exp in docs/numerics.md, shared by all kernels. */
#define PMX_EXP_HI 88.0f
#define PMX_EXP_LO (-87.3f)
#define PMX_EXP_LOG2E 0x1.715476p+0f
#define PMX_EXP_LN2_HI 0x1.62e430p-1f
#define PMX_EXP_LN2_LO (-0x1.05c610p-29f)
#define PMX_EXP_C7 0x1.a125f6p-13f
#define PMX_EXP_C6 0x1.6d444ap-10f
#define PMX_EXP_C5 0x1.1110e0p-7f
#define PMX_EXP_C4 0x1.5554e8p-5f
#define PMX_EXP_C3 0x1.555556p-3f
#define PMX_EXP_C2 0x1p-1f

/* Activations below this largest magnitude quantize to zero, so that 127 / amax stays finite. */
#define PMX_TINY_AMAX 0x1p-100f

/* rms_norm's factor. An infinite sum of squares gives NaN, which the entry point finds: its
 * inverse, 0, would hide the overflow. */
static inline float pmx_rms_scale(float sum_of_squares, int64_t n, float eps) {
    if (isinf(sum_of_squares)) return NAN;
    return 1.0f / sqrtf(sum_of_squares / (float)n + eps);
}

#endif
