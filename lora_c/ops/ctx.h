/* What a lora_ctx holds, for the operations. */
#ifndef LORA_OPS_CTX_H
#define LORA_OPS_CTX_H

#include <stdatomic.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/os.h"
#include "lora_c/base/parallel.h"
#include "lora_c/backend.h"
#include "lora_c/context.h"
#include "lora_c/kernels/kernels.h"
#include "lora_c/profile.h"

/* Grow-only buffers, one owner each, so that the steady state never allocates. */
typedef enum lora_scratch_slot {
    LORA_SCRATCH_GEMM_A,    /* packed left operand, shared by the threads */
    LORA_SCRATCH_GEMM_B,    /* packed right operand, per thread */
    LORA_SCRATCH_GEMM_C,    /* output tiles, per thread */
    LORA_SCRATCH_LINEAR,    /* x·A^T, dy·B, dropped x */
    LORA_SCRATCH_DORA,      /* layer outputs before their scaling, dropped x */
    LORA_SCRATCH_ATTENTION, /* tiles, per thread */
    LORA_SCRATCH_XENT,      /* compacted rows with loss */
    LORA_SCRATCH_HEAD,      /* packed rows, sums per range of the vocabulary, packed weights per thread */
    LORA_SCRATCH_REDUCE,    /* partial sums */
    LORA_SCRATCH_OPTIM,     /* matrices of Muon, factors of Adafactor */
    LORA_SCRATCH_SLOTS,
} lora_scratch_slot;

/* One device in use, shared by the contexts on it. */
typedef struct lora_device_use {
    const struct lora_backend *backend;
    void *state; /* the backend's */
    char name[32];
    int process; /* that opened it; a child forked from that shares its memory, and leaves all of it alone */
    lora_transfers transfers;
} lora_device_use;

/* What all views of a context share. */
typedef struct lora_engine {
    lora_mem mem;
    lora_kernels kernels;
    lora_pool *pool;
    lora_mutex lock;
    _Atomic int owner; /* process of the lock; -pid while a child after fork makes its own */
    struct {
        void *data;
        size_t bytes;
    } scratch[LORA_SCRATCH_SLOTS];
    struct {
        bool on;
        lora_op_cost costs[LORA_OPS];
    } profile;
    struct lora_backend_library *libraries; /* loaded, the last one first */
    lora_device_use cpu;
} lora_engine;

/* A view of an engine: how and where the calls that are given it compute. */
struct lora_ctx {
    lora_backend_view view; /* first: all that a backend knows of it */
    lora_engine *engine;
    lora_device_use *device; /* the engine's own, or one that this context owns, or another context's */
    bool owns_engine, owns_device;
    struct lora_watch *watch; /* what looks at the results of its operations, or NULL (watch.h) */
};

/** At least bytes of 64-byte aligned scratch in *out, content undefined, valid until the next call for the same slot. */
lora_status lora_ctx_scratch(lora_ctx *ctx, lora_scratch_slot slot, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;

#endif
