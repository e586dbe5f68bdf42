/* Sums and maxima over the lanes of a warp and the threads of a block, in an order fixed by their number. */
#ifndef LORA_CUDA_LANES_CUH
#define LORA_CUDA_LANES_CUH

#include <cuda_runtime.h>

enum { LORA_CUDA_WARP = 32 };

/* v of every lane joined with that of lane ^ step, for one step after the other. All 32 lanes call. The shim does it with one exchange. */
#ifdef __CUDACC__
template <int... STEPS, class T, class Join> __device__ __forceinline__ T lora_butterfly(T v, Join join) {
    ((v = join(v, __shfl_xor_sync(0xffffffffu, v, STEPS))), ...);
    return v;
}
template <int... STEPS, class T, int N, class Join> __device__ __forceinline__ void lora_butterflies(T (&v)[N], Join join) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = lora_butterfly<STEPS...>(v[i], join);
}
#else
template <int... STEPS, class T, class Join> static inline T lora_butterfly(T v, Join join) {
    T one[1] = {v};
    shim_butterfly<STEPS...>(one, join);
    return one[0];
}
template <int... STEPS, class T, int N, class Join> static inline void lora_butterflies(T (&v)[N], Join join) {
    shim_butterfly<STEPS...>(v, join);
}
#endif

struct lora_sum_of {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct lora_larger_of { /* a where one of them is a NaN */
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return b > a ? b : a; }
};
struct lora_fmaxf_of { /* a NaN only of two */
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/* Over the 32 lanes of a warp, all of which call; every lane has the result. */
template <class T> __device__ __forceinline__ T lora_warp_sum(T v) { return lora_butterfly<16, 8, 4, 2, 1>(v, lora_sum_of()); }
template <class T> __device__ __forceinline__ T lora_warp_max(T v) { return lora_butterfly<16, 8, 4, 2, 1>(v, lora_larger_of()); }

/* Over all threads of a block (a multiple of 32, up to 1024), all of which call; every thread has the sum. partial: 32 numbers of
 * shared memory, free again after the next __syncthreads. */
template <class T> __device__ __forceinline__ T lora_block_sum(T v, T *partial) {
    int warp = threadIdx.x / LORA_CUDA_WARP, lane = threadIdx.x % LORA_CUDA_WARP, warps = blockDim.x / LORA_CUDA_WARP;
    v = lora_warp_sum(v);
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    return lora_warp_sum(lane < warps ? partial[lane] : T(0));
}

#endif
