/* Losses and gradients of the logits of a chunk, a block for each row: one pass for the sums beside a running maximum, one that puts the
 * gradient in the place of the logits. The target is left out of the sums: 1 - p[target] is the share of the others, without
 * cancellation.
 * Source   the running maximum: FlashAttention, arXiv:2205.14135, algorithm 1 */
#include "lora_c/cuda/head.h"
#include "lora_c/cuda/launch.cuh"

namespace {

enum { THREADS = 512, EACH = 4, TILE = THREADS * EACH, WARPS = THREADS / LORA_CUDA_WARP };

struct softmax_args {
    lora_mat logits; /* (n, V); rows aligned to four floats */
    const int32_t *targets;
    const int64_t *index; /* of the first row */
    float softcap;
    double *loss;      /* of the first row */
    float *token_loss; /* by row of the loss, or NULL */
    float *unscale;    /* of the first row */
    bool gradient;
};

/* What all threads of a block know of its row. */
struct row_sums {
    float top;       /* of the logits but the target's; 0 where they are all -infinity */
    float share;     /* scale * exp(top - logsumexp) */
    float at_target; /* -scale * (1 - p[target]) */
};
struct shared_sums {
    double of_warp[LORA_CUDA_WARP];
    float top_of_warp[LORA_CUDA_WARP];
    row_sums row;
};

__device__ __forceinline__ float capped(float x, float softcap) { return softcap > 0 ? softcap * tanhf(x / softcap) : x; }

/* Four logits from v on: -infinity at the target and past the end. */
__device__ __forceinline__ void load_four(const softmax_args &s, const float *row, int64_t v, int64_t target, float *x) {
    if (v + EACH <= s.logits.cols) {
        float4 all = *(const float4 *)(row + v);
        x[0] = all.x, x[1] = all.y, x[2] = all.z, x[3] = all.w;
    } else {
        for (int k = 0; k < EACH; k++) x[k] = v + k < s.logits.cols ? row[v + k] : 0.0f;
    }
    for (int k = 0; k < EACH; k++) x[k] = v + k == target || v + k >= s.logits.cols ? -INFINITY : capped(x[k], s.softcap);
}

__device__ __forceinline__ float shift_of(float max) { return max == -INFINITY ? 0.0f : max; }

/* Of a thread's logits: the largest, and the sum of exp(logit - largest). */
__device__ __forceinline__ void add_row(const softmax_args &s, const float *row, int64_t target, float *max_out, double *sum_out) {
    float max = -INFINITY;
    double sum = 0;
    for (int64_t v = EACH * (int64_t)threadIdx.x; v < s.logits.cols; v += TILE) {
        float x[EACH], top = max;
        load_four(s, row, v, target, x);
        for (int k = 0; k < EACH; k++) top = x[k] > top ? x[k] : top;
        if (top > max) {
            sum *= (double)expf(max - top);
            max = top;
        }
        float shift = shift_of(max);
        sum += (double)((expf(x[0] - shift) + expf(x[1] - shift)) + (expf(x[2] - shift) + expf(x[3] - shift)));
    }
    *max_out = max;
    *sum_out = sum;
}

/* Over the block; every thread has it. */
__device__ __forceinline__ float block_max(float v, float *of_warp) {
    v = lora_warp_max(v);
    if (threadIdx.x % LORA_CUDA_WARP == 0) of_warp[threadIdx.x / LORA_CUDA_WARP] = v;
    __syncthreads();
    int lane = threadIdx.x % LORA_CUDA_WARP;
    return lora_warp_max(lane < WARPS ? of_warp[lane] : -INFINITY);
}

/* A power of two that brings the gradient's largest number, others, near 2^10: float16 loses the digits of small ones. */
__device__ __forceinline__ int exponent_for(double others, lora_dtype operands) {
    if (operands != LORA_F16 || !(others > 0)) return 0;
    int exponent;
    (void)frexp(others, &exponent);
    exponent = 10 - exponent;
    return exponent > 100 ? 100 : exponent;
}

/* The row's loss from the logit of its target and the others' sum; one thread. */
__device__ __forceinline__ row_sums finish_row(const softmax_args &s, lora_dtype operands, float logit, float top, double rest) {
    double at = (double)logit, max = fmax(at, (double)top), share = exp((double)top - max);
    double others = rest != 0 ? rest * share : 0.0, target = exp(at - max), total = target + others;
    double loss = target == 1 ? log1p(others) : max + log(total) - at;
    int64_t r = blockIdx.x;
    s.loss[r] = loss;
    if (s.token_loss) s.token_loss[s.index[r]] = (float)loss;
    int exponent = exponent_for(others / total, operands);
    s.unscale[r] = ldexpf(1.0f, -exponent);
    return {shift_of(top), (float)ldexp(share / total, exponent), (float)-ldexp(others / total, exponent)};
}

/* Four numbers from v on, as far as the row goes; rows begin at a multiple of 16 bytes in either type. */
template <lora_dtype OPERANDS> __device__ __forceinline__ void store_four(float *row, int64_t v, int64_t cols, const float *d) {
    if (v + EACH > cols) {
        for (int k = 0; k < EACH; k++)
            if (v + k < cols) lora_store(row, v + k, OPERANDS, d[k]);
    } else if (OPERANDS == LORA_F32) {
        *(float4 *)(row + v) = make_float4(d[0], d[1], d[2], d[3]);
    } else {
        uint16_t h[EACH];
        for (int k = 0; k < EACH; k++) lora_store(h, k, OPERANDS, d[k]);
        *(uint2 *)((uint16_t *)row + v) = make_uint2(h[0] | (uint32_t)h[1] << 16, h[2] | (uint32_t)h[3] << 16);
    }
}

/* Writes the gradient of a row over its logits: what a tile of numbers takes lies where they or earlier ones were. */
template <lora_dtype OPERANDS>
__device__ __forceinline__ void write_gradient(const softmax_args &s, float *row, int64_t target, float target_logit,
                                               const row_sums &sums) {
    for (int64_t begin = 0; begin < s.logits.cols; begin += TILE) {
        int64_t v = begin + EACH * (int64_t)threadIdx.x;
        float d[EACH];
        if (v < s.logits.cols) {
            load_four(s, row, v, target, d);
            for (int k = 0; k < EACH; k++) {
                bool is_target = v + k == target;
                float slope = (is_target ? target_logit : d[k]) / s.softcap;
                d[k] = is_target ? sums.at_target : expf(d[k] - sums.top) * sums.share;
                if (s.softcap > 0) d[k] *= 1.0f - slope * slope;
            }
        }
        if (OPERANDS != LORA_F32) __syncthreads();
        store_four<OPERANDS>(row, v, s.logits.cols, d);
    }
}

template <lora_dtype OPERANDS> __global__ void __launch_bounds__(THREADS) softmax_rows(softmax_args s) {
    shared_sums &shared = lora_shared<shared_sums>();
    float *row = (float *)s.logits.data + blockIdx.x * s.logits.ld, max;
    int64_t target = s.targets[s.index[blockIdx.x]];
    float target_logit = capped(row[target], s.softcap);
    double sum;
    add_row(s, row, target, &max, &sum);
    float top = block_max(max, shared.top_of_warp);
    double rest = lora_block_sum(max == -INFINITY ? sum : sum * (double)expf(max - top), shared.of_warp);
    if (threadIdx.x == 0) shared.row = finish_row(s, OPERANDS, target_logit, top, rest);
    __syncthreads();
    if (s.gradient) write_gradient<OPERANDS>(s, row, target, target_logit, shared.row);
}

} // namespace

lora_status lora_cuda_head_softmax(lora_cuda *c, lora_mat logits, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                   lora_dtype operands, lora_mat *gradient, lora_error *err) {
    const softmax_args args = {logits,           loss->targets,         rows->index + first, loss->map.softcap, rows->loss + first,
                               loss->token_loss, rows->unscale + first, gradient != nullptr};
    if (gradient) {
        *gradient = logits;
        gradient->dtype = operands;
        if (operands != LORA_F32) gradient->ld = 2 * logits.ld;
    }
    dim3 grid((uint32_t)logits.rows);
    if (operands == LORA_BF16) return LORA_CUDA_LAUNCH(c, softmax_rows<LORA_BF16>, grid, THREADS, sizeof(shared_sums), args, err);
    if (operands == LORA_F16) return LORA_CUDA_LAUNCH(c, softmax_rows<LORA_F16>, grid, THREADS, sizeof(shared_sums), args, err);
    return LORA_CUDA_LAUNCH(c, softmax_rows<LORA_F32>, grid, THREADS, sizeof(shared_sums), args, err);
}
