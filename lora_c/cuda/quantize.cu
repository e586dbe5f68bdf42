/* Quantizing to the 4-bit types: a team of lanes scales a block of elements, eight neighbours per lane and turn.
 * Formats and numerics: lora_c/nf4.h; the bytes are those of lora_c/ops/nf4.c. */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"
#include "lora_c/format/codebook.h"
#include "lora_c/format/nf4_layout.h"

namespace {

enum { THREADS = 256, EIGHT = 8, THRESHOLDS = 15, INTERVALS = 16, INFINITE = 0x7f800000 /* magnitudes from here on are not finite */ };

struct quantize_args {
    const void *src;
    int64_t n;        /* elements */
    int block, lanes; /* elements of a block; who shares it: a power of two up to a warp */
    float threshold[THRESHOLDS];
    uint64_t code; /* of each interval, four bits */
    uint8_t *codes;
    float *absmax;
    unsigned long long *first_bad; /* all ones: -1, none */
    bool wide, whole_words;        /* 16 bytes of src, 4 bytes of codes at a time */
};

/* Elements i .. i + 7; 0 past the end, which changes no absmax and has the code that a missing nibble gets. */
template <int DTYPE> __device__ __forceinline__ lora_floats<EIGHT> eight(const quantize_args &q, int64_t i) {
    lora_floats<EIGHT> x;
    if (q.wide && i + EIGHT <= q.n) {
        if (DTYPE == LORA_F32)
            x = lora_get<EIGHT>((const float *)q.src + i);
        else
            lora_get_16bit<DTYPE>((const uint16_t *)q.src + i, x);
    } else {
        for (int e = 0; e < EIGHT; e++) x.v[e] = i + e < q.n ? lora_load(q.src, i + e, (lora_dtype)DTYPE) : 0.0f;
    }
    return x;
}

/* The largest magnitude's bits, which are ordered as the magnitudes are. */
__device__ __forceinline__ uint32_t top_of(const lora_floats<EIGHT> &x) {
    uint32_t top = 0;
    for (int e = 0; e < EIGHT; e++) {
        uint32_t magnitude = lora_bits_f32(x.v[e]) & 0x7fffffffu;
        top = magnitude > top ? magnitude : top;
    }
    return top;
}

__device__ __forceinline__ void report(const quantize_args &q, const lora_floats<EIGHT> &x, int64_t i) {
    for (int e = EIGHT - 1; e >= 0; e--)
        if ((lora_bits_f32(x.v[e]) & 0x7fffffffu) >= INFINITE) atomicMin(q.first_bad, (unsigned long long)(i + e));
}

/* scaled: eight numbers of [-1, 1]. Two codes to a byte, the even element in the high nibble. */
__device__ __forceinline__ uint32_t codes_of(const quantize_args &q, const lora_floats<EIGHT> &scaled) {
    uint32_t word = 0;
    for (int e = 0; e < EIGHT; e++) {
        int interval = 0;
        for (int t = 0; t < THRESHOLDS; t++) interval += scaled.v[e] > q.threshold[t];
        word |= (uint32_t)(q.code >> (4 * interval) & 15) << (4 * (e ^ 1));
    }
    return word;
}

__device__ __forceinline__ void put_codes(const quantize_args &q, uint32_t word, int64_t i) {
    if (q.whole_words && i + EIGHT <= q.n) {
        *(uint32_t *)(q.codes + i / 2) = word;
        return;
    }
    for (int b = 0; b < EIGHT / 2; b++)
        if (i + 2 * b < q.n) q.codes[i / 2 + b] = (uint8_t)(word >> (8 * b));
}

template <int DTYPE> __global__ void __launch_bounds__(THREADS) quantize_blocks(quantize_args q) {
    int lane = (int)threadIdx.x % q.lanes;
    int64_t block = (int64_t)blockIdx.x * (THREADS / q.lanes) + (int)threadIdx.x / q.lanes;
    int64_t begin = block * q.block, first = begin + lane * EIGHT, end = lora_min_i64(begin + q.block, q.n);
    lora_floats<EIGHT> x = eight<DTYPE>(q, first);
    uint32_t top = 0;
    for (int64_t i = first; i < end; i += q.lanes * EIGHT) {
        if (i != first) x = eight<DTYPE>(q, i);
        uint32_t largest = top_of(x);
        if (largest >= INFINITE) report(q, x, i);
        top = largest > top ? largest : top;
    }
    for (int step = q.lanes / 2; step > 0; step /= 2) { /* every lane of the warp takes part, those past the last block, too */
        uint32_t other = __shfl_xor_sync(0xffffffffu, top, step);
        top = other > top ? other : top;
    }
    float absmax = lora_f32_bits(top), least = absmax > LORA_NF4_MIN_ABSMAX ? absmax : LORA_NF4_MIN_ABSMAX, inverse = 1.0f / least;
    bool ragged = end - begin < q.block;
    if (lane == 0 && begin < q.n) q.absmax[block] = ragged ? least : absmax;
    for (int64_t i = first; i < end; i += q.lanes * EIGHT) {
        if (q.block > q.lanes * EIGHT) x = eight<DTYPE>(q, i); /* else it is still there */
        for (int e = 0; e < EIGHT; e++) x.v[e] = ragged ? x.v[e] / least : x.v[e] * inverse;
        put_codes(q, codes_of(q, x), i);
    }
}

void fill_book(quantize_args *q, const lora_codebook *book) {
    for (int i = 0; i < THRESHOLDS; i++) q->threshold[i] = book->threshold[i];
    for (int i = 0; i < INTERVALS; i++) q->code |= (uint64_t)book->code[i] << (4 * i);
}

} // namespace

lora_status lora_cuda_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                                    int64_t *first_bad, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    quantize_args args = {};
    fill_book(&args, lora_codebook_of(type));
    args.src = src.data, args.n = src.rows * src.cols;
    args.block = (int)block_size, args.lanes = (int)lora_min_i64(LORA_CUDA_WARP, block_size / EIGHT);
    args.codes = codes, args.absmax = absmax, args.first_bad = (unsigned long long *)first_bad;
    args.wide = lora_aligned(src.data), args.whole_words = (uintptr_t)codes % sizeof(uint32_t) == 0;
    dim3 grid = lora_cuda_blocks(lora_div_up(args.n, block_size), THREADS / args.lanes);
    LORA_TRY(lora_cuda_check(c, c->api->fill(first_bad, 0xFF, sizeof *first_bad, lora_cuda_stream(c)), "cudaMemsetAsync", err));
    if (src.dtype == LORA_F32) return LORA_CUDA_LAUNCH(c, quantize_blocks<LORA_F32>, grid, THREADS, 0, args, err);
    if (src.dtype == LORA_BF16) return LORA_CUDA_LAUNCH(c, quantize_blocks<LORA_BF16>, grid, THREADS, 0, args, err);
    return LORA_CUDA_LAUNCH(c, quantize_blocks<LORA_F16>, grid, THREADS, 0, args, err);
}
