/* Block formats of GGUF files: decoding parts of rows, whole matrices, checking, and quantizing to Q8_0. */
#include "lora_c/ops/ggml.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/format/ggml_blocks.h"
#include "lora_c/ops/ctx.h"

enum {
    TASK_VALUES = 65536, /* about this many weights per task, in whole rows */
    BUFFER = 4096,       /* weights converted at a time on a thread's stack: a multiple of every block */
};

/* ---- parts of rows ---- */

static void decode_blocks(const lora_kernels *kernels, lora_ggml_type type, const uint8_t *blocks, int64_t n_blocks, float *dst) {
    if (type == LORA_GGML_F16)
        kernels->convert.f16_to_f32(n_blocks, (const uint16_t *)(const void *)blocks, dst);
    else if (type == LORA_GGML_BF16)
        kernels->convert.bf16_to_f32(n_blocks, (const uint16_t *)(const void *)blocks, dst);
    else
        kernels->ggml.decode[type](blocks, n_blocks, dst);
}

void lora_ggml_run(const lora_kernels *kernels, const lora_ggml *w, int64_t r, int64_t k, int64_t n, float *dst) {
    int64_t values = lora_ggml_block_values(w->type), bytes = lora_ggml_block_bytes(w->type);
    const uint8_t *row = w->blocks + r * (w->cols / values) * bytes;
    float block[LORA_GGML_MAX_BLOCK];
    while (n > 0) {
        int64_t first = k / values, skip = k % values, taken = n - n % values;
        if (skip == 0 && taken > 0) {
            decode_blocks(kernels, w->type, row + first * bytes, n / values, dst);
        } else {
            taken = lora_min_i64(values - skip, n);
            decode_blocks(kernels, w->type, row + first * bytes, 1, block);
            memcpy(dst, block + skip, (size_t)taken * sizeof *dst);
        }
        k += taken, dst += taken, n -= taken;
    }
}

/* ---- checks ---- */

static lora_status check_view(const lora_ggml *w, lora_error *err) {
    int64_t values = lora_ggml_block_values(w->type), n;
    LORA_CHECK(values > 0, err, LORA_EDTYPE, "w: expected a block format that is read, got type %d", (int)w->type);
    bool fits = w->rows > 0 && w->cols > 0 && !__builtin_mul_overflow(w->rows, w->cols, &n) && n <= INT64_MAX / 8;
    LORA_CHECK(fits, err, LORA_ESHAPE, "w: expected a non-empty (rows, cols) matrix, got (%" PRId64 ", %" PRId64 ")", w->rows, w->cols);
    LORA_CHECK(w->cols % values == 0, err, LORA_ESHAPE, "w: expected a multiple of %" PRId64 " columns for %s, got %" PRId64, values,
               lora_ggml_type_name(w->type), w->cols);
    LORA_CHECK(w->blocks, err, LORA_EINVAL, "w: expected blocks, got NULL");
    LORA_CHECK(values > 1 || (uintptr_t)w->blocks % 2 == 0, err, LORA_EINVAL, "w: expected %s at an even address, got an odd one",
               lora_ggml_type_name(w->type));
    return LORA_OK;
}

static int64_t rows_per_task(int64_t cols) { return lora_max_i64(1, TASK_VALUES / cols); }

/* The smallest row over all tasks, so that the row named is the first one for any number of threads. */
static void report_row(_Atomic int64_t *first_bad, int64_t row) {
    int64_t seen = atomic_load(first_bad);
    while (row < seen && !atomic_compare_exchange_weak(first_bad, &seen, row)) {}
}

typedef struct check_job {
    const lora_ggml *w;
    int64_t rows_per_task, row_bytes, block_bytes;
    int64_t halves[2]; /* where a block has its float16 scales; -1: no second one */
    uint16_t exponent; /* all ones in a NaN or an infinity */
    _Atomic int64_t first_bad;
} check_job;

static bool row_is_finite(const check_job *job, int64_t row) {
    const uint8_t *p = job->w->blocks + row * job->row_bytes;
    uint16_t bad = 0;
    for (int64_t i = 0; i < job->row_bytes; i += job->block_bytes)
        for (int j = 0; j < 2 && job->halves[j] >= 0; j++) bad |= (lora_ggml_u16(p + i + job->halves[j]) & job->exponent) == job->exponent;
    return !bad;
}

static void check_task(void *arg, int64_t task, int worker) {
    (void)worker;
    check_job *job = arg;
    int64_t end = lora_min_i64((task + 1) * job->rows_per_task, job->w->rows);
    for (int64_t r = task * job->rows_per_task; r < end; r++)
        if (!row_is_finite(job, r)) {
            report_row(&job->first_bad, r);
            return;
        }
}

lora_status lora_ggml_check(lora_ctx *ctx, const lora_ggml *w, lora_error *err) {
    LORA_TRY(check_view(w, err));
    lora_ggml_type t = w->type;
    bool two = t == LORA_GGML_Q4_1 || t == LORA_GGML_Q5_1 || t == LORA_GGML_Q4_K || t == LORA_GGML_Q5_K;
    int64_t bytes = lora_ggml_block_bytes(t);
    check_job job = {.w = w,
                     .rows_per_task = rows_per_task(w->cols),
                     .row_bytes = w->cols / lora_ggml_block_values(t) * bytes,
                     .block_bytes = bytes,
                     .halves = {t == LORA_GGML_Q6_K ? LORA_Q6_K_D : 0, two ? 2 : -1},
                     .exponent = t == LORA_GGML_BF16 ? 0x7f80 : 0x7c00};
    atomic_init(&job.first_bad, w->rows);
    lora_parallel_for(ctx->engine->pool, lora_div_up(w->rows, job.rows_per_task), check_task, &job);
    int64_t bad = atomic_load(&job.first_bad);
    LORA_CHECK(bad == w->rows, err, LORA_EINVAL, "w: expected finite %s, got a NaN or an infinity in row %" PRId64,
               lora_ggml_block_values(t) == 1 ? "values" : "block scales", bad);
    return LORA_OK;
}

/* ---- whole rows ---- */

typedef struct dequantize_job {
    const lora_kernels *kernels;
    const lora_ggml *w;
    int64_t first_row, n_rows, rows_per_task;
    void *dst;
    lora_dtype dtype;
} dequantize_job;

static void dequantize_row(const dequantize_job *job, int64_t i) {
    const lora_convert_kernels *round = &job->kernels->convert;
    int64_t cols = job->w->cols;
    if (job->dtype == LORA_F32) {
        lora_ggml_run(job->kernels, job->w, job->first_row + i, 0, cols, (float *)job->dst + i * cols);
        return;
    }
    float x[BUFFER];
    for (int64_t k = 0; k < cols; k += BUFFER) {
        int64_t n = lora_min_i64(BUFFER, cols - k);
        uint16_t *dst = (uint16_t *)job->dst + i * cols + k;
        lora_ggml_run(job->kernels, job->w, job->first_row + i, k, n, x);
        if (job->dtype == LORA_BF16)
            round->f32_to_bf16(n, x, dst);
        else
            round->f32_to_f16(n, x, dst);
    }
}

static void dequantize_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const dequantize_job *job = arg;
    int64_t end = lora_min_i64((task + 1) * job->rows_per_task, job->n_rows);
    for (int64_t i = task * job->rows_per_task; i < end; i++) dequantize_row(job, i);
}

static lora_status check_dtype(const char *name, lora_dtype dtype, lora_error *err) {
    LORA_CHECK(dtype == LORA_F32 || dtype == LORA_BF16 || dtype == LORA_F16, err, LORA_EDTYPE,
               "%s: expected float32, bfloat16 or float16, got dtype %d", name, (int)dtype);
    return LORA_OK;
}

lora_status lora_ggml_dequantize(lora_ctx *ctx, const lora_ggml *w, int64_t first_row, int64_t n_rows, void *dst, lora_dtype dtype,
                                 lora_error *err) {
    LORA_TRY(check_view(w, err));
    LORA_TRY(check_dtype("dst", dtype, err));
    LORA_CHECK(first_row >= 0 && n_rows >= 0 && first_row <= w->rows && n_rows <= w->rows - first_row, err, LORA_ESHAPE,
               "first_row, n_rows: expected a range within %" PRId64 " rows, got [%" PRId64 ", %" PRId64 " + %" PRId64 ")", w->rows,
               first_row, first_row, n_rows);
    LORA_CHECK(dst || n_rows == 0, err, LORA_EINVAL, "dst: expected an array, got NULL");
    dequantize_job job = {.kernels = &ctx->engine->kernels,
                          .w = w,
                          .first_row = first_row,
                          .n_rows = n_rows,
                          .rows_per_task = rows_per_task(w->cols),
                          .dst = dst,
                          .dtype = dtype};
    lora_parallel_for(ctx->engine->pool, lora_div_up(n_rows, job.rows_per_task), dequantize_task, &job);
    return LORA_OK;
}

/* ---- to Q8_0 ---- */

typedef struct quantize_job {
    const lora_kernels *kernels;
    const void *src;
    lora_dtype dtype;
    int64_t rows, cols, rows_per_task;
    uint8_t *blocks;
    _Atomic int64_t first_bad;
} quantize_job;

static bool quantize_row(const quantize_job *job, int64_t row) {
    const lora_convert_kernels *widen = &job->kernels->convert;
    float buffer[BUFFER];
    for (int64_t k = 0; k < job->cols; k += BUFFER) {
        int64_t n = lora_min_i64(BUFFER, job->cols - k), begin = row * job->cols + k;
        const float *x = buffer;
        if (job->dtype == LORA_F32)
            x = (const float *)job->src + begin;
        else if (job->dtype == LORA_BF16)
            widen->bf16_to_f32(n, (const uint16_t *)job->src + begin, buffer);
        else
            widen->f16_to_f32(n, (const uint16_t *)job->src + begin, buffer);
        int64_t n_blocks = n / LORA_GGML_SMALL;
        uint8_t *to = job->blocks + begin / LORA_GGML_SMALL * LORA_Q8_0_BYTES;
        if (job->kernels->ggml.quantize_q8_0(x, n_blocks, to) != n_blocks) return false;
    }
    return true;
}

static void quantize_task(void *arg, int64_t task, int worker) {
    (void)worker;
    quantize_job *job = arg;
    int64_t end = lora_min_i64((task + 1) * job->rows_per_task, job->rows);
    for (int64_t r = task * job->rows_per_task; r < end; r++)
        if (!quantize_row(job, r)) {
            report_row(&job->first_bad, r);
            return;
        }
}

lora_status lora_ggml_quantize_q8_0(lora_ctx *ctx, const void *src, lora_dtype dtype, int64_t rows, int64_t cols, uint8_t *blocks,
                                    lora_error *err) {
    LORA_TRY(check_dtype("src", dtype, err));
    LORA_TRY(check_view(&(lora_ggml){.type = LORA_GGML_Q8_0, .rows = rows, .cols = cols, .blocks = blocks}, err));
    LORA_CHECK(src, err, LORA_EINVAL, "src: expected an array, got NULL");
    quantize_job job = {.kernels = &ctx->engine->kernels,
                        .src = src,
                        .dtype = dtype,
                        .rows = rows,
                        .cols = cols,
                        .rows_per_task = rows_per_task(cols),
                        .blocks = blocks};
    atomic_init(&job.first_bad, rows);
    lora_parallel_for(ctx->engine->pool, lora_div_up(rows, job.rows_per_task), quantize_task, &job);
    int64_t bad = atomic_load(&job.first_bad);
    LORA_CHECK(bad == rows, err, LORA_EINVAL, "src: expected finite values up to 8.3e6, got others in row %" PRId64, bad);
    return LORA_OK;
}
