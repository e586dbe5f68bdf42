/* Tiles of causal grouped-query attention (FlashAttention-2, arXiv:2307.08691).
 * A tile holds the rows of one group: the n_queries consecutive queries of every query head that shares one key/value
 * head. Row r = i * group + h is query i, head h of the group; its data starts at q + i * ldq + h * D. */
#ifndef LORA_ATTENTION_KERNELS_H
#define LORA_ATTENTION_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/isa.h"
#include "lora_c/kernels/gemm_kernels.h"

/* LORA_ATTENTION_ROWS by bench_attention on one core of an AMD EPYC (Zen 4, AVX-512): 96, 192 and 768 give 0.93, 0.97 and 0.99 of
 * the speed. */
enum {
    LORA_ATTENTION_BLOCK = 96,        /* keys per block in float32 */
    LORA_ATTENTION_ROWS = 384,        /* rows a tile aims at (a group larger than this makes it larger) */
    LORA_ATTENTION_MAX_FAST_D = 1024, /* wider heads have float32 operands in every precision */
};

/* One forward task: a block of queries against all the keys that they see. */
typedef struct lora_attention_forward_tile {
    int64_t n_queries, group, D;
    float scale;
    float softcap;  /* 0: none; else a score x becomes softcap * tanh(x / softcap) before the softmax */
    int64_t last;   /* the last key that query 0 sees; query i sees keys ..= last + i, last >= 0 */
    int64_t window; /* 0: none; else a query sees the last window keys of those */
    const float *q; /* first query, first head of the group */
    int64_t ldq;
    const float *k, *v; /* key 0 of the segment, this key/value head */
    int64_t ldk, ldv;
    float *o; /* as q */
    int64_t ldo;
    float *lse; /* first query, first head of the group, rows ld_lse apart; or NULL */
    int64_t ld_lse;
    float *scratch; /* forward_scratch floats, 64-byte aligned */
} lora_attention_forward_tile;

/* n_queries queries against one block of at most key_block keys, backward. The same queries meet several blocks, one after the
 * other and with the same scratch, in which backward_begin may leave what does not depend on the keys. */
typedef struct lora_attention_backward_tile {
    int64_t n_queries, n_keys, group, D;
    float scale, softcap;
    int64_t last; /* as above, but counted from key 0 of this tile: may be negative */
    int64_t window;
    bool accumulate_dq;   /* add to dq instead of setting it */
    bool accumulate_keys; /* add to dk and dv instead of setting them */
    const float *q, *k, *v, *dout;
    int64_t ldq, ldk, ldv, lddo;
    const float *lse; /* first query, first head of the group, rows ld_lse apart */
    int64_t ld_lse;
    const float *delta; /* (n_queries, group), dense */
    float *dq, *dk, *dv;
    int64_t lddq, lddk, lddv;
    float *scratch; /* backward_scratch floats, 64-byte aligned */
} lora_attention_backward_tile;

/* Common contract   any alignment of q, k, v, o and their gradients (float is enough); only the named elements are
 * read or written; outputs do not overlap inputs. Sums over D and over keys run in index order, so the result of a row
 * does not depend on the other rows of its tile. */
typedef struct lora_attention_kernels {
    int64_t key_block; /* keys of a backward tile, and the most queries */

    /** Scratch of one tile, in floats, a multiple of 16. */
    int64_t (*forward_scratch)(int64_t n_rows, int64_t D);
    int64_t (*backward_scratch)(int64_t n_rows, int64_t D);

    /* o = softmax(scale * q k^T) v by online softmax over key blocks (algorithm 1); lse = log of the denominator,
     * maximum inside. Blocks start at multiples of a constant, so a query gets the same bits whether it comes alone
     * (decode) or among others (prefill). */
    void (*forward)(const lora_attention_forward_tile *tile);
    /* delta[m][h] = sum_d dout[m][h*D + d] * o[m][h*D + d] for M rows; delta is (M, n_heads), dense. */
    void (*delta)(int64_t M, int64_t n_heads, int64_t D, const float *dout, int64_t lddo, const float *o, int64_t ldo, float *delta);
    /* Called once for the queries of a tile, whatever its keys. NULL: nothing to do. */
    void (*backward_begin)(const lora_attention_backward_tile *tile);
    /* p = exp(scale * q k^T - lse), ds = p * (dout v^T - delta);   dv (+)= p^T dout, dq (+)= scale * ds k,
     * dk (+)= scale * ds^T q (algorithm 2, one tile); with a softcap ds also carries 1 - tanh^2. dk, dv: n_keys rows of D; dq: as q. */
    void (*backward)(const lora_attention_backward_tile *tile);
} lora_attention_kernels;

/** Every rung has float32 operands. */
void lora_attention_kernels_init(lora_attention_kernels *k, lora_isa isa);
/** As above, but bfloat16 operands in all products where that is the fast path of the matrix product on this CPU. Sums and
 *  the softmax are float32. Only for segments without past keys: it has no kernel for few rows against many keys. */
void lora_attention_fast_kernels_init(lora_attention_kernels *k, lora_isa isa, lora_gemm_arithmetic fast);

/* Rungs, each in its own file. */
void lora_attention_init_ref(lora_attention_kernels *k);
void lora_attention_init_portable(lora_attention_kernels *k);
void lora_attention_init_avx2(lora_attention_kernels *k);
void lora_attention_init_avx512(lora_attention_kernels *k);
void lora_attention_init_neon(lora_attention_kernels *k);
void lora_attention_init_bf16_forward(lora_attention_kernels *k);
void lora_attention_init_bf16_backward(lora_attention_kernels *k);

#endif
