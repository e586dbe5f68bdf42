/* Attention tiles for AVX-512 F. */
#if defined(__x86_64__)

#include "lora_c/kernels/attention_kernels.h"

enum { MR = 8 };
#define ATTN_TARGET LORA_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")

#include "lora_c/kernels/tmpl/attention_vector_avx512.h"
#include "lora_c/kernels/tmpl/attention_backward_tmpl.h"

void lora_attention_init_avx512(lora_attention_kernels *k) {
    k->forward = attention_forward;
    k->delta = attention_delta;
    k->backward = attention_backward;
}

#else
typedef int lora_attention_avx512_empty; /* ISO C wants a declaration in every file */
#endif
