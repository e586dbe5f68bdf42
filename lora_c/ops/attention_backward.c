/* FlashAttention-2 backward (arXiv:2307.08691, algorithm 2) without atomics and with five products per tile.
 *
 * A segment is cut into blocks of block tokens; tile (i, j) holds query block i and key block j <= i and
 * adds to dq of block i and dk, dv of block j. Phase p runs all tiles with i - j = p: no two of them share an output,
 * so they may run at the same time, and every output receives its terms in the order of p whatever the threads do.
 * Phase 0, the diagonal, sets the outputs. */
#include "lora_c/ops/attention.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"

enum { DELTA_ROWS = 32 };

typedef struct backward_job {
    const lora_attention_kernels *kernels;
    const lora_attention_shape *shape;
    const int32_t *cu_seqlens;
    const float *q, *k, *v, *o, *dout, *lse;
    int64_t ldq, ldk, ldv, ldo, lddo;
    float *dq, *dk, *dv, *delta;
    int64_t lddq, lddk, lddv;
    int64_t n_segments, group, phase;
    int64_t *first_tile; /* (n_segments + 1): tiles of this phase before each segment */
    float *scratch;
    int64_t scratch_floats; /* per worker */
} backward_job;

static void delta_task(void *arg, int64_t task, int worker) {
    const backward_job *job = arg;
    (void)worker;
    int64_t row = job->cu_seqlens[0] + task * DELTA_ROWS, end = job->cu_seqlens[job->n_segments];
    int64_t n_heads = job->shape->n_heads;
    job->kernels->delta(lora_min_i64(DELTA_ROWS, end - row), n_heads, job->shape->head_dim,
                        job->dout + row * job->lddo, job->lddo, job->o + row * job->ldo, job->ldo,
                        job->delta + (row - job->cu_seqlens[0]) * n_heads);
}

/* Task t: tile t / n_kv_heads of the phase, key/value head t % n_kv_heads. */
static void backward_task(void *arg, int64_t task, int worker) {
    const backward_job *job = arg;
    const lora_attention_shape *shape = job->shape;
    int64_t D = shape->head_dim, kv_head = task % shape->n_kv_heads, head = kv_head * job->group;
    int64_t index = task / shape->n_kv_heads;
    int64_t s = lora_attention_segment_of(job->first_tile, job->n_segments, index);
    int64_t begin = job->cu_seqlens[s], n = job->cu_seqlens[s + 1] - begin;
    int64_t key0 = (index - job->first_tile[s]) * job->kernels->block, query0 = key0 + job->phase * job->kernels->block;
    int64_t q_row = begin + query0, k_row = begin + key0;
    job->kernels->backward(&(lora_attention_backward_tile){
        .n_queries = lora_min_i64(job->kernels->block, n - query0),
        .n_keys = lora_min_i64(job->kernels->block, n - key0),
        .group = job->group,
        .D = D,
        .scale = shape->scale,
        .softcap = shape->softcap,
        .last = query0 - key0,
        .window = shape->sliding_window,
        .accumulate = job->phase > 0,
        .q = job->q + q_row * job->ldq + head * D,
        .k = job->k + k_row * job->ldk + kv_head * D,
        .v = job->v + k_row * job->ldv + kv_head * D,
        .dout = job->dout + q_row * job->lddo + head * D,
        .ldq = job->ldq,
        .ldk = job->ldk,
        .ldv = job->ldv,
        .lddo = job->lddo,
        .lse = job->lse + q_row * shape->n_heads + head,
        .delta = job->delta + (q_row - job->cu_seqlens[0]) * shape->n_heads + head,
        .ld_stat = shape->n_heads,
        .dq = job->dq + q_row * job->lddq + head * D,
        .dk = job->dk + k_row * job->lddk + kv_head * D,
        .dv = job->dv + k_row * job->lddv + kv_head * D,
        .lddq = job->lddq,
        .lddk = job->lddk,
        .lddv = job->lddv,
        .scratch = job->scratch + worker * job->scratch_floats,
    });
}

/* Fills first_tile for the phase and returns the number of its tiles. */
static int64_t begin_phase(backward_job *job, int64_t phase) {
    job->phase = phase;
    job->first_tile[0] = 0;
    for (int64_t s = 0; s < job->n_segments; s++) {
        int64_t blocks = lora_div_up(job->cu_seqlens[s + 1] - job->cu_seqlens[s], job->kernels->block);
        job->first_tile[s + 1] = job->first_tile[s] + lora_max_i64(blocks - phase, 0);
    }
    return job->first_tile[job->n_segments];
}

static lora_status check_backward(const backward_job *job, int64_t M, lora_error *err) {
    int64_t width = job->shape->n_heads * job->shape->head_dim;
    int64_t kv_width = job->shape->n_kv_heads * job->shape->head_dim;
    const struct {
        const char *name;
        const float *p;
        int64_t ld, width;
    } rows[] = {
        {"q", job->q, job->ldq, width},          {"k", job->k, job->ldk, kv_width},
        {"v", job->v, job->ldv, kv_width},       {"o", job->o, job->ldo, width},
        {"dout", job->dout, job->lddo, width},   {"lse", job->lse, job->shape->n_heads, job->shape->n_heads},
        {"dq", job->dq, job->lddq, width},       {"dk", job->dk, job->lddk, kv_width},
        {"dv", job->dv, job->lddv, kv_width},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        LORA_TRY(lora_attention_check_rows(rows[i].name, rows[i].p, M, rows[i].ld, rows[i].width, err));
    return LORA_OK;
}

static lora_status backward_scratch(lora_ctx *ctx, backward_job *job, int64_t M, lora_error *err) {
    job->scratch_floats = job->kernels->backward_scratch(job->shape->head_dim);
    size_t table = (size_t)lora_round_up((job->n_segments + 1) * (int64_t)sizeof(int64_t), LORA_ALIGN);
    size_t delta = (size_t)lora_round_up(M * job->shape->n_heads * (int64_t)sizeof(float), LORA_ALIGN);
    size_t tiles = (size_t)lora_pool_threads(ctx->pool) * (size_t)job->scratch_floats * sizeof(float);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_ATTENTION, table + delta + tiles, &scratch, err));
    job->first_tile = scratch;
    job->delta = (float *)(void *)((char *)scratch + table);
    job->scratch = (float *)(void *)((char *)scratch + table + delta);
    return LORA_OK;
}

lora_status lora_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, int64_t n_segments,
                                    const int32_t *cu_seqlens, const float *q, int64_t ldq, const float *k, int64_t ldk,
                                    const float *v, int64_t ldv, const float *o, int64_t ldo, const float *lse,
                                    const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk, int64_t lddk,
                                    float *dv, int64_t lddv, lora_error *err) {
    LORA_CHECK(ctx, err, LORA_EINVAL, "ctx: expected a context, got NULL");
    LORA_TRY(lora_attention_check(shape, n_segments, cu_seqlens, err));
    backward_job job = {
        .kernels = lora_attention_kernels_of(ctx, shape->head_dim),
        .shape = shape,
        .cu_seqlens = cu_seqlens,
        .q = q, .k = k, .v = v, .o = o, .dout = dout, .lse = lse,
        .ldq = ldq, .ldk = ldk, .ldv = ldv, .ldo = ldo, .lddo = lddo,
        .dq = dq, .dk = dk, .dv = dv,
        .lddq = lddq, .lddk = lddk, .lddv = lddv,
        .n_segments = n_segments,
        .group = shape->n_heads / shape->n_kv_heads,
    };
    int64_t M = n_segments ? cu_seqlens[n_segments] - cu_seqlens[0] : 0;
    LORA_TRY(check_backward(&job, M, err));
    if (M == 0)
        return LORA_OK;
    LORA_TRY(backward_scratch(ctx, &job, M, err));

    int64_t began = lora_profile_begin(ctx);
    lora_parallel_for(ctx->pool, lora_div_up(M, DELTA_ROWS), delta_task, &job);
    for (int64_t phase = 0;; phase++) {
        /* the nearest pair of a tile is (phase - 1) * block + 1 tokens apart: beyond the window nothing is left */
        if (shape->sliding_window > 0 && phase > 0 && (phase - 1) * job.kernels->block + 1 >= shape->sliding_window)
            break;
        int64_t tiles = begin_phase(&job, phase);
        if (tiles == 0)
            break;
        lora_parallel_for(ctx->pool, tiles * shape->n_kv_heads, backward_task, &job);
    }
    double pairs = began ? lora_attention_pairs(shape, n_segments, cu_seqlens, NULL) : 0;
    double floats = (double)M * (double)((4 * shape->n_heads + 4 * shape->n_kv_heads) * shape->head_dim);
    lora_profile_end(ctx, LORA_OP_ATTENTION_BACKWARD, began, 10 * pairs * (double)shape->head_dim, 4 * floats);
    return LORA_OK;
}
