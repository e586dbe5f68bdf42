/* Memory by purpose, and the memory of devices: on the CPU the host's own, elsewhere addresses that the host may not read. */
#ifndef LORA_C_MEMORY_H
#define LORA_C_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lora_ctx;

/* What a piece of memory is for; the report lists live and peak bytes by tag. */
typedef enum lora_mem_tag {
    LORA_MEM_BASE,       /* frozen base weights */
    LORA_MEM_PARAM,      /* trainable weights */
    LORA_MEM_GRAD,       /* their gradients */
    LORA_MEM_OPTIM,      /* optimizer state */
    LORA_MEM_ACTIVATION, /* decoder arena, KV caches */
    LORA_MEM_SCRATCH,    /* packing buffers, thread stacks, tables */
    LORA_MEM_TAGS,
} lora_mem_tag;

typedef struct lora_mem_usage {
    size_t live_bytes, peak_bytes;
} lora_mem_usage;

const char *lora_mem_tag_name(lora_mem_tag tag); /* "base weights", … */

/** Bytes that this process could still take: what the machine has available (with_swap: and in swap), within the limits of its
 *  control groups and its own (ulimit -v, -d); SIZE_MAX where nothing says. root: folder that stands for "/", "" for the system's own. */
size_t lora_memory_left(const char *root, bool with_swap);
/** Bytes of the machine's memory, or of what this process and its control groups may have of it; SIZE_MAX where nothing says. */
size_t lora_memory_total(const char *root);
/** Whether the machine has memory for one more block of this size. Asks the system for blocks from 1 GiB on; smaller ones fit. */
bool lora_memory_fits(size_t bytes);

/** Memory of the context's device for weights, gradients, optimizer state and activations: 64-byte aligned, readable for 64 bytes
 *  past the end, counted under tag; zeroed by lora_ctx_alloc. NULL when refused. Needs no lock. */
void *lora_ctx_alloc(struct lora_ctx *ctx, lora_mem_tag tag, size_t bytes);
void *lora_ctx_alloc_uncleared(struct lora_ctx *ctx, lora_mem_tag tag, size_t bytes);
void lora_ctx_free(struct lora_ctx *ctx, void *p); /* NULL allowed */

/* Of a device; SIZE_MAX where it does not say. */
typedef struct lora_memory_info {
    size_t free_bytes, total_bytes;
} lora_memory_info;
/** What the context's device has and what anybody could still take of it, other processes included: of the CPU lora_memory_total and
 *  lora_memory_left. What was freed before the call is free.   Errors  EDEVICE */
lora_status lora_ctx_memory_info(struct lora_ctx *ctx, lora_memory_info *out, lora_error *err) LORA_MUST_CHECK;

/** The same in memory of the host, whatever the device: tables that a caller fills and reads itself. Zeroed. */
void *lora_host_alloc(struct lora_ctx *ctx, lora_mem_tag tag, size_t bytes);
void lora_host_free(struct lora_ctx *ctx, void *p); /* NULL allowed */

/** Memory of the host from which uploads are fast (pinned, where a device has such): what a caller fills anew for each pass.
 *  Its content is undefined after the sync that ends an upload from it. */
void *lora_stage_alloc(struct lora_ctx *ctx, size_t bytes);
void lora_stage_free(struct lora_ctx *ctx, void *p); /* NULL allowed. Needs no lock, and no sync before it */

/* What is about to happen to a range of paged memory. */
typedef enum lora_page_use {
    LORA_PAGE_SOON, /* it is used next: begin to bring it */
    LORA_PAGE_DONE, /* it is not used for a while: what it holds stays, the memory below it may go */
} lora_page_use;

/** Memory for what is too large to stay where operations read it, at addresses that operations take all the same. On the CPU a shared
 *  mapping of a file without a name in folder, whose blocks are taken at once; on other devices what they have for it (pinned memory of
 *  the host, managed memory). Zeroed, aligned to pages, not counted as memory. A child after fork must not use it.
 *  Errors    LORA_EINVAL the folder cannot be written; LORA_ENOMEM the disk has no room, or there are no addresses */
lora_status lora_paged_alloc(struct lora_ctx *ctx, const char *folder, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;
void lora_paged_free(struct lora_ctx *ctx, void *p, size_t bytes); /* NULL allowed */
/** Only the speed and the memory in use depend on it: a range need not begin or end with a page. */
void lora_paged_advise(struct lora_ctx *ctx, void *p, size_t bytes, lora_page_use use);

/* Transfers and operations of one device happen in the order of their calls, but some time later: only lora_sync waits.
 * On the CPU all of it happens at once. */

/** to (device) = from (host). from must stay as it is until the next lora_sync. */
lora_status lora_upload(struct lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) LORA_MUST_CHECK;
/** to (host) = from (device). to is filled by the next lora_sync and undefined until then. */
lora_status lora_download(struct lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) LORA_MUST_CHECK;
/** p (device) = 0. */
lora_status lora_clear(struct lora_ctx *ctx, void *p, size_t bytes, lora_error *err) LORA_MUST_CHECK;
/** Waits for everything that was asked for. Errors: those of operations that were still under way. */
lora_status lora_sync(struct lora_ctx *ctx, lora_error *err) LORA_MUST_CHECK;

/** What a device works on, as its library names it to other users of the device: a cudaStream_t on an NVIDIA GPU. NULL where there is
 *  no such thing. */
void *lora_ctx_stream(const struct lora_ctx *ctx);
/** What is asked for on stream from now on happens after what was asked for on before until now; both are streams of the device's
 *  library, one of them lora_ctx_stream(ctx), the other one somebody else's. The host does not wait where the device has streams.
 *  Errors  EDEVICE */
lora_status lora_stream_follows(struct lora_ctx *ctx, void *stream, void *before, lora_error *err) LORA_MUST_CHECK;

/** Where an operation writes what a caller wants at host: host itself where that is an address of the device, else memory of
 *  the device. lora_output_close asks for the download where status is OK (host is filled by the next lora_sync) and frees it in
 *  any case; it returns the first status that is not OK. */
lora_status lora_output_open(struct lora_ctx *ctx, void *host, size_t bytes, void **out, lora_error *err) LORA_MUST_CHECK;
lora_status lora_output_close(struct lora_ctx *ctx, void *host, size_t bytes, void *device, lora_status status,
                              lora_error *err) LORA_MUST_CHECK;

/* Since the context was made. */
typedef struct lora_transfers {
    int64_t uploads, downloads, syncs;
    int64_t uploaded_bytes, downloaded_bytes;
} lora_transfers;
lora_transfers lora_ctx_transfers(const struct lora_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
