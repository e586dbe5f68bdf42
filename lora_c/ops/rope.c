/* Rotary position embedding: the table of angles and the rotation. */
#include <math.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct table_job {
    int64_t n_positions, half, rows_per_task;
    const double *inv_freq;
    double scale;
    const int32_t *positions; /* NULL: 0, 1, ... */
    float *cosine, *sine;
} table_job;

static void table_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const table_job *job = arg;
    int64_t end = lora_min_i64(job->n_positions, (task + 1) * job->rows_per_task);
    for (int64_t p = task * job->rows_per_task; p < end; p++)
        for (int64_t i = 0; i < job->half; i++) {
            double angle = (double)(job->positions ? job->positions[p] : p) * job->inv_freq[i];
            job->cosine[p * job->half + i] = (float)(job->scale * cos(angle));
            job->sine[p * job->half + i] = (float)(job->scale * sin(angle));
        }
}

lora_status lora_cpu_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                                double scale, float *cos, float *sin, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    table_job job = {.n_positions = n_positions,
                     .half = half,
                     .rows_per_task = lora_max_i64(1, 1024 / lora_max_i64(half, 1)),
                     .inv_freq = inv_freq,
                     .scale = scale,
                     .positions = positions,
                     .cosine = cos,
                     .sine = sin};
    lora_parallel_for(ctx->engine->pool, lora_div_up(n_positions, job.rows_per_task), table_task, &job);
    return LORA_OK;
}

typedef struct rope_job {
    const lora_rowwise_kernels *kernels;
    const lora_rotations *rotations;
    int64_t n_heads, head_dim, rows_per_task;
    lora_mat x;
    const int32_t *positions;
    float sign;
} rope_job;

static void rope_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const rope_job *job = arg;
    int64_t half = job->rotations->half, end = lora_min_i64(job->x.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *c = job->rotations->cos + job->positions[m] * half, *s = job->rotations->sin + job->positions[m] * half;
        for (int64_t h = 0; h < job->n_heads; h++) job->kernels->rope(half, lora_mat_row(job->x, m) + h * job->head_dim, c, s, job->sign);
    }
}

static lora_status check_positions(int64_t M, const int32_t *positions, int64_t n_positions, lora_error *err) {
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(positions[m] >= 0 && positions[m] < n_positions, err, LORA_EINVAL,
                   "positions: expected 0 <= positions[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, n_positions, positions[m]);
    return LORA_OK;
}

lora_status lora_cpu_rope(lora_ctx *ctx, const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                          lora_mat x, bool backward, lora_error *err) {
    LORA_TRY(check_positions(x.rows, positions, rotations->n_positions, err));
    rope_job job = {.kernels = &ctx->engine->kernels.rowwise,
                    .rotations = rotations,
                    .n_heads = n_heads,
                    .head_dim = head_dim,
                    .rows_per_task = lora_rows_per_task(x.cols),
                    .x = x,
                    .positions = positions,
                    .sign = backward ? -1.0f : 1.0f};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), rope_task, &job);
    return LORA_OK;
}
