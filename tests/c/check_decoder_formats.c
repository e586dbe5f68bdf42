/* A decoder whose activations are kept in bfloat16 or int8, or whose frozen weights are compressed, against the float64 oracle. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/decoder_oracle.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"

/* --- activations in bfloat16 and int8 --- */

/* A type, and how far from float32 a gradient may be, and all of them together, squared. */
typedef struct kept_type {
    lora_dtype dtype;
    double each, all;
} kept_type;

/* The loss keeps its bits; a gradient moves by what rounding its activations once can do, on any number of threads alike. */
static void check_kept(oracle_options options, kept_type kept) {
    const char *name = lora_dtype_name(kept.dtype);
    oracle_model *want = oracle_new(options), *got = oracle_new(options), *again = oracle_new(options);
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2), *one = device_ctx(LORA_ISA_AUTO, 1);
    lora_decoder *exact = oracle_decoder(want, ctx, NULL), *d = oracle_decoder(got, ctx, NULL), *e = oracle_decoder(again, one, NULL);
    lora_error err;
    CHECK(lora_decoder_set_activation_dtype(d, kept.dtype, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_set_activation_dtype(e, kept.dtype, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_set_activation_dtype(d, LORA_F16, &err) == LORA_EDTYPE, "float16 activations are refused");
    CHECK(lora_decoder_arena_bytes(d, 64, true) < lora_decoder_arena_bytes(exact, 64, true), "%s activations take less memory", name);
    double loss = oracle_step(want, exact);
    CHECK(oracle_step(got, d) == loss, "%s activations: other loss", name);
    CHECK(oracle_step(again, e) == loss, "%s activations: other loss on one thread", name);
    oracle_same_gradients(again, got, "rounded activations, threads");
    double all_distance = 0, all_length = 0;
    for (int i = 0; i < O_TENSORS; i++) {
        if (!got->t[i].g) continue;
        double distance = 0, length = 0;
        for (int64_t j = 0; j < got->t[i].n; j++) {
            double difference = (double)got->t[i].g[j] - (double)want->t[i].g[j];
            distance += difference * difference;
            length += (double)want->t[i].g[j] * (double)want->t[i].g[j];
        }
        all_distance += distance;
        all_length += length;
        /* loose for the bias of k, whose terms all but cancel: the softmax does not see a common shift */
        CHECK(distance <= kept.each * length, "%s activations: gradient of %s off by %.3g", name, oracle_name(i), sqrt(distance / length));
    }
    CHECK(all_distance > 0, "%s activations: no gradient changed, so nothing was rounded", name);
    CHECK(all_distance <= kept.all * all_length, "%s activations: gradients together off by %.3g, expected at most %.3g", name,
          sqrt(all_distance / all_length), sqrt(kept.all));
    lora_decoder_destroy(exact);
    lora_decoder_destroy(d);
    lora_decoder_destroy(e);
    device_ctx_free(ctx);
    device_ctx_free(one);
    oracle_free(want);
    oracle_free(got);
    oracle_free(again);
}

void check_bf16_activations(oracle_options options) {
    check_kept(options, (kept_type){.dtype = LORA_BF16, .each = 0x1p-8, .all = 0x1p-14}); /* 4 units of bfloat16 */
}

void check_int8_activations(oracle_options options) {
    check_kept(options, (kept_type){.dtype = LORA_INT8, .each = 0x1p-8, .all = 0x1p-12});
}

void check_int8_activations_refused(oracle_options options) {
    oracle_model *m = oracle_new(options);
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 1);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_error err;
    if (!lora_ctx_has_int8(ctx)) {
        CHECK(lora_decoder_set_activation_dtype(d, LORA_INT8, &err) == LORA_EUNSUPPORTED, "int8 on a device without it");
        CHECK(strstr(err.message, "activation_dtype: expected float32 or bfloat16 on device "), "%s", err.message);
    }
    lora_decoder_destroy(d);
    device_ctx_free(ctx);
    oracle_free(m);
}

/* --- other weight formats --- */

static uint16_t *to_bf16(float *w, int64_t n) { /* by cutting: any bfloat16 will do, w follows it */
    uint16_t *bits = calloc((size_t)n + 64, sizeof *bits);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, w + i, 4);
        bits[i] = (uint16_t)(u >> 16);
        u &= 0xffff0000u;
        memcpy(w + i, &u, 4);
    }
    return bits;
}

/* codes and absmax behind each other; w follows what they decode to */
static lora_nf4 to_nf4(lora_ctx *ctx, float *w, int64_t rows, int64_t cols, void **memory) {
    lora_error err = {0};
    int64_t bytes = (lora_nf4_code_bytes(rows, cols) + 127) / 64 * 64;
    uint8_t *codes = *memory = calloc(1, (size_t)(bytes + 4 * lora_nf4_blocks(rows, cols, 64) + 64));
    float *absmax = (float *)(codes + bytes);
    CHECK(lora_nf4_quantize(ctx, w, LORA_F32, rows, cols, 64, codes, absmax, &err) == LORA_OK, "%s", err.message);
    lora_nf4 q = {.rows = rows, .cols = cols, .block_size = 64, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    CHECK(lora_nf4_dequantize(ctx, &q, 0, rows * cols, w, LORA_F32, &err) == LORA_OK, "%s", err.message);
    return q;
}

static void set_compressed(oracle_model *m, lora_decoder *d, lora_ctx *ctx, lora_weight_kind kind, lora_nf4 *nf4, void **memory) {
    for (int i = 0; i < O_EMBED; i++) {
        oracle_tensor *t = &m->t[i];
        if (i % O_PER_LAYER >= O_BIAS) continue;
        lora_weight w;
        if (kind == LORA_WEIGHT_NF4) {
            nf4[i] = to_nf4(ctx, t->w, t->rows, t->cols, &memory[i]);
            w = lora_weight_nf4(&nf4[i]);
        } else {
            w = lora_weight_bf16(memory[i] = to_bf16(t->w, t->n), t->rows, t->cols, t->cols);
        }
        lora_error err = {0};
        CHECK(mirror_matrix(ctx, &w, NULL, &err) == LORA_OK, "%s", err.message);
        CHECK(lora_decoder_set_matrix(d, i / O_PER_LAYER, (lora_matrix_slot)(i % O_PER_LAYER), &w, NULL, &err) == LORA_OK, "%s",
              err.message);
    }
    oracle_sync(m);
}

/* Frozen bfloat16 and NF4 layers: the oracle holds the values that they decode to. */
static void check_format(oracle_options options, lora_weight_kind kind) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *m = oracle_new(options);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_nf4 nf4[O_EMBED];
    void *memory[O_EMBED] = {NULL};
    set_compressed(m, d, ctx, kind, nf4, memory);
    lora_batch batch = oracle_batch();
    double loss = oracle_step(m, d), want = oracle_loss(m, &batch, true);
    CHECK(fabs(loss - want) < 1e-5 * want, "weight kind %d: loss %.9g, expected %.9g", (int)kind, loss, want);
    for (int i = O_A; i < O_A + 7; i++) {
        double expected = 0.5 * oracle_slope(m, i, 1), got = (double)m->t[i].g[1];
        CHECK(fabs(got - expected) <= 320 * 0x1p-24 * oracle_largest(m->t[i].g, m->t[i].n), "weight kind %d: %s: %.9g, expected %.9g",
              (int)kind, oracle_name(i), got, expected);
    }
    lora_decoder_destroy(d);
    device_ctx_free(ctx);
    for (int i = 0; i < O_EMBED; i++) free(memory[i]);
    oracle_free(m);
}

void check_weight_formats(oracle_options options) {
    check_format(options, LORA_WEIGHT_BF16);
    check_format(options, LORA_WEIGHT_NF4);
}
