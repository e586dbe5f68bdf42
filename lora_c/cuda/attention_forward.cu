/* FlashAttention-2 forward (arXiv:2307.08691, algorithm 1) in float32, and which kernels a segment gets. */
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/attention_few.h"
#include "lora_c/cuda/attention_forward.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { ROWS = 64 };

struct many_args {
    forward_args forward;
    bool skip_fresh; /* segments without past keys are done elsewhere */
};

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 1) attention_forward_many(many_args m) {
    const forward_args &a = m.forward;
    attention_place at = attention_place_of<ROWS>(a.p, blockIdx.x, a.p.group);
    if (at.n * a.p.group <= ATTENTION_FEW || (m.skip_fresh && a.length[at.segment] == at.n)) return;
    forward_range r = range_of(a, at, ROWS);
    forward_state<4, CC> st;
    int64_t col = (int64_t)blockIdx.y * EXACT_COLS * CC;
    meet_keys<4, CC>(a, at, r, col, st);
    LORA_UNROLL
    for (int i = 0; i < 4; i++) {
        int64_t row = r.row + threadIdx.x / EXACT_SIDE + EXACT_SIDE * i;
        if (row >= at.n * a.p.group) continue;
        exact_store_at<CC>(a.o, attention_output_at(a.p, at, a.o, row), st.out[i], col, a.p.D, 1 / st.sum[i]);
        if (a.lse && col == 0 && threadIdx.x % EXACT_SIDE == 0) a.lse[attention_sums_at(a.p, at, row)] = st.top[i] + logf(st.sum[i]);
    }
}

template <int CC> lora_status launch(lora_cuda *c, const many_args &m, const int32_t *cu, lora_error *err) {
    const attention_problem &p = m.forward.p;
    dim3 grid((uint32_t)attention_blocks<ROWS>(cu, p.n, p.group, p.KV), (uint32_t)lora_div_up(p.D, EXACT_COLS * CC));
    return LORA_CUDA_LAUNCH(c, attention_forward_many<CC>, grid, EXACT_THREADS, sizeof(exact_shared<4>), m, err);
}

} // namespace

lora_status lora_cuda_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                        const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    if (segments->n == 0) return LORA_OK;
    const bool fast = lora_cuda_attention_is_fast(ctx, shape->head_dim);
    const many_args m = {forward_args_of(shape, segments, q, kv, o, lse), fast};
    const attention_sizes sizes = attention_sizes_of(m.forward.p, segments->cu_seqlens);
    if (sizes.few > 0) LORA_TRY(lora_cuda_attention_few(ctx, shape, segments, q, kv, o, lse, sizes.few, err));
    if (!sizes.many) return LORA_OK;
    if (fast) LORA_TRY(lora_cuda_attention_forward_fast(ctx, shape, segments, q, kv, o, lse, err));
    lora_cuda *c = lora_cuda_of(ctx);
    return shape->head_dim <= EXACT_COLS ? launch<1>(c, m, segments->cu_seqlens, err) : launch<2>(c, m, segments->cu_seqlens, err);
}
