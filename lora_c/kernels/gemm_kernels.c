#include "lora_c/kernels/gemm_kernels.h"

#include "lora_c/base/cpuinfo.h"

void lora_gemm_kernels_init(lora_gemm_kernels *k, lora_isa isa) {
    *k = (lora_gemm_kernels){.fast = LORA_GEMM_EXACT};
    lora_gemm_path *exact = &k->paths[LORA_GEMM_EXACT];
    lora_gemm_fill_ref(exact);
    if (isa >= LORA_ISA_PORTABLE) lora_gemm_fill_portable(exact);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemm_fill_avx2(exact);
    if (isa < LORA_ISA_AVX512) return;
    lora_gemm_fill_avx512(exact);
    lora_cpu_extras cpu = lora_cpu_avx512_extras();
    if (cpu.bf16) lora_gemm_fill_bf16(&k->paths[LORA_GEMM_BF16]);
    if (cpu.vnni) lora_gemm_fill_int16(&k->paths[LORA_GEMM_INT16]);
    if (cpu.bf16 && cpu.amd)
        k->fast = LORA_GEMM_BF16;
    else if (cpu.vnni)
        k->fast = LORA_GEMM_INT16;
#elif defined(__aarch64__)
    if (isa < LORA_ISA_NEON) return;
    lora_gemm_fill_neon(exact);
    if (lora_cpu_arm_bf16()) {
        lora_gemm_fill_bf16_neon(&k->paths[LORA_GEMM_BF16]);
        k->fast = LORA_GEMM_BF16;
    }
#endif
}
