/* FlashAttention-2 forward (arXiv:2307.08691, algorithm 1) on tensor cores: a block has 64 rows, a warp 16 of them, and meets 64 or 32 keys
 * at a time; the next keys are on their way while these are worked on. */
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/attention_mma.cuh"

namespace {

/* Keys of a tile, and blocks that share a multiprocessor: what registers have room for. */
template <int D> __host__ __device__ constexpr int forward_keys() { return D <= 128 ? 64 : 32; }
template <int D> __host__ __device__ constexpr int forward_blocks() { return D <= 64 ? 4 : D <= 128 ? 3 : 1; }

struct forward_args {
    attention_problem p;
    attention_matrix q;
    attention_output o;
    packed_matrix k;
    int64_t values;        /* elements from k to v, which is packed alike */
    int64_t first, tokens; /* of the packed matrices */
    const int64_t *length;
    float *lse;
};

template <int D> struct forward_shared {
    uint16_t q[MMA_ROWS * (D + 8)], k[forward_keys<D>() * (D + 8)], v[forward_keys<D>() * (D + 8)];
    attention_place at; /* kept out of registers while keys are met */
};

/* Of the two rows of a thread. */
template <int D> struct forward_state {
    float top[2], sum[2], out[D / 8][4]; /* the maximum in units of ln 2; the thread's part of the denominator */
    int query[2];
};

/* Scores of products in units of ln 2, -inf where a row does not see a key from j0 on. */
template <int TILES>
__device__ __forceinline__ void take_scores(const attention_problem &p, float (&s)[TILES][4], const int (&query)[2], int j0) {
    bool all_seen = j0 + 8 * TILES - 1 <= query[0] && (p.window == 0 || query[1] - j0 < p.window);
    float slope;
    LORA_UNROLL
    for (int j = 0; j < TILES; j++) {
        LORA_UNROLL
        for (int e = 0; e < 4; e++) {
            int key = j0 + 8 * j + 2 * (mma_lane() % 4) + e % 2;
            s[j][e] = mma_score(p, s[j][e], &slope);
            if (!all_seen && !mma_sees(p, query[e / 2], key)) s[j][e] = -INFINITY;
        }
    }
}

/* Turns scores into weights, and scales what was summed before to the new maximum. */
template <int D, int TILES> __device__ __forceinline__ void take_weights(forward_state<D> &st, float (&s)[TILES][4]) {
    LORA_UNROLL
    for (int h = 0; h < 2; h++) {
        float most = -INFINITY;
        LORA_UNROLL
        for (int j = 0; j < TILES; j++) most = fmaxf(most, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        most = fmaxf(st.top[h], mma_row_max(most));
        float base = most == -INFINITY ? 0 : most, factor = lora_ptx_exp2(st.top[h] - base), sum = 0;
        LORA_UNROLL
        for (int j = 0; j < TILES; j++) {
            s[j][2 * h] = lora_ptx_exp2(s[j][2 * h] - base);
            s[j][2 * h + 1] = lora_ptx_exp2(s[j][2 * h + 1] - base);
            sum = sum + (s[j][2 * h] + s[j][2 * h + 1]);
        }
        st.top[h] = most;
        st.sum[h] = fmaf(st.sum[h], factor, sum);
        LORA_UNROLL
        for (int c = 0; c < D / 8; c++) {
            st.out[c][2 * h] = st.out[c][2 * h] * factor;
            st.out[c][2 * h + 1] = st.out[c][2 * h + 1] * factor;
        }
    }
}

/* The keys begin .. end - 1, counted from the segment's first, which k is. */
template <int D>
__device__ __forceinline__ void meet_keys(const forward_args &a, const uint16_t *k, int begin, int end, forward_state<D> &st) {
    constexpr int KEYS = forward_keys<D>(), TILES = KEYS / 8;
    forward_shared<D> &shared = lora_shared<forward_shared<D>>();
    const uint16_t *q = shared.q + mma_first_row() * (D + 8);
    mma_copy<D, KEYS>(shared.k, k + (int64_t)begin * D, end - begin);
    lora_ptx_copy_commit();
    for (int j0 = begin; j0 < end; j0 += KEYS) {
        float s[TILES][4];
        lora_ptx_copy_wait<0>();
        __syncthreads(); /* these keys are here, and the last values are done with */
        mma_copy<D, KEYS>(shared.v, k + a.values + (int64_t)j0 * D, end - j0);
        lora_ptx_copy_commit();
        mma_products<D, TILES>(s, q, shared.k);
        __syncthreads();
        if (j0 + KEYS < end) mma_copy<D, KEYS>(shared.k, k + (int64_t)(j0 + KEYS) * D, end - j0 - KEYS);
        lora_ptx_copy_commit();
        take_scores<TILES>(a.p, s, st.query, j0);
        take_weights<D, TILES>(st, s);
        lora_ptx_copy_wait<1>(); /* the values; not the next keys */
        __syncthreads();
        mma_add_products<D, TILES, D / 8>(st.out, s, shared.v);
    }
    lora_ptx_copy_wait<0>();
}

/* Two neighbours from element i on, at an address of both. */
__device__ __forceinline__ void store_pair(const attention_output &o, int64_t i, float x, float y) {
    if (o.dtype == LORA_F32)
        *(float2 *)((float *)o.data + i) = make_float2(x, y);
    else
        *(uint32_t *)((uint16_t *)o.data + i) = lora_ptx_bf16x2(x, y);
}

/* A thread's elements of row `half` of its two, which begins at element `first`, times a factor. */
template <int D>
__device__ __forceinline__ void store_row(const attention_output &o, int64_t first, const float (&out)[D / 8][4], int half, int64_t n_cols,
                                          float factor) {
    LORA_UNROLL
    for (int c = 0; c < D / 8; c++) {
        int64_t at = 8 * c + 2 * (mma_lane() % 4);
        float x = factor * out[c][2 * half], y = factor * out[c][2 * half + 1];
        if (o.aligned && at < n_cols) {
            store_pair(o, first + at, x, y);
            continue;
        }
        if (at < n_cols) lora_store(o.data, first + at, o.dtype, x);
        if (at + 1 < n_cols) lora_store(o.data, first + at + 1, o.dtype, y);
    }
}

/* Outputs and lse of a tile. */
template <int D> __device__ __forceinline__ void store_tile(const forward_args &a, const attention_place &at, const forward_state<D> &st) {
    LORA_UNROLL
    for (int h = 0; h < 2; h++) {
        float sum = mma_row_sum(st.sum[h]);
        int64_t row = at.tile * MMA_ROWS + mma_first_row() + mma_lane() / 4 + 8 * h;
        if (row >= at.n * a.p.group) continue;
        store_row<D>(a.o, attention_output_at(a.p, at, a.o, row), st.out, h, a.p.D, 1 / sum);
        if (!a.lse || mma_lane() % 4) continue;
        a.lse[attention_sums_at(a.p, at, row)] = fmaf(st.top[h], LN_2, logf(sum));
    }
}

template <int D> __global__ void __launch_bounds__(MMA_THREADS, forward_blocks<D>()) attention_forward_mma(forward_args a) {
    forward_shared<D> &shared = lora_shared<forward_shared<D>>();
    attention_place at = attention_place_of<MMA_ROWS>(a.p, blockIdx.x, a.p.group);
    if (at.n * a.p.group <= ATTENTION_FEW || a.length[at.segment] != at.n) return;
    if (threadIdx.x == 0) shared.at = at;
    int64_t row = at.tile * MMA_ROWS, last = lora_min_i64(row + MMA_ROWS, at.n * a.p.group) - 1;
    int end = (int)(last / a.p.group) + 1;
    mma_convert<D, MMA_ROWS>(shared.q, attention_query_rows(a.p, at, a.q, row, MMA_ROWS), a.p.D);
    forward_state<D> st;
    mma_clear(st.out);
    LORA_UNROLL
    for (int h = 0; h < 2; h++) {
        st.top[h] = -INFINITY;
        st.sum[h] = 0;
        st.query[h] = (int)((row + mma_first_row() + mma_lane() / 4 + 8 * h) / a.p.group);
    }
    meet_keys<D>(a, packed_rows<D>(a.k, at, a.first, a.tokens, 1), (int)attention_first_key<forward_keys<D>()>(a.p, row / a.p.group), end,
                 st);
    store_tile<D>(a, shared.at, st);
}

template <int D> lora_status launch(lora_cuda *c, const forward_args &a, const int32_t *cu, lora_error *err) {
    dim3 grid((uint32_t)attention_blocks<MMA_ROWS>(cu, a.p.n, a.p.group, a.p.KV));
    return LORA_CUDA_LAUNCH(c, attention_forward_mma<D>, grid, MMA_THREADS, sizeof(forward_shared<D>), a, err);
}

} // namespace

lora_status lora_cuda_attention_forward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                             const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    const int32_t *cu = segments->cu_seqlens;
    int64_t D = shape->head_dim, width = lora_cuda_attention_width(D), tokens = (int64_t)cu[segments->n] - cu[0];
    int64_t elements = shape->n_kv_heads * tokens * width;
    void *memory = NULL;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LEFT, (size_t)(2 * elements) * sizeof(uint16_t), &memory, err));
    uint16_t *packed[] = {(uint16_t *)memory, (uint16_t *)memory + elements};
    const attention_matrix from[] = {attention_matrix_of(kv->k, kv->ldk, D), attention_matrix_of(kv->v, kv->ldv, D)};
    for (int i = 0; i < 2; i++) {
        const lora_cuda_pack pack = {from[i].data,        from[i].ld,  D,     width,  shape->n_kv_heads, 1,
                                     segments->on_device, segments->n, cu[0], tokens, kv->start,         kv->length,
                                     from[i].aligned,     packed[i]};
        LORA_TRY(lora_cuda_attention_pack(c, &pack, err));
    }
    forward_args a = {};
    a.p = attention_problem_of(shape, segments);
    a.q = attention_matrix_of(q.data, q.ld, D);
    a.o = attention_output_of(o, D);
    a.k.data = packed[0];
    a.values = elements;
    a.first = cu[0];
    a.tokens = tokens;
    a.length = kv->length;
    a.lse = lse;
    return LORA_CUDA_BY_WIDTH(width, launch, c, a, cu, err);
}
