/* Head and loss in one: logits of some rows exist at a time, and become their gradient in place.
 *
 * The host waits once for the number of rows with weight: rows without it cost nothing, which is worth more than a device that never
 * runs dry (the wait empties its queue for some tens of microseconds; the products of masked rows are a large part of a head). */
#include "lora_c/base/util.h"
#include "lora_c/cuda/graphs.h"
#include "lora_c/cuda/head.h"
#include "lora_c/cuda/scaled.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"
#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"

typedef struct head_job {
    lora_cuda *c;
    lora_mat x, dx;
    const lora_weight *w;
    const lora_loss *loss;
    float *dW;
    lora_dtype operands;
    const int32_t *x_exponent; /* of x as float16 */
    lora_cuda_head_sizes sizes;
    lora_cuda_head_rows rows;
    char *x_memory;
    float *logits_memory, *result_memory;
} head_job;

/* --- sizes --- */

lora_cuda_head_sizes lora_cuda_head_sizes_of(int64_t M, int64_t V, int64_t H, lora_dtype operands) {
    const lora_gpu_head_sizes s = lora_gpu_head_sizes_of(M, V, H, operands);
    return (lora_cuda_head_sizes){.rows = s.rows, .slice = s.slice, .ld = s.ld};
}

size_t lora_cuda_head_lay_rows(int64_t M, void *base, lora_cuda_head_rows *rows) {
    size_t n = (size_t)M;
    if (base) {
        rows->count = base;
        rows->index = rows->count + 1;
        rows->loss = (double *)(void *)(rows->index + n);
        rows->unscale = (float *)(void *)(rows->loss + n);
    }
    return (size_t)lora_gpu_head_row_bytes(M);
}

static int64_t x_ld(int64_t H) { return lora_round_up(H, 8); } /* rows at 16 bytes */

size_t lora_cuda_head_x_bytes(const lora_cuda_head_sizes *s, int64_t H, lora_dtype operands, bool with_weight) {
    return (size_t)lora_gpu_head_x_bytes(s->rows, H, operands, with_weight);
}

/* Float16 has too few exponents for the small gradients of a trained head. */
static lora_dtype operands_of(const lora_ctx *ctx, const float *dW) {
    lora_dtype t = lora_cuda_operands(ctx);
    return dW && t == LORA_F16 ? LORA_F32 : t;
}

/* Whether lora_cuda_weight gives the weight itself. */
static bool is_operand(const lora_weight *w, lora_dtype t) {
    if (w->kind == LORA_WEIGHT_F32) return t == LORA_F32;
    return w->kind == LORA_WEIGHT_BF16 && t == LORA_BF16 && (uintptr_t)w->dense.data % 16 == 0 && w->dense.ld % 8 == 0;
}

static lora_status take_scratch(head_job *job, lora_error *err) {
    lora_cuda *c = job->c;
    int64_t M = job->x.rows, H = job->x.cols, n = job->sizes.rows;
    void *p;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LEFT, lora_cuda_head_x_bytes(&job->sizes, H, job->operands, job->dW), &p, err));
    job->x_memory = p;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_RESULT, (size_t)(n * job->sizes.ld) * sizeof(float), &p, err));
    job->logits_memory = p;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, lora_cuda_head_lay_rows(M, NULL, NULL), &p, err));
    lora_cuda_head_lay_rows(M, p, &job->rows);
    if (!job->dx.data) return LORA_OK;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LOW, (size_t)(n * H) * sizeof(float), &p, err));
    job->result_memory = p;
    return LORA_OK;
}

/* --- a chunk --- */

static lora_mat x_rows(const head_job *job, int64_t n, bool weighted) {
    char *at = job->x_memory + (weighted ? lora_cuda_head_x_bytes(&job->sizes, job->x.cols, job->operands, false) : 0);
    return (lora_mat){.data = at, .rows = n, .cols = job->x.cols, .ld = x_ld(job->x.cols), .dtype = job->operands};
}

/* A product with rows v .. v + n - 1 of W. */
static lora_status multiply_weight(const head_job *job, int64_t v, int64_t n, lora_cuda_product *p, lora_error *err) {
    lora_cuda_factor W;
    LORA_TRY(lora_cuda_weight_factor(job->c, job->w, v, n, job->operands, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
    p->b = W.mat;
    p->b_exponent = W.exponent;
    return lora_cuda_multiply(job->c, p, err);
}

/* Logits of all columns; slices of W in order. */
static lora_status find_logits(const head_job *job, lora_mat x, lora_mat logits, lora_error *err) {
    for (int64_t v = 0; v < job->w->rows; v += job->sizes.slice) {
        int64_t n = lora_min_i64(job->sizes.slice, job->w->rows - v);
        lora_cuda_product p = {
            .a = x, .a_exponent = job->x_exponent, .transpose_b = true, .c = lora_mat_cols(logits, v, n), .alpha = job->loss->map.scale};
        LORA_TRY(multiply_weight(job, v, n, &p, err));
    }
    return LORA_OK;
}

static lora_status find_dx(const head_job *job, lora_mat gradient, int64_t first, lora_error *err) {
    lora_mat result = lora_mat_f32(job->result_memory, gradient.rows, job->x.cols, job->x.cols);
    for (int64_t v = 0; v < job->w->rows; v += job->sizes.slice) {
        int64_t n = lora_min_i64(job->sizes.slice, job->w->rows - v);
        lora_cuda_product p = {.a = lora_mat_cols(gradient, v, n),
                               .c = result,
                               .alpha = job->loss->grad_scale * job->loss->map.scale,
                               .beta = v > 0 ? 1.0f : 0.0f};
        LORA_TRY(multiply_weight(job, v, n, &p, err));
    }
    return lora_cuda_head_scatter(job->c, result, job->loss, &job->rows, first, job->dx, err);
}

static lora_status add_dW(const head_job *job, lora_mat gradient, int64_t first, lora_error *err) {
    lora_mat x = x_rows(job, gradient.rows, true);
    LORA_TRY(lora_cuda_head_gather_weighted(job->c, job->x, job->loss, &job->rows, first, x, err));
    lora_cuda_product p = {.a = gradient,
                           .transpose_a = true,
                           .b = x,
                           .c = lora_mat_f32(job->dW, job->w->rows, job->w->cols, job->w->cols),
                           .alpha = job->loss->grad_scale * job->loss->map.scale,
                           .beta = 1.0f};
    return lora_cuda_multiply(job->c, &p, err);
}

static lora_status run_chunk(const head_job *job, int64_t first, int64_t n, lora_error *err) {
    lora_mat x = x_rows(job, n, false), logits = lora_mat_f32(job->logits_memory, n, job->w->rows, job->sizes.ld), gradient;
    bool wanted = job->dx.data || job->dW;
    LORA_TRY(lora_cuda_head_gather(job->c, job->x, job->x_exponent, &job->rows, first, x, err));
    LORA_TRY(find_logits(job, x, logits, err));
    LORA_TRY(lora_cuda_head_softmax(job->c, logits, job->loss, &job->rows, first, job->operands, wanted ? &gradient : NULL, err));
    if (job->dx.data) LORA_TRY(find_dx(job, gradient, first, err));
    if (job->dW) LORA_TRY(add_dW(job, gradient, first, err));
    return LORA_OK;
}

static lora_status wait_for_count(const head_job *job, int64_t *n, lora_error *err) {
    const lora_cuda_api *api = job->c->api;
    LORA_TRY(lora_cuda_check(job->c, api->copy(n, job->rows.count, sizeof *n, lora_cuda_stream(job->c)), "cudaMemcpyAsync", err));
    return lora_cuda_wait(job->c, err);
}

lora_status lora_cuda_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                           lora_error *err) {
    head_job job = {.c = lora_cuda_of(ctx), .x = x, .dx = dx, .w = w, .loss = loss, .dW = dW, .operands = operands_of(ctx, dW)};
    job.sizes = lora_cuda_head_sizes_of(x.rows, w->rows, w->cols, job.operands);
    if (is_operand(w, job.operands)) job.sizes.slice = w->rows; /* nothing is decoded */
    int64_t n = 0;
    LORA_TRY(take_scratch(&job, err));
    LORA_TRY(lora_cuda_head_select(job.c, x.rows, loss, dx, &job.rows, err));
    if (job.operands == LORA_F16) LORA_TRY(lora_cuda_find_exponent(job.c, x, LORA_CUDA_SCRATCH_LEFT, &job.x_exponent, err));
    LORA_TRY(wait_for_count(&job, &n, err));
    for (int64_t first = 0; first < n; first += job.sizes.rows)
        LORA_TRY(run_chunk(&job, first, lora_min_i64(job.sizes.rows, n - first), err));
    return lora_cuda_head_sum(job.c, loss, &job.rows, n, err);
}
