/* Rows and columns multiplied by numbers. */
#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256 };

struct scale_args {
    float a;
    lora_mat x, y;
    bool accumulate;
};

__global__ void __launch_bounds__(THREADS) scale_rows(scale_args s) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= s.x.rows * s.x.cols) return;
    int64_t row = i / s.x.cols, col = i % s.x.cols;
    float *y = (float *)s.y.data + row * s.y.ld + col;
    float scaled = s.a * ((const float *)s.x.data)[row * s.x.ld + col];
    *y = s.accumulate ? *y + scaled : scaled;
}

} // namespace

lora_status lora_cuda_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    scale_args args = {};
    args.a = a, args.x = x, args.y = y, args.accumulate = accumulate;
    return LORA_CUDA_LAUNCH(lora_cuda_of(ctx), scale_rows, lora_cuda_blocks(x.rows * x.cols, THREADS), THREADS, 0, args, err);
}
