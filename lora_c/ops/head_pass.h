/* One pass over the vocabulary for a chunk of rows: the logits of a few rows and some columns exist at a time, in cache.
 *
 * With e[v] = exp(logit[v] - max), the gradient of the loss of a row with regard to its input is
 *     (sum over v of e[v] w[v]) / sum(e)  -  w[target]
 * a softmax over the rows of W, applied to the rows of W: the sums go on beside a running maximum as in FlashAttention
 * (arXiv:2205.14135, algorithm 1), where W is the keys and the values (for this loss: Cut Your Losses, arXiv:2411.09009).
 * The target is left out of the sums: 1 - p[target] is the share of the others, without cancellation. */
#ifndef LORA_OPS_HEAD_PASS_H
#define LORA_OPS_HEAD_PASS_H

#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm_packed.h"

/* Rows of a chunk, W is read and packed once for each: as many as are predicted in half a sequence of 512. Measured as in
 * head_pass.c: 126 give 0.92 of the speed; 504 give 1.03, but more memory or fewer ranges, and other bits. */
enum { LORA_HEAD_ROWS = 256 };

/* What is known of a head before its rows. */
typedef struct lora_loss_head {
    const lora_weight *w; /* (V, H) */
    lora_logit_map map;
    bool gradient; /* of the rows */
    bool trains;   /* its own: its products are then those of precision FAST where others are INT8 */
} lora_loss_head;

/* The vocabulary is cut into ranges, the tasks, and a range into blocks. */
typedef struct lora_head_pass {
    const lora_kernels *kernels;
    const lora_gemm_path *path;
    const lora_weight *w; /* (V, H) */
    lora_logit_map map;
    bool gradient;
    int64_t block, range, n_ranges;  /* columns, columns, count */
    int64_t panel_words, back_words; /* of one strip: all of H; one block of the vocabulary */
    int64_t acc_words;               /* of one range */
    int64_t x_words, row_words, worker_words;
    /* the chunk */
    const int32_t *targets; /* (rows) */
    lora_gemm_left x;
    float *max;       /* (n_ranges, rows) of the columns that are not the target */
    double *rest;     /* (n_ranges, rows) sum of exp(logit - max) over them */
    float *at_target; /* (rows) its logit */
    float *acc;       /* per range the tiles of sum of exp(logit - max) slope w, [panel][strip of H] */
    float *workers;
} lora_head_pass;

/** Bytes that a pass takes. */
int64_t lora_head_pass_bytes(const lora_ctx *ctx, const lora_loss_head *head, int64_t rows);

/** Blocking and memory for chunks of up to rows; the ranges of V depend on the shape of w only.   Errors  ENOMEM */
lora_status lora_head_pass_create(lora_ctx *ctx, const lora_loss_head *head, int64_t rows, lora_head_pass *out,
                                  lora_error *err) LORA_MUST_CHECK;

/** Runs the chunk: x (n, H) with row stride ldx, n <= rows, targets (n). */
void lora_head_pass_run(lora_ctx *ctx, lora_head_pass *pass, int64_t n, const float *x, int64_t ldx, const int32_t *targets);

/* What the ranges of one row come to together. */
typedef struct lora_head_row {
    double loss;    /* logsumexp - logit of the target */
    double log_sum; /* logsumexp of all the logits */
    double others;  /* 1 - p[target] */
} lora_head_row;

lora_head_row lora_head_pass_row(const lora_head_pass *pass, int64_t row);

/** dx (H) = factor * d loss / dx of one row with these sums; buffer holds H floats. */
void lora_head_pass_gradient(const lora_head_pass *pass, int64_t row, const lora_head_row *sums, float factor, float *dx, float *buffer);
/* cross_entropy.c */
/** Bytes of scratch that a head needs for M rows with loss. */
int64_t lora_head_scratch(const lora_ctx *ctx, int64_t M, const lora_loss_head *head);

#endif
