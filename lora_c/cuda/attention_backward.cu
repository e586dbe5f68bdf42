/* FlashAttention-2 backward (arXiv:2307.08691, algorithm 2) in float32, in three passes without atomics: delta, then dq by tiles of rows,
 * then dk and dv by tiles of keys, each of which meets its rows in ascending order. */
#include "lora_c/cuda/attention_exact.cuh"
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/table.h"

namespace {

enum { ROWS = 64 };

struct backward_args {
    attention_problem p;
    attention_matrix q, k, v, dout, dq, dk, dv;
    lora_mat o; /* float32 or bfloat16 */
    const float *lse;
    float *delta;
    int64_t first, rows; /* of delta: tokens */
    int64_t most;        /* rows of a segment: larger ones are done elsewhere */
};

/* A warp sums dout * o over one head of one token. */
__global__ void __launch_bounds__(EXACT_THREADS) attention_delta(backward_args a) {
    int64_t i = (int64_t)blockIdx.x * (EXACT_THREADS / LORA_CUDA_WARP) + threadIdx.x / LORA_CUDA_WARP;
    if (i >= a.rows * a.p.H) return;
    int64_t row = a.first + i / a.p.H, head = i % a.p.H;
    const float *dout = a.dout.data + row * a.dout.ld + head * a.p.D;
    const int64_t o = row * a.o.ld + head * a.p.D;
    float sum = 0;
    for (int64_t d = threadIdx.x % LORA_CUDA_WARP; d < a.p.D; d += LORA_CUDA_WARP)
        sum = fmaf(dout[d], lora_load(a.o.data, o + d, a.o.dtype), sum);
    sum = lora_warp_sum(sum);
    if (threadIdx.x % LORA_CUDA_WARP == 0) a.delta[row * a.p.H + head] = sum;
}

/* A probability from a product of q and k; *slope: scale times the derivative of the score. 0 and 0 where the row does not see the key. */
__device__ __forceinline__ float probability(const attention_problem &p, float product, bool sees, float lse, float *slope) {
    float score = attention_score(p, product, slope);
    *slope = sees ? p.scale * *slope : 0;
    return sees ? expf(score - lse) : 0;
}

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 1) attention_backward_queries(backward_args a) {
    exact_shared<4> &shared = lora_shared<exact_shared<4>>();
    attention_place at = attention_place_of<ROWS>(a.p, blockIdx.x, a.p.group);
    if (at.n == 0 || at.n * a.p.group > a.most) return;
    int y = threadIdx.x / EXACT_SIDE, x = threadIdx.x % EXACT_SIDE;
    int64_t col = (int64_t)blockIdx.y * EXACT_COLS * CC, row = at.tile * ROWS, n_rows = at.n * a.p.group;
    attention_rows q = attention_query_rows(a.p, at, a.q, row, ROWS), dout = attention_query_rows(a.p, at, a.dout, row, ROWS);
    float dq[4][4 * CC];
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 4 * CC; c++) dq[i][c] = 0;
    int64_t end = (lora_min_i64(row + ROWS, n_rows) - 1) / a.p.group + 1;
    for (int64_t j0 = attention_first_key<EXACT_KEYS>(a.p, row / a.p.group); j0 < end; j0 += EXACT_KEYS) {
        int64_t n = lora_min_i64(EXACT_KEYS, end - j0);
        attention_rows k = attention_key_rows(a.p, a.k, at.first + j0, at.kv_head, n);
        float s[4][4], dp[4][4];
        exact_products<4>(s, shared.stage, q, k, a.p.D);
        exact_products<4>(dp, shared.stage, dout, attention_key_rows(a.p, a.v, at.first + j0, at.kv_head, n), a.p.D);
        LORA_UNROLL
        for (int i = 0; i < 4; i++) {
            int64_t r = lora_min_i64(row + y + EXACT_SIDE * i, n_rows - 1), sums = attention_sums_at(a.p, at, r);
            float lse = a.lse[sums], delta = a.delta[sums], slope;
            for (int j = 0; j < 4; j++) {
                int64_t key = j0 + x + EXACT_SIDE * j;
                float weight = probability(a.p, s[i][j], key < end && attention_sees(a.p, r / a.p.group, key), lse, &slope);
                shared.p[(y + EXACT_SIDE * i) * EXACT_P_PITCH + x + EXACT_SIDE * j] = slope * weight * (dp[i][j] - delta);
            }
        }
        exact_add_products<4, CC>(dq, shared.p, shared.stage, k, col, a.p.D);
    }
    attention_rows out = attention_query_rows(a.p, at, a.dq, row, ROWS);
    LORA_UNROLL
    for (int i = 0; i < 4; i++) {
        int r = y + EXACT_SIDE * i;
        if (r < out.n) exact_store<CC>((float *)out.data + attention_row_at(out, r), dq[i], col, a.p.D, 1);
    }
}

/* What a thread's rows and keys make of products: s becomes the probabilities, dp the gradients of scores; keys by rows. */
__device__ inline void take_products(const backward_args &a, const attention_place &at, int64_t j0, int64_t row, int64_t n_rows,
                                     float (&s)[4][4], float (&dp)[4][4]) {
    LORA_UNROLL
    for (int j = 0; j < 4; j++) {
        int64_t r = row + threadIdx.x % EXACT_SIDE + EXACT_SIDE * j, inside = lora_min_i64(r, n_rows - 1),
                sums = attention_sums_at(a.p, at, inside);
        float lse = a.lse[sums], delta = a.delta[sums], slope;
        LORA_UNROLL
        for (int i = 0; i < 4; i++) {
            int64_t key = j0 + threadIdx.x / EXACT_SIDE + EXACT_SIDE * i;
            s[i][j] = probability(a.p, s[i][j], r < n_rows && attention_sees(a.p, inside / a.p.group, key), lse, &slope);
            dp[i][j] = slope * s[i][j] * (dp[i][j] - delta);
        }
    }
}

__device__ inline void keep_tile(float *p, const float (&s)[4][4]) {
    LORA_UNROLL
    for (int i = 0; i < 4; i++) {
        float *row = p + (threadIdx.x / EXACT_SIDE + EXACT_SIDE * i) * EXACT_P_PITCH + threadIdx.x % EXACT_SIDE;
        for (int j = 0; j < 4; j++) row[EXACT_SIDE * j] = s[i][j];
    }
}

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 1) attention_backward_keys(backward_args a) {
    exact_shared<4> &shared = lora_shared<exact_shared<4>>();
    attention_place at = attention_place_of<EXACT_KEYS>(a.p, blockIdx.x, 1);
    if (at.n == 0 || at.n * a.p.group > a.most) return;
    int64_t col = (int64_t)blockIdx.y * EXACT_COLS * CC, j0 = at.tile * EXACT_KEYS, n = lora_min_i64(EXACT_KEYS, at.n - j0);
    attention_rows k = attention_key_rows(a.p, a.k, at.first + j0, at.kv_head, n);
    attention_rows v = attention_key_rows(a.p, a.v, at.first + j0, at.kv_head, n);
    float dk[4][4 * CC], dv[4][4 * CC];
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 4 * CC; c++) dk[i][c] = dv[i][c] = 0;
    /* key j is seen by the queries j .. j + window - 1 */
    int64_t n_rows = at.n * a.p.group, end = a.p.window > 0 ? lora_min_i64(at.n, j0 + n - 1 + a.p.window) * a.p.group : n_rows;
    for (int64_t row = j0 * a.p.group; row < end; row += ROWS) {
        attention_rows q = attention_query_rows(a.p, at, a.q, row, ROWS), dout = attention_query_rows(a.p, at, a.dout, row, ROWS);
        float s[4][4], dp[4][4];
        exact_products<4>(s, shared.stage, k, q, a.p.D);
        exact_products<4>(dp, shared.stage, v, dout, a.p.D);
        take_products(a, at, j0, row, n_rows, s, dp);
        keep_tile(shared.p, s);
        exact_add_products<4, CC>(dv, shared.p, shared.stage, dout, col, a.p.D);
        __syncthreads();
        keep_tile(shared.p, dp);
        exact_add_products<4, CC>(dk, shared.p, shared.stage, q, col, a.p.D);
    }
    LORA_UNROLL
    for (int i = 0; i < 4; i++) {
        int64_t key = threadIdx.x / EXACT_SIDE + EXACT_SIDE * i;
        if (key >= n) continue;
        exact_store<CC>(a.dk.data + (at.first + j0 + key) * a.dk.ld + at.kv_head * a.p.D, dk[i], col, a.p.D, 1);
        exact_store<CC>(a.dv.data + (at.first + j0 + key) * a.dv.ld + at.kv_head * a.p.D, dv[i], col, a.p.D, 1);
    }
}

lora_status backward_exact(lora_cuda *c, const backward_args &a, const int32_t *cu, lora_error *err) {
    uint32_t cols = (uint32_t)lora_div_up(a.p.D, 2 * EXACT_COLS), shared = sizeof(exact_shared<4>);
    dim3 queries((uint32_t)attention_blocks<ROWS>(cu, a.p.n, a.p.group, a.p.KV), cols);
    dim3 keys((uint32_t)attention_blocks<EXACT_KEYS>(cu, a.p.n, 1, a.p.KV), cols);
    if (a.p.D <= EXACT_COLS) {
        LORA_TRY(LORA_CUDA_LAUNCH(c, attention_backward_queries<1>, queries, EXACT_THREADS, shared, a, err));
        return LORA_CUDA_LAUNCH(c, attention_backward_keys<1>, keys, EXACT_THREADS, shared, a, err);
    }
    LORA_TRY(LORA_CUDA_LAUNCH(c, attention_backward_queries<2>, queries, EXACT_THREADS, shared, a, err));
    return LORA_CUDA_LAUNCH(c, attention_backward_keys<2>, keys, EXACT_THREADS, shared, a, err);
}

} // namespace

lora_status lora_cuda_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                         const lora_attention_gradient *g, lora_error *err) {
    const int32_t *cu = segments->cu_seqlens;
    if (segments->n == 0 || cu[segments->n] == cu[0]) return LORA_OK;
    lora_cuda *c = lora_cuda_of(ctx);
    int64_t D = shape->head_dim;
    backward_args a = {};
    a.p = attention_problem_of(shape, segments);
    const lora_mat from[] = {g->q, g->k, g->v, g->dout, g->dq, g->dk, g->dv};
    attention_matrix *const to[] = {&a.q, &a.k, &a.v, &a.dout, &a.dq, &a.dk, &a.dv};
    a.o = g->o;
    for (int i = 0; i < 7; i++) *to[i] = attention_matrix_of(from[i].data, from[i].ld, D);
    a.lse = g->lse;
    a.first = cu[0];
    a.rows = (int64_t)cu[segments->n] - cu[0];
    void *delta = NULL;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(g->q.rows * a.p.H) * sizeof(float), &delta, err));
    a.delta = (float *)delta;
    dim3 grid = lora_cuda_blocks(a.rows * a.p.H, EXACT_THREADS / LORA_CUDA_WARP);
    LORA_TRY(LORA_CUDA_LAUNCH(c, attention_delta, grid, EXACT_THREADS, 0, a, err));
    a.most = INT64_MAX;
    if (lora_cuda_attention_is_fast(ctx, D)) {
        const attention_sizes sizes = attention_sizes_of(a.p, cu);
        if (sizes.many) LORA_TRY(lora_cuda_attention_backward_fast(ctx, shape, segments, g, a.delta, err));
        if (sizes.few == 0) return LORA_OK;
        a.most = ATTENTION_FEW;
    }
    return backward_exact(c, a, cu, err);
}
