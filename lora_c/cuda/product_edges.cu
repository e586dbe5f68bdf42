/* What cuBLASLt has no product for. */
#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/product_edges.h"

namespace {

enum { THREADS = 256 };

struct beta_args {
    lora_mat c;
    float beta;
};

__global__ void __launch_bounds__(THREADS) apply_beta(beta_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.c.rows * a.c.cols) return;
    int64_t at = i / a.c.cols * a.c.ld + i % a.c.cols;
    lora_store(a.c.data, at, a.c.dtype, a.beta == 0 ? 0.0f : a.beta * lora_load(a.c.data, at, a.c.dtype));
}

} // namespace

lora_status lora_cuda_apply_beta(lora_cuda *c, lora_mat m, float beta, lora_error *err) {
    const beta_args args = {m, beta};
    return LORA_CUDA_LAUNCH(c, apply_beta, lora_cuda_blocks(m.rows * m.cols, THREADS), THREADS, 0, args, err);
}
