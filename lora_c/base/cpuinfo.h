/* What this CPU can do, as far as a kernel rung asks. */
#ifndef LORA_BASE_CPUINFO_H
#define LORA_BASE_CPUINFO_H

#include "lora_c/context.h"

/** The highest rung that the CPU and the operating system (XCR0) support. */
lora_isa lora_cpu_best_isa(void);

#endif
