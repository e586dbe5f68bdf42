/* Noise on embedded tokens: computed from counters, never stored; the CPU's bits.
 * Source   NEFTune, arXiv:2310.05914, algorithm 1 */
#include "lora_c/base/philox.h"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, WORDS = 4 /* of a counter */ };

struct noise_args {
    lora_noise noise;
    int64_t n_segments;
    const int32_t *starts; /* cu_seqlens on the device */
    lora_mat x;
    bool wide;
};

/* alpha / sqrt(L H), with L the tokens of the row's segment: the last one that begins at it or before. */
__device__ float scale_of_row(const noise_args &a, int64_t row) {
    int64_t low = 0, high = a.n_segments;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (a.starts[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    int64_t length = a.starts[low + 1] - a.starts[low];
    return (float)(a.noise.alpha / sqrt((double)(length * a.x.cols)));
}

/* Each thread draws from counters of its own; those at the ends of a row may belong to two rows. */
__global__ void __launch_bounds__(THREADS) noise_rows(noise_args a) {
    float &scale = lora_shared<float>();
    const int64_t H = a.x.cols;
    for (int64_t row = blockIdx.x; row < a.x.rows; row += gridDim.x) {
        __syncthreads(); /* the scale of the row before has been read */
        if (threadIdx.x == 0) scale = scale_of_row(a, row);
        __syncthreads();
        int64_t begin = row * H;
        for (int64_t counter = begin / WORDS + threadIdx.x; counter * WORDS < begin + H; counter += THREADS) {
            uint32_t words[WORDS];
            lora_philox4x32(a.noise.seed, a.noise.stream, (uint64_t)counter, words);
            lora_floats<WORDS> e;
            for (int i = 0; i < WORDS; i++) e.v[i] = scale * (2.0f * lora_philox_to_uniform(words[i]) - 1.0f);
            int64_t col = counter * WORDS - begin;
            float *x = lora_at(a.x, row, col);
            if (a.wide) {
                lora_floats<WORDS> before = lora_get<WORDS>(x);
                for (int i = 0; i < WORDS; i++) e.v[i] = before.v[i] + e.v[i];
                lora_put<WORDS>(x, e);
            } else {
                for (int i = 0; i < WORDS; i++)
                    if (col + i >= 0 && col + i < H) x[i] = x[i] + e.v[i];
            }
        }
    }
}

} // namespace

lora_status lora_cuda_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    if (x.rows == 0 || x.cols == 0) return LORA_OK;
    const noise_args args = {
        .noise = *noise, .n_segments = segments->n, .starts = segments->on_device, .x = x, .wide = lora_wide(x) && x.cols % WORDS == 0};
    return LORA_CUDA_LAUNCH(lora_cuda_of(ctx), noise_rows, lora_cuda_grid(x.rows), THREADS, sizeof(float), args, err);
}
