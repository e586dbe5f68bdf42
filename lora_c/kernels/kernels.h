/* The kernel table: leaves behind slots. Leaves never allocate, never start threads and never fail; the operations
 * above check first. A family fills its slots in the order ref, portable, rungs of the architecture, each rung replacing what it does
 * better, up to the rung asked for (LORA_ISA_REF leaves the float64 oracle in every slot). */
#ifndef LORA_KERNELS_H
#define LORA_KERNELS_H

#include "lora_c/isa.h"
#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/convert_kernels.h"
#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/kernels/gemv_kernels.h"
#include "lora_c/kernels/ggml_kernels.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/kernels/optim_kernels.h"
#include "lora_c/kernels/rowwise_kernels.h"

typedef struct lora_kernels {
    lora_isa isa;
    lora_convert_kernels convert;
    lora_nf4_kernels nf4;
    lora_ggml_kernels ggml;
    lora_gemm_kernels gemm;
    lora_gemv_kernels gemv;
    lora_rowwise_kernels rowwise;
    lora_optim_kernels optim;
    lora_attention_kernels attention, attention_fast; /* by precision */
} lora_kernels;

/** Fills every slot for the given rung (not AUTO; the caller has checked that the CPU has it). */
void lora_kernels_init(lora_kernels *k, lora_isa isa);
/** Chooses the path of LORA_PRECISION_FAST; false, with nothing changed, where the rung lacks it. */
bool lora_kernels_set_fast(lora_kernels *k, lora_gemm_arithmetic fast);

#endif
