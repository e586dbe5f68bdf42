#include "lora_c/kernels/gemm_kernels.h"

#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/os.h"

static void fill_int8(lora_gemm_path *p, const lora_gemm_path *exact, lora_isa isa) {
    *p = (lora_gemm_path){.mr = exact->mr, .nr = exact->nr};
    lora_gemm_fill_int8_portable(p);
    if (isa == LORA_ISA_REF) lora_gemm_fill_int8_ref(p);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemm_fill_int8_avx2(p);
    if (isa >= LORA_ISA_AVX2 && lora_cpu_has_avx_vnni()) lora_gemm_fill_int8_avx_vnni(p);
    if (isa >= LORA_ISA_AVX512 && lora_cpu_avx512_extras().vnni) lora_gemm_fill_int8_vnni(p);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON && lora_os_arm_dotprod()) lora_gemm_fill_int8_dotprod(p);
#if !defined(__clang__) /* whose loop copies accumulators: more instructions than with sdot */
    if (isa >= LORA_ISA_NEON && lora_os_arm_i8mm()) lora_gemm_fill_int8_i8mm(p);
#endif
#endif
}

void lora_gemm_kernels_init(lora_gemm_kernels *k, lora_isa isa) {
    *k = (lora_gemm_kernels){.fast = LORA_GEMM_EXACT};
    lora_gemm_path *exact = &k->paths[LORA_GEMM_EXACT];
    lora_gemm_fill_ref(exact);
    if (isa >= LORA_ISA_PORTABLE) lora_gemm_fill_portable(exact);
#if defined(__x86_64__)
    if (isa >= LORA_ISA_AVX2) lora_gemm_fill_avx2(exact);
    if (isa >= LORA_ISA_AVX512) lora_gemm_fill_avx512(exact);
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON) lora_gemm_fill_neon(exact);
#endif
    fill_int8(&k->int8, exact, isa);
#if defined(__x86_64__)
    if (isa < LORA_ISA_AVX512) return;
    lora_cpu_extras cpu = lora_cpu_avx512_extras();
    if (cpu.bf16) lora_gemm_fill_bf16(&k->paths[LORA_GEMM_BF16]);
    if (cpu.vnni) lora_gemm_fill_int16(&k->paths[LORA_GEMM_INT16]);
    if (cpu.bf16 && cpu.amd)
        k->fast = LORA_GEMM_BF16;
    else if (cpu.vnni)
        k->fast = LORA_GEMM_INT16;
#elif defined(__aarch64__)
    if (isa >= LORA_ISA_NEON && lora_os_arm_bf16()) {
        lora_gemm_fill_bf16_neon(&k->paths[LORA_GEMM_BF16]);
        k->fast = LORA_GEMM_BF16;
    }
#endif
}
