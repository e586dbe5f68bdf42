#include "lora_c/base/cpuinfo.h"

#include <stdbool.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t read_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

lora_isa lora_cpu_best_isa(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return LORA_ISA_PORTABLE;
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return LORA_ISA_PORTABLE;
    uint64_t xcr0 = read_xcr0();
    const uint64_t ymm_state = 0x6, zmm_state = 0xe6; /* the operating system saves these registers */
    if ((xcr0 & ymm_state) != ymm_state || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return LORA_ISA_PORTABLE;
    const uint32_t avx2 = 1u << 5, avx512f = 1u << 16, avx512dq = 1u << 17, avx512bw = 1u << 30, avx512vl = 1u << 31;
    if (!(b & avx2)) return LORA_ISA_PORTABLE;
    const uint32_t avx512 = avx512f | avx512dq | avx512bw | avx512vl;
    return (b & avx512) == avx512 && (xcr0 & zmm_state) == zmm_state ? LORA_ISA_AVX512 : LORA_ISA_AVX2;
}

lora_cpu_extras lora_cpu_avx512_extras(void) {
    uint32_t a, b, c, d;
    lora_cpu_extras cpu = {0};
    if (lora_cpu_best_isa() != LORA_ISA_AVX512 || !__get_cpuid(0, &a, &b, &c, &d)) return cpu;
    cpu.amd = b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) cpu.vnni = c >> 11 & 1;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.bf16 = a >> 5 & 1;
    return cpu;
}

bool lora_cpu_has_avx_vnni(void) {
    uint32_t a, b, c, d;
    return lora_cpu_best_isa() >= LORA_ISA_AVX2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#else
#if defined(__aarch64__)
lora_isa lora_cpu_best_isa(void) { return LORA_ISA_NEON; } /* a part of armv8-a */
#else
lora_isa lora_cpu_best_isa(void) { return LORA_ISA_PORTABLE; }
#endif
lora_cpu_extras lora_cpu_avx512_extras(void) { return (lora_cpu_extras){0}; }
bool lora_cpu_has_avx_vnni(void) { return false; }
#endif
