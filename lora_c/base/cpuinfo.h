/* What this CPU can do, as far as a kernel rung asks. */
#ifndef LORA_BASE_CPUINFO_H
#define LORA_BASE_CPUINFO_H

#include <stdbool.h>

#include "lora_c/isa.h"

/** The highest rung that the CPU and the operating system (XCR0) support. */
lora_isa lora_cpu_best_isa(void);

/* Beyond the AVX-512 rung. */
typedef struct lora_cpu_extras {
    bool amd;  /* vendor */
    bool vnni; /* AVX512_VNNI: vpdpwssd */
    bool bf16; /* AVX512_BF16: vdpbf16ps */
} lora_cpu_extras;

/** Only for CPUs whose best rung is AVX-512; all false elsewhere. */
lora_cpu_extras lora_cpu_avx512_extras(void);

/** AVX-VNNI: vpdpbusd without AVX-512. For CPUs whose best rung is AVX2 or AVX-512. */
bool lora_cpu_has_avx_vnni(void);

#endif
