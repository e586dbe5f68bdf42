/* Operations of a device alone, one JSON object a line: bytes moved against a copy on the device, linear layers in NF4 and bfloat16,
 * attention. LORA_C_BACKENDS names the device's library.
 *
 * Usage: bench_device DEVICE [tiny] [memory] [linear] [attention] */
#include "benchmarks/device_attention.h"
#include "benchmarks/device_linear.h"

/* --- memory --- */

typedef struct rows_case {
    device_bench *b;
    lora_mat from, to, rounded;
    lora_weight w;
    lora_norm norm;
    float *stats, *merged;
} rows_case;

static lora_status copy(void *data, int64_t call, lora_error *err) {
    rows_case *c = data;
    return lora_copy_rows(c->b->ctx, call % 2 ? c->to : c->from, NULL, call % 2 ? c->from : c->to, NULL, false, err);
}

static lora_status round_to_bf16(void *data, int64_t call, lora_error *err) {
    (void)call;
    rows_case *c = data;
    return lora_convert_rows(c->b->ctx, c->from, c->rounded, err);
}

static lora_status dequantize(void *data, int64_t call, lora_error *err) {
    (void)call;
    rows_case *c = data;
    return lora_linear_merge(c->b->ctx, &c->w, NULL, NULL, 1, c->merged, err);
}

static lora_status rms_norm(void *data, int64_t call, lora_error *err) {
    (void)call;
    rows_case *c = data;
    return lora_norm_forward(c->b->ctx, &c->norm, c->from, c->to, c->stats, err);
}

static lora_status swiglu(void *data, int64_t call, lora_error *err) {
    (void)call;
    rows_case *c = data;
    return lora_mlp_forward(c->b->ctx, LORA_SILU, c->from, c->to, c->to, err);
}

static void bench_memory(device_bench *b) {
    int64_t rows = b->tiny ? 64 : 16384, cols = b->tiny ? 128 : 4096, N = b->tiny ? 128 : 14336;
    double n = (double)(rows * cols);
    rows_case c = {.b = b, .from = matrix(b, rows, cols), .to = matrix(b, rows, cols)};
    char sizes[128];
    snprintf(sizes, sizeof sizes, "\"rows\": %lld, \"cols\": %lld, ", (long long)rows, (long long)cols);
    double seconds = print_row(b, "copy", sizes, copy, &c, 8 * n, 0);
    b->copy_speed = seconds > 0 ? 8 * n / seconds : 0;
    c.rounded = (lora_mat){.data = on_device(b, (size_t)n * 2), .rows = rows, .cols = cols, .ld = cols, .dtype = LORA_BF16};
    print_row(b, "round to bfloat16", sizes, round_to_bf16, &c, 6 * n, 0);
    c.norm = (lora_norm){.kind = LORA_NORM_RMS, .H = cols, .groups = 1, .eps = 1e-5f, .weight = floats(b, cols)};
    c.stats = floats(b, 2 * rows);
    print_row(b, "RMS norm", sizes, rms_norm, &c, 8 * n, 0);
    print_row(b, "SwiGLU", sizes, swiglu, &c, 12 * n, 0);
    void *memory_of;
    c.w = random_weight(b, true, N, cols, &memory_of);
    c.merged = floats(b, N * cols);
    snprintf(sizes, sizeof sizes, "\"rows\": %lld, \"cols\": %lld, ", (long long)N, (long long)cols);
    print_row(b, "dequantize NF4 to float32", sizes, dequantize, &c, weight_bytes(true, N, cols) + 4 * (double)(N * cols), 0);
    lora_ctx_free(b->ctx, memory_of);
    void *arrays[] = {c.from.data, c.to.data, c.rounded.data, (void *)c.norm.weight, c.stats, c.merged};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) lora_ctx_free(b->ctx, arrays[i]);
}

int main(int argc, char **argv) {
    lora_error err = {0};
    lora_ctx *engine;
    device_bench b = {.noise = noise(DISTINCT_FLOATS)};
    bool chosen[3] = {false};
    static const char *const groups[] = {"memory", "linear", "attention"};
    for (int i = 2; i < argc; i++) {
        b.tiny |= strcmp(argv[i], "tiny") == 0;
        for (int g = 0; g < 3; g++) chosen[g] |= strcmp(argv[i], groups[g]) == 0;
    }
    bool all = !chosen[0] && !chosen[1] && !chosen[2];
    if (argc < 2) {
        fprintf(stderr, "usage: bench_device DEVICE [tiny] [memory] [linear] [attention]\n");
        return 2;
    }
    must(lora_ctx_create(NULL, &engine, &err), &err);
    must(lora_ctx_create_on(engine, argv[1], getenv("LORA_C_BACKENDS"), &b.ctx, &err), &err);
    must(lora_ctx_set_precision(b.ctx, LORA_PRECISION_FAST, &err), &err);
    if (all || chosen[0]) bench_memory(&b);
    if (all || chosen[1]) bench_linear(&b);
    if (all || chosen[2]) bench_attention(&b);
    lora_ctx_destroy(b.ctx);
    lora_ctx_destroy(engine);
    free(b.noise);
    return 0;
}
