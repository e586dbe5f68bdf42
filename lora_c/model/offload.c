/* Memory of the host for the copies of layers. */
#include <stdio.h>
#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/model/pass.h"

lora_status lora_decoder_set_activation_offload(lora_decoder *d, const char *folder, lora_error *err) {
    char *copy = NULL;
    if (folder) {
        size_t bytes = strlen(folder) + 1;
        copy = lora_host_alloc(d->shared, LORA_MEM_SCRATCH, bytes);
        LORA_CHECK(copy, err, LORA_ENOMEM, "activation_offload: expected %zu bytes, got none", bytes);
        snprintf(copy, bytes, "%s", folder);
    }
    lora_free_offloaded(d); /* it lies in the folder of before */
    lora_host_free(d->shared, d->offload_folder);
    d->offload_folder = copy;
    return LORA_OK;
}

const char *lora_decoder_activation_offload(const lora_decoder *d) { return d->offload_folder; }

void lora_free_offloaded(lora_decoder *d) {
    void *old = d->offloaded;
    size_t bytes = d->offloaded_bytes;
    d->offloaded = NULL;
    d->offloaded_bytes = 0;
    lora_paged_free(d->ctx, old, bytes);
}

/* Grows only. A child of a fork takes memory of its own: its parent's is shared with it. */
lora_status lora_reach_offloaded(lora_decoder *d, size_t bytes, lora_error *err) {
    int64_t process = lora_process_id();
    if (bytes <= d->offloaded_bytes && d->offload_process == process) return LORA_OK;
    lora_error cause = {0};
    lora_free_offloaded(d);
    lora_status status = lora_paged_alloc(d->ctx, d->offload_folder, bytes, &d->offloaded, &cause);
    if (status != LORA_OK) return lora_fail(err, status, "activation_offload: %s", cause.message);
    d->offloaded_bytes = bytes;
    d->offload_process = process;
    return LORA_OK;
}
