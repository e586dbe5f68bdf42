/* The device "meta": arrays with a size and a place, and no memory. A decoder on it can be asked what a training step of any size would
 * take, as the same decoder on the CPU would say, and computes nothing; on "meta:8.6" as on an NVIDIA GPU of that compute capability.
 * PyTorch's device of this name is the same for its tensors. */
#include <string.h>

#include "lora_c/backend/load.h"
#include "lora_c/backend/meta_refusals.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"
#include "lora_c/ops/cpu_ops.h"

typedef struct meta_device {
    lora_engine *engine;
    int capability; /* 10 times that of the GPU; 0: the CPU */
    _Atomic size_t live[LORA_MEM_TAGS], peak[LORA_MEM_TAGS], total_live, total_peak;
} meta_device;

/* What lies at an address of the device: an array may be larger than all memory, this is what there is of it. */
typedef struct meta_array {
    lora_mem_tag tag;
    size_t bytes;
} meta_array;

static void add(_Atomic size_t *live, _Atomic size_t *peak, size_t bytes) {
    const size_t now = atomic_fetch_add(live, bytes) + bytes;
    size_t most = atomic_load(peak);
    while (now > most && !atomic_compare_exchange_weak(peak, &most, now)) continue;
}

/* Passes and optimizers take activations and states, and end here before they compute. */
static void *meta_alloc(void *state, lora_mem_tag tag, size_t bytes) {
    meta_device *device = state;
    if (tag == LORA_MEM_ACTIVATION || tag == LORA_MEM_OPTIM) return NULL;
    meta_array *array = lora_mem_alloc(&device->engine->mem, LORA_MEM_SCRATCH, sizeof *array);
    if (!array) return NULL;
    *array = (meta_array){.tag = tag, .bytes = bytes};
    add(&device->live[tag], &device->peak[tag], bytes);
    add(&device->total_live, &device->total_peak, bytes);
    return array;
}

static void meta_free(void *state, void *p) {
    meta_device *device = state;
    const meta_array *array = p;
    atomic_fetch_sub(&device->live[array->tag], array->bytes);
    atomic_fetch_sub(&device->total_live, array->bytes);
    lora_mem_free(&device->engine->mem, p);
}

static void *meta_stage_alloc(void *state, size_t bytes) {
    return lora_mem_alloc(&((meta_device *)state)->engine->mem, LORA_MEM_SCRATCH, bytes);
}
static void meta_stage_free(void *state, void *p) { lora_mem_free(&((meta_device *)state)->engine->mem, p); }

static lora_status meta_upload(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    (void)state, (void)to, (void)from, (void)bytes, (void)err;
    return LORA_OK;
}

static lora_status meta_download(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    (void)state, (void)to, (void)from, (void)bytes;
    return lora_fail(err, LORA_EUNSUPPORTED, "device meta: expected an array with values, got one without");
}

static lora_status meta_clear(void *state, void *p, size_t bytes, lora_error *err) {
    (void)state, (void)p, (void)bytes, (void)err;
    return LORA_OK;
}

static lora_status meta_sync(void *state, lora_error *err) {
    (void)state, (void)err;
    return LORA_OK;
}

static lora_status meta_paged_alloc(void *state, const char *folder, size_t bytes, void **out, lora_error *err) {
    (void)state, (void)folder, (void)bytes, (void)out;
    return lora_fail(err, LORA_EUNSUPPORTED, "device meta: expected a device with memory, got one without");
}
static void meta_paged_free(void *state, void *p, size_t bytes) { (void)state, (void)p, (void)bytes; }
static void meta_paged_advise(void *state, void *p, size_t bytes, lora_page_use use) { (void)state, (void)p, (void)bytes, (void)use; }

static lora_mem_usage meta_usage(const void *state, lora_mem_tag tag) {
    const meta_device *device = state;
    if (tag == LORA_MEM_TAGS)
        return (lora_mem_usage){.live_bytes = atomic_load(&device->total_live), .peak_bytes = atomic_load(&device->total_peak)};
    return (lora_mem_usage){.live_bytes = atomic_load(&device->live[tag]), .peak_bytes = atomic_load(&device->peak[tag])};
}

static void meta_reset_peak(void *state) {
    meta_device *device = state;
    for (int tag = 0; tag < LORA_MEM_TAGS; tag++) atomic_store(&device->peak[tag], atomic_load(&device->live[tag]));
    atomic_store(&device->total_peak, atomic_load(&device->total_live));
}

static lora_status meta_memory_info(void *state, lora_memory_info *out, lora_error *err) {
    (void)state, (void)err;
    *out = (lora_memory_info){.free_bytes = SIZE_MAX, .total_bytes = SIZE_MAX};
    return LORA_OK;
}

static void *meta_stream(const void *state) {
    (void)state;
    return NULL;
}

static lora_status meta_stream_follows(void *state, void *stream, void *before, lora_error *err) {
    (void)state, (void)stream, (void)before, (void)err;
    return LORA_OK;
}

static int64_t meta_devices(int64_t most, lora_device *out) {
    if (most > 0) *out = (lora_device){.name = "meta", .description = "shapes without memory"};
    return 1;
}

/* Shared memory that a block may have, by compute capability.   Source  CUDA C++ Programming Guide, table of technical specifications */
static int64_t shared_bytes_of(int capability) {
    static const struct {
        int capability, kib;
    } known[] = {{75, 64}, {80, 163}, {86, 99}, {89, 99}, {90, 227}, {100, 227}, {120, 99}};
    int64_t kib = 64;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (capability >= known[i].capability) kib = known[i].kib;
    return kib * 1024;
}

static bool is_gpu(const lora_ctx *ctx, lora_gpu_facts *gpu) {
    const meta_device *device = ctx->view.state;
    *gpu = (lora_gpu_facts){.major = device->capability / 10,
                            .shared_bytes = shared_bytes_of(device->capability),
                            .is_fast = ctx->view.precision != LORA_PRECISION_EXACT};
    return device->capability > 0;
}

static lora_dtype meta_linear_operand(const lora_ctx *ctx, int64_t M) {
    lora_gpu_facts gpu;
    return is_gpu(ctx, &gpu) ? lora_gpu_linear_operand(&gpu, M) : LORA_F32;
}

static bool meta_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    lora_gpu_facts gpu;
    return is_gpu(ctx, &gpu) ? lora_gpu_keeps_low(M, adapter) : lora_cpu_linear_keeps_low(ctx, M, adapter);
}

static int64_t meta_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    lora_gpu_facts gpu;
    return is_gpu(ctx, &gpu) ? lora_gpu_scratch_bytes(shape, &gpu) : lora_cpu_scratch_bytes(ctx, shape);
}

bool lora_meta_index(const char *name, int64_t *index) {
    *index = 0;
    if (strncmp(name, "meta", 4) != 0 || (name[4] != '\0' && name[4] != ':')) return false;
    const char *p = name + 4;
    if (*p == '\0') return true;
    for (p++; *p >= '0' && *p <= '9' && *index < 100; p++) *index = 10 * *index + (*p - '0');
    if (*index < 1 || p[0] != '.' || p[1] < '0' || p[1] > '9' || p[2] != '\0') return false;
    *index = 10 * *index + (p[1] - '0');
    return true;
}

static lora_status meta_create(lora_ctx *host, int64_t index, void **state, lora_error *err) {
    meta_device *device = lora_host_alloc(host, LORA_MEM_SCRATCH, sizeof *device);
    LORA_CHECK(device, err, LORA_ENOMEM, "device meta: expected %zu bytes, got none", sizeof *device);
    device->engine = host->engine;
    device->capability = (int)index;
    *state = device;
    return LORA_OK;
}

static void meta_destroy(void *state) { lora_mem_free(&((meta_device *)state)->engine->mem, state); }

const lora_backend lora_meta_backend = {
    .abi = LORA_BACKEND_ABI,
    .name = "meta",
    .devices = meta_devices,
    .create = meta_create,
    .destroy = meta_destroy,
    .has_int8 = true, /* as a GPU, too, though these lack it: a process that has planned for one goes on in any precision */
    .linear_operand = meta_linear_operand,
    .memory = {.alloc = meta_alloc,
               .free = meta_free,
               .stage_alloc = meta_stage_alloc,
               .stage_free = meta_stage_free,
               .upload = meta_upload,
               .download = meta_download,
               .clear = meta_clear,
               .sync = meta_sync,
               .paged_alloc = meta_paged_alloc,
               .paged_free = meta_paged_free,
               .paged_advise = meta_paged_advise,
               .usage = meta_usage,
               .reset_peak = meta_reset_peak,
               .memory_info = meta_memory_info,
               .stream = meta_stream,
               .stream_follows = meta_stream_follows},
    .ops =
        {
            .norm_forward = meta_norm_forward,
            .norm_backward = meta_norm_backward,
            .scale_rows = meta_scale_rows,
            .add_noise = meta_add_noise,
            .scale_columns = meta_scale_columns,
            .scale_columns_backward = meta_scale_columns_backward,
            .softcap_rows = meta_softcap_rows,
            .softcap_backward = meta_softcap_backward,
            .rope_table = meta_rope_table,
            .rope = meta_rope,
            .attention_forward = meta_attention_forward,
            .attention_backward = meta_attention_backward,
            .mlp_forward = meta_mlp_forward,
            .mlp_backward = meta_mlp_backward,
            .embedding_forward = meta_embedding_forward,
            .embedding_backward = meta_embedding_backward,
            .linear_cross_entropy = meta_linear_cross_entropy,
            .values_loss = meta_values_loss,
            .copy_rows = meta_copy_rows,
            .convert_rows = meta_convert_rows,
            .linear_forward = meta_linear_forward,
            .linear_backward = meta_linear_backward,
            .dora_norm = meta_dora_norm,
            .linear_merge = meta_linear_merge,
            .linear_merge_backward = meta_linear_merge_backward,
            .adamw_step = meta_adamw_step,
            .adamw8bit_step = meta_adamw8bit_step,
            .sgd_step = meta_sgd_step,
            .lion_step = meta_lion_step,
            .adafactor_step = meta_adafactor_step,
            .muon_step = meta_muon_step,
            .sum_of_squares = meta_sum_of_squares,
            .quantize_4bit = meta_quantize_4bit,
            .double_quantize = meta_double_quantize,
            .dequantize = meta_dequantize,
            .linear_keeps_low = meta_linear_keeps_low,
            .scratch_bytes = meta_scratch_bytes,
        },
};
