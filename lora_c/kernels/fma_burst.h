/* The yardstick of every speed: multiply-adds that touch registers only. */
#ifndef LORA_KERNELS_FMA_BURST_H
#define LORA_KERNELS_FMA_BURST_H

#include <stdint.h>

#include "lora_c/isa.h"

/** Runs rounds of independent float32 multiply-adds with the vectors of isa; returns the flops of one round, 0 where
 *  there is no loop for the rung (then it does nothing). */
int64_t lora_fma_burst(lora_isa isa, int64_t rounds);

#endif
