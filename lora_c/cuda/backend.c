/* The plug-in's one symbol: NVIDIA GPUs as devices. */
#include <stdio.h>
#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/cuda/graphs.h"
#include "lora_c/cuda/memory.h"
#include "lora_c/cuda/products.h"
#include "lora_c/cuda/table.h"

enum {
    LEAST_DRIVER = 13000,     /* CUDA 13's run-time library */
    LEAST_MAJOR = 7,          /* compute capability 7.5: Turing */
    LEAST_MINOR_OF_LEAST = 5, /* nvcc 13 compiles nothing older */
};

typedef struct owned_state {
    lora_cuda cuda; /* first: the state that operations see */
    lora_mem host;
} owned_state;

lora_status lora_cuda_check(const lora_cuda *c, int code, const char *what, lora_error *err) {
    if (code == 0) return LORA_OK;
    return lora_fail(err, LORA_EDEVICE, "%s: expected success, got %s (%d) on %s:%d; the device may need a new process", what,
                     c->api->error_text(code), code, c->api->name, c->device);
}

/* --- what there is --- */

static void name_device(const lora_cuda_api *api, int index, lora_device *out) {
    if (index == 0)
        snprintf(out->name, sizeof out->name, "%s", api->name);
    else
        snprintf(out->name, sizeof out->name, "%s:%d", api->name, index);
}

static void describe(const lora_cuda_api *api, int index, int driver, lora_device *out) {
    lora_cuda_properties p;
    memset(out, 0, sizeof *out);
    name_device(api, index, out);
    int code = api->describe(index, &p);
    if (code != 0) {
        snprintf(out->description, sizeof out->description, "a GPU that does not answer");
        snprintf(out->reason, sizeof out->reason, "%s: expected a GPU that answers, got %s; see what nvidia-smi says of it", out->name,
                 api->error_text(code));
        return;
    }
    snprintf(out->description, sizeof out->description, "%.60s, compute capability %d.%d, %.1f GiB, CUDA driver %d.%d", p.name, p.major,
             p.minor, (double)p.memory_bytes / (1 << 30), driver / 1000, driver % 1000 / 10);
    char why[LORA_ERROR_BYTES / 2] = "";
    if (p.major < LEAST_MAJOR || (p.major == LEAST_MAJOR && p.minor < LEAST_MINOR_OF_LEAST))
        snprintf(out->reason, sizeof out->reason, "%s: expected compute capability 7.5 or later (Turing), got %d.%d; use device cpu",
                 out->name, p.major, p.minor);
    else if (!api->cublaslt(why, sizeof why))
        snprintf(out->reason, sizeof out->reason, "%s: %s", out->name, why);
}

/* The device that stands for all where the driver is missing or too old. */
static int64_t without_driver(const lora_cuda_api *api, int driver, int64_t most, lora_device *out) {
    if (most < 1) return 1;
    memset(out, 0, sizeof *out);
    name_device(api, 0, out);
    snprintf(out->description, sizeof out->description, "NVIDIA GPUs");
    if (driver == 0)
        snprintf(out->reason, sizeof out->reason,
                 "%s: expected NVIDIA's driver 580 or later, got none; install it where there is a GPU, or use device cpu", out->name);
    else
        snprintf(out->reason, sizeof out->reason,
                 "%s: expected NVIDIA's driver 580 or later (CUDA 13.0), got one for CUDA %d.%d; bring it up to date, or use device cpu",
                 out->name, driver / 1000, driver % 1000 / 10);
    return 1;
}

static int64_t devices(int64_t most, lora_device *out) {
    const lora_cuda_api *api = lora_cuda_api_table();
    int driver = 0, n = 0;
    if (api->driver_version(&driver) != 0) driver = 0;
    if (driver < LEAST_DRIVER) return without_driver(api, driver, most, out);
    int code = api->device_count(&n);
    if (code != 0 || n <= 0) {
        if (most < 1) return 1;
        memset(out, 0, sizeof *out);
        name_device(api, 0, out);
        snprintf(out->description, sizeof out->description, "NVIDIA GPUs");
        snprintf(out->reason, sizeof out->reason, "%s: expected a GPU, got %s; nvidia-smi and CUDA_VISIBLE_DEVICES say which there are",
                 out->name, code != 0 ? api->error_text(code) : "none");
        return 1;
    }
    for (int i = 0; i < n && i < most; i++) describe(api, i, driver, &out[i]);
    return n;
}

/* --- begin and end --- */

static void destroy(void *state) {
    owned_state *s = state;
    lora_cuda *c = &s->cuda;
    (void)c->api->set_device(c->device);
    if (c->stream) (void)c->api->stream_wait(c->graphs ? lora_cuda_stream(c) : c->stream);
    lora_cuda_products_destroy(c, &s->host);
    lora_cuda_memory_destroy(c, &s->host);
    lora_cuda_graphs_destroy(c, &s->host);
    if (c->stream) (void)c->api->stream_destroy(c->stream);
    lora_mem spare;
    lora_mem_init(&spare);
    lora_mem_free(&spare, s);
}

static lora_status begin(owned_state *s, lora_error *err) {
    lora_cuda *c = &s->cuda;
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    LORA_TRY(lora_cuda_check(c, c->api->describe(c->device, &c->properties), "cudaGetDeviceProperties", err));
    LORA_TRY(lora_cuda_check(c, c->api->stream_create(&c->stream), "cudaStreamCreateWithFlags", err));
    LORA_TRY(lora_cuda_graphs_create(c, &s->host, err));
    LORA_TRY(lora_cuda_memory_create(c, &s->host, err));
    return lora_cuda_products_create(c, &s->host, err);
}

static lora_status create(lora_ctx *host, int64_t index, void **state, lora_error *err) {
    lora_mem spare;
    lora_mem_init(&spare);
    owned_state *s = lora_mem_calloc(&spare, LORA_MEM_SCRATCH, sizeof *s);
    LORA_CHECK(s, err, LORA_ENOMEM, "device: expected %zu bytes, got none", sizeof *s);
    lora_mem_init(&s->host);
    s->cuda.api = lora_cuda_api_table();
    s->cuda.device = (int)index;
    s->cuda.host = host;
    lora_status status = begin(s, err);
    if (status == LORA_OK)
        *state = s;
    else
        destroy(s);
    return status;
}

#define OPERATION(name) .name = lora_cuda_##name

static lora_backend table = {
    .abi = LORA_BACKEND_ABI,
    .host_memory = false,
    .devices = devices,
    .create = create,
    .destroy = destroy,
    OPERATION(linear_operand),
    .ops =
        {
            OPERATION(norm_forward),
            OPERATION(norm_backward),
            OPERATION(scale_rows),
            OPERATION(add_noise),
            OPERATION(scale_columns),
            OPERATION(scale_columns_backward),
            OPERATION(softcap_rows),
            OPERATION(softcap_backward),
            OPERATION(rope_table),
            OPERATION(rope),
            OPERATION(attention_forward),
            OPERATION(attention_backward),
            OPERATION(mlp_forward),
            OPERATION(mlp_backward),
            OPERATION(embedding_forward),
            OPERATION(embedding_backward),
            OPERATION(linear_cross_entropy),
            OPERATION(values_loss),
            OPERATION(copy_rows),
            OPERATION(convert_rows),
            OPERATION(linear_forward),
            OPERATION(linear_backward),
            OPERATION(linear_keeps_low),
            OPERATION(dora_norm),
            OPERATION(linear_merge),
            OPERATION(linear_merge_backward),
            OPERATION(adamw_step),
            OPERATION(adamw8bit_step),
            OPERATION(sgd_step),
            OPERATION(lion_step),
            OPERATION(adafactor_step),
            OPERATION(muon_step),
            OPERATION(sum_of_squares),
            OPERATION(quantize_4bit),
            OPERATION(double_quantize),
            OPERATION(dequantize),
            OPERATION(scratch_bytes),
        },
};

__attribute__((visibility("default"))) const lora_backend *lora_backend_entry(uint32_t abi);
const lora_backend *lora_backend_entry(uint32_t abi) {
    if (abi != LORA_BACKEND_ABI) return NULL;
    table.name = lora_cuda_api_table()->name;
    table.memory = lora_cuda_memory_table;
    return &table;
}
