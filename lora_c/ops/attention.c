/* FlashAttention-2 forward (arXiv:2307.08691, algorithm 1) over packed segments.
 * One task: the queries of one block and one group of query heads against every key they see. Tasks follow from the
 * lengths of the segments alone and share no output, so neither threads nor neighbours can change a bit. */
#include "lora_c/ops/attention.h"

#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"

enum { MAX_QUERIES = 128, MAX_HEAD_DIM = 1 << 16, MAX_HEADS = 1 << 16 };

lora_status lora_attention_check(const lora_attention_shape *shape, int64_t n_segments, const int32_t *cu_seqlens,
                                 lora_error *err) {
    LORA_CHECK(shape, err, LORA_EINVAL, "shape: expected a pointer, got NULL");
    LORA_CHECK(shape->n_kv_heads >= 1 && shape->n_heads >= 1 && shape->n_heads <= MAX_HEADS &&
                   shape->n_heads % shape->n_kv_heads == 0,
               err, LORA_ESHAPE, "n_heads: expected a positive multiple of n_kv_heads, got %lld and %lld",
               (long long)shape->n_heads, (long long)shape->n_kv_heads);
    LORA_CHECK(shape->head_dim >= 1 && shape->head_dim <= MAX_HEAD_DIM, err, LORA_ESHAPE,
               "head_dim: expected 1 .. %d, got %lld", MAX_HEAD_DIM, (long long)shape->head_dim);
    LORA_CHECK(shape->sliding_window >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %lld",
               (long long)shape->sliding_window);
    LORA_CHECK(shape->softcap >= 0 && shape->softcap < INFINITY, err, LORA_EINVAL, "softcap: expected >= 0, got %g",
               (double)shape->softcap);
    LORA_CHECK(n_segments >= 0, err, LORA_ESHAPE, "n_segments: expected >= 0, got %lld", (long long)n_segments);
    LORA_CHECK(n_segments == 0 || cu_seqlens, err, LORA_EINVAL, "cu_seqlens: expected a pointer, got NULL");
    for (int64_t s = 0; s < n_segments; s++)
        LORA_CHECK(cu_seqlens[s] >= 0 && cu_seqlens[s] <= cu_seqlens[s + 1], err, LORA_EINVAL,
                   "cu_seqlens: expected an ascending table, got %d before %d at segment %lld", (int)cu_seqlens[s],
                   (int)cu_seqlens[s + 1], (long long)s);
    return LORA_OK;
}

lora_status lora_attention_check_rows(const char *name, const void *p, int64_t rows, int64_t ld, int64_t width,
                                      lora_error *err) {
    if (rows == 0)
        return LORA_OK;
    LORA_CHECK(p, err, LORA_EINVAL, "%s: expected a pointer, got NULL", name);
    LORA_CHECK(ld >= width, err, LORA_ESHAPE, "%s: expected a row stride of at least %lld, got %lld", name,
               (long long)width, (long long)ld);
    return LORA_OK;
}

const lora_attention_kernels *lora_attention_kernels_of(const lora_ctx *ctx, int64_t D) {
    bool fast = ctx->precision == LORA_PRECISION_FAST && D <= LORA_ATTENTION_MAX_FAST_D;
    return fast ? &ctx->engine->kernels.attention_fast : &ctx->engine->kernels.attention;
}

double lora_attention_pairs(const lora_attention_shape *shape, int64_t n_segments, const int32_t *cu_seqlens,
                            const lora_kv_view *kv) {
    double pairs = 0;
    for (int64_t s = 0; s < n_segments; s++) {
        int64_t queries = cu_seqlens[s + 1] - cu_seqlens[s], last = kv ? kv[s].length : queries; /* what the last query sees */
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
    const int32_t *cu_seqlens;
    const lora_kv_view *kv;
    const float *q;
    float *o, *lse;
    int64_t ldq, ldo, n_segments, group;
    int64_t block;              /* queries of a task */
    const int64_t *first_block; /* (n_segments + 1): blocks before each segment */
    float *scratch;
    int64_t scratch_floats; /* per worker */
} forward_job;

/* Task t: block t / n_kv_heads, key/value head t % n_kv_heads. */
static void forward_task(void *arg, int64_t task, int worker) {
    const forward_job *job = arg;
    const lora_attention_shape *shape = job->shape;
    int64_t D = shape->head_dim, kv_head = task % shape->n_kv_heads, head = kv_head * job->group;
    int64_t index = task / shape->n_kv_heads;
    int64_t s = lora_attention_segment_of(job->first_block, job->n_segments, index);
    int64_t n = job->cu_seqlens[s + 1] - job->cu_seqlens[s];
    /* last block first: it sees the most keys, and long tasks are best started early */
    int64_t begin = (job->first_block[s + 1] - 1 - index) * job->block;
    int64_t row = job->cu_seqlens[s] + begin;
    const lora_kv_view *kv = &job->kv[s];
    const lora_attention_kernels *kernels = kv->length > n ? job->exact : job->kernels;
    kernels->forward(&(lora_attention_forward_tile){
        .n_queries = lora_min_i64(job->block, n - begin),
        .group = job->group,
        .D = D,
        .scale = shape->scale,
        .softcap = shape->softcap,
        .last = kv->length - n + begin,
        .window = shape->sliding_window,
        .q = job->q + row * job->ldq + head * D,
        .ldq = job->ldq,
        .k = kv->k + kv_head * D,
        .v = kv->v + kv_head * D,
        .ldk = kv->ldk,
        .ldv = kv->ldv,
        .o = job->o + row * job->ldo + head * D,
        .ldo = job->ldo,
        .lse = job->lse ? job->lse + row * shape->n_heads + head : NULL,
        .ld_lse = shape->n_heads,
        .scratch = job->scratch + worker * job->scratch_floats,
    });
}

static lora_status check_kv(const lora_attention_shape *shape, int64_t n_segments, const int32_t *cu_seqlens,
                            const lora_kv_view *kv, lora_error *err) {
    int64_t width = shape->n_kv_heads * shape->head_dim;
    LORA_CHECK(n_segments == 0 || kv, err, LORA_EINVAL, "kv: expected a pointer, got NULL");
    for (int64_t s = 0; s < n_segments; s++) {
        int64_t n = cu_seqlens[s + 1] - cu_seqlens[s];
        LORA_CHECK(kv[s].length >= n, err, LORA_ESHAPE,
                   "kv: expected at least %lld keys for segment %lld, got %lld", (long long)n, (long long)s,
                   (long long)kv[s].length);
        LORA_TRY(lora_attention_check_rows("k", kv[s].k, n, kv[s].ldk, width, err));
        LORA_TRY(lora_attention_check_rows("v", kv[s].v, n, kv[s].ldv, width, err));
    }
    return LORA_OK;
}

lora_status lora_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, int64_t n_segments,
                                   const int32_t *cu_seqlens, const float *q, int64_t ldq, const lora_kv_view *kv,
                                   float *o, int64_t ldo, float *lse, lora_error *err) {
    LORA_CHECK(ctx, err, LORA_EINVAL, "ctx: expected a context, got NULL");
    LORA_TRY(lora_attention_check(shape, n_segments, cu_seqlens, err));
    LORA_TRY(check_kv(shape, n_segments, cu_seqlens, kv, err));
    int64_t width = shape->n_heads * shape->head_dim;
    int64_t M = n_segments ? cu_seqlens[n_segments] - cu_seqlens[0] : 0;
    LORA_TRY(lora_attention_check_rows("q", q, M, ldq, width, err));
    LORA_TRY(lora_attention_check_rows("o", o, M, ldo, width, err));
    if (M == 0)
        return LORA_OK;

    int64_t group = shape->n_heads / shape->n_kv_heads;
    int64_t block = lora_min_i64(lora_max_i64(LORA_ATTENTION_ROWS / group, 1), MAX_QUERIES);
    const lora_attention_kernels *exact = &ctx->engine->kernels.attention, *kernels = lora_attention_kernels_of(ctx, shape->head_dim);
    int64_t tile = lora_max_i64(exact->forward_scratch(block * group, shape->head_dim),
                                kernels->forward_scratch(block * group, shape->head_dim));
    size_t table = (size_t)lora_round_up((n_segments + 1) * (int64_t)sizeof(int64_t), LORA_ALIGN);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_ATTENTION,
                              table + (size_t)lora_pool_threads(ctx->engine->pool) * (size_t)tile * sizeof(float), &scratch,
                              err));
    int64_t *first_block = scratch;
    first_block[0] = 0;
    for (int64_t s = 0; s < n_segments; s++)
        first_block[s + 1] = first_block[s] + lora_div_up(cu_seqlens[s + 1] - cu_seqlens[s], block);
    forward_job job = {
        .exact = exact,
        .kernels = kernels,
        .shape = shape,
        .cu_seqlens = cu_seqlens,
        .kv = kv,
        .q = q,
        .o = o,
        .lse = lse,
        .ldq = ldq,
        .ldo = ldo,
        .n_segments = n_segments,
        .group = group,
        .block = block,
        .first_block = first_block,
        .scratch = (float *)(void *)((char *)scratch + table),
        .scratch_floats = tile,
    };
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_for(ctx->engine->pool, first_block[n_segments] * shape->n_kv_heads, forward_task, &job);
    double pairs = began ? lora_attention_pairs(shape, n_segments, cu_seqlens, kv) : 0;
    double floats = (double)M * (double)((2 * shape->n_heads + 2 * shape->n_kv_heads) * shape->head_dim);
    lora_profile_end(ctx, LORA_OP_ATTENTION_FORWARD, began, 4 * pairs * (double)shape->head_dim, 4 * floats);
    return LORA_OK;
}
