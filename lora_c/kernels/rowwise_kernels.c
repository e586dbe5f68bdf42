#include "lora_c/kernels/rowwise_kernels.h"

void lora_rowwise_kernels_init(lora_rowwise_kernels *k, lora_isa isa) {
    lora_rowwise_fill_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_rowwise_fill_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_rowwise_fill_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_rowwise_fill_avx512(k);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_rowwise_fill_neon(k);
#endif
}
