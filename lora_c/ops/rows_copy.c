/* Rows from one place to another, and from one element type to the other. */
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

enum { TASK_ELEMENTS = 32768 }; /* a few rows are one task: decoding copies one per segment, which no thread is woken for */

static lora_status check_row_numbers(const char *name, int64_t n, const int64_t *numbers, int64_t rows, lora_error *err) {
    for (int64_t i = 0; numbers && i < n; i++)
        LORA_CHECK(numbers[i] >= 0 && numbers[i] < rows, err, LORA_EINVAL, "%s: expected 0 <= %s[%" PRId64 "] < %" PRId64 ", got %" PRId64,
                   name, name, i, rows, numbers[i]);
    return LORA_OK;
}

typedef struct copy_job {
    const lora_kernels *kernels;
    lora_mat from, to;
    const int64_t *from_rows, *to_rows;
    int64_t n, rows_per_task;
    bool accumulate;
} copy_job;

static int64_t rows_per_task(int64_t cols) { return lora_max_i64(1, TASK_ELEMENTS / lora_max_i64(cols, 1)); }

static bool whole_rows(lora_mat m) { return m.ld == m.cols; }

static void copy_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const copy_job *job = arg;
    int64_t begin = task * job->rows_per_task, end = lora_min_i64(job->n, begin + job->rows_per_task), cols = job->to.cols;
    if (!job->from_rows && !job->to_rows && !job->accumulate && whole_rows(job->from) && whole_rows(job->to)) {
        memcpy(lora_mat_row(job->to, begin), lora_mat_row(job->from, begin), (size_t)((end - begin) * cols) * sizeof(float));
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        const float *from = lora_mat_row(job->from, job->from_rows ? job->from_rows[i] : i);
        float *to = lora_mat_row(job->to, job->to_rows ? job->to_rows[i] : i);
        if (job->accumulate)
            job->kernels->rowwise.axpy(cols, 1.0f, from, to);
        else
            memcpy(to, from, (size_t)cols * sizeof(float));
    }
}

lora_status lora_cpu_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                               lora_error *err) {
    int64_t n = from_rows ? to.rows : from.rows;
    LORA_TRY(check_row_numbers("from_rows", n, from_rows, from.rows, err));
    LORA_TRY(check_row_numbers("to_rows", n, to_rows, to.rows, err));
    if (n == 0 || to.cols == 0) return LORA_OK;
    copy_job job = {.kernels = &ctx->engine->kernels,
                    .from = from,
                    .to = to,
                    .from_rows = from_rows,
                    .to_rows = to_rows,
                    .n = n,
                    .rows_per_task = rows_per_task(to.cols),
                    .accumulate = accumulate};
    lora_parallel_near(ctx->engine->pool, lora_div_up(n, job.rows_per_task), copy_task, &job);
    return LORA_OK;
}

typedef struct convert_job {
    const lora_convert_kernels *kernels;
    lora_mat from, to;
    int64_t rows_per_task;
} convert_job;

static float *scales_of(lora_mat m) { return (float *)(void *)((int8_t *)m.data + lora_int8_scales_at(m.cols)); }

static void convert(const lora_convert_kernels *k, int64_t n, lora_mat from, lora_mat to) {
    if (to.dtype == LORA_BF16) k->f32_to_bf16(n, from.data, to.data);
    if (from.dtype == LORA_BF16) k->bf16_to_f32(n, from.data, to.data);
    if (to.dtype == LORA_INT8) k->f32_to_int8(n, from.data, to.data, scales_of(to));
    if (from.dtype == LORA_INT8) k->int8_to_f32(n, from.data, scales_of(from), to.data);
}

static void convert_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const convert_job *job = arg;
    int64_t begin = task * job->rows_per_task, end = lora_min_i64(job->to.rows, begin + job->rows_per_task), n = job->to.cols, step = 1;
    if (whole_rows(job->from) && whole_rows(job->to)) { /* never those of int8, which end with scales */
        step = end - begin;
        n *= step;
    }
    for (int64_t i = begin; i < end; i += step)
        convert(job->kernels, n, lora_mat_rows(job->from, i, step), lora_mat_rows(job->to, i, step));
}

lora_status lora_cpu_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    if (to.rows == 0 || to.cols == 0) return LORA_OK;
    convert_job job = {.kernels = &ctx->engine->kernels.convert, .from = from, .to = to, .rows_per_task = rows_per_task(to.cols)};
    lora_parallel_near(ctx->engine->pool, lora_div_up(to.rows, job.rows_per_task), convert_task, &job);
    return LORA_OK;
}
