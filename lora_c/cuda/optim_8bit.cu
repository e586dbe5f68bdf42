/* AdamW with moments of 8 bits: a warp decodes, steps and encodes a block of elements that share a scale.
 * Source   8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2 */
#include "lora_c/cuda/optim_8bit.h"
#include "lora_c/cuda/optim.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum {
    THREADS = LORA_CUDA_OPTIM_THREADS,
    WARPS = THREADS / LORA_CUDA_WARP,
    BLOCK = LORA_ADAMW8BIT_BLOCK,
    EACH = BLOCK / LORA_CUDA_WARP, /* elements of a lane */
    ELEMENTS = 32 * BLOCK,         /* per task */
};

struct eight_args {
    lora_cuda_arrays arrays; /* more: the maps */
    lora_adamw8bit_state state;
    lora_adamw_constants c;
};

__device__ __forceinline__ void copy_maps(const void *from, lora_cuda_dynamic_maps *to) {
    for (int i = threadIdx.x; i < (int)(sizeof *to / sizeof(uint32_t)); i += THREADS) ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
    __syncthreads();
}

/* Element lane + 32 k of the block for k = 0 .. EACH - 1; 0 past its end. */
__device__ __forceinline__ void decode(const uint8_t *codes, const float *map, float absmax, int lane, int n, float *x) {
    for (int k = 0; k < EACH; k++) {
        int i = lane + LORA_CUDA_WARP * k;
        x[k] = i < n ? map[codes[i]] * absmax : 0.0f;
    }
}

/* Returns the scale. */
__device__ __forceinline__ float encode(uint8_t *codes, const lora_dynamic_search *search, int lane, int n, const float *x) {
    float absmax = lora_warp_max(lora_formulas::largest_magnitude(EACH, x)), y[EACH];
    int32_t code[EACH];
    lora_formulas::dynamic_scaled(EACH, x, absmax, y);
    lora_formulas::dynamic_codes(EACH, y, search, code);
    for (int k = 0; k < EACH; k++) {
        int i = lane + LORA_CUDA_WARP * k;
        if (i < n) codes[i] = (uint8_t)code[k];
    }
    return absmax;
}

/* Elements first .. first + n - 1 of the array. */
__device__ __forceinline__ void step_block(const eight_args &s, const lora_cuda_array &a, const lora_cuda_dynamic_maps &maps, int64_t first,
                                           int n) {
    int lane = threadIdx.x % LORA_CUDA_WARP;
    int64_t at = a.element + first, block = a.block + first / BLOCK;
    float m[EACH], v[EACH];
    decode(s.state.m + at, maps.map[0], s.state.m_absmax[block], lane, n, m);
    decode(s.state.v + at, maps.map[1], s.state.v_absmax[block], lane, n, v);
    lora_adamw_constants c = s.c;
    c.decay = a.decay;
    c.step_size = a.rate;
    for (int k = 0; k < EACH; k++) {
        int i = lane + LORA_CUDA_WARP * k;
        if (i < n) lora_adamw_element(a.data + first + i, a.grad[first + i], &m[k], &v[k], c);
    }
    float m_absmax = encode(s.state.m + at, &maps.search[0], lane, n, m), v_absmax = encode(s.state.v + at, &maps.search[1], lane, n, v);
    if (lane == 0) {
        s.state.m_absmax[block] = m_absmax;
        s.state.v_absmax[block] = v_absmax;
    }
}

__global__ void __launch_bounds__(THREADS) adamw8bit(eight_args s) {
    lora_optim_task t = lora_optim_task_of(s.arrays);
    if (!t.array) return;
    lora_cuda_dynamic_maps &maps = lora_shared<lora_cuda_dynamic_maps>();
    copy_maps(s.arrays.more, &maps);
    for (int i = (int)threadIdx.x / LORA_CUDA_WARP * BLOCK; i < t.count; i += WARPS * BLOCK)
        step_block(s, *t.array, maps, t.first + i, t.count - i < BLOCK ? t.count - i : BLOCK);
}

} // namespace

lora_status lora_cuda_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                     const lora_adamw_hyper *hyper, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    eight_args args = {{}, *state, lora_adamw_constants_of(hyper)};
    lora_cuda_dynamic_maps maps;
    lora_cuda_dynamic_maps_fill(&maps);
    lora_cuda_arrays_want want = {ELEMENTS, lora_adamw_fill, hyper, &maps, sizeof maps};
    LORA_TRY(lora_cuda_arrays_send(c, n_params, params, &want, &args.arrays, err));
    return LORA_CUDA_LAUNCH(c, adamw8bit, lora_cuda_blocks(args.arrays.tasks, 1), THREADS, sizeof maps, args, err);
}
