/* Quantizing to NF4 and the other 4-bit types, and decoding them, in chunks of fixed size over the threads: for callers with memory of
 * the host (nf4.h), and as the CPU's entries of the table (quantize.h). */
#include <math.h>
#include <stdatomic.h>

#include "lora_c/base/half.h"
#include "lora_c/format/codebook.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/nf4.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"

enum {
    CHUNK = 65536, /* elements per task: a multiple of every block size */
    BUFFER = 4096, /* elements converted at a time on a thread's stack */
};

static lora_status check_dtype(const char *name, lora_dtype dtype, lora_error *err) {
    LORA_CHECK(dtype == LORA_F32 || dtype == LORA_BF16 || dtype == LORA_F16, err, LORA_EDTYPE,
               "%s: expected float32, bfloat16 or float16, got dtype %d", name, (int)dtype);
    return LORA_OK;
}

/* ---- quantize ---- */

typedef struct quantize_job {
    const lora_nf4_kernels *kernels;
    const lora_codebook *book;
    const void *src;
    lora_dtype dtype;
    int64_t n, block_size;
    uint8_t *codes;
    float *absmax;
    _Atomic int64_t first_bad; /* smallest non-finite index seen; n: none */
} quantize_job;

static float element(const void *src, lora_dtype dtype, int64_t i) {
    if (dtype == LORA_F32) return ((const float *)src)[i];
    uint16_t h = ((const uint16_t *)src)[i];
    return dtype == LORA_BF16 ? lora_bf16_to_f32(h) : lora_f16_to_f32(h);
}

/* Minimum over the tasks, so that the index named is the first one for any number of threads. */
static void report_first_bad(quantize_job *job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        if (isfinite(element(job->src, job->dtype, i))) continue;
        int64_t seen = atomic_load(&job->first_bad);
        while (i < seen && !atomic_compare_exchange_weak(&job->first_bad, &seen, i)) {}
        return;
    }
}

static unsigned nearest_code(const lora_codebook *book, float y) {
    unsigned interval = 0;
    for (int j = 0; j < 15; j++) interval += y > book->threshold[j];
    return book->code[interval];
}

/* The last, shorter block: a true division and a clamped absmax, as the peer's default path has them. */
static bool quantize_ragged(const lora_codebook *book, const float *x, int64_t n, uint8_t *codes, float *absmax) {
    float top = LORA_NF4_MIN_ABSMAX;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return false;
        top = fmaxf(top, fabsf(x[i]));
    }
    *absmax = top;
    for (int64_t i = 0; i < n; i += 2) {
        unsigned low = i + 1 < n ? nearest_code(book, x[i + 1] / top) : book->zero;
        codes[i / 2] = (uint8_t)(nearest_code(book, x[i] / top) << 4 | low);
    }
    return true;
}

/* Chunks begin at blocks; only the end of the matrix is ragged. */
static void quantize_task(void *arg, int64_t task, int worker) {
    (void)worker;
    quantize_job *job = arg;
    int64_t begin = task * CHUNK, end = lora_min_i64(begin + CHUNK, job->n);
    if (atomic_load(&job->first_bad) < begin) return; /* the call fails already, and not because of this chunk */
    int64_t n_blocks = (end - begin) / job->block_size, full = begin + n_blocks * job->block_size;
    const void *src = (const char *)job->src + begin * (int64_t)lora_dtype_bytes(job->dtype);
    float *absmax = job->absmax + begin / job->block_size;
    uint8_t *codes = job->codes + begin / 2;
    bool finite = job->kernels->quantize(job->book, src, job->dtype, n_blocks, job->block_size, codes, absmax) == n_blocks;
    if (finite && full < end) {
        float x[LORA_NF4_MAX_BLOCK];
        for (int64_t i = full; i < end; i++) x[i - full] = element(job->src, job->dtype, i);
        finite = quantize_ragged(job->book, x, end - full, job->codes + full / 2, absmax + n_blocks);
    }
    if (!finite) report_first_bad(job, begin, end);
}

/* Returns the index of the first value that is not finite; -1: all are. */
static int64_t quantize(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax) {
    int64_t n = src.rows * src.cols;
    quantize_job job = {.kernels = &ctx->engine->kernels.nf4,
                        .book = lora_codebook_of(type),
                        .src = src.data,
                        .dtype = src.dtype,
                        .n = n,
                        .block_size = block_size,
                        .codes = codes,
                        .absmax = absmax};
    atomic_init(&job.first_bad, n);
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, CHUNK), quantize_task, &job);
    int64_t bad = atomic_load(&job.first_bad);
    return bad == n ? -1 : bad;
}

lora_status lora_cpu_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                                   int64_t *first_bad, lora_error *err) {
    (void)err;
    *first_bad = quantize(ctx, type, src, block_size, codes, absmax);
    return LORA_OK;
}

lora_status lora_4bit_quantize(lora_ctx *ctx, lora_4bit_type type, const void *src, lora_dtype dtype, int64_t rows, int64_t cols,
                               int64_t block_size, uint8_t *codes, float *absmax, lora_error *err) {
    int64_t n;
    LORA_CHECK((unsigned)type < LORA_4BIT_END, err, LORA_EINVAL, "type: expected one of lora_4bit_type, got %d", (int)type);
    LORA_TRY(check_dtype("src", dtype, err));
    LORA_TRY(lora_nf4_check_block_size(block_size, err));
    bool fits = rows > 0 && cols > 0 && !__builtin_mul_overflow(rows, cols, &n) && n <= INT64_MAX / 8;
    LORA_CHECK(fits, err, LORA_ESHAPE, "src: expected a non-empty (rows, cols) matrix, got (%lld, %lld)", (long long)rows, (long long)cols);
    LORA_CHECK(src && codes && absmax, err, LORA_EINVAL, "%s: expected an array, got NULL", !src ? "src" : !codes ? "codes" : "absmax");
    lora_mat m = {.data = (void *)src, .rows = rows, .cols = cols, .ld = cols, .dtype = dtype};
    int64_t bad = quantize(ctx, type, m, block_size, codes, absmax);
    LORA_CHECK(bad < 0, err, LORA_EINVAL, "src: expected finite values, got %g at index %lld (row %lld, column %lld)",
               (double)element(src, dtype, bad), (long long)bad, (long long)(bad / cols), (long long)(bad % cols));
    return LORA_OK;
}

lora_status lora_nf4_quantize(lora_ctx *ctx, const void *src, lora_dtype dtype, int64_t rows, int64_t cols, int64_t block_size,
                              uint8_t *codes, float *absmax, lora_error *err) {
    return lora_4bit_quantize(ctx, LORA_4BIT_NF4, src, dtype, rows, cols, block_size, codes, absmax, err);
}

/* ---- dequantize ---- */

typedef struct dequantize_job {
    const lora_kernels *kernels;
    const lora_nf4 *w;
    int64_t begin, count;
    void *dst;
    lora_dtype dtype;
} dequantize_job;

static void dequantize_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const dequantize_job *job = arg;
    int64_t first = task * CHUNK, last = lora_min_i64(first + CHUNK, job->count);
    if (job->dtype == LORA_F32) {
        job->kernels->nf4.dequantize(job->w, job->begin + first, last - first, (float *)job->dst + first);
        return;
    }
    float x[BUFFER];
    for (int64_t i = first; i < last; i += BUFFER) {
        int64_t n = lora_min_i64(BUFFER, last - i);
        uint16_t *dst = (uint16_t *)job->dst + i;
        job->kernels->nf4.dequantize(job->w, job->begin + i, n, x);
        if (job->dtype == LORA_BF16)
            job->kernels->convert.f32_to_bf16(n, x, dst);
        else
            job->kernels->convert.f32_to_f16(n, x, dst);
    }
}

lora_status lora_cpu_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                lora_error *err) {
    (void)err;
    dequantize_job job = {.kernels = &ctx->engine->kernels, .w = w, .begin = begin, .count = count, .dst = dst, .dtype = dtype};
    lora_parallel_for(ctx->engine->pool, lora_div_up(count, CHUNK), dequantize_task, &job);
    return LORA_OK;
}

lora_status lora_nf4_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                lora_error *err) {
    LORA_TRY(check_dtype("dst", dtype, err));
    LORA_TRY(lora_nf4_check_block_size(w->block_size, err));
    int64_t n = w->rows * w->cols;
    LORA_CHECK(begin >= 0 && count >= 0 && begin <= n && count <= n - begin, err, LORA_ESHAPE,
               "begin, count: expected a range within %lld elements, got [%lld, %lld + %lld)", (long long)n, (long long)begin,
               (long long)begin, (long long)count);
    LORA_CHECK(dst || count == 0, err, LORA_EINVAL, "dst: expected an array, got NULL");
    return lora_cpu_dequantize(ctx, w, begin, count, dst, dtype, err);
}
