/* The state of one GPU in use. */
#ifndef LORA_CUDA_STATE_H
#define LORA_CUDA_STATE_H

#include "lora_c/backend.h"
#include "lora_c/cuda/api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Buffers of the device that grow and stay; each is used by one operation at a time. */
enum {
    LORA_CUDA_SCRATCH_WEIGHT,    /* a weight, decoded */
    LORA_CUDA_SCRATCH_LEFT,      /* the other operand of a product, rounded */
    LORA_CUDA_SCRATCH_LOW,       /* what an adapter makes of x, M x R */
    LORA_CUDA_SCRATCH_RESULT,    /* results that are not yet where they belong */
    LORA_CUDA_SCRATCH_SUMS,      /* partial sums */
    LORA_CUDA_SCRATCH_LISTS,     /* lists of the host, uploaded */
    LORA_CUDA_SCRATCH_WORKSPACE, /* cuBLASLt's */
    LORA_CUDA_SCRATCH_RIGHT,     /* x as an operand, where LEFT has dy */
    LORA_CUDA_SCRATCH_NARROW,    /* LOW as an operand */
    LORA_CUDA_SCRATCH_DORA,      /* what DoRA adds to a linear layer */
    LORA_CUDA_SCRATCH_SCALES,    /* exponents of float16 operands */
    LORA_CUDA_SCRATCH_SLOTS,
};

typedef struct lora_cuda_memory lora_cuda_memory;     /* memory.c */
typedef struct lora_cuda_products lora_cuda_products; /* products.c */
typedef struct lora_cuda_graphs lora_cuda_graphs;     /* graphs.c */

typedef struct lora_cuda {
    const lora_cuda_api *api;
    int device;
    lora_cuda_properties properties;
    void *stream;   /* graphs.c alone may use it, see lora_cuda_stream */
    void *pool;     /* where memory comes from */
    lora_ctx *host; /* the CPU's context, for what is left to it */
    lora_cuda_memory *memory;
    lora_cuda_products *products;
    lora_cuda_graphs *graphs;
    struct {
        void *data;
        size_t bytes;
    } scratch[LORA_CUDA_SCRATCH_SLOTS];
} lora_cuda;

static inline lora_cuda *lora_cuda_of(const lora_ctx *ctx) { return (lora_cuda *)lora_backend_of(ctx)->state; }

/** EDEVICE with the library's words, unless code is 0. what: "cudaMalloc", the name of a kernel. */
lora_status lora_cuda_check(const lora_cuda *c, int code, const char *what, lora_error *err) LORA_MUST_CHECK;

/** At least bytes of a slot, 256-byte aligned, with undefined content; what was there before is gone. ENOMEM. */
lora_status lora_cuda_scratch(lora_cuda *c, int slot, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;
/** Copies a list of the host to the device, where it stays until the next call: an operation sends one. The list of the host may change
 *  right after the call. */
lora_status lora_cuda_upload_list(lora_cuda *c, const void *list, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
