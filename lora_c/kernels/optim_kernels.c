#include "lora_c/kernels/optim_kernels.h"

void lora_optim_kernels_init(lora_optim_kernels *k, lora_isa isa) {
    lora_optim_fill_ref(k);
    if (isa >= LORA_ISA_PORTABLE) lora_optim_fill_portable(k);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_optim_fill_avx2(k);
    if (isa >= LORA_ISA_AVX512) lora_optim_fill_avx512(k);
#endif
}
