#include "lora_c/kernels/gemv_kernels.h"

#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/os.h"

static void fill_int8(lora_gemv_path *p, lora_isa isa) {
    lora_gemv_fill_int8_portable(p);
    if (isa == LORA_ISA_REF) lora_gemv_fill_int8_ref(p);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemv_fill_int8_avx2(p);
    if (isa >= LORA_ISA_AVX2 && lora_cpu_has_avx_vnni()) lora_gemv_fill_int8_avx_vnni(p);
    if (isa >= LORA_ISA_AVX512 && lora_cpu_avx512_extras().vnni) lora_gemv_fill_int8_vnni(p);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_gemv_fill_int8_neon(p);
#endif
}

void lora_gemv_kernels_init(lora_gemv_kernels *k, lora_isa isa) {
    *k = (lora_gemv_kernels){0};
    lora_gemv_path *exact = &k->paths[LORA_GEMM_EXACT];
    lora_gemv_fill_ref(exact);
    fill_int8(&k->int8, isa);
    if (isa >= LORA_ISA_PORTABLE) lora_gemv_fill_portable(exact);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemv_fill_avx2(exact);
    if (isa < LORA_ISA_AVX512) return;
    lora_gemv_fill_avx512(exact);
    lora_cpu_extras cpu = lora_cpu_avx512_extras();
    if (cpu.bf16) {
        k->paths[LORA_GEMM_BF16] = *exact;
        lora_gemv_fill_bf16(&k->paths[LORA_GEMM_BF16]);
    }
    if (cpu.vnni) {
        k->paths[LORA_GEMM_INT16] = *exact;
        lora_gemv_fill_int16(&k->paths[LORA_GEMM_INT16]);
    }
#elif defined(__aarch64__)
    if (isa < LORA_ISA_NEON) return;
    lora_gemv_fill_neon(exact);
    if (lora_os_arm_bf16()) {
        k->paths[LORA_GEMM_BF16] = *exact;
        lora_gemv_fill_bf16_neon(&k->paths[LORA_GEMM_BF16]);
    }
#endif
}
