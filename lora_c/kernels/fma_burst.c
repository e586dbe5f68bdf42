#include "lora_c/kernels/fma_burst.h"

#if defined(__x86_64__)
/* Explicit registers: a C loop over an array spills and shows half of the truth. Ten chains cover latency times ports. */
#define FMA(reg, width) "vfmadd231ps %%" width "15, %%" width "14, %%" width #reg "\n\t"
#define TEN(width)                                                                                                                         \
    FMA(0, width)                                                                                                                          \
    FMA(1, width) FMA(2, width) FMA(3, width) FMA(4, width) FMA(5, width) FMA(6, width) FMA(7, width) FMA(8, width) FMA(9, width)
#define CLOBBER "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm14", "xmm15"

/* One block of assembly, loop included: between two blocks the compiler may put what it likes into these registers.
 * All start from zero, so that no denormal slows them down. */
#define BURST(width, zero, rounds) __asm__ volatile(zero "1:\n\t" TEN(width) "dec %0\n\tjnz 1b\n\tvzeroupper" : "+r"(rounds)::"cc", CLOBBER)
#define CLEAR(reg) "vpxor %%xmm" #reg ", %%xmm" #reg ", %%xmm" #reg "\n\t"
#define CLEAR_ALL CLEAR(0) CLEAR(1) CLEAR(2) CLEAR(3) CLEAR(4) CLEAR(5) CLEAR(6) CLEAR(7) CLEAR(8) CLEAR(9) CLEAR(14) CLEAR(15)

int64_t lora_fma_burst(lora_isa isa, int64_t rounds) {
    if (isa < LORA_ISA_AVX2 || rounds < 1) return 0;
    if (isa >= LORA_ISA_AVX512) {
        BURST("zmm", CLEAR_ALL, rounds);
        return 10 * 16 * 2;
    }
    BURST("ymm", CLEAR_ALL, rounds);
    return 10 * 8 * 2;
}
#elif defined(__aarch64__)
/* As above; the highest registers, because a callee keeps the low halves of v8 to v15. */
#define FMA(reg) "fmla v" #reg ".4s, v30.4s, v31.4s\n\t"
#define CLEAR(reg) "movi v" #reg ".4s, #0\n\t"
#define EACH(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27)

int64_t lora_fma_burst(lora_isa isa, int64_t rounds) {
    if (isa < LORA_ISA_NEON || rounds < 1) return 0;
    __asm__ volatile(EACH(CLEAR) CLEAR(30) CLEAR(31) "1:\n\t" EACH(FMA) "subs %0, %0, #1\n\tb.ne 1b"
                     : "+r"(rounds)::"cc", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v30",
                       "v31");
    return 12 * 4 * 2;
}
#else
int64_t lora_fma_burst(lora_isa isa, int64_t rounds) {
    (void)isa, (void)rounds;
    return 0;
}
#endif
