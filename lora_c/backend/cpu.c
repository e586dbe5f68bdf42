/* The CPU as a backend: its addresses are the host's, and everything has happened when a call returns. */
#include <string.h>

#include "lora_c/backend/load.h"
#include "lora_c/base/paged.h"
#include "lora_c/ops/cpu_ops.h"

static void *cpu_alloc(void *state, lora_mem_tag tag, size_t bytes) { return lora_mem_alloc(&((lora_engine *)state)->mem, tag, bytes); }
static void cpu_free(void *state, void *p) { lora_mem_free(&((lora_engine *)state)->mem, p); }
static void *cpu_stage_alloc(void *state, size_t bytes) { return cpu_alloc(state, LORA_MEM_SCRATCH, bytes); }

static lora_status cpu_copy(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    (void)state, (void)err;
    if (to != from) memcpy(to, from, bytes);
    return LORA_OK;
}

static lora_status cpu_clear(void *state, void *p, size_t bytes, lora_error *err) {
    (void)state, (void)err;
    memset(p, 0, bytes);
    return LORA_OK;
}

static lora_status cpu_sync(void *state, lora_error *err) {
    (void)state, (void)err;
    return LORA_OK;
}

static lora_status cpu_paged_alloc(void *state, const char *folder, size_t bytes, void **out, lora_error *err) {
    (void)state;
    return lora_map_file(folder, bytes, out, err);
}
static void cpu_paged_free(void *state, void *p, size_t bytes) {
    (void)state;
    lora_unmap_file(p, bytes);
}
static void cpu_paged_advise(void *state, void *p, size_t bytes, lora_page_use use) {
    (void)state;
    lora_advise_pages(p, bytes, use);
}

static lora_mem_usage cpu_usage(const void *state, lora_mem_tag tag) {
    const lora_mem *mem = &((const lora_engine *)state)->mem;
    if (tag == LORA_MEM_TAGS)
        return (lora_mem_usage){.live_bytes = atomic_load(&mem->total_live), .peak_bytes = atomic_load(&mem->total_peak)};
    return (lora_mem_usage){.live_bytes = atomic_load(&mem->live[tag]), .peak_bytes = atomic_load(&mem->peak[tag])};
}

static void cpu_reset_peak(void *state) {
    lora_mem *mem = &((lora_engine *)state)->mem;
    for (int tag = 0; tag < LORA_MEM_TAGS; tag++) atomic_store(&mem->peak[tag], atomic_load(&mem->live[tag]));
    atomic_store(&mem->total_peak, atomic_load(&mem->total_live));
}

static lora_status cpu_memory_info(void *state, lora_memory_info *out, lora_error *err) {
    (void)state, (void)err;
    *out = (lora_memory_info){.free_bytes = lora_memory_left("", false), .total_bytes = lora_memory_total("")};
    return LORA_OK;
}

static void *cpu_stream(const void *state) {
    (void)state;
    return NULL;
}

static lora_status cpu_stream_follows(void *state, void *stream, void *before, lora_error *err) {
    (void)state, (void)stream, (void)before, (void)err;
    return LORA_OK;
}

const lora_backend lora_cpu_backend = {
    .abi = LORA_BACKEND_ABI,
    .name = "cpu",
    .has_int8 = true,
    .host_memory = true,
    .memory = {.alloc = cpu_alloc,
               .free = cpu_free,
               .stage_alloc = cpu_stage_alloc,
               .stage_free = cpu_free,
               .upload = cpu_copy,
               .download = cpu_copy,
               .clear = cpu_clear,
               .sync = cpu_sync,
               .paged_alloc = cpu_paged_alloc,
               .paged_free = cpu_paged_free,
               .paged_advise = cpu_paged_advise,
               .usage = cpu_usage,
               .reset_peak = cpu_reset_peak,
               .memory_info = cpu_memory_info,
               .stream = cpu_stream,
               .stream_follows = cpu_stream_follows},
    .ops =
        {
            .norm_forward = lora_cpu_norm_forward,
            .norm_backward = lora_cpu_norm_backward,
            .scale_rows = lora_cpu_scale_rows,
            .add_noise = lora_cpu_add_noise,
            .scale_columns = lora_cpu_scale_columns,
            .scale_columns_backward = lora_cpu_scale_columns_backward,
            .softcap_rows = lora_cpu_softcap_rows,
            .softcap_backward = lora_cpu_softcap_backward,
            .rope_table = lora_cpu_rope_table,
            .rope = lora_cpu_rope,
            .attention_forward = lora_cpu_attention_forward,
            .attention_backward = lora_cpu_attention_backward,
            .mlp_forward = lora_cpu_mlp_forward,
            .mlp_backward = lora_cpu_mlp_backward,
            .embedding_forward = lora_cpu_embedding_forward,
            .embedding_backward = lora_cpu_embedding_backward,
            .linear_cross_entropy = lora_cpu_linear_cross_entropy,
            .values_loss = lora_cpu_values_loss,
            .copy_rows = lora_cpu_copy_rows,
            .convert_rows = lora_cpu_convert_rows,
            .linear_forward = lora_cpu_linear_forward,
            .linear_backward = lora_cpu_linear_backward,
            .linear_keeps_low = lora_cpu_linear_keeps_low,
            .dora_norm = lora_cpu_dora_norm,
            .linear_merge = lora_cpu_linear_merge,
            .linear_merge_backward = lora_cpu_linear_merge_backward,
            .adamw_step = lora_cpu_adamw_step,
            .adamw8bit_step = lora_cpu_adamw8bit_step,
            .sgd_step = lora_cpu_sgd_step,
            .lion_step = lora_cpu_lion_step,
            .adafactor_step = lora_cpu_adafactor_step,
            .muon_step = lora_cpu_muon_step,
            .sum_of_squares = lora_cpu_sum_of_squares,
            .quantize_4bit = lora_cpu_quantize_4bit,
            .double_quantize = lora_cpu_double_quantize,
            .dequantize = lora_cpu_dequantize,
            .scratch_bytes = lora_cpu_scratch_bytes,
        },
};
