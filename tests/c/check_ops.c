#include "tests/c/check_ops.h"

#include <stdio.h>

static const uint64_t SEED = 88172645463325252u;
static uint64_t state, hash;

void restart_random(void) { state = SEED; }

static uint64_t next_state(void) { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; }

uint32_t random_word(void) { return (uint32_t)(next_state() >> 32); }

float uniform(float low, float high) { return low + (high - low) * (float)(next_state() >> 40) * 0x1p-24f; }

float *random_floats(int64_t n, float low, float high) {
    float *p = calloc((size_t)n + 1, sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = uniform(low, high);
    return p;
}

float *copy_floats(const float *a, int64_t n) {
    float *p = calloc((size_t)n + 1, sizeof *p);
    memcpy(p, a, (size_t)n * sizeof *p);
    return p;
}

void close_to(const char *what, double got, double want, double bound) {
    CHECK(fabs(got - want) <= bound, "%s: got %.9g, expected %.9g, bound %.3g", what, got, want, bound);
}

void arrays_close(const char *what, const lora_ctx *ctx, const float *got, const double *want, int64_t n, double tolerance) {
    double worst = 0, top = 1e-6;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - want[i]);
        top = fmax(top, fabs(want[i]));
        worst = worse(worst, off);
    }
    CHECK(worst <= tolerance * top, "%s on %s, operands %s: off by %g of %g", what, lora_isa_name(lora_ctx_isa(ctx)),
          lora_ctx_operands(ctx), worst, top);
}

/* FNV-1a */
void begin_run(void) {
    restart_random();
    hash = 14695981039346656037u;
}

void mix(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)p)[i]) * 1099511628211u;
}

uint64_t hash_of_run(void) { return hash; }

bool hashes_are_told(void) { return getenv("LORA_C_CHECK_HASHES") != NULL; }

void tell_hash(const char *what, const lora_ctx *ctx, uint64_t of_run) {
    if (!hashes_are_told()) return;
    lora_precision precision = ctx->view.precision;
    lora_operands operands = precision == LORA_PRECISION_EXACT ? LORA_OPERANDS_FLOAT32 : lora_ctx_fast_operands(ctx);
    printf("bits %s %s %s %s: %016llx\n", lora_isa_name(lora_ctx_isa(ctx)), lora_precision_name(precision), lora_operands_name(operands),
           what, (unsigned long long)of_run);
}

void check_every_path(uint64_t (*run)(lora_ctx *ctx, lora_gemm_arithmetic path)) {
    FOR_EACH_ISA(isa)
    for (int path = LORA_GEMM_EXACT; path < LORA_GEMM_PATHS; path++) {
        uint64_t first = 0;
        for (int threads = 1; threads <= 8; threads = threads == 3 ? 8 : threads + 1) {
            lora_ctx *ctx = check_ctx(isa, threads);
            ctx->view.precision = path == LORA_GEMM_EXACT ? LORA_PRECISION_EXACT : LORA_PRECISION_FAST;
            ctx->engine->kernels.gemm.fast = (lora_gemm_arithmetic)path;
            if (ctx->engine->kernels.gemm.paths[path].micro) {
                uint64_t got = run(ctx, (lora_gemm_arithmetic)path);
                if (threads == 1) {
                    first = got;
                    tell_hash("run", ctx, got);
                }
                CHECK(got == first, "%s, operands %s: %d threads give other bits than 1", lora_isa_name(isa), lora_ctx_operands(ctx),
                      threads);
            }
            lora_ctx_destroy(ctx);
        }
    }
}
