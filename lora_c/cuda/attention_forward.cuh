/* What the forward kernels in float32 share: a tile of rows meets its keys. */
#ifndef LORA_CUDA_ATTENTION_FORWARD_CUH
#define LORA_CUDA_ATTENTION_FORWARD_CUH

#include "lora_c/cuda/attention_exact.cuh"

namespace {

struct forward_args {
    attention_problem p;
    attention_matrix q, k, v;
    attention_output o;
    const int64_t *start, *length;
    float *lse;
};

inline forward_args forward_args_of(const lora_attention_shape *shape, const lora_segments *segments, lora_mat q, const lora_kv *kv,
                                    lora_mat o, float *lse) {
    forward_args a = {};
    int64_t D = shape->head_dim;
    a.p = attention_problem_of(shape, segments);
    a.q = attention_matrix_of(q.data, q.ld, D);
    a.k = attention_matrix_of(kv->k, kv->ldk, D);
    a.v = attention_matrix_of(kv->v, kv->ldv, D);
    a.o = attention_output_of(o, D);
    a.start = kv->start;
    a.length = kv->length;
    a.lse = lse;
    return a;
}

/* A block's keys and the positions of its rows. */
struct forward_range {
    int64_t row;        /* the tile's first */
    int64_t first_key;  /* row of k and v of the segment's first key */
    int64_t past;       /* position of query 0 */
    int64_t begin, end; /* keys */
};

__device__ inline forward_range range_of(const forward_args &a, const attention_place &at, int rows) {
    forward_range r;
    int64_t length = a.length[at.segment], last = lora_min_i64((at.tile + 1) * rows, at.n * a.p.group) - 1;
    r.row = at.tile * rows;
    r.first_key = a.start[at.segment];
    r.past = length - at.n;
    r.begin = attention_first_key<EXACT_KEYS>(a.p, r.past + r.row / a.p.group);
    r.end = r.past + last / a.p.group + 1;
    return r;
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
    float most[RA], sum[RA], factor[RA], slope;
    LORA_UNROLL
    for (int i = 0; i < RA; i++) {
        int64_t position = r.past + (r.row + y + EXACT_SIDE * i) / a.p.group;
        most[i] = -INFINITY;
        for (int j = 0; j < 4; j++) {
            int64_t key = j0 + x + EXACT_SIDE * j;
            s[i][j] = key < r.end && attention_sees(a.p, position, key) ? attention_score(a.p, s[i][j], &slope) : -INFINITY;
            most[i] = fmaxf(most[i], s[i][j]);
        }
    }
    exact_row_maxima(most);
    LORA_UNROLL
    for (int i = 0; i < RA; i++) {
        most[i] = fmaxf(st.top[i], most[i]);
        float base = most[i] == -INFINITY ? 0 : most[i]; /* no key yet: all weights are 0 */
        factor[i] = expf(st.top[i] - base);
        st.top[i] = most[i];
        sum[i] = 0;
        for (int j = 0; j < 4; j++) {
            float weight = expf(s[i][j] - base);
            sum[i] = sum[i] + weight;
            p[(y + EXACT_SIDE * i) * EXACT_P_PITCH + x + EXACT_SIDE * j] = weight;
        }
    }
    exact_row_sums(sum);
    LORA_UNROLL
    for (int i = 0; i < RA; i++) {
        st.sum[i] = fmaf(st.sum[i], factor[i], sum[i]);
        for (int c = 0; c < 4 * CC; c++) st.out[i][c] = st.out[i][c] * factor[i];
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

} // namespace

#endif
