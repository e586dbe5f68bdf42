/* FlashAttention-2 backward (arXiv:2307.08691, algorithm 2) on tensor cores, in two passes without atomics. */
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/attention_fast_backward.cuh"

namespace {

static_assert(sizeof(backward_shared<256>) == LORA_CUDA_ATTENTION_SHARED, "attention is asked for where this much memory is");

template <int D> lora_status launch(lora_cuda *c, const backward_args &a, const int32_t *cu, lora_error *err) {
    dim3 queries((uint32_t)attention_blocks<MMA_ROWS>(cu, a.p.n, a.p.group, a.p.KV));
    dim3 keys((uint32_t)attention_blocks<KEYS>(cu, a.p.n, 1, a.p.KV), D / backward_columns<D>());
    const size_t shared = sizeof(backward_shared<D>);
    LORA_TRY(LORA_CUDA_LAUNCH(c, attention_backward_queries_mma<D>, queries, MMA_THREADS, shared, a, err));
    return LORA_CUDA_LAUNCH(c, attention_backward_keys_mma<D>, keys, MMA_THREADS, shared, a, err);
}

} // namespace

lora_status lora_cuda_attention_backward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                              const lora_attention_gradient *g, const float *delta, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    const int32_t *cu = segments->cu_seqlens;
    int64_t D = shape->head_dim, width = lora_cuda_attention_width(D), tokens = (int64_t)cu[segments->n] - cu[0];
    backward_args a = {};
    a.p = attention_problem_of(shape, segments);
    a.dq = attention_matrix_of(g->dq.data, g->dq.ld, D);
    a.dk = attention_matrix_of(g->dk.data, g->dk.ld, D);
    a.dv = attention_matrix_of(g->dv.data, g->dv.ld, D);
    a.first = cu[0];
    a.tokens = tokens;
    a.lse = g->lse;
    a.delta = delta;
    const lora_mat from[] = {g->q, g->k, g->v, g->dout};
    packed_matrix *const to[] = {&a.q, &a.k, &a.v, &a.dout};
    const int64_t heads[] = {a.p.H, a.p.KV, a.p.KV, a.p.H};
    void *memory = NULL;
    LORA_TRY(
        lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LEFT, (size_t)(2 * (a.p.H + a.p.KV) * tokens * width) * sizeof(uint16_t), &memory, err));
    uint16_t *next = (uint16_t *)memory;
    for (int i = 0; i < 4; i++) {
        attention_matrix m = attention_matrix_of(from[i].data, from[i].ld, D);
        const lora_cuda_pack pack = {m.data,      m.ld,  D,      width, heads[i], heads[i] / a.p.KV, a.p.cu,
                                     segments->n, cu[0], tokens, NULL,  NULL,     m.aligned,         next};
        LORA_TRY(lora_cuda_attention_pack(c, &pack, err));
        to[i]->data = next;
        next += heads[i] * tokens * width;
    }
    return LORA_CUDA_BY_WIDTH(width, launch, c, a, cu, err);
}
