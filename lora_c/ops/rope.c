/* Rotary position embedding: the table of angles and the rotation. */
#include <math.h>

#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
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

lora_status lora_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err) {
    lora_rows c = {"cos", cos, n_positions, half, half}, s = {"sin", sin, n_positions, half, half};
    lora_rows f = {"inv_freq", inv_freq, 1, 2 * half, 2 * half}; /* float64: two elements of 4 bytes each */
    LORA_TRY(lora_rows_check(c, err));
    LORA_TRY(lora_rows_check(s, err));
    LORA_TRY(lora_rows_check(f, err));
    LORA_TRY(lora_rows_disjoint(s, c, err));
    LORA_TRY(lora_rows_disjoint(c, f, err));
    LORA_TRY(lora_rows_disjoint(s, f, err));
    table_job job = {n_positions, half, lora_max_i64(1, 1024 / lora_max_i64(half, 1)), inv_freq, scale, positions, cos, sin};
    lora_parallel_for(ctx->engine->pool, lora_div_up(n_positions, job.rows_per_task), table_task, &job);
    return LORA_OK;
}

typedef struct rope_job {
    const lora_rowwise_kernels *kernels;
    int64_t M, n_heads, D, rotary, rows_per_task;
    float *x;
    int64_t ldx;
    const int32_t *positions;
    const float *cosine, *sine;
    float sign;
} rope_job;

static void rope_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const rope_job *job = arg;
    int64_t half = job->rotary / 2, end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *c = job->cosine + job->positions[m] * half, *s = job->sine + job->positions[m] * half;
        for (int64_t h = 0; h < job->n_heads; h++)
            job->kernels->rope(half, job->x + m * job->ldx + h * job->D, c, s, job->sign);
    }
}

lora_status lora_rope(lora_ctx *ctx, int64_t M, int64_t n_heads, int64_t D, int64_t rotary, float *x, int64_t ldx,
                      const int32_t *positions, const float *cos, const float *sin, int64_t n_positions, bool backward,
                      lora_error *err) {
    LORA_CHECK(D >= 2, err, LORA_ESHAPE, "D: expected a head_dim >= 2, got %" PRId64, D);
    LORA_CHECK(rotary >= 2 && rotary % 2 == 0 && rotary <= D, err, LORA_ESHAPE,
               "rotary: expected an even number from 2 to %" PRId64 ", got %" PRId64, D, rotary);
    LORA_CHECK(n_heads >= 0 && n_heads <= INT64_MAX / D, err, LORA_ESHAPE, "n_heads: expected >= 0, got %" PRId64,
               n_heads);
    lora_rows out = {"x", x, M, n_heads * D, ldx}, p = {"positions", positions, 1, M, M};
    lora_rows c = {"cos", cos, n_positions, rotary / 2, rotary / 2}, s = {"sin", sin, n_positions, rotary / 2, rotary / 2};
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_check(p, err));
    LORA_TRY(lora_rows_check(c, err));
    LORA_TRY(lora_rows_check(s, err));
    LORA_TRY(lora_rows_disjoint(out, p, err));
    LORA_TRY(lora_rows_disjoint(out, c, err));
    LORA_TRY(lora_rows_disjoint(out, s, err));
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(positions[m] >= 0 && positions[m] < n_positions, err, LORA_EINVAL,
                   "positions: expected 0 <= positions[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, n_positions,
                   positions[m]);
    rope_job job = {.kernels = &ctx->engine->kernels.rowwise, .M = M, .n_heads = n_heads, .D = D, .rotary = rotary,
                    .rows_per_task = lora_rows_per_task(n_heads * D), .x = x, .ldx = ldx, .positions = positions,
                    .cosine = cos, .sine = sin, .sign = backward ? -1.0f : 1.0f};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), rope_task, &job);
    lora_profile_end(ctx, LORA_OP_ROPE, began, 0, 8.0 * (double)(M * n_heads * D));
    return LORA_OK;
}
