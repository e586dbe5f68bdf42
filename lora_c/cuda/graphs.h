/* Kernels that are started again and again in the same order, as graphs. */
#ifndef LORA_CUDA_GRAPHS_H
#define LORA_CUDA_GRAPHS_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Decoding a token starts some hundred short kernels, each of which costs the host as long as the GPU. They differ from token to token in
 * what their arguments point to, hardly in the arguments. So a launch is only noted. When something else is asked of the stream (a wait, a
 * transfer, a product), what has been noted goes to it: as one graph when the same kernels in the same order went there before, of which
 * only those nodes are written anew whose arguments or grids differ; else one by one. After a product, launches go to the stream at once
 * until the host waits: between products nothing is gained, and the GPU need not wait for the host to reach the end of a pass.
 *
 * Bytes between the members of arguments may differ, too, and cost an update of a node: __builtin_clear_padding of GCC 12 clears members of
 * the arguments of elements.cuh.
 *
 * The environment variable LORA_C_CUDA_GRAPHS=0 leaves it out. */

/** Notes or starts a kernel.   Errors  ENOMEM, EDEVICE, that of launches before this one, too */
lora_status lora_cuda_start(lora_cuda *c, const lora_cuda_launch *launch, lora_error *err) LORA_MUST_CHECK;
/** The stream, with everything on it that has been asked for; the only way to it. An error is that of the next start or wait. Any thread.
 */
void *lora_cuda_stream(lora_cuda *c);
/** The same before a product. */
void *lora_cuda_stream_of_products(lora_cuda *c);
/** Waits for the stream. */
lora_status lora_cuda_wait(lora_cuda *c, lora_error *err) LORA_MUST_CHECK;

struct lora_mem;
lora_status lora_cuda_graphs_create(lora_cuda *c, struct lora_mem *host, lora_error *err) LORA_MUST_CHECK;
void lora_cuda_graphs_destroy(lora_cuda *c, struct lora_mem *host);

#ifdef __cplusplus
}
#endif
#endif
