#include "lora_c/kernels/ggml_kernels.h"

void lora_ggml_kernels_init(lora_ggml_kernels *k, lora_isa isa) {
    lora_ggml_fill_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_ggml_fill_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_ggml_fill_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_ggml_fill_avx512(k);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_ggml_fill_neon(k);
#endif
}
