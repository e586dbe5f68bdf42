#include "lora_c/kernels/gemm_kernels.h"

void lora_gemm_kernels_init(lora_gemm_kernels *k, lora_isa isa) {
    lora_gemm_fill_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_gemm_fill_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemm_fill_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_gemm_fill_avx512(k);
#endif
}
