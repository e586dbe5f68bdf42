/* Every call to a library of NVIDIA goes through one table: filled by the run-time library (cudart.c) and cuBLASLt (cublaslt.h), and in
 * tests by what stands for them without a GPU, or by what makes any of them fail.
 * Calls return 0 or a code that error_text puts into words. Sizes are bytes. */
#ifndef LORA_CUDA_API_H
#define LORA_CUDA_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_cuda_properties {
    char name[64];
    int major, minor; /* compute capability */
    int multiprocessors;
    size_t memory_bytes;
    size_t shared_bytes; /* of a block, when asked for */
} lora_cuda_properties;

/* A kernel has one argument, a struct that is copied by the call. */
typedef struct lora_cuda_launch {
    const char *name;
    const void *kernel;
    void (*call)(const void *kernel, const void *args); /* runs one thread of it on the host; NULL in code for a GPU */
    const void *args;
    size_t args_bytes;
    uint32_t grid[3], threads;
    size_t shared_bytes; /* dynamic: all that a kernel has */
} lora_cuda_launch;

/* Every array is asked for with so many bytes more, which may be read but never written (lora_ctx_alloc's promise). */
enum { LORA_CUDA_READABLE = 64 };

typedef struct lora_cuda_api {
    const char *name;                    /* of its devices: "cuda" */
    int (*driver_version)(int *version); /* 13000 for CUDA 13.0; 0: no driver */
    int (*device_count)(int *n);
    int (*describe)(int device, lora_cuda_properties *out);
    int (*set_device)(int device);                               /* of the calling thread */
    int (*memory_info)(size_t *free_bytes, size_t *total_bytes); /* what pools keep is not free here */
    int (*pool_create)(int device, void **pool);                 /* keeps what is freed until it is destroyed */
    int (*pool_destroy)(void *pool);
    int (*pool_unused)(void *pool, size_t *bytes); /* what it keeps and nobody uses */
    int (*stream_create)(void **stream);           /* apart from the legacy stream */
    int (*stream_destroy)(void *stream);
    int (*stream_wait)(void *stream); /* the host waits */
    int (*event_create)(void **event);
    int (*event_destroy)(void *event);
    int (*event_record)(void *event, void *stream);
    int (*event_wait)(void *event, void *stream);                   /* the stream waits */
    int (*alloc)(void **p, size_t bytes, void *pool, void *stream); /* in the order of the stream, at least 256-byte aligned */
    int (*free)(void *p, void *stream);
    int (*host_alloc)(void **p, size_t bytes); /* pinned, at an address that kernels can use */
    int (*host_free)(void *p);
    int (*copy)(void *to, const void *from, size_t bytes, void *stream); /* between any two addresses */
    int (*fill)(void *p, int byte, size_t bytes, void *stream);
    int (*launch)(const lora_cuda_launch *launch, void *stream);
    int (*graph_create)(const lora_cuda_launch *launches, size_t n, void **graph);  /* one after the other; arguments are copied */
    int (*graph_update)(void *graph, size_t index, const lora_cuda_launch *launch); /* of the same kernel; for starts from now on */
    int (*graph_launch)(void *graph, void *stream);
    int (*graph_destroy)(void *graph); /* may still be under way */
    const char *(*error_text)(int code);
    /* cuBLASLt's own functions (cublaslt.h), or NULL with the reason and the way out in why. */
    const struct lora_cublaslt *(*cublaslt)(char *why, size_t why_bytes);
} lora_cuda_api;

/** The table of this plug-in. */
const lora_cuda_api *lora_cuda_api_table(void);

#ifdef __cplusplus
}
#endif
#endif
