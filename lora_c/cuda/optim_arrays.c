#include "lora_c/cuda/optim_arrays.h"

#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/util.h"

/* Columns of second moments: those of a matrix, else one for each element. */
static int64_t width_of(const lora_param *p) { return p->n == 0 ? 0 : p->cols ? p->cols : p->n; }

/* Moves at behind an array. */
static void pass(lora_cuda_array *at, const lora_param *p, int64_t per_task) {
    int64_t rows = p->cols ? p->n / p->cols : 0;
    at->task += lora_div_up(p->n, per_task);
    at->row_task += rows ? lora_div_up(rows, lora_cuda_rows_per_task(per_task, p->cols)) : 0;
    at->band += lora_div_up(width_of(p), LORA_CUDA_BAND);
    at->element += p->n;
    at->block += lora_div_up(p->n, LORA_ADAMW8BIT_BLOCK);
    at->row += rows;
    at->col += width_of(p);
}

static void fill_list(int64_t n_params, const lora_param *params, const lora_cuda_arrays_want *want, lora_cuda_array *list,
                      lora_cuda_arrays *out) {
    lora_cuda_array at = {0};
    for (int64_t i = 0; i < n_params; i++) {
        const lora_param *p = &params[i];
        list[i] = at;
        list[i].data = p->data;
        list[i].grad = p->grad;
        list[i].n = p->n;
        list[i].cols = p->cols;
        list[i].lr_ratio = p->lr_ratio;
        list[i].decays = p->decay;
        if (want->fill) want->fill(want->hyper, p, &list[i]);
        pass(&at, p, want->per_task);
    }
    out->tasks = at.task;
    out->row_tasks = at.row_task;
    out->bands = at.band;
    out->rows = at.row;
    out->columns = at.col;
}

lora_status lora_cuda_arrays_send(lora_cuda *c, int64_t n_params, const lora_param *params, const lora_cuda_arrays_want *want,
                                  lora_cuda_arrays *out, lora_error *err) {
    size_t more = (want->more_bytes + 15) / 16 * 16, bytes = more + (size_t)n_params * sizeof(lora_cuda_array);
    *out = (lora_cuda_arrays){.n = n_params, .per_task = want->per_task};
    if (bytes == 0) return LORA_OK;
    lora_mem mem;
    lora_mem_init(&mem);
    unsigned char *host = lora_mem_alloc(&mem, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(host, err, LORA_ENOMEM, "arrays: expected %zu bytes, got none", bytes);
    if (want->more_bytes) memcpy(host, want->more, want->more_bytes);
    fill_list(n_params, params, want, (lora_cuda_array *)(void *)(host + more), out);
    void *device = NULL;
    lora_status status = lora_cuda_upload_list(c, host, bytes, &device, err);
    lora_mem_free(&mem, host);
    out->more = device;
    out->list = (const lora_cuda_array *)(const void *)((unsigned char *)device + more);
    return status;
}
