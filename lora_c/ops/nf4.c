/* Quantizing to NF4 and the other 4-bit types, and decoding them, in chunks of fixed size over the threads. */
#include <math.h>
#include <stdatomic.h>

#include "lora_c/base/half.h"
#include "lora_c/format/codebook.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/nf4.h"
#include "lora_c/ops/ctx.h"

enum {
    CHUNK = 65536,     /* elements per task: a multiple of every block size */
    BUFFER = 4096,     /* elements converted at a time on a thread's stack */
    NESTED_CHUNK = 64, /* nested blocks per task */
};

/* Powers of two, so that CHUNK is a multiple and a block never splits a byte. */
static lora_status check_block_size(int64_t block_size, lora_error *err) {
    bool fits = block_size >= 32 && block_size <= LORA_NF4_MAX_BLOCK && (block_size & (block_size - 1)) == 0;
    LORA_CHECK(fits, err, LORA_EINVAL, "block_size: expected 32, 64, 128, 256, 512, 1024, 2048 or 4096, got %lld", (long long)block_size);
    return LORA_OK;
}

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

lora_status lora_4bit_quantize(lora_ctx *ctx, lora_4bit_type type, const void *src, lora_dtype dtype, int64_t rows, int64_t cols,
                               int64_t block_size, uint8_t *codes, float *absmax, lora_error *err) {
    int64_t n;
    LORA_CHECK((unsigned)type < LORA_4BIT_END, err, LORA_EINVAL, "type: expected one of lora_4bit_type, got %d", (int)type);
    LORA_TRY(check_dtype("src", dtype, err));
    LORA_TRY(check_block_size(block_size, err));
    bool fits = rows > 0 && cols > 0 && !__builtin_mul_overflow(rows, cols, &n) && n <= INT64_MAX / 8;
    LORA_CHECK(fits, err, LORA_ESHAPE, "src: expected a non-empty (rows, cols) matrix, got (%lld, %lld)", (long long)rows, (long long)cols);
    LORA_CHECK(src && codes && absmax, err, LORA_EINVAL, "%s: expected an array, got NULL", !src ? "src" : !codes ? "codes" : "absmax");
    quantize_job job = {.kernels = &ctx->engine->kernels.nf4,
                        .book = lora_codebook_of(type),
                        .src = src,
                        .dtype = dtype,
                        .n = n,
                        .block_size = block_size,
                        .codes = codes,
                        .absmax = absmax};
    atomic_init(&job.first_bad, n);
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, CHUNK), quantize_task, &job);
    int64_t bad = atomic_load(&job.first_bad);
    LORA_CHECK(bad == n, err, LORA_EINVAL, "src: expected finite values, got %g at index %lld (row %lld, column %lld)",
               (double)element(src, dtype, bad), (long long)bad, (long long)(bad / cols), (long long)(bad % cols));
    return LORA_OK;
}

lora_status lora_nf4_quantize(lora_ctx *ctx, const void *src, lora_dtype dtype, int64_t rows, int64_t cols, int64_t block_size,
                              uint8_t *codes, float *absmax, lora_error *err) {
    return lora_4bit_quantize(ctx, LORA_4BIT_NF4, src, dtype, rows, cols, block_size, codes, absmax, err);
}

/* ---- double quantization ---- */

/* Search for the nearest map index of y in [-1, 1]. A bucket is the sign, the exponent and the top four mantissa bits of y,
 * magnitudes below 2^-21 together; it holds at most three of the 255 boundaries. */
enum {
    LOW_KEY = (127 - 21) << 4,
    BUCKETS = (127 << 4) - LOW_KEY + 1,
    BOUNDARIES_PER_BUCKET = 3,
};

typedef struct nested_search {
    float first[257];         /* first[i]: the smallest float32 whose nearest index is i; infinity at the end */
    uint8_t base[2][BUCKETS]; /* index of the smallest value of a bucket; [1]: negative values */
} nested_search;

typedef struct nested_job {
    const float *absmax;
    int64_t n;
    float offset;
    nested_search search;
    uint8_t *codes;
    float *nested_absmax;
} nested_job;

static void fill_search(nested_search *s) {
    const float *map = lora_dynamic_map_signed();
    s->first[0] = -INFINITY;
    s->first[256] = INFINITY;
    for (int i = 1; i < 256; i++) { /* midpoints of two map values are exact in float64; a tie goes to the even index */
        double middle = ((double)map[i - 1] + (double)map[i]) / 2;
        float rounded = (float)middle;
        bool up = rounded < middle || (rounded == middle && i % 2 == 1);
        s->first[i] = up ? nextafterf(rounded, INFINITY) : rounded;
    }
    int index = 0;
    for (int k = BUCKETS - 1; k >= 0; k--) {
        float smallest = -lora_f32_bits(((uint32_t)(LOW_KEY + k + 1) << 19) - 1);
        while (s->first[index + 1] <= smallest) index++;
        s->base[1][k] = (uint8_t)index;
    }
    for (int k = 0; k < BUCKETS; k++) {
        float smallest = k ? lora_f32_bits((uint32_t)(LOW_KEY + k) << 19) : 0.0f;
        while (s->first[index + 1] <= smallest) index++;
        s->base[0][k] = (uint8_t)index;
    }
}

static uint8_t nested_code(const nested_search *s, float y) {
    uint32_t bits = lora_bits_f32(y);
    int32_t key = (int32_t)((bits & 0x7fffffffu) >> 19) - LOW_KEY;
    uint32_t code = s->base[bits >> 31][key < 0 ? 0 : key];
    for (int i = 0; i < BOUNDARIES_PER_BUCKET; i++) code += y >= s->first[code + 1];
    return (uint8_t)code;
}

static void nested_task(void *arg, int64_t task, int worker) {
    (void)worker;
    nested_job *job = arg;
    int64_t last = lora_min_i64((task + 1) * NESTED_CHUNK, lora_div_up(job->n, LORA_NF4_NESTED_BLOCK));
    for (int64_t b = task * NESTED_CHUNK; b < last; b++) {
        int64_t begin = b * LORA_NF4_NESTED_BLOCK, n = lora_min_i64(LORA_NF4_NESTED_BLOCK, job->n - begin);
        float y[LORA_NF4_NESTED_BLOCK] = {0}, lanes[8] = {0}, top = 0;
        for (int64_t i = 0; i < n; i++) y[i] = job->absmax[begin + i] - job->offset;
        for (int i = 0; i < LORA_NF4_NESTED_BLOCK; i += 8)
            for (int j = 0; j < 8; j++) lanes[j] = fabsf(y[i + j]) > lanes[j] ? fabsf(y[i + j]) : lanes[j];
        for (int j = 0; j < 8; j++) top = lanes[j] > top ? lanes[j] : top;
        job->nested_absmax[b] = top;
        float divisor = top > 0 ? top : 1;
        for (int i = 0; i < LORA_NF4_NESTED_BLOCK; i++) y[i] /= divisor;
        for (int64_t i = 0; i < n; i++) job->codes[begin + i] = nested_code(&job->search, y[i]);
    }
}

/* Mean in float64, eight interleaved sums in index order, rounded once. Finite float32 values cannot overflow the sum, so
 * it is finite exactly when they all are. (The peer's float32 mean adds in an order that depends on its vector width;
 * the two differ by a few units in the last place.) */
static double mean(const float *x, int64_t n) {
    double sum[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += x[i + j];
    for (; i < n; i++) sum[i % 8] += x[i];
    double total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    return total / (double)n;
}

lora_status lora_nf4_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                     float *nested_offset, lora_error *err) {
    LORA_CHECK(n > 0, err, LORA_ESHAPE, "absmax: expected at least one block, got %lld", (long long)n);
    LORA_CHECK(absmax && absmax_codes && nested_absmax && nested_offset, err, LORA_EINVAL, "%s: expected an array, got NULL",
               !absmax          ? "absmax"
               : !absmax_codes  ? "absmax_codes"
               : !nested_absmax ? "nested_absmax"
                                : "nested_offset");
    double offset = mean(absmax, n);
    if (!isfinite(offset)) {
        int64_t bad = 0;
        while (isfinite(absmax[bad])) bad++;
        return lora_fail(err, LORA_EINVAL, "absmax: expected finite values, got %g at index %lld", (double)absmax[bad], (long long)bad);
    }
    nested_job job = {.absmax = absmax, .n = n, .offset = (float)offset, .codes = absmax_codes, .nested_absmax = nested_absmax};
    fill_search(&job.search);
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, (int64_t)LORA_NF4_NESTED_BLOCK * NESTED_CHUNK), nested_task, &job);
    *nested_offset = job.offset;
    return LORA_OK;
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

lora_status lora_nf4_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                lora_error *err) {
    LORA_TRY(check_dtype("dst", dtype, err));
    LORA_TRY(check_block_size(w->block_size, err));
    int64_t n = w->rows * w->cols;
    LORA_CHECK(begin >= 0 && count >= 0 && begin <= n && count <= n - begin, err, LORA_ESHAPE,
               "begin, count: expected a range within %lld elements, got [%lld, %lld + %lld)", (long long)n, (long long)begin,
               (long long)begin, (long long)count);
    LORA_CHECK(dst || count == 0, err, LORA_EINVAL, "dst: expected an array, got NULL");
    dequantize_job job = {.kernels = &ctx->engine->kernels, .w = w, .begin = begin, .count = count, .dst = dst, .dtype = dtype};
    lora_parallel_for(ctx->engine->pool, lora_div_up(count, CHUNK), dequantize_task, &job);
    return LORA_OK;
}
