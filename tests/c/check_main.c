/* Runs the families named on the command line, or all. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/base/philox.h"
#include "tests/c/check_ops.h"

void check_base(void);
void check_convert(void);
void check_nf4(void);
void check_ggml(void);
void check_gemm(void);
void check_gemv(void);
void check_gemm_small(void);
void check_gemm_int8(void);
void check_few_int8(void);
void check_linear(void);
void check_adapter_groups(void);
void check_linear_bound(void);
void check_merge_bound(void);
void check_low_rank_sums(void);
void check_dora(void);
void check_rowwise(void);
void check_nn(void);
void check_rows_copy(void);
void check_optim(void);
void check_optim_kernels(void);
void check_gradient_tree(void);
void check_head(void);
void check_head_int8(void);
void check_values(void);
void check_attention(void);
void check_attention_fast(void);
void check_attention_exp(void);
void check_attention_devices(void);
void check_backend(void);
void check_backend_quantize(void);
void check_devices(void);
void check_device_memory(void);
void check_device_mistakes(void);
void check_device_offsets(void);
void check_device_steps(void);
void check_device_optim(void);
void check_device_head(void);
void check_device_linear(void);
void check_device_adapters(void);
void check_device_rows(void);
void check_device_narrow(void);
void check_device_half(void);
void check_decoder(void);
void check_decoder_adapters(void);
void check_mixed_adapters(void);
void check_virtual_tokens(void);
void check_cache_copy(void);
void check_adapted_globals(void);
void check_profile(void);
void check_watch(void);
void check_alloc_fail(void);
void check_cuda_faults(void);
void check_cuda_graphs(void);

static const struct {
    const char *name;
    void (*run)(void);
} families[] = {{"base", check_base},
                {"convert", check_convert},
                {"nf4", check_nf4},
                {"ggml", check_ggml},
                {"gemm", check_gemm},
                {"gemv", check_gemv},
                {"gemm_small", check_gemm_small},
                {"gemm_int8", check_gemm_int8},
                {"few_int8", check_few_int8},
                {"linear", check_linear},
                {"adapter_groups", check_adapter_groups},
                {"linear_bound", check_linear_bound},
                {"merge_bound", check_merge_bound},
                {"low_rank_sums", check_low_rank_sums},
                {"dora", check_dora},
                {"rowwise", check_rowwise},
                {"nn", check_nn},
                {"rows_copy", check_rows_copy},
                {"head", check_head},
                {"head_int8", check_head_int8},
                {"values", check_values},
                {"optim", check_optim},
                {"optim_kernels", check_optim_kernels},
                {"gradient_tree", check_gradient_tree},
                {"attention", check_attention},
                {"attention_fast", check_attention_fast},
                {"attention_exp", check_attention_exp},
                {"attention_devices", check_attention_devices},
                {"backend", check_backend},
                {"backend_quantize", check_backend_quantize},
                {"devices", check_devices},
                {"device_memory", check_device_memory},
                {"device_mistakes", check_device_mistakes},
                {"device_rows", check_device_rows},
                {"device_narrow", check_device_narrow},
                {"device_offsets", check_device_offsets},
                {"device_half", check_device_half},
                {"device_steps", check_device_steps},
                {"device_optim", check_device_optim},
                {"device_head", check_device_head},
                {"device_linear", check_device_linear},
                {"device_adapters", check_device_adapters},
                {"decoder", check_decoder},
                {"profile", check_profile},
                {"watch", check_watch},
                {"decoder_adapters", check_decoder_adapters},
                {"virtual_tokens", check_virtual_tokens},
                {"cache_copy", check_cache_copy},
                {"mixed_adapters", check_mixed_adapters},
                {"adapted_globals", check_adapted_globals},
                {"alloc_fail", check_alloc_fail},
                {"cuda_faults", check_cuda_faults},
                {"cuda_graphs", check_cuda_graphs}};

static long n_passed, n_failed;

void check_report(bool ok, const char *file, int line, const char *condition, const char *fmt, ...) {
    if (ok) {
        n_passed++;
        return;
    }
    if (n_failed++ >= 20) return; /* the first ones tell the story */
    va_list args;
    va_start(args, fmt);
    printf("%s:%d: %s: ", file, line, condition);
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
    if (getenv("LORA_C_CHECK_STOP")) exit(1); /* tests/cuda/mutate.py: one is enough */
}

bool is_emulated(void) { return getenv("LORA_C_CHECK_EMULATED") != NULL; }

void check_normal(float *out, int64_t n, uint64_t seed, float scale) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t w[4];
        lora_philox4x32(seed, 7, (uint64_t)i, w);
        double u = ((double)w[0] + 0.5) * 0x1p-32, v = (double)w[1] * 0x1p-32;
        out[i] = scale * (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    }
}

enum { BAND = 32 };

guarded guarded_new(int64_t n, int offset) {
    guarded g = {.n = n, .memory = lora_os_alloc(64, ((size_t)(n + 2 * BAND + 16) * sizeof(float) + 63) & ~(size_t)63, false)};
    float *p = g.memory;
    for (int64_t i = 0; i < n + 2 * BAND + 16; i++) p[i] = NAN;
    g.data = p + BAND + offset;
    return g;
}

bool guarded_ok(const guarded *g) {
    for (int64_t i = 1; i <= BAND; i++)
        if (!isnan(g->data[-i]) || (i <= 16 && !isnan(g->data[g->n + i - 1]))) return false;
    return true;
}

void guarded_free(guarded *g) { lora_os_free(g->memory); }

lora_ctx *check_ctx(lora_isa isa, int threads) {
    lora_ctx *ctx;
    lora_error err;
    if (lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = isa}, &ctx, &err) != LORA_OK) {
        printf("context: %s\n", err.message);
        exit(1);
    }
    return ctx;
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool chosen = argc < 2;
        for (int a = 1; a < argc; a++) chosen |= strcmp(argv[a], families[i].name) == 0;
        if (!chosen) continue;
        long passed = n_passed, failed = n_failed;
        restart_random(); /* alone a family sees what it sees among all */
        families[i].run();
        printf("%-12s %ld passed, %ld failed\n", families[i].name, n_passed - passed, n_failed - failed);
        fflush(stdout);
    }
    printf("%ld passed, %ld failed\n", n_passed, n_failed);
    return n_failed ? 1 : 0;
}
