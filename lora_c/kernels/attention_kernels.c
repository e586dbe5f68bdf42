#include "lora_c/kernels/attention_kernels.h"

#include "lora_c/base/util.h"

/* Float32 kernels: the widest panel and vector of any rung (two AVX-512 vectors, one), and the most rows of a backward
 * chunk. What is enough for these is enough for all. */
enum { PANEL = 32, VECTOR = 16, ROWS = 48 };

static int64_t forward_scratch(int64_t n_rows, int64_t D) {
    int64_t state = lora_round_up(n_rows, PANEL) * (2 * D + 2); /* Q^T, O^T, maximum, sum */
    int64_t block = LORA_ATTENTION_BLOCK * (PANEL + 2 * D);     /* scores, copies of K and V */
    return lora_round_up(state + block, VECTOR) + 4 * VECTOR;
}

static int64_t backward_scratch(int64_t n_rows, int64_t D) {
    (void)n_rows; /* they go by in chunks */
    int64_t width = lora_round_up(D, VECTOR);
    int64_t keys = 5 * LORA_ATTENTION_BLOCK * width;                  /* K, K^T, V^T, dK, dV */
    int64_t rows = ROWS * (3 * width + 2 * LORA_ATTENTION_BLOCK + 2); /* Q, dO, dQ; scores; statistics */
    return lora_round_up(keys + rows, VECTOR) + 16 * VECTOR;
}

void lora_attention_kernels_init(lora_attention_kernels *k, lora_isa isa) {
    *k = (lora_attention_kernels){.key_block = LORA_ATTENTION_BLOCK};
    k->forward_scratch = forward_scratch;
    k->backward_scratch = backward_scratch;
    lora_attention_init_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_attention_init_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_attention_init_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_attention_init_avx512(k);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_attention_init_neon(k);
#endif
}

void lora_attention_fast_kernels_init(lora_attention_kernels *k, lora_isa isa, lora_gemm_arithmetic fast) {
    lora_attention_kernels_init(k, isa);
#if defined(__x86_64__)
    if (fast == LORA_GEMM_BF16) {
        lora_attention_init_bf16_forward(k);
        lora_attention_init_bf16_backward(k);
    }
#else
    (void)fast; /* no other architecture has others */
#endif
}
