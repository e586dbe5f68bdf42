/* Instruction sets of the CPU's kernels. */
#ifndef LORA_C_ISA_H
#define LORA_C_ISA_H

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction-set rungs, lowest first. REF is the float64 oracle of the tests, PORTABLE is plain C. From 2 on each architecture has its
 * own, so a number has the name that lora_isa_name gives it there. */
typedef enum lora_isa {
    LORA_ISA_AUTO = -1,
    LORA_ISA_REF = 0,
    LORA_ISA_PORTABLE = 1,
    LORA_ISA_AVX2 = 2,   /* AVX2 + FMA + F16C */
    LORA_ISA_AVX512 = 3, /* AVX-512 F, BW, DQ, VL */
    LORA_ISA_NEON = 2,   /* armv8-a: what every aarch64 CPU has */
#if defined(__aarch64__)
    LORA_ISA_LAST = LORA_ISA_NEON, /* of this architecture */
#else
    LORA_ISA_LAST = LORA_ISA_AVX512,
#endif
} lora_isa;

const char *lora_isa_name(lora_isa isa); /* "ref", "portable", then "avx2", "avx512", or "neon" */

#ifdef __cplusplus
}
#endif
#endif
