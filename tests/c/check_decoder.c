/* Losses and gradients of the decoder against the float64 oracle, and what must not change a single bit of them. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/decoder_oracle.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"

static const oracle_options OPTIONS[] = {
    {.biases = true, .adapters = true, .dropout = 0.25f},
    {.tied = true, .adapters = true, .window = 3},
    {.tied = true, .biases = true},
    {.adapters = true, .dropout = 0.25f, .shared_a = true, .partial_rope = true, .switched_rope = true}, /* Phi 3 */
    {.tied = true,
     .adapters = true,
     .post_norm = true,
     .offset = true,
     .gelu = true,
     .softcaps = true,
     .scales = true,
     .local_layers = true,
     .window = 3},                                                                                                   /* Gemma 2 */
    {.tied = true, .adapters = true, .post_norm = true, .offset = true, .gelu = true, .qk_norm = LORA_QK_NORM_HEAD}, /* Gemma 3 */
    {.adapters = true, .no_pre_norm = true, .post_norm = true, .qk_norm = LORA_QK_NORM_ROW},                         /* OLMo 2 */
    {.tied = true, .adapters = true, .scales = true, .biases = true},                                                /* Granite */
    {.tied = true,
     .adapters = true,
     .biases = true,
     .layer_norm = true,
     .gelu = true,
     .ungated = true,
     .positions = true,
     .shared_a = true,
     .dropout = 0.25f}, /* GPT-2 */
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS, SAMPLES = 4 };

/* One step; the gradients lie in m afterwards. */
static double step(oracle_model *m, lora_decoder *d) {
    lora_batch batch = oracle_batch();
    lora_error err = {0};
    double loss = NAN;
    oracle_zero_grad(m);
    CHECK(MIRRORED(lora_decoder_forward_backward(d, &batch, 0.5f, &loss, &err)) == LORA_OK, "%s", err.message);
    same_on_every_device("loss", &loss, sizeof loss);
    for (int i = 0; i < O_TENSORS; i++)
        if (m->t[i].g) same_on_every_device(oracle_name(i), m->t[i].g, (size_t)m->t[i].n * sizeof(float));
    return loss;
}

static double largest(const float *g, int64_t n) {
    double top = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs((double)g[i]));
    return top;
}

/* --- gradients --- */

static int64_t sample_index(const oracle_tensor *t, int sample) { return (sample * 7919 + 13) % t->n; }

/* Central differences of the oracle's loss: the step error h^2 / 6 f''' is near 1e-9, the rounding error 1e-15 / h. */
static double slope(oracle_model *m, int tensor, int64_t i) {
    lora_batch batch = oracle_batch();
    const double h = 3e-5;
    double *p = &m->t[tensor].p[i], kept = *p, side[2];
    for (int s = 0; s < 2; s++) {
        *p = kept + (s ? -h : h);
        side[s] = oracle_loss(m, &batch, true);
    }
    *p = kept;
    return (side[0] - side[1]) / (2 * h);
}

/* An element of a gradient is the end of a chain of some 40 float32 reductions over at most 40 terms; each adds a few
 * 2^-24 of the largest values in its vector, so the error is measured against the largest element of the tensor. */
static void compare_gradients(const oracle_model *m, double (*want)[SAMPLES], const char *rung) {
    for (int i = 0; i < O_TENSORS; i++) {
        if (!m->t[i].g) continue;
        double tolerance = 40 * 8 * 0x1p-24 * largest(m->t[i].g, m->t[i].n);
        for (int s = 0; s < SAMPLES; s++) {
            int64_t at = sample_index(&m->t[i], s);
            double got = (double)m->t[i].g[at];
            CHECK(fabs(got - 0.5 * want[i][s]) <= tolerance + 1e-8, "%s: %s[%lld]: %.9g, expected %.9g within %.2g", rung, oracle_name(i),
                  (long long)at, got, 0.5 * want[i][s], tolerance);
        }
    }
}

static void check_gradients(oracle_options options) {
    oracle_model *m = oracle_new(options);
    lora_batch batch = oracle_batch();
    static double want[O_TENSORS][SAMPLES];
    double loss = oracle_loss(m, &batch, true), evaluation = oracle_loss(m, &batch, false);
    for (int i = 0; i < O_TENSORS; i++)
        for (int s = 0; s < SAMPLES && m->t[i].g; s++) want[i][s] = slope(m, i, sample_index(&m->t[i], s));
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = device_ctx(isa, 2);
        lora_decoder *d = oracle_decoder(m, ctx, NULL);
        lora_error err = {0};
        double got = step(m, d);
        CHECK(fabs(got - loss) < 1e-5 * loss, "%s: training loss %.9g, expected %.9g", lora_isa_name(isa), got, loss);
        compare_gradients(m, want, lora_isa_name(isa));
        CHECK(lora_decoder_loss(d, &batch, &got, NULL, &err) == LORA_OK, "%s", err.message);
        CHECK(fabs(got - evaluation) < 1e-5 * evaluation, "%s: evaluation loss %.9g, expected %.9g", lora_isa_name(isa), got, evaluation);
        lora_decoder_destroy(d);
        device_ctx_free(ctx);
    }
    CHECK((options.dropout > 0) == (fabs(loss - evaluation) > 1e-3), "dropout acts in training only: %g, %g", loss, evaluation);
    oracle_free(m);
}

/* --- the same bits --- */

static void check_equal(const oracle_model *got, const oracle_model *want, const char *what) {
    for (int i = 0; i < O_TENSORS; i++)
        if (got->t[i].g)
            CHECK(memcmp(got->t[i].g, want->t[i].g, (size_t)want->t[i].n * sizeof(float)) == 0, "%s: other bits in %s", what,
                  oracle_name(i));
}

/* Threads and recomputation. */
static void check_bits(oracle_options options, lora_isa isa) {
    static const int threads[] = {1, 2, 3, 8};
    oracle_model *want = oracle_new(options), *got = oracle_new(options);
    double first = 0;
    for (int i = 0; i < 8; i++) {
        lora_ctx *ctx = device_ctx(isa, threads[i / 2]);
        lora_decoder *d = oracle_decoder(i ? got : want, ctx, NULL);
        lora_decoder_set_recompute(d, i % 2 ? LORA_RECOMPUTE_LAYER : LORA_RECOMPUTE_NONE);
        double loss = step(i ? got : want, d);
        if (i == 0) first = loss;
        CHECK(loss == first, "%s, %d threads: loss %.17g, expected %.17g", lora_isa_name(isa), threads[i / 2], loss, first);
        if (i) check_equal(got, want, i % 2 ? "recompute" : "threads");
        lora_decoder_destroy(d);
        device_ctx_free(ctx);
    }
    oracle_free(want);
    oracle_free(got);
}

/* A gradient is the same whether everything trains or nothing else does: what backward leaves out was not needed. */
static void check_alone(oracle_options options) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *want = oracle_new(options), *got = oracle_new(options);
    lora_decoder *all = oracle_decoder(want, ctx, NULL);
    step(want, all);
    lora_decoder_destroy(all);
    for (int i = 0; i < O_TENSORS; i++) {
        if (!got->t[i].g) continue;
        bool trains[O_TENSORS] = {false};
        trains[i] = true;
        lora_decoder *d = oracle_decoder(got, ctx, trains);
        for (int r = 0; r < 2; r++) {
            lora_decoder_set_recompute(d, r ? LORA_RECOMPUTE_LAYER : LORA_RECOMPUTE_NONE);
            step(got, d);
            CHECK(memcmp(got->t[i].g, want->t[i].g, (size_t)got->t[i].n * sizeof(float)) == 0, "%s alone, recompute %d: other bits",
                  oracle_name(i), r);
        }
        lora_decoder_destroy(d);
        mirror_forget(ctx);
    }
    device_ctx_free(ctx);
    oracle_free(want);
    oracle_free(got);
}

/* --- activations in bfloat16 --- */

/* The loss keeps its bits; a gradient moves by what rounding its activations once can do, on any number of threads alike. */
static void check_bf16_activations(oracle_options options) {
    oracle_model *want = oracle_new(options), *got = oracle_new(options), *again = oracle_new(options);
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2), *one = device_ctx(LORA_ISA_AUTO, 1);
    lora_decoder *exact = oracle_decoder(want, ctx, NULL), *d = oracle_decoder(got, ctx, NULL), *e = oracle_decoder(again, one, NULL);
    lora_error err;
    CHECK(lora_decoder_set_activation_dtype(d, LORA_BF16, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_set_activation_dtype(e, LORA_BF16, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_set_activation_dtype(d, LORA_F16, &err) == LORA_EDTYPE, "float16 activations are refused");
    CHECK(lora_decoder_arena_bytes(d, 64, true) < lora_decoder_arena_bytes(exact, 64, true), "bfloat16 activations take less memory");
    double loss = step(want, exact);
    CHECK(step(got, d) == loss, "bfloat16 activations: other loss");
    CHECK(step(again, e) == loss, "bfloat16 activations: other loss on one thread");
    check_equal(again, got, "bfloat16 activations, threads");
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
        CHECK(distance <= 0x1p-8 * length, "bfloat16 activations: gradient of %s off by %.3g", oracle_name(i), sqrt(distance / length));
    }
    CHECK(all_distance > 0, "bfloat16 activations: no gradient changed, so nothing was rounded");
    CHECK(all_distance <= 0x1p-14 * all_length, "bfloat16 activations: gradients together off by %.3g, expected 4 units of bfloat16",
          sqrt(all_distance / all_length));
    lora_decoder_destroy(exact);
    lora_decoder_destroy(d);
    lora_decoder_destroy(e);
    device_ctx_free(ctx);
    device_ctx_free(one);
    oracle_free(want);
    oracle_free(got);
    oracle_free(again);
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
static void check_formats(lora_weight_kind kind) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *m = oracle_new(OPTIONS[0]);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_nf4 nf4[O_EMBED];
    void *memory[O_EMBED] = {NULL};
    set_compressed(m, d, ctx, kind, nf4, memory);
    lora_batch batch = oracle_batch();
    double loss = step(m, d), want = oracle_loss(m, &batch, true);
    CHECK(fabs(loss - want) < 1e-5 * want, "weight kind %d: loss %.9g, expected %.9g", (int)kind, loss, want);
    for (int i = O_A; i < O_A + 7; i++) {
        double expected = 0.5 * slope(m, i, 1), got = (double)m->t[i].g[1];
        CHECK(fabs(got - expected) <= 320 * 0x1p-24 * largest(m->t[i].g, m->t[i].n), "weight kind %d: %s: %.9g, expected %.9g", (int)kind,
              oracle_name(i), got, expected);
    }
    lora_decoder_destroy(d);
    device_ctx_free(ctx);
    for (int i = 0; i < O_EMBED; i++) free(memory[i]);
    oracle_free(m);
}

/* --- memory --- */

static int64_t arena_after_step(oracle_model *m, lora_ctx *ctx, const bool *trains, lora_recompute recompute) {
    lora_decoder *d = oracle_decoder(m, ctx, trains);
    lora_decoder_set_recompute(d, recompute);
    step(m, d);
    int64_t live = (int64_t)lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes;
    CHECK(live == lora_decoder_arena_bytes(d, O_TOKENS, true), "arena: %lld bytes, forecast %lld", (long long)live,
          (long long)lora_decoder_arena_bytes(d, O_TOKENS, true));
    CHECK(lora_decoder_arena_bytes(d, O_TOKENS, false) < live, "evaluation keeps less than training");
    ctx->engine->mem.fail_after = 0; /* the steady state allocates nothing */
    step(m, d);
    CHECK(ctx->engine->mem.fail_after == 0, "a second step allocates");
    ctx->engine->mem.fail_after = -1;
    lora_decoder_destroy(d);
    CHECK(lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes == 0, "arena left over");
    return live;
}

static void check_memory(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *m = oracle_new(OPTIONS[0]);
    bool head[O_TENSORS] = {[O_HEAD] = true}, last_q[O_TENSORS] = {[2 * O_PER_LAYER + O_A] = true, [2 * O_PER_LAYER + O_B] = true};
    int64_t none = arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_NONE), layer = arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_LAYER);
    int64_t last = arena_after_step(m, ctx, last_q, LORA_RECOMPUTE_NONE), only_head = arena_after_step(m, ctx, head, LORA_RECOMPUTE_NONE);
    CHECK(only_head < last && last < layer && layer < none, "arena bytes: head %lld, last layer %lld, recompute %lld, all %lld",
          (long long)only_head, (long long)last, (long long)layer, (long long)none);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    CHECK(lora_decoder_arena_bytes(d, INT64_MAX / 2, true) == INT64_MAX, "a size beyond the address space is not wrapped");
    lora_decoder_destroy(d);
    oracle_free(m);
    device_ctx_free(ctx);
}

static void check_on_device(void) {
    for (int i = 0; i < N_OPTIONS; i++) {
        check_gradients(OPTIONS[i]);
        check_alone(OPTIONS[i]);
        check_bf16_activations(OPTIONS[i]);
    }
    FOR_EACH_ISA(isa) for (int i = 0; i < N_OPTIONS; i++) check_bits(OPTIONS[i], isa);
    check_formats(LORA_WEIGHT_BF16);
    check_formats(LORA_WEIGHT_NF4);
    check_memory();
    check_decoder_cache();
    check_decoder_refusals();
}

void check_decoder(void) { on_every_device(check_on_device); }
