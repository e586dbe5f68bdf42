/* What the checks of operations share: inputs, refusals, and a hash that compares whole runs bit by bit. */
#ifndef LORA_TESTS_CHECK_OPS_H
#define LORA_TESTS_CHECK_OPS_H

#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/check.h"

#define U 0x1p-24
#define OK(call)                                                                                                                           \
    do {                                                                                                                                   \
        lora_error e_ = {0};                                                                                                               \
        lora_status s_ = (call);                                                                                                           \
        CHECK(s_ == LORA_OK, "%s: %s", #call, e_.message);                                                                                 \
    } while (0)
#define REFUSED(status, text, call)                                                                                                        \
    do {                                                                                                                                   \
        lora_error e_ = {0};                                                                                                               \
        lora_status s_ = (call);                                                                                                           \
        CHECK(s_ == (status), "%s: status %d", #call, (int)s_);                                                                            \
        CHECK(strstr(e_.message, text) != NULL, "message without \"%s\": %s", text, e_.message);                                           \
    } while (0)
#define ERR &e_

static uint64_t state; /* of the random numbers */
static inline float uniform(float low, float high) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return low + (high - low) * (float)(state >> 40) * 0x1p-24f;
}
static inline float *random_floats(int64_t n, float low, float high) {
    float *p = calloc((size_t)n + 1, sizeof(float));
    for (int64_t i = 0; i < n; i++) p[i] = uniform(low, high);
    return p;
}
static inline float *copy_floats(const float *a, int64_t n) {
    float *p = calloc((size_t)n + 1, sizeof(float));
    memcpy(p, a, (size_t)n * sizeof(float));
    return p;
}
static inline void close_to(const char *what, double got, double want, double bound) {
    CHECK(fabs(got - want) <= bound, "%s: got %.9g, expected %.9g, bound %.3g", what, got, want, bound);
}

/* FNV-1a over the results of a run, to compare runs bit by bit. */
static uint64_t hash;
static inline void mix(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)p)[i]) * 1099511628211u;
}

/* run gives a hash of its results: the same for any number of threads, on every rung and with every arithmetic it has. */
static inline void check_every_path(uint64_t (*run)(lora_ctx *ctx, lora_gemm_arithmetic path)) {
    FOR_EACH_ISA(isa)
    for (int path = LORA_GEMM_EXACT; path < LORA_GEMM_PATHS; path++) {
        uint64_t first = 0;
        for (int threads = 1; threads <= 8; threads = threads == 3 ? 8 : threads + 1) {
            lora_ctx *ctx = check_ctx(isa, threads);
            ctx->view.precision = path == LORA_GEMM_EXACT ? LORA_PRECISION_EXACT : LORA_PRECISION_FAST;
            ctx->engine->kernels.gemm.fast = (lora_gemm_arithmetic)path;
            if (ctx->engine->kernels.gemm.paths[path].micro) {
                uint64_t got = run(ctx, (lora_gemm_arithmetic)path);
                if (threads == 1) first = got;
                CHECK(got == first, "%s, operands %s: %d threads give other bits than 1", lora_isa_name(isa), lora_ctx_operands(ctx),
                      threads);
            }
            lora_ctx_destroy(ctx);
        }
    }
}

#endif
