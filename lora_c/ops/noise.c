/* Noise on embedded tokens: computed from counters, never stored. */
#include <math.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/philox.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct noise_job {
    const lora_noise *noise;
    const lora_segments *segments;
    lora_mat x;
    int64_t rows_per_task;
} noise_job;

/* The segment of a row: the last one that begins at it or before. */
static int64_t segment_of(const lora_segments *s, int64_t row) {
    int64_t low = 0, high = s->n;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (s->cu_seqlens[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void add_to_row(const lora_noise *noise, float scale, int64_t row, int64_t cols, float *x) {
    uint32_t words[4];
    uint64_t counter = UINT64_MAX;
    for (int64_t k = 0; k < cols; k++) {
        uint64_t index = (uint64_t)(row * cols + k);
        if (index / 4 != counter) lora_philox4x32(noise->seed, noise->stream, counter = index / 4, words);
        x[k] += scale * (2.0f * lora_philox_to_uniform(words[index % 4]) - 1.0f);
    }
}

static void noise_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const noise_job *j = arg;
    int64_t end = lora_min_i64(j->x.rows, (task + 1) * j->rows_per_task);
    for (int64_t m = task * j->rows_per_task; m < end; m++) {
        int64_t s = segment_of(j->segments, m), length = j->segments->cu_seqlens[s + 1] - j->segments->cu_seqlens[s];
        float scale = (float)(j->noise->alpha / sqrt((double)(length * j->x.cols)));
        add_to_row(j->noise, scale, m, j->x.cols, lora_mat_row(j->x, m));
    }
}

lora_status lora_cpu_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    const int32_t *starts = segments->cu_seqlens;
    LORA_CHECK(segments->n > 0 ? starts[0] == 0 && starts[segments->n] == x.rows : x.rows == 0, err, LORA_ESHAPE,
               "cu_seqlens: expected 0 to %" PRId64 ", the rows of x, got others", x.rows);
    noise_job job = {.noise = noise, .segments = segments, .x = x, .rows_per_task = lora_rows_per_task(x.cols)};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), noise_task, &job);
    return LORA_OK;
}
