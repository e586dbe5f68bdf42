/* Elements of a 4-bit matrix, decoded: eight neighbours per thread. */
#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, EIGHT = 8 };

struct dequantize_args {
    lora_nf4 w;
    int64_t begin, end; /* elements of the flattened matrix */
    void *dst;          /* of element begin */
    bool wide;          /* 16 bytes at a time: groups lie in dst as in the matrix */
};

template <int DTYPE> __device__ __forceinline__ void put_eight(void *dst, int64_t at, const lora_floats<EIGHT> &x) {
    if (DTYPE == LORA_F32) {
        lora_put<EIGHT>((float *)dst + at, x);
    } else {
        uint32_t half[EIGHT];
        for (int e = 0; e < EIGHT; e++) half[e] = DTYPE == LORA_BF16 ? lora_f32_to_bf16(x.v[e]) : lora_f32_to_f16(x.v[e]);
        *(uint4 *)((uint16_t *)dst + at) =
            make_uint4(half[0] | half[1] << 16, half[2] | half[3] << 16, half[4] | half[5] << 16, half[6] | half[7] << 16);
    }
}

template <int DTYPE> __global__ void __launch_bounds__(THREADS) dequantize(dequantize_args q) {
    int64_t i = (q.begin / EIGHT + (int64_t)blockIdx.x * THREADS + threadIdx.x) * EIGHT;
    if (i >= q.end) return;
    lora_floats<EIGHT> x;
    lora_decode_nf4(q.w, q.w.lut, i, x.v);
    if (q.wide && i + EIGHT <= q.end) {
        put_eight<DTYPE>(q.dst, i - q.begin, x);
        return;
    }
    for (int e = 0; e < EIGHT; e++)
        if (i + e >= q.begin && i + e < q.end) lora_store(q.dst, i + e - q.begin, (lora_dtype)DTYPE, x.v[e]);
}

} // namespace

lora_status lora_cuda_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                 lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    const dequantize_args args = {*w, begin, begin + count, dst, begin % EIGHT == 0 && lora_aligned(dst)};
    dim3 grid = lora_cuda_blocks(lora_div_up(begin + count, EIGHT) - begin / EIGHT, THREADS);
    if (dtype == LORA_F32) return LORA_CUDA_LAUNCH(c, dequantize<LORA_F32>, grid, THREADS, 0, args, err);
    if (dtype == LORA_BF16) return LORA_CUDA_LAUNCH(c, dequantize<LORA_BF16>, grid, THREADS, 0, args, err);
    return LORA_CUDA_LAUNCH(c, dequantize<LORA_F16>, grid, THREADS, 0, args, err);
}
