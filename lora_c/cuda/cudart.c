/* The table of calls, filled by CUDA's run-time library, which is linked statically and finds the driver when it is first used. */
#include <cuda_runtime_api.h>
#include <stdio.h>

#include "lora_c/base/alloc.h"
#include "lora_c/cuda/api.h"
#include "lora_c/cuda/find_cublaslt.h"

enum { STATIC_LIMIT = 48 * 1024 }; /* dynamic shared memory beyond it is asked for by kernel */

static int driver_version(int *version) { return (int)cudaDriverGetVersion(version); }
static int device_count(int *n) { return (int)cudaGetDeviceCount(n); }

static int describe(int device, lora_cuda_properties *out) {
    struct cudaDeviceProp p;
    cudaError_t code = cudaGetDeviceProperties(&p, device);
    if (code != cudaSuccess) return (int)code;
    snprintf(out->name, sizeof out->name, "%.63s", p.name);
    out->major = p.major;
    out->minor = p.minor;
    out->multiprocessors = p.multiProcessorCount;
    out->memory_bytes = p.totalGlobalMem;
    out->shared_bytes = p.sharedMemPerBlockOptin;
    return 0;
}

static int set_device(int device) { return (int)cudaSetDevice(device); }

static int memory_info(size_t *free_bytes, size_t *total_bytes) { return (int)cudaMemGetInfo(free_bytes, total_bytes); }

/* A pool of our own: how long memory is kept is a property of a pool, and the default one belongs to all libraries of the process, whose
 * memory we would hold, and of whose unused memory we would say that it is ours to take. */
static int pool_create(int device, void **pool) {
    const struct cudaMemPoolProps props = {.allocType = cudaMemAllocationTypePinned,
                                           .handleTypes = cudaMemHandleTypeNone,
                                           .location = {.type = cudaMemLocationTypeDevice, .id = device}};
    uint64_t threshold = UINT64_MAX; /* by default 0: each wait of the host would give all that is free back to the system */
    cudaMemPool_t made;
    cudaError_t code = cudaMemPoolCreate(&made, &props);
    if (code != cudaSuccess) return (int)code;
    code = cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &threshold);
    if (code != cudaSuccess) (void)cudaMemPoolDestroy(made);
    if (code == cudaSuccess) *pool = made;
    return (int)code;
}
static int pool_destroy(void *pool) { return (int)cudaMemPoolDestroy(pool); }

static int pool_unused(void *pool, size_t *bytes) {
    uint64_t reserved = 0, used = 0;
    cudaError_t code = cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
    if (code == cudaSuccess) code = cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used);
    *bytes = used < reserved ? (size_t)(reserved - used) : 0;
    return (int)code;
}

static int stream_create(void **stream) { return (int)cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking); }
static int stream_destroy(void *stream) { return (int)cudaStreamDestroy(stream); }
static int stream_wait(void *stream) { return (int)cudaStreamSynchronize(stream); }

static int event_create(void **event) { return (int)cudaEventCreateWithFlags((cudaEvent_t *)event, cudaEventDisableTiming); }
static int event_destroy(void *event) { return (int)cudaEventDestroy(event); }
static int event_record(void *event, void *stream) { return (int)cudaEventRecord(event, stream); }
static int event_wait(void *event, void *stream) { return (int)cudaStreamWaitEvent(stream, event, 0); }

static int alloc(void **p, size_t bytes, void *pool, void *stream) { return (int)cudaMallocFromPoolAsync(p, bytes, pool, stream); }
static int release(void *p, void *stream) { return (int)cudaFreeAsync(p, stream); }
static int host_alloc(void **p, size_t bytes) { return (int)cudaHostAlloc(p, bytes, cudaHostAllocPortable | cudaHostAllocMapped); }
static int host_free(void *p) { return (int)cudaFreeHost(p); }
static int copy(void *to, const void *from, size_t bytes, void *stream) {
    return (int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}
static int fill(void *p, int byte, size_t bytes, void *stream) { return (int)cudaMemsetAsync(p, byte, bytes, stream); }

static cudaError_t allow_shared(const lora_cuda_launch *l) {
    if (l->shared_bytes <= STATIC_LIMIT) return cudaSuccess;
    return cudaFuncSetAttribute(l->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l->shared_bytes);
}

static int launch(const lora_cuda_launch *l, void *stream) {
    cudaError_t allowed = allow_shared(l);
    if (allowed != cudaSuccess) return (int)allowed;
    const dim3 grid = {.x = l->grid[0], .y = l->grid[1], .z = l->grid[2]}, block = {.x = l->threads, .y = 1, .z = 1};
    void *args[] = {(void *)l->args};
    cudaError_t code = cudaLaunchKernel(l->kernel, grid, block, args, l->shared_bytes, stream);
    return (int)(code == cudaSuccess ? cudaPeekAtLastError() : code);
}

/* --- graphs --- */

typedef struct graph {
    cudaGraph_t nodes_of; /* nodes live as long as it does */
    cudaGraphExec_t exec;
    cudaGraphNode_t nodes[];
} graph;

static struct cudaKernelNodeParams params_of(const lora_cuda_launch *l, void **args) {
    return (struct cudaKernelNodeParams){.func = (void *)l->kernel,
                                         .gridDim = {.x = l->grid[0], .y = l->grid[1], .z = l->grid[2]},
                                         .blockDim = {.x = l->threads, .y = 1, .z = 1},
                                         .sharedMemBytes = (unsigned)l->shared_bytes,
                                         .kernelParams = args};
}

static cudaError_t add_node(graph *g, size_t i, const lora_cuda_launch *l) {
    cudaError_t code = allow_shared(l);
    if (code != cudaSuccess) return code;
    void *args[] = {(void *)l->args};
    const struct cudaKernelNodeParams params = params_of(l, args);
    return cudaGraphAddKernelNode(&g->nodes[i], g->nodes_of, i > 0 ? &g->nodes[i - 1] : NULL, i > 0, &params);
}

static int graph_destroy(void *p) {
    graph *g = p;
    cudaError_t code = g->exec ? cudaGraphExecDestroy(g->exec) : cudaSuccess;
    if (g->nodes_of) (void)cudaGraphDestroy(g->nodes_of);
    lora_mem spare;
    lora_mem_init(&spare);
    lora_mem_free(&spare, g);
    return (int)code;
}

static int graph_create(const lora_cuda_launch *launches, size_t n, void **out) {
    lora_mem spare;
    lora_mem_init(&spare);
    graph *g = lora_mem_calloc(&spare, LORA_MEM_SCRATCH, sizeof *g + n * sizeof g->nodes[0]);
    if (!g) return (int)cudaErrorMemoryAllocation;
    cudaError_t code = cudaGraphCreate(&g->nodes_of, 0);
    for (size_t i = 0; i < n && code == cudaSuccess; i++) code = add_node(g, i, &launches[i]);
    if (code == cudaSuccess) code = cudaGraphInstantiate(&g->exec, g->nodes_of, 0);
    if (code == cudaSuccess)
        *out = g;
    else
        (void)graph_destroy(g);
    return (int)code;
}

static int graph_update(void *p, size_t i, const lora_cuda_launch *l) {
    graph *g = p;
    void *args[] = {(void *)l->args};
    const struct cudaKernelNodeParams params = params_of(l, args);
    return (int)cudaGraphExecKernelNodeSetParams(g->exec, g->nodes[i], &params);
}

static int graph_launch(void *p, void *stream) { return (int)cudaGraphLaunch(((graph *)p)->exec, stream); }

static const char *error_text(int code) { return cudaGetErrorString((cudaError_t)code); }

static const lora_cuda_api table = {
    .name = "cuda",
    .driver_version = driver_version,
    .device_count = device_count,
    .describe = describe,
    .set_device = set_device,
    .memory_info = memory_info,
    .pool_create = pool_create,
    .pool_destroy = pool_destroy,
    .pool_unused = pool_unused,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_wait = stream_wait,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_wait = event_wait,
    .alloc = alloc,
    .free = release,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .copy = copy,
    .fill = fill,
    .launch = launch,
    .graph_create = graph_create,
    .graph_update = graph_update,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
    .error_text = error_text,
    .cublaslt = lora_cuda_find_cublaslt,
};

const lora_cuda_api *lora_cuda_api_table(void) { return &table; }
