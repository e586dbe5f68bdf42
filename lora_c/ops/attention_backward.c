/* FlashAttention-2 backward (arXiv:2307.08691, algorithm 2) without atomic floats and with five products per tile.
 *
 * A task is a block of queries of one group of query heads; it meets the blocks of keys that its queries see, in ascending
 * order, and adds to their dk and dv. Tasks begin with the last block of queries, which sees the most keys. A block of keys
 * receives its terms from the blocks of queries in descending order, whatever the threads do: a task waits until the one
 * behind it, which began earlier and is a block of keys ahead, is done with the block. */
#include "lora_c/ops/attention.h"

#include <stdatomic.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"

typedef struct backward_job {
    const lora_attention_kernels *kernels;
    const lora_attention_shape *shape;
    const lora_segments *segments;
    const lora_attention_gradient *gradient;
    int64_t group, query_block, key_block;
    int64_t *first_task;   /* (segments->n + 1): blocks of queries before each segment */
    int64_t *first_keys;   /* (segments->n + 1): blocks of keys before each segment */
    _Atomic int64_t *done; /* (blocks of keys, n_kv_heads): blocks of queries that a block of keys has met */
    float *scratch;
    int64_t delta_floats, worker_floats;
} backward_job;

/* Block i of the queries of a segment. */
typedef struct query_range {
    int64_t i, n_blocks; /* of the segment */
    int64_t first, n;    /* queries */
    int64_t first_keys, last_keys;
} query_range;

static query_range queries_of(const backward_job *job, int64_t i, int64_t length) {
    query_range r = {.i = i, .n_blocks = lora_div_up(length, job->query_block), .first = i * job->query_block};
    int64_t window = job->shape->sliding_window;
    r.n = lora_min_i64(job->query_block, length - r.first);
    r.first_keys = window > 0 ? lora_max_i64(r.first - window + 1, 0) / job->key_block : 0;
    r.last_keys = (r.first + r.n - 1) / job->key_block;
    return r;
}

/* How many blocks of queries behind r see block j of the keys. */
static int64_t blocks_behind(const backward_job *job, const query_range *r, int64_t j) {
    int64_t window = job->shape->sliding_window, last = r->n_blocks - 1;
    if (window > 0) last = lora_min_i64(last, ((j + 1) * job->key_block + window - 2) / job->query_block);
    return last - r->i;
}

/* Task t: block t / n_kv_heads of the queries, key/value head t % n_kv_heads. */
static void backward_task(void *arg, int64_t task, int worker) {
    const backward_job *job = arg;
    const lora_attention_shape *shape = job->shape;
    const lora_attention_gradient *g = job->gradient;
    int64_t D = shape->head_dim, kv_head = task % shape->n_kv_heads, head = kv_head * job->group;
    int64_t index = task / shape->n_kv_heads;
    int64_t s = lora_attention_segment_of(job->first_task, job->segments->n, index);
    int64_t begin = job->segments->cu_seqlens[s], length = job->segments->cu_seqlens[s + 1] - begin;
    query_range r = queries_of(job, job->first_task[s + 1] - 1 - index, length);
    int64_t row = begin + r.first;
    float *delta = job->scratch + worker * job->worker_floats;
    lora_attention_backward_tile tile = {
        .n_queries = r.n,
        .group = job->group,
        .D = D,
        .scale = shape->scale,
        .softcap = shape->softcap,
        .window = shape->sliding_window,
        .q = lora_mat_row(g->q, row) + head * D,
        .dout = lora_mat_row(g->dout, row) + head * D,
        .ldq = g->q.ld,
        .ldk = g->k.ld,
        .ldv = g->v.ld,
        .lddo = g->dout.ld,
        .lse = g->lse + row * shape->n_heads + head,
        .ld_lse = shape->n_heads,
        .delta = delta,
        .dq = lora_mat_row(g->dq, row) + head * D,
        .lddq = g->dq.ld,
        .lddk = g->dk.ld,
        .lddv = g->dv.ld,
        .scratch = delta + job->delta_floats,
    };
    job->kernels->delta(r.n, job->group, D, tile.dout, tile.lddo, lora_mat_row(g->o, row) + head * D, g->o.ld, delta);
    if (job->kernels->backward_begin) job->kernels->backward_begin(&tile);
    for (int64_t j = r.first_keys; j <= r.last_keys; j++) {
        int64_t key0 = j * job->key_block, behind = blocks_behind(job, &r, j);
        _Atomic int64_t *done = &job->done[(job->first_keys[s] + j) * shape->n_kv_heads + kv_head];
        tile.n_keys = lora_min_i64(job->key_block, length - key0);
        tile.last = r.first - key0;
        tile.accumulate_dq = j > r.first_keys;
        tile.accumulate_keys = behind > 0;
        tile.k = lora_mat_row(g->k, begin + key0) + kv_head * D;
        tile.v = lora_mat_row(g->v, begin + key0) + kv_head * D;
        tile.dk = lora_mat_row(g->dk, begin + key0) + kv_head * D;
        tile.dv = lora_mat_row(g->dv, begin + key0) + kv_head * D;
        lora_wait_for_count(done, behind);
        job->kernels->backward(&tile);
        atomic_store_explicit(done, behind + 1, memory_order_release);
    }
}

/* The tables, the counts and the workers' tiles in one buffer. */
static lora_status backward_scratch(lora_ctx *ctx, backward_job *job, lora_error *err) {
    int64_t n = job->segments->n, n_keys = 0, rows = job->query_block * job->group;
    const int32_t *cu = job->segments->cu_seqlens;
    for (int64_t s = 0; s < n; s++) n_keys += lora_div_up(cu[s + 1] - cu[s], job->key_block);
    int64_t counts = 2 * (n + 1) + n_keys * job->shape->n_kv_heads;
    job->delta_floats = lora_round_up(rows, LORA_ALIGN / (int64_t)sizeof(float));
    job->worker_floats = job->delta_floats + job->kernels->backward_scratch(rows, job->shape->head_dim);
    size_t table = (size_t)lora_round_up(counts * (int64_t)sizeof(int64_t), LORA_ALIGN);
    size_t tiles = (size_t)lora_pool_threads(ctx->engine->pool) * (size_t)job->worker_floats * sizeof(float);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_ATTENTION, table + tiles, &scratch, err));
    job->first_task = scratch;
    job->first_keys = job->first_task + n + 1;
    job->done = (_Atomic int64_t *)(void *)(job->first_keys + n + 1);
    job->scratch = (float *)(void *)((char *)scratch + table);
    job->first_task[0] = job->first_keys[0] = 0;
    for (int64_t s = 0; s < n; s++) {
        int64_t length = cu[s + 1] - cu[s];
        job->first_task[s + 1] = job->first_task[s] + lora_div_up(length, job->query_block);
        job->first_keys[s + 1] = job->first_keys[s] + lora_div_up(length, job->key_block);
    }
    for (int64_t i = 0; i < n_keys * job->shape->n_kv_heads; i++) atomic_init(&job->done[i], 0);
    return LORA_OK;
}

lora_status lora_cpu_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                        const lora_attention_gradient *gradient, lora_error *err) {
    LORA_TRY(lora_attention_check_segments(segments, gradient->q.rows, err));
    int64_t n = segments->n, M = n ? segments->cu_seqlens[n] - segments->cu_seqlens[0] : 0;
    if (M == 0) return LORA_OK;
    backward_job job = {
        .kernels = lora_attention_kernels_of(ctx, shape->head_dim), .shape = shape, .segments = segments, .gradient = gradient};
    job.group = shape->n_heads / shape->n_kv_heads;
    job.key_block = job.kernels->key_block;
    job.query_block = lora_min_i64(lora_max_i64(LORA_ATTENTION_ROWS / job.group, 1), job.key_block);
    LORA_TRY(backward_scratch(ctx, &job, err));

    lora_parallel_for(ctx->engine->pool, job.first_task[n] * shape->n_kv_heads, backward_task, &job);
    return LORA_OK;
}
