/* Adapters as matrices: row lengths for DoRA, an adapter into its matrix, and the gradient of that matrix back into the adapter. */
#include "lora_c/base/util.h"
#include "lora_c/cuda/adapter_rows.h"
#include "lora_c/cuda/scaled.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

enum { NORM_FLOATS = LORA_GPU_NORMED / 4 /* of W decoded at a time */ };

lora_status lora_cuda_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, float *norm, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    int64_t step = lora_max_i64(1, NORM_FLOATS / lora_max_i64(1, w->cols));
    for (int64_t n = 0; n < w->rows; n += step) {
        lora_cuda_adapter_rows rows = {.first = n, .rank = a->rank, .A = a->A, .B = a->B, .scale = a->scale, .norm = norm};
        LORA_TRY(lora_cuda_weight(c, w, n, lora_min_i64(step, w->rows - n), LORA_F32, LORA_CUDA_SCRATCH_WEIGHT, &rows.base, err));
        LORA_TRY(lora_cuda_norm_rows(c, &rows, err));
    }
    return LORA_OK;
}

lora_status lora_cuda_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, const float *norm, float sign, float *merged,
                                   lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    lora_mat out = lora_mat_f32(merged, w->rows, w->cols, w->cols);
    LORA_TRY(lora_cuda_decode(c, w, 0, out, err));
    if (!a) return LORA_OK;
    const lora_cuda_adapter_rows rows = {
        .base = out, .rank = a->rank, .A = a->A, .B = a->B, .scale = sign * a->scale, .magnitude = a->magnitude, .norm = (float *)norm};
    return lora_cuda_merge_rows(c, &rows, err);
}

lora_status lora_cuda_linear_merge_backward(lora_ctx *ctx, const lora_adapter *a, lora_mat dmerged, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    int64_t N = dmerged.rows, K = dmerged.cols, R = a->rank;
    lora_dtype type = lora_cuda_operands(ctx);
    lora_cuda_factor G, A, B;
    LORA_TRY(lora_cuda_factor_of(c, dmerged, type, LORA_CUDA_SCRATCH_LEFT, &G, err));
    LORA_TRY(lora_cuda_factor_of(c, lora_mat_f32(a->A, R, K, K), type, LORA_CUDA_SCRATCH_RIGHT, &A, err));
    LORA_TRY(lora_cuda_factor_of(c, lora_mat_f32(a->B, N, R, R), type, LORA_CUDA_SCRATCH_NARROW, &B, err));
    const lora_cuda_product dB = {.a = G.mat,
                                  .b = A.mat,
                                  .a_exponent = G.exponent,
                                  .b_exponent = A.exponent,
                                  .transpose_b = true,
                                  .c = lora_mat_f32(a->dB, N, R, R),
                                  .alpha = a->scale,
                                  .beta = 1};
    const lora_cuda_product dA = {.a = B.mat,
                                  .b = G.mat,
                                  .a_exponent = B.exponent,
                                  .b_exponent = G.exponent,
                                  .transpose_a = true,
                                  .c = lora_mat_f32(a->dA, R, K, K),
                                  .alpha = a->scale,
                                  .beta = 1};
    if (a->dB) LORA_TRY(lora_cuda_multiply(c, &dB, err));
    return a->dA ? lora_cuda_multiply(c, &dA, err) : LORA_OK;
}
