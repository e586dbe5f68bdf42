/* Rotary position embedding: the table of angles and the rotation. */
#include <math.h>

#include "lora_c/base/mat.h"
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

static lora_status check_rope_table(int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq, double scale,
                                    float *cos, float *sin, lora_error *err) {
    (void)scale;
    lora_arg c = lora_named("cos", lora_mat_f32(cos, n_positions, half, half)), s = lora_named("sin", lora_mat_f32(sin, n_positions, half, half));
    lora_arg f = lora_named("inv_freq", lora_mat_vector(inv_freq, 2 * half)); /* float64: two elements of 4 bytes each */
    lora_arg p = lora_named("positions", lora_mat_vector(positions, n_positions));
    LORA_TRY(lora_mat_check(c, err));
    LORA_TRY(lora_mat_check(s, err));
    LORA_TRY(lora_mat_check(f, err));
    LORA_TRY(lora_mat_disjoint(s, c, err));
    LORA_TRY(lora_mat_disjoint(c, f, err));
    LORA_TRY(lora_mat_disjoint(s, f, err));
    LORA_TRY(lora_mat_disjoint(c, p, err));
    return lora_mat_disjoint(s, p, err);
}

static lora_status check_rope(const lora_rotations *r, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x, bool backward,
                              lora_error *err) {
    (void)backward;
    LORA_CHECK(r, err, LORA_EINVAL, "rotations: expected a pointer, got NULL");
    LORA_CHECK(head_dim >= 2, err, LORA_ESHAPE, "head_dim: expected >= 2, got %" PRId64, head_dim);
    LORA_CHECK(r->half >= 1 && r->half <= head_dim / 2, err, LORA_ESHAPE, "half: expected 1 to %" PRId64 " (head_dim / 2), got %" PRId64,
               head_dim / 2, r->half);
    LORA_CHECK(n_heads >= 0 && n_heads <= INT64_MAX / head_dim, err, LORA_ESHAPE, "n_heads: expected >= 0, got %" PRId64, n_heads);
    lora_arg out = lora_named("x", x), p = lora_named("positions", lora_mat_vector(positions, x.rows));
    lora_arg c = lora_named("cos", lora_mat_f32(r->cos, r->n_positions, r->half, r->half));
    lora_arg s = lora_named("sin", lora_mat_f32(r->sin, r->n_positions, r->half, r->half));
    LORA_TRY(lora_mat_check_f32(out, x.rows, n_heads * head_dim, err));
    LORA_TRY(lora_mat_check(p, err));
    LORA_TRY(lora_mat_check(c, err));
    LORA_TRY(lora_mat_check(s, err));
    LORA_TRY(lora_mat_disjoint(out, p, err));
    LORA_TRY(lora_mat_disjoint(out, c, err));
    return lora_mat_disjoint(out, s, err);
}

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
    LORA_TRY(check_rope_table(n_positions, positions, half, inv_freq, scale, cos, sin, err));
    table_job job = {.n_positions = n_positions, .half = half, .rows_per_task = lora_max_i64(1, 1024 / lora_max_i64(half, 1)),
                     .inv_freq = inv_freq, .scale = scale, .positions = positions, .cosine = cos, .sine = sin};
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
        for (int64_t h = 0; h < job->n_heads; h++)
            job->kernels->rope(half, lora_mat_row(job->x, m) + h * job->head_dim, c, s, job->sign);
    }
}

static lora_status check_positions(int64_t M, const int32_t *positions, int64_t n_positions, lora_error *err) {
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(positions[m] >= 0 && positions[m] < n_positions, err, LORA_EINVAL,
                   "positions: expected 0 <= positions[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, n_positions,
                   positions[m]);
    return LORA_OK;
}

lora_status lora_rope(lora_ctx *ctx, const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x,
                      bool backward, lora_error *err) {
    LORA_TRY(check_rope(rotations, n_heads, head_dim, positions, x, backward, err));
    LORA_TRY(check_positions(x.rows, positions, rotations->n_positions, err));
    rope_job job = {.kernels = &ctx->engine->kernels.rowwise, .rotations = rotations, .n_heads = n_heads, .head_dim = head_dim,
                    .rows_per_task = lora_rows_per_task(x.cols), .x = x, .positions = positions, .sign = backward ? -1.0f : 1.0f};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), rope_task, &job);
    lora_profile_end(ctx, LORA_OP_ROPE, began, 0, 8.0 * (double)(x.rows * x.cols));
    return LORA_OK;
}
