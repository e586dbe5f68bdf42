/* Weights decoded, and operands rounded. */
#include "lora_c/cuda/weights.h"

#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/eights.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/nf4_scales.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, STEPS = 4 /* rows of a block */ };

/* --- dense, and GGUF's types of one weight per block --- */

struct convert_args {
    lora_mat from, to;
    bool vector_from, vector_to;
    int64_t groups; /* of eight columns in a row */
};

__global__ void __launch_bounds__(THREADS, 1) convert_elements(convert_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.from.rows * a.groups) return;
    int64_t row = lora_row_of(i, a.groups), col = (i - row * a.groups) * LORA_CUDA_EIGHT, n = a.from.cols - col;
    bool whole = n >= LORA_CUDA_EIGHT;
    float x[8];
    lora_load_eight(a.from.data, row * a.from.ld + col, a.from.dtype, whole && a.vector_from, n, x);
    lora_store_eight(a.to.data, row * a.to.ld + col, a.to.dtype, whole && a.vector_to, n, x);
}

lora_status convert(lora_cuda *c, lora_mat from, lora_mat to, lora_error *err) {
    convert_args a = {from, to, lora_cuda_is_aligned(from.data, from.ld, from.dtype), lora_cuda_is_aligned(to.data, to.ld, to.dtype),
                      lora_div_up(from.cols, LORA_CUDA_EIGHT)};
    return LORA_CUDA_LAUNCH(c, convert_elements, lora_cuda_blocks(from.rows * a.groups, THREADS), THREADS, 0, a, err);
}

/* --- 4-bit types --- */

struct nf4_args {
    const uint8_t *codes;
    const float *lut;
    lora_nf4_scales scales;
    int64_t begin, end; /* elements of the flattened matrix */
    lora_mat to;
    bool words;    /* codes are at four bytes */
    int64_t tiles; /* of a row */
};

/* Sixteen values in sixteen banks: lookups of a warp never conflict. */
struct nf4_shared {
    float lut[16];
};

__device__ __forceinline__ void fill_lut(const nf4_args &a) {
    nf4_shared &s = lora_shared<nf4_shared>();
    if (threadIdx.x < 16) s.lut[threadIdx.x] = a.lut[threadIdx.x];
    __syncthreads();
}

/* Rows of whole eights, aligned, whose scales are found by shifts: a block decodes STEPS rows of a tile of columns, whose loads are under
 * way together. */
template <int DTYPE> __global__ void __launch_bounds__(THREADS, 1) decode_nf4_rows(nf4_args a) {
    fill_lut(a);
    const nf4_shared &s = lora_shared<nf4_shared>();
    const int64_t step = blockIdx.x / a.tiles, col = ((blockIdx.x - step * a.tiles) * THREADS + threadIdx.x) * 8;
    const int64_t first = step * STEPS, n = a.to.rows - first;
    if (col >= a.to.cols) return;
    float absmax[STEPS];
    uint32_t words[STEPS];
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        int64_t i = a.begin + (first + (j < n ? j : 0)) * a.to.cols + col;
        words[j] = *(const uint32_t *)(a.codes + i / 2);
        absmax[j] = a.scales.at_shifted(i);
    }
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        if (j >= n) continue;
        float x[8];
        lora_decode_nf4_word(words[j], s.lut, absmax[j], x);
        lora_store_eight(a.to.data, (first + j) * a.to.ld + col, (lora_dtype)DTYPE, true, 8, x);
    }
}

template <int DTYPE> lora_status launch_rows(lora_cuda *c, nf4_args a, lora_error *err) {
    a.tiles = lora_div_up(a.to.cols, THREADS * 8);
    const dim3 grid((uint32_t)(a.tiles * lora_div_up(a.to.rows, STEPS)));
    return LORA_CUDA_LAUNCH(c, decode_nf4_rows<DTYPE>, grid, THREADS, sizeof(nf4_shared), a, err);
}

/* Any rows: eight elements of the flattened matrix, which may end one row and begin the next. */
__global__ void __launch_bounds__(THREADS, 1) decode_nf4(nf4_args a) {
    fill_lut(a);
    const int64_t i = a.begin / 8 * 8 + ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= a.end) return;
    float x[8];
    const uint32_t word = a.words && i + 8 <= a.end ? *(const uint32_t *)(a.codes + i / 2) : lora_nf4_word(a.codes, i, a.end);
    lora_decode_nf4_word(word, lora_shared<nf4_shared>().lut, a.scales.at(i), x);
    int64_t row = (lora_max_i64(i, a.begin) - a.begin) / a.to.cols, col = lora_max_i64(i, a.begin) - a.begin - row * a.to.cols;
    for (int e = 0; e < 8; e++) {
        if (i + e < a.begin || i + e >= a.end) continue;
        lora_store(a.to.data, row * a.to.ld + col, a.to.dtype, x[e]);
        if (++col < a.to.cols) continue;
        col = 0;
        row++;
    }
}

lora_status decode_4bit(lora_cuda *c, const lora_nf4 *w, int64_t first, lora_mat to, lora_error *err) {
    nf4_args a = {w->codes, w->lut, lora_nf4_scales_of(*w), first * to.cols, (first + to.rows) * to.cols, to, (uintptr_t)w->codes % 4 == 0,
                  0};
    if (to.rows == 0) return LORA_OK;
    if (a.words && a.scales.can_shift() && to.cols % 8 == 0 && lora_cuda_is_aligned(to.data, to.ld, to.dtype)) {
        if (to.dtype == LORA_F32) return launch_rows<LORA_F32>(c, a, err);
        return to.dtype == LORA_BF16 ? launch_rows<LORA_BF16>(c, a, err) : launch_rows<LORA_F16>(c, a, err);
    }
    int64_t runs = lora_div_up(a.end, 8) - a.begin / 8;
    return LORA_CUDA_LAUNCH(c, decode_nf4, lora_cuda_blocks(runs, THREADS), THREADS, sizeof(nf4_shared), a, err);
}

/* --- blocks of GGUF files --- */

struct ggml_args {
    lora_ggml w;
    int64_t first;
    lora_mat to;
    bool vector;
    int64_t groups; /* of eight columns in a row */
};

template <int TYPE> __global__ void __launch_bounds__(THREADS, 1) decode_ggml(ggml_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.to.rows * a.groups) return;
    int64_t row = lora_row_of(i, a.groups), col = (i - row * a.groups) * 8;
    float x[8];
    lora_decode_ggml<TYPE>(a.w, a.first + row, col, x);
    lora_store_eight(a.to.data, row * a.to.ld + col, a.to.dtype, a.vector, 8, x);
}

lora_mat halves(const lora_ggml *w) {
    return {(void *)w->blocks, w->rows, w->cols, w->cols, w->type == LORA_GGML_F16 ? LORA_F16 : LORA_BF16};
}

lora_status decode_blocks(lora_cuda *c, const lora_ggml *w, int64_t first, lora_mat to, lora_error *err) {
    if (w->type == LORA_GGML_F16 || w->type == LORA_GGML_BF16) return convert(c, lora_mat_rows(halves(w), first, to.rows), to, err);
    ggml_args a = {*w, first, to, lora_cuda_is_aligned(to.data, to.ld, to.dtype), to.cols / 8};
    dim3 grid = lora_cuda_blocks(to.rows * a.groups, THREADS);
    switch (w->type) {
#define DECODE(type)                                                                                                                       \
    case type: return LORA_CUDA_LAUNCH(c, decode_ggml<type>, grid, THREADS, 0, a, err);
        LORA_GGML_BLOCK_TYPES(DECODE)
#undef DECODE
    default: return lora_fail(err, LORA_EDTYPE, "w: expected a block format that is read, got type %d", (int)w->type);
    }
}

lora_mat dense_of(const lora_weight *w) { return lora_gpu_dense(w); }

} // namespace

lora_status lora_cuda_decode(lora_cuda *c, const lora_weight *w, int64_t first, lora_mat out, lora_error *err) {
    if (w->kind == LORA_WEIGHT_NF4) return decode_4bit(c, &w->nf4, first, out, err);
    if (w->kind == LORA_WEIGHT_GGML) return decode_blocks(c, &w->ggml, first, out, err);
    return convert(c, lora_mat_rows(dense_of(w), first, out.rows), out, err);
}

lora_status lora_cuda_scratch_mat(lora_cuda *c, int slot, int64_t rows, int64_t cols, lora_dtype dtype, lora_mat *out, lora_error *err) {
    int64_t ld = lora_round_up(cols, LORA_CUDA_VECTOR / (int64_t)lora_dtype_bytes(dtype));
    *out = {nullptr, rows, cols, ld, dtype};
    return lora_cuda_scratch(c, slot, (size_t)(rows * ld) * lora_dtype_bytes(dtype), &out->data, err);
}

bool lora_cuda_is_operand(const lora_weight *w, lora_dtype dtype) { return lora_gpu_is_operand(w, dtype); }

lora_status lora_cuda_weight(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype, int slot, lora_mat *out,
                             lora_error *err) {
    if (lora_cuda_is_operand(w, dtype)) {
        *out = lora_mat_rows(dense_of(w), first, rows);
        return LORA_OK;
    }
    LORA_TRY(lora_cuda_scratch_mat(c, slot, rows, w->cols, dtype, out, err));
    return lora_cuda_decode(c, w, first, *out, err);
}

lora_status lora_cuda_operand(lora_cuda *c, lora_mat x, lora_dtype dtype, int slot, lora_mat *out, lora_error *err) {
    *out = x;
    if (x.dtype == dtype && dtype == LORA_F32) return LORA_OK;
    return lora_cuda_operand_with_room(c, x, dtype, 0, slot, out, err);
}

lora_status lora_cuda_operand_with_room(lora_cuda *c, lora_mat x, lora_dtype dtype, int64_t lent, int slot, lora_mat *out,
                                        lora_error *err) {
    *out = x;
    if (x.dtype == dtype && lora_cuda_is_aligned(x.data, x.ld, dtype) && x.ld - x.cols >= lent) return LORA_OK;
    LORA_TRY(lora_cuda_scratch_mat(c, slot, x.rows, x.cols + lent, dtype, out, err));
    out->cols = x.cols;
    return convert(c, x, *out, err);
}

lora_status lora_cuda_convert(lora_cuda *c, lora_mat from, lora_mat to, lora_error *err) { return convert(c, from, to, err); }

lora_gpu_facts lora_cuda_facts(const lora_ctx *ctx) {
    const lora_cuda_properties *properties = &lora_cuda_of(ctx)->properties;
    return {properties->major, (int64_t)properties->shared_bytes, lora_backend_of(ctx)->precision == LORA_PRECISION_FAST};
}

lora_dtype lora_cuda_operands(const lora_ctx *ctx) {
    const lora_gpu_facts gpu = lora_cuda_facts(ctx);
    return lora_gpu_operands(&gpu);
}

lora_dtype lora_cuda_linear_operand(const lora_ctx *ctx, int64_t M) {
    const lora_gpu_facts gpu = lora_cuda_facts(ctx);
    return lora_gpu_linear_operand(&gpu, M);
}
