/* A block makes 16 outputs of all tokens; its warps take 128 of k in turn. The weights are the left operand of mma.m16n8k16, whose 16 of k
 * are any 16 that x has, too: lane 4 g + t has the 16 bytes that are elements 32 t .. 32 t + 31 of the 128 in rows g and g + 8. A byte is
 * two weights, and a table of all 256 pairs gives them at once, without their scale. Four lanes are two of the smallest blocks of weights,
 * so a token has two columns of the right operand, each with zeros for one half of k: two sums, which the scales of their blocks multiply.
 */
#include "lora_c/cuda/few_mma.h"

#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/few_update.cuh"
#include "lora_c/cuda/ptx.cuh"

namespace {

enum {
    ROWS = 16,
    WARPS = 8,
    THREADS = WARPS * LORA_CUDA_WARP,
    STEP = 128,   /* of k */
    GROUP = 4,    /* tokens of one mma */
    QUARTER = 80, /* bytes from one 32 of k to the next in memory: of four, and of two tokens, all begin at other banks */
    TOKEN = 4 * QUARTER,
    PAIRS = 256,
    SMALLEST = 64 /* block of weights */
};

/* pairs: one copy for each lane, in its own bank. x: of a warp's step. partial: sums of each warp. */
template <int TOKENS> struct few_mma_shared {
    uint32_t pairs[PAIRS][LORA_CUDA_WARP];
    __align__(16) unsigned char x[WARPS][TOKENS * TOKEN];
    uint4 zeros[4];
    float partial[WARPS][TOKENS][ROWS];
};

struct few_mma_args {
    const uint8_t *codes;
    const float *lut;
    const float *absmax, *nested_absmax, *nested_map;
    const uint8_t *absmax_codes;
    float offset;
    int shift, nested_shift; /* of the smallest blocks to blocks of weights, of these to blocks of scales */
    lora_mat x, y;
    bool vector; /* x is at 16 bytes */
    const float *bias;
    bool accumulate;
    lora_cuda_few_update updates[LORA_DECODE_BATCH];
};

/* Thread i writes pair i, a lane behind the other so that they write to different banks. */
template <int TOKENS> __device__ __forceinline__ void fill_pairs(const few_mma_args &a) {
    few_mma_shared<TOKENS> &s = lora_shared<few_mma_shared<TOKENS>>();
    const uint32_t both = lora_ptx_bf16x2(a.lut[threadIdx.x >> 4], a.lut[threadIdx.x & 15]);
#pragma unroll
    for (int i = 0; i < LORA_CUDA_WARP; i += 4)
        *(uint4 *)&s.pairs[threadIdx.x][(i + 4 * threadIdx.x) % LORA_CUDA_WARP] = make_uint4(both, both, both, both);
}

/* Where a lane's weights are: 32 of each of its rows g and g + 8 in every step, and one of their four scales, that of row g + 8 (t / 2) and
 * half t % 2, counted in smallest blocks. */
struct few_mma_place {
    const uint8_t *codes[2];
    uint32_t scale;
};
struct few_mma_weights {
    uint4 codes[2];
    float scale;
};

__device__ __forceinline__ few_mma_place place_of(const few_mma_args &a, int64_t first) {
    const int lane = threadIdx.x % LORA_CUDA_WARP, g = lane / 4, t = lane % 4;
    const int64_t last = a.y.cols - 1, K = a.x.cols;
    few_mma_place p;
#pragma unroll
    for (int h = 0; h < 2; h++) p.codes[h] = a.codes + ((lora_min_i64(first + g + 8 * h, last) * K + 32 * t) >> 1);
    p.scale = (uint32_t)((lora_min_i64(first + g + t / 2 * 8, last) * K) / SMALLEST) + t % 2;
    return p;
}

__device__ __forceinline__ few_mma_weights load_weights(const few_mma_args &a, const few_mma_place &p, uint32_t k) {
    few_mma_weights w;
#pragma unroll
    for (int h = 0; h < 2; h++) w.codes[h] = *(const uint4 *)(p.codes[h] + k / 2);
    const uint32_t block = (p.scale + k / SMALLEST) >> a.shift;
    if (a.absmax)
        w.scale = a.absmax[block];
    else { /* the bits of lora_nf4_absmax */
        float product = a.nested_map[a.absmax_codes[block]] * a.nested_absmax[block >> a.nested_shift];
        w.scale = product + a.offset;
    }
    return w;
}

/* Elements k .. k + 127 of every token, rounded, as the lanes read them. */
template <int TOKENS> __device__ __forceinline__ void stage_x(const few_mma_args &a, uint32_t k, unsigned char *to) {
    const int lane = threadIdx.x % LORA_CUDA_WARP;
    __syncwarp(); /* the last step's is done with */
#pragma unroll
    for (int m = 0; m < TOKENS; m++) {
        if (m >= (int)a.x.rows) continue;
        const float *from = (const float *)a.x.data + m * a.x.ld + k + 4 * lane;
        float4 x;
        if (a.vector)
            x = *(const float4 *)from;
        else
            x = make_float4(from[0], from[1], from[2], from[3]);
        *(uint2 *)(to + m * TOKEN + lane / 8 * QUARTER + lane % 8 * 8) = make_uint2(lora_ptx_bf16x2(x.x, x.y), lora_ptx_bf16x2(x.z, x.w));
    }
    __syncwarp();
}

/* The pair of byte `at` of a word. lane: where the copies of this lane begin. */
template <int TOKENS> __device__ __forceinline__ uint32_t pair_of(uint32_t lane, uint32_t word, int at) {
    uint32_t offset = ((at == 0 ? word << 7 : word >> (8 * at - 7)) & (PAIRS - 1) << 7) | lane;
    return *(const uint32_t *)((const unsigned char *)lora_shared<few_mma_shared<TOKENS>>().pairs + offset);
}

/* Where a lane's part of the right operand is, of token lane / 8 of a group: zeros where its column has the other half of k. */
template <int TOKENS> __device__ __forceinline__ const uint4 *right_of(const few_mma_args &a, int group) {
    const few_mma_shared<TOKENS> &s = lora_shared<few_mma_shared<TOKENS>>();
    const int lane = threadIdx.x % LORA_CUDA_WARP, t = lane % 4, token = GROUP * group + lane / 8;
    if (t / 2 != lane / 4 % 2 || token >= a.x.rows) return s.zeros;
    return (const uint4 *)(s.x[threadIdx.x / LORA_CUDA_WARP] + token * TOKEN + t * QUARTER);
}

/* sum[group][e]: of row g + 8 e and token 4 group + t. */
template <int TOKENS, int GROUPS>
__device__ __forceinline__ void take_step(const few_mma_weights &w, const uint4 *const (&right)[GROUPS], float (&sum)[GROUPS][2]) {
    const int lane = threadIdx.x % LORA_CUDA_WARP;
    const uint32_t words[2][4] = {{w.codes[0].x, w.codes[0].y, w.codes[0].z, w.codes[0].w},
                                  {w.codes[1].x, w.codes[1].y, w.codes[1].z, w.codes[1].w}};
    float d[GROUPS][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t left[2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) left[i / 4][i % 4] = pair_of<TOKENS>(4 * lane, words[i % 2][j], i / 2);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const uint4 x = right[group][j];
            lora_ptx_mma_bf16(d[group], left[0], x.x, x.y);
            lora_ptx_mma_bf16(d[group], left[1], x.z, x.w);
        }
    }
    float scale[4]; /* by row and half, from the lane that has it */
#pragma unroll
    for (int i = 0; i < 4; i++) scale[i] = __shfl_sync(0xffffffffu, w.scale, lane / 4 * 4 + i);
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[group][e / 2] = fmaf(d[group][e], scale[e], sum[group][e / 2]);
}

/* The sums of all warps, the update and the bias; a warp takes every WARPSth output. */
template <int TOKENS> __device__ __forceinline__ void finish(const few_mma_args &a, int64_t first) {
    const few_mma_shared<TOKENS> &s = lora_shared<few_mma_shared<TOKENS>>();
    const int lane = threadIdx.x % LORA_CUDA_WARP;
    for (int i = threadIdx.x / LORA_CUDA_WARP; i < ROWS * a.x.rows; i += WARPS) {
        int m = i / ROWS, row = i % ROWS;
        if (first + row >= a.y.cols) continue;
        float all = lora_warp_sum(lora_few_update(a.updates[m], first + row, lane < WARPS ? s.partial[lane][m][row] : 0));
        if (lane > 0) continue;
        if (a.bias) all = all + a.bias[first + row];
        float *y = lora_at(a.y, m, first + row);
        *y = a.accumulate ? *y + all : all;
    }
}

template <int TOKENS> __global__ void __launch_bounds__(THREADS, 2) few_mma(few_mma_args a) {
    enum { GROUPS = (TOKENS + GROUP - 1) / GROUP };
    few_mma_shared<TOKENS> &s = lora_shared<few_mma_shared<TOKENS>>();
    const int lane = threadIdx.x % LORA_CUDA_WARP, warp = threadIdx.x / LORA_CUDA_WARP;
    const int64_t first = (int64_t)blockIdx.x * ROWS;
    const uint32_t K = (uint32_t)a.x.cols;
    const few_mma_place place = place_of(a, first);
    float sum[GROUPS][2] = {};
    few_mma_weights next = {};
    const uint32_t begin = (uint32_t)warp * STEP;
    if (begin < K) next = load_weights(a, place, begin);
    fill_pairs<TOKENS>(a);
    if (threadIdx.x < 4) s.zeros[threadIdx.x] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    const uint4 *right[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) right[group] = right_of<TOKENS>(a, group);
    for (uint32_t k = begin; k < K; k += WARPS * STEP) {
        const few_mma_weights w = next;
        if (k + WARPS * STEP < K) next = load_weights(a, place, k + WARPS * STEP);
        stage_x<TOKENS>(a, k, s.x[warp]);
        take_step<TOKENS, GROUPS>(w, right, sum);
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int m = GROUP * group + lane % 4;
            if (m < TOKENS) s.partial[warp][m][lane / 4 + 8 * e] = sum[group][e];
        }
    __syncthreads();
    finish<TOKENS>(a, first);
}

template <int TOKENS> lora_status launch(lora_cuda *c, const few_mma_args &a, lora_error *err) {
    dim3 grid = lora_cuda_blocks(a.y.cols, ROWS);
    return lora_cuda_launch_kernel(c, "few_mma", few_mma<TOKENS>, grid, THREADS, sizeof(few_mma_shared<TOKENS>), a, err);
}

} // namespace

bool lora_cuda_few_mma_can(const lora_cuda *c, const lora_cuda_few_layer *l) {
    const lora_nf4 *w = &l->w.nf4;
    if (l->operands != LORA_BF16 || l->w.kind != LORA_WEIGHT_NF4) return false;
    const int64_t nested = w->absmax ? 1 : w->nested_block_size;
    return w->cols % STEP == 0 && w->cols <= INT32_MAX && w->rows <= UINT32_MAX / (w->cols / SMALLEST) && w->block_size >= SMALLEST &&
           (nested & (nested - 1)) == 0 && (uintptr_t)w->codes % 16 == 0 &&
           c->properties.shared_bytes >= sizeof(few_mma_shared<LORA_DECODE_BATCH>);
}

lora_status lora_cuda_few_mma(lora_cuda *c, const lora_cuda_few_layer *l, lora_error *err) {
    const lora_nf4 &q = l->w.nf4;
    few_mma_args a = {};
    a.codes = q.codes, a.lut = q.lut;
    a.absmax = q.absmax, a.nested_absmax = q.nested_absmax, a.nested_map = q.nested_map, a.absmax_codes = q.absmax_codes;
    a.offset = q.nested_offset;
    a.shift = __builtin_ctzll((uint64_t)q.block_size / SMALLEST);
    a.nested_shift = q.absmax ? 0 : __builtin_ctzll((uint64_t)q.nested_block_size);
    a.x = l->x, a.y = l->y, a.vector = lora_wide(l->x), a.bias = l->bias, a.accumulate = l->accumulate;
    for (int64_t m = 0; m < a.x.rows; m++) a.updates[m] = l->updates[m];
    if (a.x.rows <= 1) return launch<1>(c, a, err);
    if (a.x.rows <= 4) return launch<4>(c, a, err);
    return launch<LORA_DECODE_BATCH>(c, a, err);
}
