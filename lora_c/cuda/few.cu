#include "lora_c/cuda/few.cuh"
#include "lora_c/cuda/few_mma.h"

namespace {

/* --- s x A^T --- */

struct lows_args {
    int64_t K;
    lora_cuda_few_low lows[LORA_CUDA_FEW_LOWS];
};

/* One of them for each blockIdx.y. A lane multiplies what it read itself, as in lora_few_output. */
template <int TOKENS> __global__ void __launch_bounds__(LORA_FEW_THREADS, 1) few_lows(lows_args a) {
    const lora_cuda_few_low &low = a.lows[blockIdx.y];
    const int lane = threadIdx.x % LORA_CUDA_WARP, warp = threadIdx.x / LORA_CUDA_WARP;
    const int64_t r = (int64_t)blockIdx.x * LORA_FEW_WARPS + warp;
    if (r >= low.rank) return;
    const bool vector = ((uintptr_t)low.A | (uintptr_t)low.x) % 16 == 0 && (a.K | low.ldx) % 4 == 0;
    const lora_few_dense<LORA_F32> w = {low.A, a.K, vector};
    const lora_few_input in = {low.x, low.ldx, a.K, vector, low.rows};
    float sum[1][TOKENS] = {};
    lora_few_sums<TOKENS, 1>(w, in, r, low.rank, sum);
#pragma unroll
    for (int m = 0; m < TOKENS; m++) {
        if (m >= low.rows) continue;
        float all = lora_warp_sum(sum[0][m]);
        if (lane == 0) low.t[m * low.rank + r] = low.scale * all;
    }
}

template <int DTYPE> lora_status run_dense(lora_cuda *c, const lora_cuda_few_layer *l, const void *data, int64_t ld, lora_error *err) {
    const lora_few_dense<DTYPE> w = {data, ld, lora_cuda_is_aligned(data, ld, (lora_dtype)DTYPE)};
    return lora_few_run(c, l, w, 0, err);
}

lora_status run_nf4(lora_cuda *c, const lora_cuda_few_layer *l, lora_error *err) {
    const lora_nf4 &q = l->w.nf4;
    const lora_few_nf4 w = {q.codes, q.lut, lora_nf4_scales_of(q), q.cols, q.cols % 8 == 0 && (uintptr_t)q.codes % 4 == 0};
    return lora_few_run(c, l, w, sizeof(lora_few_nf4::shared), err);
}

} // namespace

lora_status lora_cuda_few_lows(lora_cuda *c, int64_t K, int n, const lora_cuda_few_low *lows, lora_error *err) {
    if (n == 0) return LORA_OK;
    lows_args a = {K, {}};
    int64_t most_rank = 0, most_rows = 0;
    for (int i = 0; i < n; i++) {
        a.lows[i] = lows[i];
        most_rank = lora_max_i64(most_rank, lows[i].rank);
        most_rows = lora_max_i64(most_rows, lows[i].rows);
    }
    dim3 grid((uint32_t)lora_div_up(most_rank, LORA_FEW_WARPS), (uint32_t)n);
    if (most_rows <= 1) return LORA_CUDA_LAUNCH(c, few_lows<1>, grid, LORA_FEW_THREADS, 0, a, err);
    if (most_rows <= 4) return LORA_CUDA_LAUNCH(c, few_lows<4>, grid, LORA_FEW_THREADS, 0, a, err);
    return LORA_CUDA_LAUNCH(c, few_lows<LORA_DECODE_BATCH>, grid, LORA_FEW_THREADS, 0, a, err);
}

lora_status lora_cuda_few_output(lora_cuda *c, const lora_cuda_few_layer *l, lora_error *err) {
    const lora_weight *w = &l->w;
    switch (w->kind) {
    case LORA_WEIGHT_F32: return run_dense<LORA_F32>(c, l, w->dense.data, w->dense.ld, err);
    case LORA_WEIGHT_BF16: return run_dense<LORA_BF16>(c, l, w->dense.data, w->dense.ld, err);
    case LORA_WEIGHT_NF4: return lora_cuda_few_mma_can(c, l) ? lora_cuda_few_mma(c, l, err) : run_nf4(c, l, err);
    case LORA_WEIGHT_GGML:
        if (w->ggml.type == LORA_GGML_F16) return run_dense<LORA_F16>(c, l, w->ggml.blocks, w->cols, err);
        if (w->ggml.type == LORA_GGML_BF16) return run_dense<LORA_BF16>(c, l, w->ggml.blocks, w->cols, err);
        return lora_few_blocks(c, l, err);
    }
    return lora_fail(err, LORA_EDTYPE, "w: expected a kind of weight, got %d", (int)w->kind);
}
