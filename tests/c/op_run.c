#include "tests/c/op_run.h"

#include "lora_c/base/util.h"

#include <stdio.h>

/* --- arrays --- */

static void end_program_unless(bool fits, const char *what) {
    if (fits) return;
    printf("%s of a case: expected room for one more, got none\n", what);
    exit(1);
}

static void *keep_array(op_run *r, void *device) {
    end_program_unless(device && r->n_arrays < OP_RUN_ARRAYS, "arrays");
    return r->arrays[r->n_arrays++] = device;
}

void *op_send(op_run *r, const void *host, size_t bytes) {
    void *device = keep_array(r, lora_ctx_alloc_uncleared(r->ctx, LORA_MEM_ACTIVATION, bytes));
    OK(lora_upload(r->ctx, device, host, bytes, ERR));
    OK(lora_sync(r->ctx, ERR)); /* host may go */
    return device;
}

float *op_floats(op_run *r, int64_t n, float scale) {
    float *host = malloc((size_t)(n + 1) * sizeof *host);
    check_normal(host, n, ++r->seed, scale);
    float *device = op_send(r, host, (size_t)n * sizeof *host);
    free(host);
    return device;
}

lora_mat op_mat(op_run *r, int64_t rows, int64_t cols, float scale) {
    return lora_mat_f32(op_floats(r, rows * (cols + 3), scale), rows, cols, cols + 3);
}

/* Each array for itself: AddressSanitizer sees what is read beyond one, which in one block would be its neighbour. */
static void send_apart(op_run *r, const lora_nf4 *host, lora_nf4 *placed) {
    int64_t blocks = lora_nf4_blocks(host->rows, host->cols, host->block_size);
    placed->lut = op_send(r, host->lut, 16 * sizeof *host->lut);
    placed->codes = op_send(r, host->codes, (size_t)lora_nf4_code_bytes(host->rows, host->cols));
    if (host->absmax) {
        placed->absmax = op_send(r, host->absmax, (size_t)blocks * sizeof *host->absmax);
        return;
    }
    int64_t nested = lora_div_up(blocks, host->nested_block_size);
    placed->absmax_codes = op_send(r, host->absmax_codes, (size_t)blocks);
    placed->nested_absmax = op_send(r, host->nested_absmax, (size_t)nested * sizeof *host->nested_absmax);
    placed->nested_map = op_send(r, host->nested_map, 256 * sizeof *host->nested_map);
}

lora_weight op_weight(op_run *r, const lora_weight *host) {
    lora_weight placed;
    void *memory;
    OK(lora_weight_place(r->ctx, host, &placed, &memory, ERR));
    if (!memory) return placed;
    (void)keep_array(r, memory);
    if (host->kind == LORA_WEIGHT_NF4) send_apart(r, &host->nf4, &placed.nf4);
    return placed;
}

/* --- results --- */

static size_t bytes_of(value_kind kind) { return kind == VALUES_F64 ? 8 : kind == VALUES_F32 ? 4 : 2; }

void op_keep(op_run *r, const char *what, const void *device, int64_t n, value_kind kind) {
    end_program_unless(r->n_results < OP_RUN_RESULTS, "results");
    op_values *v = &r->results[r->n_results++];
    *v = (op_values){.kind = kind, .n = n, .data = malloc((size_t)n * bytes_of(kind) + 1)};
    snprintf(v->what, sizeof v->what, "%s", what);
    OK(lora_download(r->ctx, v->data, device, (size_t)n * bytes_of(kind), ERR));
    OK(lora_sync(r->ctx, ERR));
}

void op_keep_mat(op_run *r, const char *what, lora_mat m) {
    op_keep(r, what, m.data, (m.rows - 1) * m.ld + m.cols, m.dtype == LORA_F32 ? VALUES_F32 : VALUES_BF16);
}

static double value_at(const op_values *v, int64_t i) {
    if (v->kind == VALUES_F64) return ((const double *)v->data)[i];
    if (v->kind == VALUES_F32) return (double)((const float *)v->data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)v->data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* --- comparison --- */

static void compare(const char *name, const char *where, const op_values *got, const op_values *want, double tolerance) {
    if (tolerance == 0) {
        CHECK(memcmp(got->data, want->data, (size_t)got->n * bytes_of(got->kind)) == 0, "%s on %s: other bits in %s", name, where,
              got->what);
        return;
    }
    double worst = 0, top = 0, rounding = got->kind == VALUES_BF16 ? 0x1p-8 : 0;
    for (int64_t i = 0; i < got->n; i++) {
        top = fmax(top, fabs(value_at(want, i)));
        double off = fabs(value_at(got, i) - value_at(want, i));
        worst = worse(worst, off);
    }
    CHECK(worst <= (tolerance + rounding) * top, "%s on %s: %s is off by %.3g of %.3g", name, where, got->what, worst, top);
}

static void run_case(const op_case *c, lora_ctx *ctx, lora_precision precision, op_run *out) {
    *out = (op_run){.ctx = ctx, .seed = 100};
    OK(lora_ctx_set_precision(ctx, precision, ERR));
    c->run(out);
    for (int i = 0; i < out->n_arrays; i++) lora_ctx_free(ctx, out->arrays[i]);
}

static void free_results(op_run *r) {
    for (int i = 0; i < r->n_results; i++) free(r->results[i].data);
}

static void check_case(const op_case *c, const checked_device *device, lora_ctx *ctx, lora_ctx *like, lora_precision precision,
                       bool same_bits) {
    static op_run got, want;
    double tolerance = same_bits ? 0 : device->tolerance[precision];
    bool on_cpu = strcmp(device->name, "cpu") == 0;
    if (on_cpu && !same_bits)
        tolerance = precision == LORA_PRECISION_FAST ? 2e-2 : 2e-5; /* of the ref rung's results, whose operands are exact */
    run_case(c, ctx, precision, &got);
    run_case(c, like, tolerance == 0 ? precision : LORA_PRECISION_EXACT, &want);
    CHECK(got.n_results == want.n_results && got.n_results > 0, "%s: %d results, expected %d", c->name, got.n_results, want.n_results);
    for (int i = 0; i < got.n_results && i < want.n_results; i++)
        compare(c->name, device->name, &got.results[i], &want.results[i], tolerance);
    free_results(&got);
    free_results(&want);
}

static void check_cases(const op_case *cases, int n, bool promised) {
    const checked_device *devices;
    int n_devices = checked_devices(&devices);
    for (int d = 0; d < n_devices; d++) {
        bool same_bits = promised || (d > 0 && devices[d].tolerance[0] == 0);
        lora_ctx *ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 2),
                 *like = check_ctx(same_bits ? LORA_ISA_AUTO : LORA_ISA_REF, 2);
        for (int i = 0; i < n; i++)
            for (int p = LORA_PRECISION_EXACT; p <= LORA_PRECISION_FAST; p++)
                check_case(&cases[i], &devices[d], ctx, like, (lora_precision)p, promised);
        device_ctx_free(ctx);
        lora_ctx_destroy(like);
    }
}

/* What each case gives on every rung of the CPU. */
static void tell_hashes(const op_case *cases, int n) {
    static op_run got;
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 2);
        for (int i = 0; i < 2 * n; i++) {
            lora_precision precision = i % 2 ? LORA_PRECISION_FAST : LORA_PRECISION_EXACT;
            run_case(&cases[i / 2], ctx, precision, &got);
            OK(lora_ctx_set_precision(ctx, precision, ERR)); /* which a case may have changed */
            begin_run();
            for (int k = 0; k < got.n_results; k++) mix(got.results[k].data, (size_t)got.results[k].n * bytes_of(got.results[k].kind));
            tell_hash(cases[i / 2].name, ctx, hash_of_run());
            free_results(&got);
        }
        lora_ctx_destroy(ctx);
    }
}

void op_check_cases(const op_case *cases, int n) {
    check_cases(cases, n, false);
    if (hashes_are_told()) tell_hashes(cases, n);
}

void op_check_same_bits(const op_case *cases, int n) { check_cases(cases, n, true); }
