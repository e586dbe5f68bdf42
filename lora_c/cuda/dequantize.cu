/* Elements of a 4-bit matrix, decoded: eight neighbours per thread. */
#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/nf4_scales.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, EIGHT = 8 };

struct dequantize_args {
    const uint8_t *codes;
    const float *lut;
    lora_nf4_scales scales;
    int64_t begin, end; /* elements of the flattened matrix */
    void *dst;          /* of element begin */
    bool wide;          /* 16 bytes at a time: groups lie in dst as in the matrix */
};

/* As the group-th eight of dst. */
template <int DTYPE> __device__ __forceinline__ void put_eight(void *dst, int64_t group, const lora_floats<EIGHT> &x) {
    if (DTYPE == LORA_F32) {
        float4 *to = (float4 *)dst + 2 * group;
        to[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        to[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    } else {
        uint32_t half[EIGHT];
        for (int e = 0; e < EIGHT; e++) half[e] = DTYPE == LORA_BF16 ? lora_f32_to_bf16(x.v[e]) : lora_f32_to_f16(x.v[e]);
        ((uint4 *)dst)[group] =
            make_uint4(half[0] | half[1] << 16, half[2] | half[3] << 16, half[4] | half[5] << 16, half[6] | half[7] << 16);
    }
}

template <int DTYPE> __global__ void __launch_bounds__(THREADS) dequantize(dequantize_args q) {
    int64_t i = (q.begin / EIGHT + (int64_t)blockIdx.x * THREADS + threadIdx.x) * EIGHT;
    if (i >= q.end) return;
    float absmax = q.scales.at(i); /* of all eight: blocks are multiples of them */
    if (q.wide && i + EIGHT <= q.end) {
        lora_floats<EIGHT> x;
        lora_decode_nf4_word(lora_ggml_u32(q.codes + i / 2), q.lut, absmax, x.v);
        put_eight<DTYPE>(q.dst, (i - q.begin) / EIGHT, x);
        return;
    }
#pragma unroll 1
    for (int64_t k = lora_max_i64(i, q.begin); k < lora_min_i64(i + EIGHT, q.end); k++)
        lora_store(q.dst, k - q.begin, (lora_dtype)DTYPE, q.lut[lora_nf4_code(q.codes, k)] * absmax);
}

} // namespace

lora_status lora_cuda_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                 lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    dequantize_args args = {};
    args.codes = w->codes, args.lut = w->lut, args.scales = lora_nf4_scales_of(*w);
    args.begin = begin, args.end = begin + count;
    args.dst = dst, args.wide = begin % EIGHT == 0 && lora_aligned(dst);
    dim3 grid = lora_cuda_blocks(lora_div_up(begin + count, EIGHT) - begin / EIGHT, THREADS);
    if (dtype == LORA_F32) return LORA_CUDA_LAUNCH(c, dequantize<LORA_F32>, grid, THREADS, 0, args, err);
    if (dtype == LORA_BF16) return LORA_CUDA_LAUNCH(c, dequantize<LORA_BF16>, grid, THREADS, 0, args, err);
    return LORA_CUDA_LAUNCH(c, dequantize<LORA_F16>, grid, THREADS, 0, args, err);
}
