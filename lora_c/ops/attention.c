/* FlashAttention-2 forward (arXiv:2307.08691, algorithm 1) over packed segments.
 * One task: the queries of one block and one group of query heads against every key they see. Tasks follow from the
 * lengths of the segments alone and share no output, so neither threads nor neighbours can change a bit. */
#include "lora_c/ops/attention.h"

#include <math.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"

/* Of a tile. bench_attention on one core of an AMD EPYC (Zen 4, AVX-512): 64 gives 0.995 of the speed, 256 gives 1.01. */
enum { MAX_QUERIES = 128 };

lora_status lora_attention_check_segments(const lora_segments *segments, int64_t M, lora_error *err) {
    const int32_t *cu = segments->cu_seqlens;
    for (int64_t s = 0; s < segments->n; s++)
        LORA_CHECK(cu[s] >= 0 && cu[s] <= cu[s + 1], err, LORA_EINVAL,
                   "cu_seqlens: expected an ascending table, got %d before %d at segment %lld", (int)cu[s], (int)cu[s + 1], (long long)s);
    LORA_CHECK(segments->n == 0 || cu[segments->n] <= M, err, LORA_EINVAL, "cu_seqlens: expected at most %lld rows, got %d", (long long)M,
               (int)cu[segments->n]);
    return LORA_OK;
}

static lora_status check_kv(const lora_segments *segments, const lora_kv *kv, lora_error *err) {
    for (int64_t s = 0; s < segments->n; s++) {
        long long n = segments->cu_seqlens[s + 1] - segments->cu_seqlens[s], start = kv->start[s], length = kv->length[s];
        LORA_CHECK(length >= n, err, LORA_ESHAPE, "kv: expected at least %lld keys for segment %lld, got %lld", n, (long long)s, length);
        LORA_CHECK(start >= 0, err, LORA_EINVAL, "kv: expected a start >= 0 for segment %lld, got %lld", (long long)s, start);
    }
    return LORA_OK;
}

const lora_attention_kernels *lora_attention_kernels_of(const lora_ctx *ctx, int64_t D) {
    bool fast = ctx->view.precision != LORA_PRECISION_EXACT && D <= LORA_ATTENTION_MAX_FAST_D;
    return fast ? &ctx->engine->kernels.attention_fast : &ctx->engine->kernels.attention;
}

double lora_attention_pairs(const lora_attention_shape *shape, const lora_segments *segments, const int64_t *length) {
    double pairs = 0;
    for (int64_t s = 0; s < segments->n; s++) {
        int64_t queries = segments->cu_seqlens[s + 1] - segments->cu_seqlens[s];
        int64_t last = length ? length[s] : queries; /* what the last query sees */
        int64_t window = shape->sliding_window > 0 ? shape->sliding_window : last;
        int64_t full = lora_min_i64(queries, lora_max_i64(0, last - window)); /* queries that see a whole window */
        int64_t most = lora_min_i64(window, last - full), rest = queries - full;
        pairs += (double)full * (double)window + (double)rest * ((double)most - 0.5 * (double)(rest - 1));
    }
    return pairs * (double)shape->n_heads;
}

int64_t lora_attention_segment_of(const int64_t *first, int64_t n, int64_t item) {
    int64_t low = 0, high = n; /* first[low] <= item < first[high] */
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (first[mid] <= item)
            low = mid;
        else
            high = mid;
    }
    return low;
}

typedef struct forward_job {
    const lora_attention_kernels *exact, *kernels; /* with past keys, without */
    const lora_attention_shape *shape;
    const lora_segments *segments;
    const lora_kv *kv;
    lora_mat q, o;
    float *lse;
    int64_t group;
    int64_t block;        /* queries of a task */
    int64_t *first_block; /* (segments->n + 1): blocks before each segment */
    float *scratch;
    int64_t scratch_floats; /* per worker */
} forward_job;

/* Task t: block t / n_kv_heads, key/value head t % n_kv_heads. */
static void forward_task(void *arg, int64_t task, int worker) {
    const forward_job *job = arg;
    const lora_attention_shape *shape = job->shape;
    int64_t D = shape->head_dim, kv_head = task % shape->n_kv_heads, head = kv_head * job->group;
    int64_t index = task / shape->n_kv_heads;
    int64_t s = lora_attention_segment_of(job->first_block, job->segments->n, index);
    int64_t n = job->segments->cu_seqlens[s + 1] - job->segments->cu_seqlens[s];
    /* last block first: it sees the most keys, and long tasks are best started early */
    int64_t begin = (job->first_block[s + 1] - 1 - index) * job->block;
    int64_t row = job->segments->cu_seqlens[s] + begin;
    const lora_kv *kv = job->kv;
    int64_t first = kv->start[s], length = kv->length[s];
    const lora_attention_kernels *kernels = length > n ? job->exact : job->kernels;
    kernels->forward(&(lora_attention_forward_tile){
        .n_queries = lora_min_i64(job->block, n - begin),
        .group = job->group,
        .D = D,
        .scale = shape->scale,
        .softcap = shape->softcap,
        .last = length - n + begin,
        .window = shape->sliding_window,
        .q = lora_mat_row(job->q, row) + head * D,
        .ldq = job->q.ld,
        .k = kv->k + first * kv->ldk + kv_head * D,
        .v = kv->v + first * kv->ldv + kv_head * D,
        .ldk = kv->ldk,
        .ldv = kv->ldv,
        .o = lora_mat_row(job->o, row) + head * D,
        .ldo = job->o.ld,
        .lse = job->lse ? job->lse + row * shape->n_heads + head : NULL,
        .ld_lse = shape->n_heads,
        .scratch = job->scratch + worker * job->scratch_floats,
    });
}

/* The table of blocks and the workers' tiles in one buffer. */
static lora_status forward_scratch(lora_ctx *ctx, forward_job *job, lora_error *err) {
    int64_t n = job->segments->n, rows = job->block * job->group, D = job->shape->head_dim;
    const int32_t *cu = job->segments->cu_seqlens;
    job->scratch_floats = lora_max_i64(job->exact->forward_scratch(rows, D), job->kernels->forward_scratch(rows, D));
    size_t table = (size_t)lora_round_up((n + 1) * (int64_t)sizeof(int64_t), LORA_ALIGN);
    size_t tiles = (size_t)lora_pool_threads(ctx->engine->pool) * (size_t)job->scratch_floats * sizeof(float);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_ATTENTION, table + tiles, &scratch, err));
    job->first_block = scratch;
    job->scratch = (float *)(void *)((char *)scratch + table);
    job->first_block[0] = 0;
    for (int64_t s = 0; s < n; s++) job->first_block[s + 1] = job->first_block[s] + lora_div_up(cu[s + 1] - cu[s], job->block);
    return LORA_OK;
}

lora_status lora_cpu_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                       const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    LORA_TRY(lora_attention_check_segments(segments, q.rows, err));
    LORA_TRY(check_kv(segments, kv, err));
    int64_t n = segments->n, M = n ? segments->cu_seqlens[n] - segments->cu_seqlens[0] : 0;
    if (M == 0) return LORA_OK;

    forward_job job = {
        .exact = &ctx->engine->kernels.attention,
        .kernels = lora_attention_kernels_of(ctx, shape->head_dim),
        .shape = shape,
        .segments = segments,
        .kv = kv,
        .q = q,
        .o = o,
        .lse = lse,
        .group = shape->n_heads / shape->n_kv_heads,
    };
    job.block = lora_min_i64(lora_max_i64(LORA_ATTENTION_ROWS / job.group, 1), MAX_QUERIES);
    LORA_TRY(forward_scratch(ctx, &job, err));
    lora_parallel_for(ctx->engine->pool, job.first_block[n] * shape->n_kv_heads, forward_task, &job);
    return LORA_OK;
}
