/* Every weight row is decoded once and multiplied with all the tokens. */
#include "lora_c/ops/gemm_small.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/weight.h"

enum {
    SMALL_M = 4,   /* up to here a dot product per weight row beats packing */
    DOT_ROWS = 32, /* weight rows per task */
};

typedef struct small_job {
    const lora_kernels *kernels;
    const lora_gemm_args *g;
    float *rowbuf; /* per worker */
    int64_t rowbuf_floats;
} small_job;

static void write_row(const lora_gemm_args *g, const float *sums, int64_t j) {
    for (int64_t i = 0; i < g->m; i++) {
        float *c = g->c + i * g->ldc + j, value = g->alpha * sums[i] + (g->bias ? g->bias[j] : 0.0f);
        *c = g->accumulate ? *c + value : value;
    }
}

static void dot_task(void *arg, int64_t task, int worker) {
    small_job *job = arg;
    const lora_gemm_args *g = job->g;
    int64_t end = lora_min_i64((task + 1) * DOT_ROWS, g->n);
    float *rowbuf = job->rowbuf + worker * job->rowbuf_floats;
    for (int64_t j = task * DOT_ROWS; j < end; j++) {
        float sums[SMALL_M];
        const float *w = lora_weight_run(job->kernels, g->b, j, 0, g->k, rowbuf);
        job->kernels->gemm.dots(g->m, g->k, w, g->a, g->a_row_stride, sums);
        write_row(g, sums, j);
    }
}

bool lora_gemm_is_small(const lora_gemm_args *g) { return g->b_transposed && g->m <= SMALL_M && g->a_col_stride == 1; }

lora_status lora_gemm_small(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    small_job job = {.kernels = &ctx->kernels, .g = g, .rowbuf_floats = lora_round_up(g->k, 16) + 16};
    void *rows;
    size_t bytes = (size_t)(lora_pool_threads(ctx->pool) * job.rowbuf_floats) * sizeof(float);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_B, bytes, &rows, err));
    job.rowbuf = rows;
    lora_parallel_for(ctx->pool, lora_div_up(g->n, DOT_ROWS), dot_task, &job);
    return LORA_OK;
}
