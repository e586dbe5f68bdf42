/* Head and loss: the sizes of its chunks, and its kernels on the rows of one chunk. */
#ifndef LORA_CUDA_HEAD_H
#define LORA_CUDA_HEAD_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The rows with weight in their order, and what is known of them; places in SUMS. */
typedef struct lora_cuda_head_rows {
    int64_t *count; /* (1) */
    int64_t *index; /* (M) the first count are filled */
    double *loss;   /* (M) by place in index */
    float *unscale; /* (M) by place in index: what undoes the scale of a row's gradient */
} lora_cuda_head_rows;

/* Rows of a chunk, columns of the vocabulary whose weights are decoded at a time, floats between rows of logits. */
typedef struct lora_cuda_head_sizes {
    int64_t rows, slice, ld;
} lora_cuda_head_sizes;

lora_cuda_head_sizes lora_cuda_head_sizes_of(int64_t M, int64_t V, int64_t H, lora_dtype operands);
/** Bytes of SUMS for M rows; points rows behind each other from base on, NULL: nowhere. */
size_t lora_cuda_head_lay_rows(int64_t M, void *base, lora_cuda_head_rows *rows);
/** Bytes of x, and of x times its rows' weights where with_weight, as operands. */
size_t lora_cuda_head_x_bytes(const lora_cuda_head_sizes *sizes, int64_t H, lora_dtype operands, bool with_weight);

/** Fills index and count; dx and token_loss of rows without weight become 0. */
lora_status lora_cuda_head_select(lora_cuda *c, int64_t M, const lora_loss *loss, lora_mat dx, const lora_cuda_head_rows *rows,
                                  lora_error *err) LORA_MUST_CHECK;
/** x_rows (n, H) = rows first .. first + n - 1 of those with weight, times 2^exponent (of the device; NULL: 2^0), rounded to its type. */
lora_status lora_cuda_head_gather(lora_cuda *c, lora_mat x, const int32_t *exponent, const lora_cuda_head_rows *rows, int64_t first,
                                  lora_mat x_rows, lora_error *err) LORA_MUST_CHECK;
/** The same, each row times its loss_weight and unscale. */
lora_status lora_cuda_head_gather_weighted(lora_cuda *c, lora_mat x, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                           lora_mat x_rows, lora_error *err) LORA_MUST_CHECK;
/** Losses of the rows of logits (n, V), already scaled; gradient: (softmax - onehot) * slope * a power of two of each row (its inverse is
 *  unscale) in the place of the logits, in the type of operands: *gradient is that matrix. */
lora_status lora_cuda_head_softmax(lora_cuda *c, lora_mat logits, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                   lora_dtype operands, lora_mat *gradient, lora_error *err) LORA_MUST_CHECK;
/** dx rows = loss_weight * unscale * result (n, H). */
lora_status lora_cuda_head_scatter(lora_cuda *c, lora_mat result, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                   lora_mat dx, lora_error *err) LORA_MUST_CHECK;
/** loss_sum of the first n rows with weight. */
lora_status lora_cuda_head_sum(lora_cuda *c, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t n,
                               lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
