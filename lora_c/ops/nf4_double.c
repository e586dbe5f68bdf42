/* Double quantization: the scales of a 4-bit matrix in 8 bits. */
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nested.h"
#include "lora_c/nf4.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"

/* Search for the nearest map index of y in [-1, 1]. A bucket is the sign, the exponent and the top four mantissa bits of y,
 * magnitudes below 2^-21 together; it holds at most three of the 255 boundaries. */
enum {
    LOW_KEY = (127 - 21) << 4,
    BUCKETS = (127 << 4) - LOW_KEY + 1,
    BOUNDARIES_PER_BUCKET = 3,
    NESTED_CHUNK = 64, /* nested blocks per task */
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
    lora_nested_firsts(s->first);
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

lora_status lora_cpu_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                     float *nested_offset, lora_error *err) {
    (void)err;
    double offset = mean(absmax, n);
    *nested_offset = (float)offset;
    if (!isfinite(offset)) return LORA_OK; /* the offset says so */
    nested_job job = {.absmax = absmax, .n = n, .offset = *nested_offset, .codes = absmax_codes, .nested_absmax = nested_absmax};
    fill_search(&job.search);
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, (int64_t)LORA_NF4_NESTED_BLOCK * NESTED_CHUNK), nested_task, &job);
    return LORA_OK;
}

lora_status lora_nf4_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                     float *nested_offset, lora_error *err) {
    LORA_CHECK(n > 0, err, LORA_ESHAPE, "absmax: expected at least one block, got %lld", (long long)n);
    LORA_CHECK(absmax && absmax_codes && nested_absmax && nested_offset, err, LORA_EINVAL, "%s: expected an array, got NULL",
               !absmax          ? "absmax"
               : !absmax_codes  ? "absmax_codes"
               : !nested_absmax ? "nested_absmax"
                                : "nested_offset");
    LORA_TRY(lora_cpu_double_quantize(ctx, absmax, n, absmax_codes, nested_absmax, nested_offset, err));
    if (isfinite(*nested_offset)) return LORA_OK;
    int64_t bad = 0;
    while (isfinite(absmax[bad])) bad++;
    return lora_fail(err, LORA_EINVAL, "absmax: expected finite values, got %g at index %lld", (double)absmax[bad], (long long)bad);
}
