/* Double quantization: the mean of all scales in the CPU's order of sums, then the scales in 8 bits, a block of threads per nested block.
 * Numerics: lora_c/nf4.h; the bytes are those of lora_c/ops/nf4_double.c. */
#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/table.h"
#include "lora_c/format/nested.h"

namespace {

enum { THREADS = 256, LANES = 8 /* sums that the mean is made of */, TILE = 2048, FIRSTS = 257 };

/* --- mean --- */

struct mean_args {
    const float *absmax;
    int64_t n;
    float *offset;
};
struct mean_shared {
    float tile[2][TILE];
};

__device__ __forceinline__ void load_tile(const mean_args &m, int64_t begin, float *tile, int thread, int threads) {
    int count = (int)lora_min_i64(TILE, m.n - begin);
    for (int i = thread; i < count; i += threads) tile[i] = m.absmax[begin + i];
}

/* Eight interleaved sums in index order, in float64: the order is the result, so that eight threads add while the others load. */
__global__ void __launch_bounds__(THREADS) mean_of_scales(mean_args m) {
    mean_shared &s = lora_shared<mean_shared>();
    int thread = threadIdx.x;
    double sum = 0;
    load_tile(m, 0, s.tile[0], thread, THREADS);
    __syncthreads();
    for (int64_t begin = 0, turn = 0; begin < m.n; begin += TILE, turn ^= 1) {
        int count = (int)lora_min_i64(TILE, m.n - begin);
        if (thread < LANES)
            for (int i = thread; i < count; i += LANES) sum = sum + (double)s.tile[turn][i];
        else if (thread >= LORA_CUDA_WARP && begin + TILE < m.n)
            load_tile(m, begin + TILE, s.tile[turn ^ 1], thread - LORA_CUDA_WARP, THREADS - LORA_CUDA_WARP);
        __syncthreads();
    }
    if (thread >= LORA_CUDA_WARP) return;
    static_assert(LANES == 8, "steps of the butterfly");
    sum = lora_butterfly<1, 2, 4>(sum, lora_sum_of());
    if (thread == 0) *m.offset = (float)(sum / (double)m.n);
}

/* --- codes --- */

struct nested_args {
    const float *absmax, *offset;
    int64_t n;
    float first[FIRSTS];
    uint8_t *codes;
    float *nested_absmax;
};
struct nested_shared {
    float first[FIRSTS], top[THREADS / LORA_CUDA_WARP];
};

/* How many of first[1 .. 255] are at most y. */
__device__ __forceinline__ int code_of(const float *first, float y) {
    int code = 0;
    for (int step = 128; step > 0; step /= 2)
        if (y >= first[code + step]) code += step;
    return code;
}

static_assert((int)THREADS == (int)LORA_NF4_NESTED_BLOCK, "a thread per scale");

__global__ void __launch_bounds__(THREADS) nested_blocks(nested_args q) {
    nested_shared &s = lora_shared<nested_shared>();
    int thread = threadIdx.x, warp = thread / LORA_CUDA_WARP;
    int64_t i = (int64_t)blockIdx.x * THREADS + thread;
    for (int k = thread; k < FIRSTS; k += THREADS) s.first[k] = q.first[k];
    float y = i < q.n ? q.absmax[i] - *q.offset : 0.0f, top = lora_warp_max(fabsf(y));
    if (thread % LORA_CUDA_WARP == 0) s.top[warp] = top;
    __syncthreads();
    for (int k = 0; k < THREADS / LORA_CUDA_WARP; k++) top = s.top[k] > top ? s.top[k] : top;
    if (thread == 0) q.nested_absmax[blockIdx.x] = top;
    if (i < q.n) q.codes[i] = (uint8_t)code_of(s.first, y / (top > 0 ? top : 1.0f));
}

} // namespace

lora_status lora_cuda_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                      float *nested_offset, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    mean_args mean = {};
    mean.absmax = absmax, mean.n = n, mean.offset = nested_offset;
    LORA_TRY(LORA_CUDA_LAUNCH(c, mean_of_scales, dim3(1), THREADS, sizeof(mean_shared), mean, err));
    nested_args args = {};
    args.absmax = absmax, args.offset = nested_offset, args.n = n;
    args.codes = absmax_codes, args.nested_absmax = nested_absmax;
    lora_nested_firsts(args.first);
    return LORA_CUDA_LAUNCH(c, nested_blocks, lora_cuda_blocks(n, THREADS), THREADS, sizeof(nested_shared), args, err);
}
