#include "lora_c/kernels/convert_kernels.h"

void lora_convert_kernels_init(lora_convert_kernels *k, lora_isa isa) {
    lora_convert_fill_ref(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_convert_fill_avx2(k);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_convert_fill_neon(k);
#else
    (void)isa;
#endif
}
