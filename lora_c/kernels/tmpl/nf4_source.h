/* What the vector rungs of NF4 quantize: groups of elements of one of three types. */
#ifndef LORA_KERNELS_NF4_SOURCE_H
#define LORA_KERNELS_NF4_SOURCE_H

#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/types.h"

enum {
    GROUP = 32,
    BATCH = 1024,    /* elements whose scales are found together; they stay in the L1 cache */
    PREFETCH = 8192, /* bytes ahead: two batches; 80 % of the speed of a plain read stream instead of 50 % without */
};

/* In what follows dtype is a constant: each function is compiled once for every source. */
LORA_INLINE const void *at(const void *src, lora_dtype dtype, int64_t i) { return (const char *)src + i * (dtype == LORA_F32 ? 4 : 2); }

#endif
