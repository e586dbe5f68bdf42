#include "lora_c/ops/dropout.h"

#include "lora_c/base/philox.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"

enum { DROP_ROWS = 16 };

typedef struct drop_job {
    lora_mask mask;
    lora_mat in, out;
    bool accumulate;
} drop_job;

static void drop_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const drop_job *j = arg;
    const lora_mask mask = j->mask;
    float keep_scale = 1.0f / (1.0f - mask.rate);
    int64_t K = j->in.cols, end = lora_min_i64((task + 1) * DROP_ROWS, j->in.rows);
    for (int64_t m = task * DROP_ROWS; m < end; m++) {
        const float *in = (const float *)j->in.data + m * j->in.ld;
        float *out = (float *)j->out.data + m * j->out.ld;
        uint32_t words[4];
        uint64_t counter = UINT64_MAX;
        for (int64_t k = 0; k < K; k++) {
            uint64_t index = (uint64_t)(m * K + k);
            if (index / 4 != counter) lora_philox4x32(mask.seed, mask.stream, counter = index / 4, words);
            float scale = lora_philox_to_uniform(words[index % 4]) < mask.rate ? 0.0f : keep_scale;
            float value = in[k] * scale;
            out[k] = j->accumulate ? out[k] + value : value;
        }
    }
}

void lora_dropout(lora_ctx *ctx, lora_mask mask, lora_mat in, lora_mat out, bool accumulate) {
    drop_job job = {.mask = mask, .in = in, .out = out, .accumulate = accumulate};
    lora_parallel_near(ctx->engine->pool, lora_div_up(in.rows, DROP_ROWS), drop_task, &job);
}
