/* cuBLASLt for the shim: what it refuses, and products computed by the host in the order of the stream. */
#ifndef SHIM_HOST_CUBLASLT_H
#define SHIM_HOST_CUBLASLT_H

#include <cstddef>
#include <functional>

#include "lora_c/cuda/cublaslt.h"

const lora_cublaslt *shim_cublaslt(char *why, size_t why_bytes);
/** Whether an address is in memory of a device. */
bool shim_on_device(const void *p);
/** Puts work behind what the stream already has to do. */
void shim_add_work(void *stream, std::function<void()> work);

#endif
