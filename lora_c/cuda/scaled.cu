/* The largest number of a matrix, its power of two, and the matrix times that. */
#include "lora_c/cuda/scaled.h"

#include <cfloat>

#include "lora_c/cuda/eights.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/weights.h"

namespace {

enum { THREADS = 256, MOST_BLOCKS = 256, STEPS = 8 /* eights of a thread before there are more blocks */ };
/* The largest becomes less than 2^15. Alpha leaves the normal numbers only where results are below 1e-27. */
enum { TOP = 15, MOST_EXPONENT = 100, MOST_SHIFT = 127 };

/* What lies in SCALES. */
struct scales {
    float alpha, beta;
    int32_t exponent[LORA_CUDA_SCRATCH_SLOTS];
    float largest[MOST_BLOCKS];
};

lora_status find_scales(lora_cuda *c, scales **out, lora_error *err) {
    void *p;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SCALES, sizeof(scales), &p, err));
    *out = (scales *)p;
    return LORA_OK;
}

/* --- the exponent --- */

struct largest_args {
    lora_mat m;
    bool vector;
    int64_t groups;    /* of eight columns in a row */
    float *largest;    /* by block */
    int32_t *exponent; /* of one block, which knows all; NULL: there are more */
};
struct largest_shared {
    float of_warp[LORA_CUDA_WARP];
};

__device__ __forceinline__ int exponent_of(float largest) {
    if (largest == 0) return 0;
    int exponent;
    (void)frexp((double)largest, &exponent);
    return TOP - exponent > MOST_EXPONENT ? MOST_EXPONENT : TOP - exponent;
}

__global__ void __launch_bounds__(THREADS) find_largest(largest_args a) {
    largest_shared &s = lora_shared<largest_shared>();
    float top = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < a.m.rows * a.groups; i += (int64_t)gridDim.x * THREADS) {
        int64_t row = lora_row_of(i, a.groups), col = (i - row * a.groups) * LORA_CUDA_EIGHT, n = a.m.cols - col;
        float x[8];
        lora_load_eight(a.m.data, row * a.m.ld + col, a.m.dtype, a.vector && n >= LORA_CUDA_EIGHT, n, x);
        for (int e = 0; e < 8; e++) {
            float size = fabsf(x[e]);
            if (size > top && size < INFINITY) top = size;
        }
    }
    int warp = threadIdx.x / LORA_CUDA_WARP, lane = threadIdx.x % LORA_CUDA_WARP;
    top = lora_warp_max(top);
    if (lane == 0) s.of_warp[warp] = top;
    __syncthreads();
    top = lora_warp_max(lane < THREADS / LORA_CUDA_WARP ? s.of_warp[lane] : 0.0f);
    if (threadIdx.x > 0) return;
    if (a.exponent)
        *a.exponent = exponent_of(top);
    else
        a.largest[blockIdx.x] = top;
}

largest_args largest_of(lora_mat m) {
    return {m, lora_cuda_is_aligned(m.data, m.ld, m.dtype), lora_div_up(m.cols, LORA_CUDA_EIGHT), nullptr, nullptr};
}

/* --- rounding --- */

struct round_args {
    lora_mat from, to;
    bool vector_from, vector_to;
    int64_t groups;
    const int32_t *exponent;
};

__global__ void __launch_bounds__(THREADS, 1) round_scaled(round_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.from.rows * a.groups) return;
    int64_t row = lora_row_of(i, a.groups), col = (i - row * a.groups) * LORA_CUDA_EIGHT, n = a.from.cols - col;
    bool whole = n >= LORA_CUDA_EIGHT;
    float x[8], factor = ldexpf(1.0f, *a.exponent);
    lora_load_eight(a.from.data, row * a.from.ld + col, a.from.dtype, whole && a.vector_from, n, x);
    for (int e = 0; e < 8; e++) x[e] = x[e] * factor;
    lora_store_eight(a.to.data, row * a.to.ld + col, a.to.dtype, whole && a.vector_to, n, x);
}

/* A dense weight that is not float16 already; absent where it is another. */
lora_mat dense_of(const lora_weight *w) {
    if (w->kind == LORA_WEIGHT_GGML && w->ggml.type == LORA_GGML_BF16)
        return {(void *)w->ggml.blocks, w->rows, w->cols, w->cols, LORA_BF16};
    if (w->kind != LORA_WEIGHT_F32 && w->kind != LORA_WEIGHT_BF16) return lora_mat_none();
    return {(void *)w->dense.data, w->rows, w->cols, w->dense.ld, w->kind == LORA_WEIGHT_F32 ? LORA_F32 : LORA_BF16};
}

/* --- alpha and beta --- */

struct scalars_args {
    scales *of;
    float alpha, beta;
    const int32_t *a, *b;
};

__global__ void __launch_bounds__(LORA_CUDA_WARP) divide_alpha(scalars_args s) {
    if (threadIdx.x > 0) return;
    int shift = -((s.a ? *s.a : 0) + (s.b ? *s.b : 0));
    float alpha = s.alpha * ldexpf(1.0f, shift > MOST_SHIFT ? MOST_SHIFT : shift);
    if (fabsf(alpha) == INFINITY && fabsf(s.alpha) < INFINITY) alpha = copysignf(FLT_MAX, s.alpha); /* sums of zeros stay 0 */
    s.of->alpha = alpha;
    s.of->beta = s.beta;
}

} // namespace

lora_status lora_cuda_find_exponent(lora_cuda *c, lora_mat m, int slot, const int32_t **exponent, lora_error *err) {
    scales *s;
    LORA_TRY(find_scales(c, &s, err));
    *exponent = &s->exponent[slot];
    largest_args a = largest_of(m);
    int64_t blocks = lora_max_i64(1, lora_min_i64(MOST_BLOCKS, lora_div_up(m.rows * a.groups, THREADS * STEPS)));
    if (blocks > 1) {
        a.largest = s->largest;
        LORA_TRY(LORA_CUDA_LAUNCH(c, find_largest, dim3((uint32_t)blocks), THREADS, sizeof(largest_shared), a, err));
        a = largest_of(lora_mat_f32(s->largest, 1, blocks, blocks));
    }
    a.exponent = &s->exponent[slot];
    return LORA_CUDA_LAUNCH(c, find_largest, dim3(1), THREADS, sizeof(largest_shared), a, err);
}

lora_status lora_cuda_factor_of(lora_cuda *c, lora_mat m, lora_dtype dtype, int slot, lora_cuda_factor *out, lora_error *err) {
    out->exponent = nullptr;
    if (dtype != LORA_F16 || m.dtype == LORA_F16) return lora_cuda_operand(c, m, dtype, slot, &out->mat, err);
    LORA_TRY(lora_cuda_find_exponent(c, m, slot, &out->exponent, err));
    LORA_TRY(lora_cuda_scratch_mat(c, slot, m.rows, m.cols, LORA_F16, &out->mat, err));
    const lora_mat to = out->mat;
    round_args a = {m,
                    to,
                    lora_cuda_is_aligned(m.data, m.ld, m.dtype),
                    lora_cuda_is_aligned(to.data, to.ld, to.dtype),
                    lora_div_up(m.cols, LORA_CUDA_EIGHT),
                    out->exponent};
    return LORA_CUDA_LAUNCH(c, round_scaled, lora_cuda_blocks(m.rows * a.groups, THREADS), THREADS, 0, a, err);
}

lora_status lora_cuda_weight_factor(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype, int slot,
                                    lora_cuda_factor *out, lora_error *err) {
    lora_mat dense = dense_of(w);
    if (dtype == LORA_F16 && dense.data) return lora_cuda_factor_of(c, lora_mat_rows(dense, first, rows), dtype, slot, out, err);
    out->exponent = nullptr;
    return lora_cuda_weight(c, w, first, rows, dtype, slot, &out->mat, err);
}

lora_status lora_cuda_scalars(lora_cuda *c, const lora_cuda_product *product, const float **alpha, const float **beta, lora_error *err) {
    scales *s;
    LORA_TRY(find_scales(c, &s, err));
    *alpha = &s->alpha;
    *beta = &s->beta;
    const scalars_args a = {s, product->alpha, product->beta, product->a_exponent, product->b_exponent};
    return LORA_CUDA_LAUNCH(c, divide_alpha, dim3(1), LORA_CUDA_WARP, 0, a, err);
}
