#include "lora_c/kernels/gemv_kernels.h"

void lora_gemv_kernels_init(lora_gemv_kernels *k, lora_isa isa) {
    lora_gemv_fill_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_gemv_fill_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemv_fill_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_gemv_fill_avx512(k);
#endif
}
