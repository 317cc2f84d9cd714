/* pmx.h: the public contract of pymixtral's C library.
 *
 * Every entry point validates its arguments and returns a status; none prints, aborts or keeps a
 * caller's pointer after it returns. All arithmetic follows docs/numerics.md to the bit, whatever
 * the instruction set or number of threads.
 *
 * Conventions
 *   - Output pointers come after the context, before inputs.
 *   - Matrices are row-major and dense: x[n_tokens][n].
 *   - Counts are n_*; strides and sizes in bytes are *_bytes.
 *   - The caller owns every buffer; the context owns threads and scratch. Scratch only grows, so
 *     a call allocates nothing once a call of its size has run.
 *   - A context serves one call at a time; different contexts are independent. A call that meets
 *     another thread's in the same context ends at once with PMX_EBUSY and has read and written
 *     nothing of its arguments; the other goes on. pmx_ctx_cancel may come from any thread at any
 *     time, and so may pmx_ctx_isa and pmx_ctx_threads.
 */
#ifndef PMX_H
#define PMX_H

#include <stdint.h>

/* build_ffi.py gives cffi what lies between the two markers, without the comments. */
/* cdef begin */

typedef enum {
    PMX_OK = 0,
    PMX_EINVAL = 1,       /* an argument breaks the contract */
    PMX_ENOMEM = 2,       /* scratch could not grow */
    PMX_ETHREAD = 3,      /* a thread could not be started */
    PMX_EUNSUPPORTED = 4, /* a type or instruction set this library does not run */
    PMX_ENONFINITE = 5,   /* NaN or infinity; pmx_bad_row() names the row */
    PMX_EOVERFLOW = 6,    /* a key or value does not fit the cache's type; pmx_bad_row() names the row */
    PMX_ECANCELED = 7,    /* pmx_ctx_cancel was set */
    PMX_EBUSY = 8,        /* another thread's call is running in the context */
    PMX_EBANNED = 9       /* a row of pmx_sample: no token is left to draw */
} pmx_status;

/* GGUF's own numbers (ggml_type). */
typedef enum {
    PMX_F32 = 0,
    PMX_F16 = 1,
    PMX_Q4_0 = 2,
    PMX_Q4_1 = 3,
    PMX_Q5_0 = 6,
    PMX_Q5_1 = 7,
    PMX_Q8_0 = 8,
    PMX_Q2_K = 10,
    PMX_Q3_K = 11,
    PMX_Q4_K = 12,
    PMX_Q5_K = 13,
    PMX_Q6_K = 14,
    PMX_IQ2_XXS = 16,
    PMX_IQ2_XS = 17,
    PMX_IQ3_XXS = 18,
    PMX_IQ1_S = 19,
    PMX_IQ4_NL = 20,
    PMX_IQ3_S = 21,
    PMX_IQ2_S = 22,
    PMX_IQ4_XS = 23,
    PMX_IQ1_M = 29,
    PMX_BF16 = 30,
    PMX_TQ1_0 = 34,
    PMX_TQ2_0 = 35,
    PMX_MXFP4 = 39
} pmx_type;

/* Where a product of one token puts the rows that it is about to read. Which is faster
 * depends on the CPU: near loads wait in the first cache's few miss buffers, far ones do not. */
typedef enum {
    PMX_PREFETCH_NEAR = 0, /* the first cache */
    PMX_PREFETCH_FAR = 1   /* the second */
} pmx_prefetch;

/* How many bytes before a line is read it is asked for, where a kernel reads rows one by one: what a
 * core reads until memory has answered. On Zen 5 half as many cost 9 to 14%, twice as many gained
 * nothing. */
enum { PMX_AHEAD = 8192, PMX_MAX_AHEAD = 1048576 };

typedef struct pmx_ctx pmx_ctx;

/* The parts of a pass, among which the time of a context is divided. */
typedef enum {
    PMX_PART_OTHER = 0, /* checks and notes between the others, and calls that belong to none */
    PMX_PART_EMBEDDING = 1,
    PMX_PART_NORM = 2,
    PMX_PART_QKV = 3,  /* activations rounded, and three projections */
    PMX_PART_ROPE = 4, /* angles, rotation, and keys and values into the cache */
    PMX_PART_ATTENTION = 5,
    PMX_PART_OUTPUT = 6, /* activations rounded, and the output projection */
    PMX_PART_ROUTER = 7,
    PMX_PART_GATE_UP = 8, /* tokens sorted by expert, activations rounded, and gate and up with SiLU */
    PMX_PART_DOWN = 9,    /* activations rounded, and down with the sum over the experts */
    PMX_PART_HEAD = 10,   /* pmx_matmul by itself */
    PMX_PART_SAMPLING = 11,
    PMX_PARTS = 12
} pmx_part;

/* What a part took. Threads share the work of a region; outside of regions the caller's thread works
 * alone. With one thread all its work on items counts as regions. */
typedef struct {
    int64_t ns;        /* nanoseconds on the caller's thread */
    int64_t region_ns; /* of them, in regions */
    int64_t n_regions;
    int64_t bytes; /* of the weights whose rows were read, each row once a call */
} pmx_part_time;

/* A thread in the regions of a part: its three members add up to region_ns. */
typedef struct {
    int64_t late_ns;    /* before its first item; all of a region in which it came too late for any */
    int64_t busy_ns;    /* from its first item to the end of its last one */
    int64_t waiting_ns; /* from there to the end of the region */
} pmx_thread_time;

/* What an adapter adds to a matrix W of rows x cols: y = W x + transpose(b) (a x). */
typedef struct {
    const float *a;  /* [rank][cols] */
    const float *b;  /* [rank][rows], the adapter's own scale multiplied in */
    int32_t rank;    /* 1..1024 */
    int32_t adapter; /* 0..65535, its column in the scales of a batch */
} pmx_low_rank;

typedef struct {
    const pmx_low_rank *pairs; /* [n_pairs], adapters ascending, none twice */
    int64_t n_pairs;
} pmx_delta;

/* A matrix of rows x cols weights, stored by row in GGUF's own blocks; borrowed, usually
 * memory-mapped. data may have any alignment that GGUF gives (32 bytes at the start; blocks inside
 * are unaligned). row_bytes >= the bytes of cols elements. delta: what adapters add, or NULL. */
typedef struct {
    const void *data;
    int32_t type; /* pmx_type */
    int64_t rows;
    int64_t cols;
    int64_t row_bytes;
    const pmx_delta *delta;
} pmx_weight;

/* One layer of the key/value cache, in pages of 64 positions.
 *   PMX_F32, PMX_F16:
 *     k: [n_pages][n_kv_heads][head_dim][64]
 *     v: [n_pages][n_kv_heads][64][head_dim]
 *   PMX_Q8_0, aligned to 2 bytes:
 *     k, v: [n_pages][n_kv_heads] x 68*head_dim bytes. These are int8 [head_dim/4][64][4] in k and
 *     [64][head_dim] in v, then the f16 scales [head_dim/32][64]. */
typedef struct {
    void *k;
    void *v;
    int32_t type; /* pmx_type */
    int32_t n_kv_heads;
    int32_t head_dim; /* a multiple of 8, with PMX_Q8_0 of 32; at most 1024 */
    int32_t n_pages;
} pmx_cache;

/* A run of consecutive tokens of one sequence. A batch is a list of runs; their tokens are
 * consecutive rows, in order.
 *   pages[i]: the cache page of positions 64*i .. 64*i+63
 *   n_pages*64 >= first_position + n_tokens */
typedef struct {
    int32_t n_tokens;
    int32_t first_position;
    const int32_t *pages;
    int32_t n_pages;
} pmx_run;

/* One decoder layer. A dense feed-forward is n_experts = n_experts_used = 1 with router.data NULL.
 *   attn_norm, ffn_norm: [hidden]
 *   q: n_heads*head_dim x hidden
 *   k, v: n_kv_heads*head_dim x hidden
 *   output: hidden x n_heads*head_dim
 *   router: n_experts x hidden
 *   experts: [n_experts][3], which are gate, up (ffn x hidden) and down (hidden x ffn). Each expert
 *     may have its own types. */
typedef struct {
    const float *attn_norm;
    const float *ffn_norm;
    pmx_weight q, k, v, output, router;
    const pmx_weight *experts;
    int32_t n_experts; /* 1..64 */
    int32_t n_experts_used;
    int32_t n_heads;
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t hidden;
    int32_t window; /* sliding window in positions; 0: none */
    float eps;
    int32_t n_experts_dropped; /* 0..n_experts_used-1: so many of a token's experts, the last of the router's
                                * order, have weight 0; with fewer used in one layer than in others */
    float expert_min_p;        /* 0..1: experts of less than this part of the first one's weight have weight 0 */
} pmx_layer;

/* The tokens of all runs, and what the layers of a pass hand on about them. */
typedef struct {
    float *x;       /* [n_tokens][hidden], the residual stream */
    float *normed;  /* [n_tokens][hidden], the experts' input */
    int32_t *ids;   /* [n_tokens][n_experts_used], the router's choice, ascending within a token */
    float *weights; /* [n_tokens][n_experts_used], what the chosen experts count; those of 0 are not computed */
    int64_t n_tokens;
    const float *cosines, *sines; /* [n_tokens][head_dim/2] */
    const pmx_run *runs;
    int64_t n_runs;
    float *scales;      /* [n_tokens][n_adapters], finite: what each adapter counts in a row. One that counts 0 is
                         * not computed. NULL: none is */
    int32_t n_adapters; /* 1..65536; not read without scales */
} pmx_batch;

/* Calibration: sums of squares of the inputs of each matrix, added to what is there, tokens in
 * ascending order; the number of tokens each expert saw; and the sum of their weights times the
 * Euclidean norms of the expert's outputs. Any pointer may be NULL. */
typedef struct {
    double *qkv_input;    /* [hidden] */
    double *output_input; /* [n_heads*head_dim] */
    double *expert_input; /* [n_experts][hidden], gate and up */
    double *down_input;   /* [n_experts][ffn] */
    int64_t *n_tokens;    /* [n_experts] */
    double *output_norms; /* [n_experts] */
} pmx_observer;

/* Consecutive layers of a pass. All have the same hidden, n_experts and n_experts_used. */
typedef struct {
    const pmx_layer *const *layers;       /* [n_layers] */
    const pmx_cache *const *caches;       /* [n_layers] */
    const pmx_observer *const *observers; /* [n_layers], or NULL */
    int64_t n_layers;
    const int64_t *kept; /* [n_kept], ascending: the only rows that the experts of the last layer take. They become
                          * the first n_kept rows of x, normed, ids, weights and scales. NULL: all rows */
    int64_t n_kept;
    /* What the routers chose, before any row is dropped; each may be NULL. */
    uint8_t *choices;       /* [n_tokens][n_layers][n_experts_used], as ids */
    float *choices_weights; /* [n_tokens][n_layers][n_experts_used], as weights */
    float *choices_logits;  /* [n_tokens][n_layers][n_experts], of all experts; 0 in a layer without a router */
} pmx_layers;

/* What a sampler carries from token to token: NumPy's PCG64, whose words of 128 bits have the low
 * half first, and the surprise that mirostat allows. */
typedef struct {
    uint64_t state[2];
    uint64_t increment[2];
    double surprise; /* finite, in bits */
} pmx_sampler_state;

/* Sequences of ids, none empty, one behind the other; sequence i ends before ids[ends[i]]. */
typedef struct {
    const int32_t *ids;
    const int64_t *ends; /* [n], ascending */
    int64_t n;
} pmx_sequences;

/* How one text goes on: the steps of docs/numerics.md, "sampling", each left out at the value in
 * brackets, with the state and the text that they look at. A mask has a bit for each token, bit
 * i % 32 of word i / 32: [(n_vocab + 31) / 32]. */
typedef struct {
    pmx_sampler_state state;
    float temperature;          /* 0: the largest logit is taken */
    float repetition_penalty;   /* above 0 (1) */
    double presence_penalty;    /* (0) */
    double frequency_penalty;   /* (0) */
    double dry_multiplier;      /* 0..1e9 (0) */
    double dry_base;            /* 1..1e9; read only with dry_multiplier, as the members that follow */
    int64_t dry_allowed_length; /* 1.. */
    int64_t dry_window;         /* the last ids of text that count; 0: all */
    double top_n_sigma;         /* (0) */
    double typical_p;           /* 0..1 (1) */
    double top_p;               /* 0..1 (1) */
    double min_p;               /* 0..1 (0) */
    double xtc_probability;     /* 0..1 (0) */
    double xtc_threshold;       /* 0..1 */
    double mirostat_tau;        /* bits, 0..1e9 (0) */
    double mirostat_eta;        /* 0..1 */
    int64_t top_k;              /* (0) */
    int64_t penalty_window;     /* the last ids of text that the penalties look at; 0: all */
    const int32_t *bias_ids;    /* [n_bias] */
    const float *bias;          /* [n_bias], below +infinity */
    int64_t n_bias;
    const int32_t *end_ids; /* [n_end], banned while n_text < min_text */
    int64_t n_end;
    int64_t min_text;
    pmx_sequences bad_words;            /* the last id of one is banned where the text ends with the others */
    pmx_sequences dry_breakers;         /* that no repetition crosses */
    const uint32_t *dry_breaker_tokens; /* mask of more such, of one token each; or NULL */
    const uint32_t *allowed;            /* mask of the tokens that may be drawn; NULL: all */
    const uint32_t *mask;               /* the same for this token: both must have the bit */
    const int32_t *text;                /* [n_text], the ids so far, prompt included */
    int64_t n_text;
} pmx_sampler;

/* --- Errors: of the last call on this thread that failed -------------------------------------- */

/* One sentence; valid until the next call on this thread. */
const char *pmx_message(void);
/* The row (token) of PMX_ENONFINITE or PMX_EOVERFLOW, else -1. */
int64_t pmx_bad_row(void);

/* --- Instruction sets and contexts ------------------------------------------------------------ */

/* Names of the instruction sets in this build, slowest first; NULL past the end. */
const char *pmx_isa_name(int32_t i);
/* 1 if this CPU and operating system run instruction set i, else 0. */
int32_t pmx_isa_available(int32_t i);

/* n_threads: 1..256, the caller's thread included. isa: a name above, or NULL for the fastest
 * available. */
pmx_status pmx_ctx_create(pmx_ctx **ctx, int32_t n_threads, const char *isa);
/* Ends the threads and frees the scratch. NULL is allowed. Where another thread's call is running in
 * the context, that call is cancelled, and frees the context when it ends. The pointer is invalid at
 * once for everybody else. */
void pmx_ctx_destroy(pmx_ctx *ctx);
/* on != 0: calls on this context end soon with PMX_ECANCELED, until it is set to 0 again. */
void pmx_ctx_cancel(pmx_ctx *ctx, int32_t on);
/* For the calls that follow. hint: a pmx_prefetch, at first PMX_PREFETCH_NEAR; ahead: bytes, 0 to
 * PMX_MAX_AHEAD, at first PMX_AHEAD. No result depends on them. */
pmx_status pmx_ctx_prefetch(pmx_ctx *ctx, int32_t hint, int32_t ahead);
/* How finely the calls that follow round activations: 1 plane of int8, as at first, or 2, of which the
 * second rounds what the first leaves. */
pmx_status pmx_ctx_planes(pmx_ctx *ctx, int32_t planes);
/* on != 0: from here on the time of the calls is divided among the parts, beginning at zero; 0: no
 * longer, as at first. No result depends on it. While it is off it costs a branch a region. */
pmx_status pmx_ctx_timing(pmx_ctx *ctx, int32_t on);
/* What the calls have taken since the timing was switched on; refused while it is off. parts:
 * [PMX_PARTS]; threads: [PMX_PARTS][n_threads], the caller's first. */
pmx_status pmx_ctx_times(pmx_ctx *ctx, pmx_part_time *parts, pmx_thread_time *threads);
const char *pmx_ctx_isa(const pmx_ctx *ctx);
int32_t pmx_ctx_threads(const pmx_ctx *ctx);

/* --- Single operations ------------------------------------------------------------------------ */

/* Bytes of n elements of a type; -1 for an unknown type or an n that is no multiple of its block. */
int64_t pmx_row_bytes(int32_t type, int64_t n);

/* y, x: [n_tokens][n]; weight: [n]. y may be x. */
pmx_status pmx_rms_norm(pmx_ctx *ctx, float *y, const float *x, const float *weight, int64_t n_tokens, int64_t n,
                        float eps);

/* block: 32 or 256, dividing n. q, x: [n_tokens][n]; d: [n_tokens][n/block]; sums:
 * [n_tokens][n/32], or [n_tokens][n/16] with block 256. */
pmx_status pmx_quantize_activations(pmx_ctx *ctx, int8_t *q, float *d, int32_t *sums, const float *x, int64_t n_tokens,
                                    int64_t n, int32_t block);

/* y: [n_tokens][w->rows]; x: [n_tokens][w->cols]. scales: [n_tokens][n_adapters] or NULL, as in pmx_batch. */
pmx_status pmx_matmul(pmx_ctx *ctx, float *y, const float *x, const pmx_weight *w, int64_t n_tokens,
                      const float *scales, int32_t n_adapters);

/* y: [n_ids][w->cols], the rows ids (0 <= id < w->rows) of w widened or dequantized. w->delta must be NULL. */
pmx_status pmx_embed(pmx_ctx *ctx, float *y, const pmx_weight *w, const int32_t *ids, int64_t n_ids);

/* y, x: [n]; exp of the contract; y may be x. Infinite and NaN results are passed on. */
pmx_status pmx_exp(pmx_ctx *ctx, float *y, const float *x, int64_t n);

/* y, gate, up: [n]; y may be gate. */
pmx_status pmx_silu_mul(pmx_ctx *ctx, float *y, const float *gate, const float *up, int64_t n);

/* cosines, sines: [n_tokens][n_pairs]; frequencies: [n_pairs]; positions: [n_tokens], >= 0. */
pmx_status pmx_rope_table(pmx_ctx *ctx, float *cosines, float *sines, const double *frequencies,
                          const int32_t *positions, int64_t n_tokens, int64_t n_pairs, double factor);

/* x: [n_tokens][n_heads][head_dim], rotated in place; cosines, sines: [n_tokens][head_dim/2]. */
pmx_status pmx_rope(pmx_ctx *ctx, float *x, const float *cosines, const float *sines, int64_t n_tokens, int32_t n_heads,
                    int32_t head_dim);

/* Rounds k, v: [n_tokens][n_kv_heads][head_dim] into the cache at the runs' positions. On
 * PMX_EOVERFLOW the row named is not written. */
pmx_status pmx_cache_write(pmx_ctx *ctx, const pmx_cache *cache, const float *k, const float *v, const pmx_run *runs,
                           int64_t n_runs);

/* y, q: [n_tokens][n_heads][head_dim]; keys and values up to each token's own position are in the
 * cache. */
pmx_status pmx_attention(pmx_ctx *ctx, float *y, const float *q, const pmx_cache *cache, const pmx_run *runs,
                         int64_t n_runs, int32_t n_heads, int32_t window);

/* ids, weights: [n_tokens][n_experts_used], ascending expert index; logits: [n_tokens][n_experts].
 * n_experts_dropped, expert_min_p: as in pmx_layer. */
pmx_status pmx_route(pmx_ctx *ctx, int32_t *ids, float *weights, const float *logits, int64_t n_tokens,
                     int32_t n_experts, int32_t n_experts_used, int32_t n_experts_dropped, float expert_min_p);

/* y: rows x cols in blocks of type (dense rows); x: [rows][cols] f32. importance: [cols], finite,
 * not negative, what the squared error of a column counts, or NULL: all the same; f32, f16, bf16
 * and q8_0 ignore it. PMX_ENONFINITE for NaN, infinity, and values that overflow the type. */
pmx_status pmx_encode(pmx_ctx *ctx, void *y, int32_t type, const float *x, const float *importance, int64_t rows,
                      int64_t cols);

/* Reads n lines of 64 bytes, to find how fast memory is read; data may have any alignment. Of each
 * line the first 4 bytes are added to *sum, modulo 2^32, as the memory hands over whole lines.
 * n_streams: 1, 2 or 4, the places that a thread reads at once; hint: a pmx_prefetch, where lines
 * that come next are put, or -1: nobody asks for them. */
pmx_status pmx_read(pmx_ctx *ctx, uint32_t *sum, const void *data, int64_t n, int32_t n_streams, int32_t hint);

/* Draws a token for each row. ids: [n_rows]; statuses: [n_rows], of each row by itself: PMX_OK;
 * PMX_ENONFINITE, with ids the token whose logit is NaN, or the largest one, which is infinite;
 * PMX_EBANNED. logits: [n_rows][n_vocab]; samplers: [n_rows], one for each row, none twice. The
 * state of a row that is not PMX_OK stays as it is, and after a failure of the call that of all. */
pmx_status pmx_sample(pmx_ctx *ctx, int32_t *ids, int32_t *statuses, const float *logits, pmx_sampler *const *samplers,
                      int64_t n_rows, int64_t n_vocab);

/* --- A decoder layer in two calls ------------------------------------------------------------- */

/* Adds attention to x, writes the runs' keys and values to the cache, and sets normed, ids and
 * weights. observer may be NULL. After a failure x and the cache's new positions are undefined. */
pmx_status pmx_layer_attention(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layer *layer, const pmx_cache *cache,
                               const pmx_observer *observer);

/* Adds to x what the chosen experts make of normed, by their weights. The rows may be of no run: cosines, sines and
 * runs are not read. observer may be NULL. After a failure x is undefined. */
pmx_status pmx_layer_experts(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layer *layer,
                             const pmx_observer *observer);

/* Both halves of several layers in one call: its caller waits for his own thread once a pass, not twice a layer. After
 * a failure x, the caches' new positions and the choices are undefined. */
pmx_status pmx_run_layers(pmx_ctx *ctx, const pmx_batch *batch, const pmx_layers *layers);

/* cdef end */

#endif
