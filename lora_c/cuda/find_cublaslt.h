/* Where cuBLASLt is: already in the process, beside this plug-in's Python packages, in CUDA_HOME, where the system's loader looks. */
#ifndef LORA_CUDA_FIND_CUBLASLT_H
#define LORA_CUDA_FIND_CUBLASLT_H

#include <stddef.h>

#include "lora_c/cuda/cublaslt.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The functions of libcublasLt.so.13, loaded once for the life of the process; NULL with the reason and the way out in why. */
const lora_cublaslt *lora_cuda_find_cublaslt(char *why, size_t why_bytes);

#ifdef __cplusplus
}
#endif
#endif
