/* The accounts of lora_c/profile.h. */
#include "lora_c/ops/profile.h"

#include "lora_c/kernels/fma_burst.h"
#include "lora_c/ggml.h"
#include "lora_c/nf4.h"

enum { PEAK_NS = 40000000, PEAK_ROUNDS = 400000 }; /* 4 million instructions a thread and run: about a millisecond */

const char *lora_op_name(lora_op op) {
    static const char *const names[LORA_OPS] = {
        "linear forward",     "linear backward",     "adapter gradient", "weight gradient", "attention forward",
        "attention backward", "head and loss",       "norm forward",     "norm backward",   "rope",
        "activation forward", "activation backward", "embedding",        "optimizer"};
    return (unsigned)op < LORA_OPS ? names[op] : "unknown";
}

int64_t lora_profile_now(void) { return lora_clock_ns() + 1; }

void lora_ctx_set_profiling(lora_ctx *ctx, bool on) {
    ctx->engine->profile.on = on;
    for (int op = 0; on && op < LORA_OPS; op++) ctx->engine->profile.costs[op] = (lora_op_cost){0};
}

lora_op_cost lora_ctx_op_cost(const lora_ctx *ctx, lora_op op) {
    return (unsigned)op < LORA_OPS ? ctx->engine->profile.costs[op] : (lora_op_cost){0};
}

void lora_profile_end(lora_ctx *ctx, lora_op op, int64_t began, double flops, double bytes) {
    if (!began) return;
    lora_op_cost *cost = &ctx->engine->profile.costs[op];
    cost->calls++;
    cost->seconds += 1e-9 * (double)(lora_profile_now() - began);
    cost->flops += flops;
    cost->bytes += bytes;
}

double lora_profile_weight_bytes(const lora_weight *w) {
    double n = (double)w->rows * (double)w->cols;
    switch (w->kind) {
    case LORA_WEIGHT_F32: return 4 * n;
    case LORA_WEIGHT_BF16: return 2 * n;
    case LORA_WEIGHT_GGML: return n / (double)lora_ggml_block_values(w->ggml.type) * (double)lora_ggml_block_bytes(w->ggml.type);
    case LORA_WEIGHT_NF4: return n / 2 + n / (double)w->nf4.block_size * (w->nf4.absmax ? 4 : 1);
    }
    return 0;
}

static void burst_task(void *arg, int64_t task, int worker) {
    (void)task, (void)worker;
    lora_fma_burst(((const lora_ctx *)arg)->engine->kernels.isa, PEAK_ROUNDS);
}

double lora_ctx_fma_peak(lora_ctx *ctx) {
    int threads = lora_pool_threads(ctx->engine->pool);
    double flops = (double)threads * PEAK_ROUNDS * (double)lora_fma_burst(ctx->engine->kernels.isa, 1), best = 0;
    /* long enough for the scheduler to give every thread a CPU of its own */
    for (int64_t start = lora_profile_now(); flops > 0 && lora_profile_now() - start < PEAK_NS;) {
        int64_t began = lora_profile_now();
        lora_parallel_for(ctx->engine->pool, threads, burst_task, ctx);
        double rate = flops / (1e-9 * (double)(lora_profile_now() - began));
        if (rate > best) best = rate;
    }
    return best;
}
