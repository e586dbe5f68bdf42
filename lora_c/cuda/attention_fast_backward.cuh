/* The two passes of the backward pass on tensor cores: dq by tiles of 64 rows, dk and dv by tiles of 64 keys. What a tile meets comes in
 * stages of 32, the next one on its way while one is worked on. */
#ifndef LORA_CUDA_ATTENTION_FAST_BACKWARD_CUH
#define LORA_CUDA_ATTENTION_FAST_BACKWARD_CUH

#include "lora_c/cuda/attention_mma.cuh"

namespace {

enum { KEYS = 64, TILES = MMA_STAGE / 8 };

struct backward_args {
    attention_problem p;
    packed_matrix q, k, v, dout;
    attention_matrix dq, dk, dv;
    int64_t first, tokens; /* of the packed matrices */
    const float *lse, *delta;
};

/* own: q and dout, or k and v, of the block's tile; met: the others of two stages. Of rows that are met also lse, delta and the query. */
template <int D> struct backward_shared {
    uint16_t own[2][MMA_ROWS * (D + 8)], met[2][2][MMA_STAGE * (D + 8)];
    float lse[2][MMA_STAGE], delta[2][MMA_STAGE];
    int query[2][MMA_STAGE];
    attention_place at; /* of keys: kept out of registers while rows are met */
};

/* Columns of dk and dv that the registers of a block have room for. */
template <int D> __host__ __device__ constexpr int backward_columns() { return D <= 128 ? D : 128; }

/* Blocks that the shared memory of a multiprocessor has room for. 0: they are never launched (lora_cuda_attention_is_fast). */
template <int D> __host__ __device__ constexpr int backward_room() {
    return LORA_CUDA_SHARED_KB * 1024 / (int)(sizeof(backward_shared<D>) + LORA_CUDA_SHARED_PER_BLOCK);
}
/* Blocks that registers are to be shared by, at most so many. */
template <int D> __host__ __device__ constexpr int backward_blocks(int most) {
    return backward_room<D>() < 1 ? 1 : backward_room<D>() < most ? backward_room<D>() : most;
}

/* The probability of a product of q and k, with lse in units of ln 2, and in *gradient, which is that by the probability, the gradient by
 * scale * product; both 0 where the query does not see the key. */
__device__ __forceinline__ float take_product(const attention_problem &p, float product, bool sees, float lse, float delta,
                                              float *gradient) {
    float slope, score = mma_score(p, product, &slope), weight = sees ? lora_ptx_exp2(score - lse) : 0;
    *gradient = sees ? weight * slope * (*gradient - delta) : 0;
    return weight;
}

/* Begins to copy a stage of two matrices. */
template <int D>
__device__ __forceinline__ void copy_stage(uint16_t (&to)[2][MMA_STAGE * (D + 8)], const uint16_t *x, const uint16_t *y, int64_t first,
                                           int64_t end) {
    if (first < end) {
        mma_copy<D, MMA_STAGE>(to[0], x + first * D, end - first);
        mma_copy<D, MMA_STAGE>(to[1], y + first * D, end - first);
    }
    lora_ptx_copy_commit();
}

template <int D> __device__ __forceinline__ void copy_own(const uint16_t *x, const uint16_t *y, int64_t n) {
    backward_shared<D> &shared = lora_shared<backward_shared<D>>();
    mma_copy<D, MMA_ROWS>(shared.own[0], x, n);
    mma_copy<D, MMA_ROWS>(shared.own[1], y, n);
}

template <int D>
__global__ void __launch_bounds__(MMA_THREADS, backward_blocks<D>(D <= 64 ? 4 : 3)) attention_backward_queries_mma(backward_args a) {
    if (backward_room<D>() == 0) __trap();
    backward_shared<D> &shared = lora_shared<backward_shared<D>>();
    attention_place at = attention_place_of<MMA_ROWS>(a.p, blockIdx.x, a.p.group);
    if (at.n * a.p.group <= ATTENTION_FEW) return;
    int64_t row = at.tile * MMA_ROWS, n = lora_min_i64(MMA_ROWS, at.n * a.p.group - row);
    const uint16_t *k = packed_rows<D>(a.k, at, a.first, a.tokens, 1), *v = packed_rows<D>(a.v, at, a.first, a.tokens, 1);
    copy_own<D>(packed_rows<D>(a.q, at, a.first, a.tokens, a.p.group) + row * D,
                packed_rows<D>(a.dout, at, a.first, a.tokens, a.p.group) + row * D, n);
    int begin = (int)attention_first_key<MMA_STAGE>(a.p, row / a.p.group), end = (int)((row + n - 1) / a.p.group) + 1;
    copy_stage<D>(shared.met[0], k, v, begin, end);
    float lse[2], delta[2], dq[D / 8][4];
    int query[2];
    mma_clear(dq);
    LORA_UNROLL
    for (int h = 0; h < 2; h++) {
        int64_t r = mma_first_row() + mma_lane() / 4 + 8 * h, inside = row + lora_min_i64(r, n - 1);
        query[h] = (int)(inside / a.p.group);
        lse[h] = a.lse[attention_sums_at(a.p, at, inside)] * LOG2_E;
        delta[h] = a.delta[attention_sums_at(a.p, at, inside)];
    }
    const int own = mma_first_row() * (D + 8);
    for (int j0 = begin, stage = 0; j0 < end; j0 += MMA_STAGE, stage ^= 1) {
        lora_ptx_copy_wait<0>();
        __syncthreads(); /* this stage is here, and the other one is done with */
        copy_stage<D>(shared.met[stage ^ 1], k, v, j0 + MMA_STAGE, end);
        float s[TILES][4], dp[TILES][4];
        mma_products<D, TILES>(s, shared.own[0] + own, shared.met[stage][0]);
        mma_products<D, TILES>(dp, shared.own[1] + own, shared.met[stage][1]);
        LORA_UNROLL
        for (int j = 0; j < TILES; j++) {
            LORA_UNROLL
            for (int e = 0; e < 4; e++) {
                int key = j0 + 8 * j + 2 * (mma_lane() % 4) + e % 2;
                (void)take_product(a.p, s[j][e], mma_sees(a.p, query[e / 2], key), lse[e / 2], delta[e / 2], &dp[j][e]);
            }
        }
        mma_add_products<D, TILES, D / 8>(dq, dp, shared.met[stage][0]);
    }
    lora_ptx_copy_wait<0>();
    attention_rows out = attention_query_rows(a.p, at, a.dq, row, MMA_ROWS);
    LORA_UNROLL
    for (int h = 0; h < 2; h++) mma_store<D / 8>(out, dq, h, 0, a.p.D, a.p.scale);
}

/* Begins to copy a stage of rows; a warp fetches their sums. Rows behind the end have probabilities 0. */
template <int D>
__device__ __forceinline__ void copy_rows(const backward_args &a, int stage, const uint16_t *q, const uint16_t *dout, int64_t row,
                                          int64_t end) {
    backward_shared<D> &shared = lora_shared<backward_shared<D>>();
    const attention_place &at = shared.at;
    if (threadIdx.x < MMA_STAGE) {
        int64_t r = row + threadIdx.x;
        bool inside = r < end;
        shared.lse[stage][threadIdx.x] = inside ? a.lse[attention_sums_at(a.p, at, r)] * LOG2_E : INFINITY;
        shared.delta[stage][threadIdx.x] = inside ? a.delta[attention_sums_at(a.p, at, r)] : 0;
        shared.query[stage][threadIdx.x] = (int)(r / a.p.group);
    }
    copy_stage<D>(shared.met[stage], q, dout, row, end);
}

template <int D>
__global__ void __launch_bounds__(MMA_THREADS, backward_blocks<D>(D <= 64 ? 3 : 2)) attention_backward_keys_mma(backward_args a) {
    if (backward_room<D>() == 0) __trap();
    constexpr int COLS = backward_columns<D>() / 8;
    backward_shared<D> &shared = lora_shared<backward_shared<D>>();
    attention_place at = attention_place_of<KEYS>(a.p, blockIdx.x, 1);
    if (at.n * a.p.group <= ATTENTION_FEW) return;
    if (threadIdx.x == 0) shared.at = at;
    __syncwarp(); /* the first warp reads it below, the others behind a barrier */
    int j0 = (int)at.tile * KEYS, n = (int)lora_min_i64(KEYS, at.n - j0), col = blockIdx.y * backward_columns<D>();
    copy_own<D>(packed_rows<D>(a.k, at, a.first, a.tokens, 1) + (int64_t)j0 * D,
                packed_rows<D>(a.v, at, a.first, a.tokens, 1) + (int64_t)j0 * D, n);
    const uint16_t *q = packed_rows<D>(a.q, at, a.first, a.tokens, a.p.group);
    const uint16_t *dout = packed_rows<D>(a.dout, at, a.first, a.tokens, a.p.group);
    /* key j is seen by the queries j .. j + window - 1 */
    int64_t seen = a.p.window > 0 ? lora_min_i64(at.n, j0 + n - 1 + a.p.window) : at.n, end = seen * a.p.group;
    copy_rows<D>(a, 0, q, dout, j0 * a.p.group, end);
    float dk[COLS][4], dv[COLS][4];
    mma_clear(dk);
    mma_clear(dv);
    const int own = mma_first_row() * (D + 8), key = j0 + mma_first_row() + mma_lane() / 4;
    int stage = 0;
    for (int64_t row = j0 * a.p.group; row < end; row += MMA_STAGE, stage ^= 1) {
        lora_ptx_copy_wait<0>();
        __syncthreads(); /* this stage is here, and the other one is done with */
        copy_rows<D>(a, stage ^ 1, q, dout, row + MMA_STAGE, end);
        float s[TILES][4], dp[TILES][4];
        mma_products<D, TILES>(s, shared.own[0] + own, shared.met[stage][0]);
        mma_products<D, TILES>(dp, shared.own[1] + own, shared.met[stage][1]);
        LORA_UNROLL
        for (int j = 0; j < TILES; j++) {
            LORA_UNROLL
            for (int e = 0; e < 4; e++) {
                int r = 8 * j + 2 * (mma_lane() % 4) + e % 2;
                bool sees = mma_sees(a.p, shared.query[stage][r], key + 8 * (e / 2));
                s[j][e] = take_product(a.p, s[j][e], sees, shared.lse[stage][r], shared.delta[stage][r], &dp[j][e]);
            }
        }
        mma_add_products<D, TILES, COLS>(dv, s, shared.met[stage][1] + col);
        mma_add_products<D, TILES, COLS>(dk, dp, shared.met[stage][0] + col);
    }
    lora_ptx_copy_wait<0>();
    attention_rows out_k = attention_key_rows(a.p, a.dk, shared.at.first + j0, shared.at.kv_head, n);
    attention_rows out_v = attention_key_rows(a.p, a.dv, shared.at.first + j0, shared.at.kv_head, n);
    LORA_UNROLL
    for (int h = 0; h < 2; h++) {
        mma_store<COLS>(out_k, dk, h, col, a.p.D, a.p.scale);
        mma_store<COLS>(out_v, dv, h, col, a.p.D, 1);
    }
}

} // namespace

#endif
