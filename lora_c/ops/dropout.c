#include "lora_c/ops/dropout.h"

#include "lora_c/base/philox.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"

enum { DROP_ROWS = 16 };

typedef struct drop_job {
    const lora_adapter *a;
    int64_t M, K, ld_in, ld_out;
    const float *in;
    float *out;
    bool accumulate;
} drop_job;

static void drop_task(void *arg, int64_t task, int worker) {
    (void)worker;
    drop_job *j = arg;
    float keep_scale = 1.0f / (1.0f - j->a->dropout);
    int64_t end = lora_min_i64((task + 1) * DROP_ROWS, j->M);
    for (int64_t m = task * DROP_ROWS; m < end; m++) {
        uint32_t words[4];
        uint64_t counter = UINT64_MAX;
        for (int64_t k = 0; k < j->K; k++) {
            uint64_t index = (uint64_t)(m * j->K + k);
            if (index / 4 != counter) lora_philox4x32(j->a->dropout_seed, j->a->dropout_stream, counter = index / 4, words);
            float scale = lora_philox_to_uniform(words[index % 4]) < j->a->dropout ? 0.0f : keep_scale;
            float value = j->in[m * j->ld_in + k] * scale, *out = j->out + m * j->ld_out + k;
            *out = j->accumulate ? *out + value : value;
        }
    }
}

void lora_dropout(lora_ctx *ctx, const lora_adapter *a, int64_t M, int64_t K, const float *in, int64_t ld_in, float *out,
                  int64_t ld_out, bool accumulate) {
    drop_job job = {a, M, K, ld_in, ld_out, in, out, accumulate};
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, DROP_ROWS), drop_task, &job);
}
