/* FlashAttention-2 forward (arXiv:2307.08691, algorithm 1) in float32. Segments with few rows, as in decoding, share their keys among
 * blocks whose results are then merged; how the keys are shared follows from their number alone. */
#include "lora_c/cuda/attention_exact.cuh"
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/table.h"

namespace {

enum { SPLITS = 32, SPLIT_KEYS = 256, FEW_ROWS = 16, ROWS = 64 };
static const int64_t PARTIAL_BYTES = 64 << 20; /* of memory for what is to be merged, unless one item needs more */

struct forward_args {
    attention_problem p;
    attention_matrix q, k, v, o;
    const int64_t *start, *length;
    float *lse;
    bool skip_fresh;         /* segments of many rows without past keys are done elsewhere */
    float *partial, *sums;   /* of few rows: (items, SPLITS, 16, D) and (items, SPLITS, 16, 2): weighted values; maximum, denominator */
    int64_t item, tiles_few; /* of few rows: the first item, tiles of a segment */
};

/* A block's keys and the positions of its rows. */
struct forward_range {
    int64_t row;        /* the tile's first */
    int64_t first_key;  /* row of k and v of the segment's first key */
    int64_t past;       /* position of query 0 */
    int64_t begin, end; /* keys */
};

__device__ forward_range range_of(const forward_args &a, const attention_place &at, int rows) {
    forward_range r;
    int64_t length = a.length[at.segment], last = lora_min_i64((at.tile + 1) * rows, at.n * a.p.group) - 1;
    r.row = at.tile * rows;
    r.first_key = a.start[at.segment];
    r.past = length - at.n;
    r.begin = attention_first_key<EXACT_KEYS>(a.p, r.past + r.row / a.p.group);
    r.end = r.past + last / a.p.group + 1;
    return r;
}

/* Tile `item` of a segment with few rows, or none. */
__device__ attention_place few_place_of(const forward_args &a, int64_t item) {
    attention_place at;
    at.kv_head = item % a.p.KV;
    at.segment = item / a.p.KV / a.tiles_few;
    at.tile = item / a.p.KV % a.tiles_few;
    at.first = a.p.cu[at.segment];
    at.n = a.p.cu[at.segment + 1] - at.first;
    int64_t rows = at.n * a.p.group;
    if (rows > ATTENTION_FEW || at.tile * FEW_ROWS >= rows) at.n = 0;
    return at;
}

/* The state of a row's softmax: maximum and denominator so far, output not yet divided. */
template <int RA, int CC> struct forward_state {
    float top[RA], sum[RA], out[RA][4 * CC];
};

/* Turns scores of keys from j0 on into weights in shared memory, and scales what was summed before to the new maximum. */
template <int RA, int CC>
__device__ inline void take_scores(const forward_args &a, forward_state<RA, CC> &st, float (&s)[RA][4], const forward_range &r, int64_t j0,
                                   float *p) {
    int y = threadIdx.x / EXACT_SIDE, x = threadIdx.x % EXACT_SIDE;
    LORA_UNROLL
    for (int i = 0; i < RA; i++) {
        int64_t position = r.past + (r.row + y + EXACT_SIDE * i) / a.p.group;
        float most = -INFINITY, sum = 0, slope;
        for (int j = 0; j < 4; j++) {
            int64_t key = j0 + x + EXACT_SIDE * j;
            s[i][j] = key < r.end && attention_sees(a.p, position, key) ? attention_score(a.p, s[i][j], &slope) : -INFINITY;
            most = fmaxf(most, s[i][j]);
        }
        most = fmaxf(st.top[i], exact_row_max(most));
        float base = most == -INFINITY ? 0 : most, factor = expf(st.top[i] - base); /* no key yet: all weights are 0 */
        for (int j = 0; j < 4; j++) {
            float weight = expf(s[i][j] - base);
            sum = sum + weight;
            p[(y + EXACT_SIDE * i) * EXACT_P_PITCH + x + EXACT_SIDE * j] = weight;
        }
        st.top[i] = most;
        st.sum[i] = fmaf(st.sum[i], factor, exact_row_sum(sum));
        for (int c = 0; c < 4 * CC; c++) st.out[i][c] = st.out[i][c] * factor;
    }
}

template <int RA, int CC>
__device__ inline void meet_keys(const forward_args &a, const attention_place &at, const forward_range &r, int64_t col,
                                 forward_state<RA, CC> &st) {
    exact_shared<RA> &shared = lora_shared<exact_shared<RA>>();
    attention_rows q = attention_query_rows(a.p, at, a.q, r.row, EXACT_SIDE * RA);
    for (int i = 0; i < RA; i++) {
        st.top[i] = -INFINITY;
        st.sum[i] = 0;
        for (int c = 0; c < 4 * CC; c++) st.out[i][c] = 0;
    }
    for (int64_t j0 = r.begin; j0 < r.end; j0 += EXACT_KEYS) {
        int64_t n = lora_min_i64(EXACT_KEYS, r.end - j0);
        float s[RA][4];
        exact_products<RA>(s, shared.stage, q, attention_key_rows(a.p, a.k, r.first_key + j0, at.kv_head, n), a.p.D);
        take_scores<RA, CC>(a, st, s, r, j0, shared.p);
        attention_rows v = attention_key_rows(a.p, a.v, r.first_key + j0, at.kv_head, n);
        exact_add_products<RA, CC>(st.out, shared.p, shared.stage, v, col, a.p.D);
    }
}

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 1) attention_forward_many(forward_args a) {
    attention_place at = attention_place_of<ROWS>(a.p, blockIdx.x, a.p.group);
    if (at.n * a.p.group <= ATTENTION_FEW || (a.skip_fresh && a.length[at.segment] == at.n)) return;
    forward_range r = range_of(a, at, ROWS);
    forward_state<4, CC> st;
    int64_t col = (int64_t)blockIdx.y * EXACT_COLS * CC;
    meet_keys<4, CC>(a, at, r, col, st);
    attention_rows o = attention_query_rows(a.p, at, a.o, r.row, ROWS);
    LORA_UNROLL
    for (int i = 0; i < 4; i++) {
        int row = threadIdx.x / EXACT_SIDE + EXACT_SIDE * i;
        if (row >= o.n) continue;
        exact_store<CC>((float *)o.data + attention_row_at(o, row), st.out[i], col, a.p.D, 1 / st.sum[i]);
        int64_t query = at.first + (r.row + row) / a.p.group, head = at.kv_head * a.p.group + (r.row + row) % a.p.group;
        if (a.lse && col == 0 && threadIdx.x % EXACT_SIDE == 0) a.lse[query * a.p.H + head] = st.top[i] + logf(st.sum[i]);
    }
}

/* Keys per split of a range. */
__device__ int64_t split_keys(const forward_range &r) {
    return lora_max_i64(SPLIT_KEYS, lora_round_up(lora_div_up(r.end - r.begin, SPLITS), EXACT_KEYS));
}

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 2) attention_forward_few(forward_args a) {
    attention_place at = few_place_of(a, a.item + blockIdx.x);
    if (at.n == 0) return;
    forward_range r = range_of(a, at, FEW_ROWS);
    int64_t each = split_keys(r), col = (int64_t)blockIdx.y * EXACT_COLS * CC, split = (int64_t)blockIdx.x * SPLITS + blockIdx.z;
    r.begin += blockIdx.z * each;
    if (r.begin >= r.end) return; /* the merge does not look at it */
    r.end = lora_min_i64(r.end, r.begin + each);
    forward_state<1, CC> st;
    meet_keys<1, CC>(a, at, r, col, st);
    int64_t row = split * FEW_ROWS + threadIdx.x / EXACT_SIDE;
    exact_store<CC>(a.partial + row * a.p.D, st.out[0], col, a.p.D, 1);
    if (col > 0 || threadIdx.x % EXACT_SIDE) return;
    a.sums[2 * row] = st.top[0];
    a.sums[2 * row + 1] = st.sum[0];
}

/* A block merges the splits of a tile, row after row. */
__global__ void __launch_bounds__(EXACT_THREADS) attention_merge(forward_args a) {
    attention_place at = few_place_of(a, a.item + blockIdx.x);
    if (at.n == 0) return;
    forward_range r = range_of(a, at, FEW_ROWS);
    attention_rows o = attention_query_rows(a.p, at, a.o, r.row, FEW_ROWS);
    int splits = (int)lora_div_up(r.end - r.begin, split_keys(r));
    for (int row = 0; row < o.n; row++) {
        const int64_t first = (int64_t)blockIdx.x * SPLITS * FEW_ROWS + row;
        float top = -INFINITY, sum = 0;
        for (int z = 0; z < splits; z++) top = fmaxf(top, a.sums[2 * (first + z * FEW_ROWS)]);
        for (int z = 0; z < splits; z++) {
            const float *s = a.sums + 2 * (first + z * FEW_ROWS);
            sum = fmaf(s[1], expf(s[0] - top), sum);
        }
        for (int64_t d = threadIdx.x; d < a.p.D; d += EXACT_THREADS) {
            float out = 0;
            for (int z = 0; z < splits; z++)
                out = fmaf(a.partial[(first + z * FEW_ROWS) * a.p.D + d], expf(a.sums[2 * (first + z * FEW_ROWS)] - top), out);
            ((float *)o.data)[attention_row_at(o, row) + d] = out / sum;
        }
        int64_t query = at.first + (r.row + row) / a.p.group, head = at.kv_head * a.p.group + (r.row + row) % a.p.group;
        if (a.lse && threadIdx.x == 0) a.lse[query * a.p.H + head] = top + logf(sum);
    }
}

lora_status forward_few(lora_cuda *c, forward_args a, lora_error *err) {
    const int64_t item_floats = SPLITS * FEW_ROWS * (a.p.D + 2), items = a.p.n * a.tiles_few * a.p.KV;
    int64_t batch = lora_min_i64(items, lora_max_i64(1, PARTIAL_BYTES / (int64_t)sizeof(float) / item_floats));
    void *memory = NULL;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(batch * item_floats) * sizeof(float), &memory, err));
    a.partial = (float *)memory;
    a.sums = a.partial + batch * SPLITS * FEW_ROWS * a.p.D;
    uint32_t shared = sizeof(exact_shared<1>);
    bool narrow = a.p.D <= EXACT_COLS;
    for (a.item = 0; a.item < items; a.item += batch) {
        uint32_t n = (uint32_t)lora_min_i64(batch, items - a.item), cols = (uint32_t)lora_div_up(a.p.D, 2 * EXACT_COLS);
        dim3 grid(n, cols, SPLITS);
        if (narrow)
            LORA_TRY(LORA_CUDA_LAUNCH(c, attention_forward_few<1>, grid, EXACT_THREADS, shared, a, err));
        else
            LORA_TRY(LORA_CUDA_LAUNCH(c, attention_forward_few<2>, grid, EXACT_THREADS, shared, a, err));
        LORA_TRY(LORA_CUDA_LAUNCH(c, attention_merge, dim3(n), EXACT_THREADS, 0, a, err));
    }
    return LORA_OK;
}

/* Whether a segment has many rows; the tiles that one with few has at most. */
bool has_many(const attention_problem &p, const int32_t *cu, int64_t *tiles_few) {
    bool many = false;
    *tiles_few = 0;
    for (int64_t s = 0; s < p.n; s++) {
        int64_t rows = ((int64_t)cu[s + 1] - cu[s]) * p.group;
        many = many || rows > ATTENTION_FEW;
        if (rows <= ATTENTION_FEW) *tiles_few = lora_max_i64(*tiles_few, lora_div_up(rows, FEW_ROWS));
    }
    return many;
}

lora_status forward_many(lora_cuda *c, const forward_args &a, const int32_t *cu, lora_error *err) {
    dim3 grid((uint32_t)attention_blocks<ROWS>(cu, a.p.n, a.p.group, a.p.KV), (uint32_t)lora_div_up(a.p.D, 2 * EXACT_COLS));
    uint32_t shared = sizeof(exact_shared<4>);
    if (a.p.D <= EXACT_COLS) return LORA_CUDA_LAUNCH(c, attention_forward_many<1>, grid, EXACT_THREADS, shared, a, err);
    return LORA_CUDA_LAUNCH(c, attention_forward_many<2>, grid, EXACT_THREADS, shared, a, err);
}

} // namespace

lora_status lora_cuda_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                        const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    if (segments->n == 0) return LORA_OK;
    forward_args a = {};
    int64_t D = shape->head_dim;
    a.p = attention_problem_of(shape, segments);
    a.q = attention_matrix_of(q.data, q.ld, D);
    a.k = attention_matrix_of(kv->k, kv->ldk, D);
    a.v = attention_matrix_of(kv->v, kv->ldv, D);
    a.o = attention_matrix_of(o.data, o.ld, D);
    a.start = kv->start;
    a.length = kv->length;
    a.lse = lse;
    a.skip_fresh = lora_cuda_attention_is_fast(ctx, D);
    bool many = has_many(a.p, segments->cu_seqlens, &a.tiles_few);
    if (a.tiles_few > 0) LORA_TRY(forward_few(lora_cuda_of(ctx), a, err));
    if (!many) return LORA_OK;
    if (a.skip_fresh) LORA_TRY(lora_cuda_attention_forward_fast(ctx, shape, segments, q, kv, o, lse, err));
    return forward_many(lora_cuda_of(ctx), a, segments->cu_seqlens, err);
}
