/* Elements of a 4-bit matrix, decoded. */
#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/eights.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/nf4_scales.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, EIGHT = LORA_CUDA_EIGHT, TRIPS = 4 /* loads of so many eights are under way together */ };

struct dequantize_args {
    const uint8_t *codes;
    const float *lut;
    lora_nf4_scales scales;
    int64_t begin, end; /* elements of the flattened matrix */
    void *dst;          /* of element begin */
};

/* Whole eights: begin and end are multiples of them, dst is aligned, and the sizes of blocks are powers of two. A warp's loads and stores
 * lie behind each other. */
template <int DTYPE> __global__ void __launch_bounds__(THREADS) dequantize_eights(dequantize_args q) {
    const int64_t first = (q.begin / EIGHT + (int64_t)blockIdx.x * THREADS * TRIPS + threadIdx.x) * EIGHT;
    uint32_t words[TRIPS];
    float absmax[TRIPS]; /* one of an eight: blocks are multiples of them */
#pragma unroll
    for (int trip = 0; trip < TRIPS; trip++) {
        const int64_t i = lora_min_i64(first + trip * THREADS * EIGHT, q.end - EIGHT);
        words[trip] = *(const uint32_t *)(q.codes + i / 2);
        absmax[trip] = q.scales.at_shifted(i);
    }
#pragma unroll
    for (int trip = 0; trip < TRIPS; trip++) {
        const int64_t i = first + trip * THREADS * EIGHT;
        if (i >= q.end) continue;
        float x[EIGHT];
        lora_decode_nf4_word(words[trip], q.lut, absmax[trip], x);
        lora_store_eight(q.dst, i - q.begin, (lora_dtype)DTYPE, true, EIGHT, x);
    }
}

/* What is left: a thread decodes those of an eight of the matrix that are asked for. */
template <int DTYPE> __global__ void __launch_bounds__(THREADS) dequantize(dequantize_args q) {
    int64_t i = (q.begin / EIGHT + (int64_t)blockIdx.x * THREADS + threadIdx.x) * EIGHT;
    if (i >= q.end) return;
    float absmax = q.scales.at(i);
#pragma unroll 1
    for (int64_t k = lora_max_i64(i, q.begin); k < lora_min_i64(i + EIGHT, q.end); k++)
        lora_store(q.dst, k - q.begin, (lora_dtype)DTYPE, q.lut[lora_nf4_code(q.codes, k)] * absmax);
}

template <int DTYPE> lora_status launch(lora_cuda *c, dequantize_args args, lora_error *err) {
    const bool by_eights = args.begin % EIGHT == 0 && lora_aligned(args.dst) && (uintptr_t)args.codes % 4 == 0 && args.scales.can_shift();
    if (by_eights && args.end - args.begin >= EIGHT) {
        dequantize_args whole = args;
        whole.end = args.end / EIGHT * EIGHT;
        const dim3 grid = lora_cuda_blocks((whole.end - whole.begin) / EIGHT, THREADS * TRIPS);
        LORA_TRY(LORA_CUDA_LAUNCH(c, dequantize_eights<DTYPE>, grid, THREADS, 0, whole, err));
        args.dst = (char *)args.dst + (whole.end - whole.begin) * (int64_t)lora_dtype_bytes((lora_dtype)DTYPE);
        args.begin = whole.end;
    }
    if (args.begin == args.end) return LORA_OK;
    const dim3 grid = lora_cuda_blocks(lora_div_up(args.end, EIGHT) - args.begin / EIGHT, THREADS);
    return LORA_CUDA_LAUNCH(c, dequantize<DTYPE>, grid, THREADS, 0, args, err);
}

} // namespace

lora_status lora_cuda_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                 lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    if (count == 0) return LORA_OK;
    dequantize_args args = {};
    args.codes = w->codes, args.lut = w->lut, args.scales = lora_nf4_scales_of(*w);
    args.begin = begin, args.end = begin + count;
    args.dst = dst;
    if (dtype == LORA_F32) return launch<LORA_F32>(c, args, err);
    if (dtype == LORA_BF16) return launch<LORA_BF16>(c, args, err);
    return launch<LORA_F16>(c, args, err);
}
