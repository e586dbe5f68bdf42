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
    {.adapters = true, .dropout = 0.25f, .virtual = O_PROMPT, .window = 4},
    {.adapters = true, .biases = true, .virtual = O_PREFIX, .window = 4},
    {.tied = true, .scales = true, .softcaps = true, .post_norm = true, .qk_norm = LORA_QK_NORM_HEAD, .virtual = O_PROMPT},
    {.tied = true, .post_norm = true, .offset = true, .gelu = true, .qk_norm = LORA_QK_NORM_HEAD, .virtual = O_PREFIX},
    {.no_pre_norm = true, .post_norm = true, .qk_norm = LORA_QK_NORM_ROW, .virtual = O_ENCODED_PREFIX},
    {.adapters = true, .partial_rope = true, .switched_rope = true, .virtual = O_PREFIX},
    {.tied = true, .biases = true, .layer_norm = true, .gelu = true, .ungated = true, .positions = true, .virtual = O_PROMPT},
    {.biases = true, .layer_norm = true, .gelu = true, .ungated = true, .positions = true, .virtual = O_ENCODED_PREFIX},
    {.biases = true, .adapters = true, .dropout = 0.25f, .scalings = true, .bottlenecks = true},
    {.tied = true, .scalings = true, .window = 3},
    {.adapters = true, .dropout = 0.25f, .shared_a = true, .partial_rope = true, .switched_rope = true, .scalings = true},
    {.tied = true,
     .adapters = true,
     .post_norm = true,
     .offset = true,
     .gelu = true,
     .softcaps = true,
     .scales = true,
     .local_layers = true,
     .window = 3,
     .qk_norm = LORA_QK_NORM_HEAD,
     .scalings = true,
     .bottlenecks = true},
    {.no_pre_norm = true, .post_norm = true, .qk_norm = LORA_QK_NORM_ROW, .scalings = true, .bottlenecks = true},
    {.tied = true,
     .biases = true,
     .layer_norm = true,
     .gelu = true,
     .ungated = true,
     .positions = true,
     .scalings = true,
     .bottlenecks = true},
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS, SAMPLES = 4 };

/* --- gradients --- */

/* What every device is held against; the slopes of loss by tensor and sample. */
typedef struct expectation {
    bool known;
    double loss, evaluation, slopes[O_TENSORS][SAMPLES];
} expectation;

static int64_t sample_index(const oracle_tensor *t, int sample) { return (sample * 7919 + 13) % t->n; }

/* Emulated, a tensor of a layer has its turn in one layer of each model, and one sample. */
static bool has_turn(int tensor, int turn) {
    return !is_emulated() || tensor >= O_EMBED || (tensor / O_PER_LAYER + tensor % O_PER_LAYER + turn) % O_LAYERS == 0;
}

static bool is_sampled(int tensor, int sample, int turn) {
    return has_turn(tensor, turn) && (!is_emulated() || sample == (tensor + turn) % SAMPLES);
}

static const expectation *expect(oracle_model *m, int turn, expectation *e) {
    if (e->known) return e;
    lora_batch batch = oracle_batch();
    *e = (expectation){.known = true, .loss = oracle_loss(m, &batch, true), .evaluation = oracle_loss(m, &batch, false)};
    for (int i = 0; i < O_TENSORS; i++)
        for (int s = 0; s < SAMPLES && m->t[i].g; s++)
            if (is_sampled(i, s, turn)) e->slopes[i][s] = oracle_slope(m, i, sample_index(&m->t[i], s));
    return e;
}

/* An element of a gradient is the end of a chain of some 40 float32 reductions over at most 40 terms; each adds a few
 * 2^-24 of the largest values in its vector, so the error is measured against the largest element of the tensor. */
static void compare_gradients(const oracle_model *m, int turn, const double (*want)[SAMPLES], const char *rung) {
    for (int i = 0; i < O_TENSORS; i++) {
        if (!m->t[i].g) continue;
        double tolerance = 40 * 8 * 0x1p-24 * oracle_largest(m->t[i].g, m->t[i].n);
        for (int s = 0; s < SAMPLES; s++) {
            if (!is_sampled(i, s, turn)) continue;
            int64_t at = sample_index(&m->t[i], s);
            double got = (double)m->t[i].g[at];
            CHECK(fabs(got - 0.5 * want[i][s]) <= tolerance + 1e-8, "%s: %s[%lld]: %.9g, expected %.9g within %.2g", rung, oracle_name(i),
                  (long long)at, got, 0.5 * want[i][s], tolerance);
        }
    }
}

static void check_gradients(oracle_options options, int turn, expectation *kept) {
    oracle_model *m = oracle_new(options);
    lora_batch batch = oracle_batch();
    const expectation *want = expect(m, turn, kept);
    double loss = want->loss, evaluation = want->evaluation;
    FOR_EACH_DEVICE_ISA(isa) {
        lora_ctx *ctx = device_ctx(isa, 2);
        lora_decoder *d = oracle_decoder(m, ctx, NULL);
        lora_error err = {0};
        double got = oracle_step(m, d);
        CHECK(fabs(got - loss) < 1e-5 * loss, "%s: training loss %.9g, expected %.9g", lora_isa_name(isa), got, loss);
        compare_gradients(m, turn, want->slopes, lora_isa_name(isa));
        CHECK(lora_decoder_loss(d, &batch, &got, NULL, &err) == LORA_OK, "%s", err.message);
        CHECK(fabs(got - evaluation) < 1e-5 * evaluation, "%s: evaluation loss %.9g, expected %.9g", lora_isa_name(isa), got, evaluation);
        lora_decoder_destroy(d);
        device_ctx_free(ctx);
    }
    CHECK((options.dropout > 0) == (fabs(loss - evaluation) > 1e-3), "dropout acts in training only: %g, %g", loss, evaluation);
    oracle_free(m);
}

/* --- the same bits --- */

/* Threads and recomputation. */
static void check_bits(oracle_options options, lora_isa isa) {
    static const int threads[] = {1, 3, 2, 8};
    oracle_model *want = oracle_new(options), *got = oracle_new(options);
    double first = 0;
    for (int i = 0; i < (is_emulated() ? 6 : 12); i++) {
        lora_ctx *ctx = device_ctx(isa, threads[i / 3]);
        lora_decoder *d = oracle_decoder(i ? got : want, ctx, NULL);
        lora_decoder_set_recompute(d, (lora_recompute)(i % 3));
        double loss = oracle_step(i ? got : want, d);
        if (i == 0) first = loss;
        CHECK(loss == first, "%s, %d threads: loss %.17g, expected %.17g", lora_isa_name(isa), threads[i / 3], loss, first);
        if (i) oracle_same_gradients(got, want, i % 3 ? "recompute" : "threads");
        lora_decoder_destroy(d);
        device_ctx_free(ctx);
    }
    oracle_free(want);
    oracle_free(got);
}

/* A gradient is the same whether everything trains or nothing else does: what backward leaves out was not needed. Emulated,
 * with one way of recomputing. */
static void check_alone(oracle_options options, int turn) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *want = oracle_new(options), *got = oracle_new(options);
    lora_decoder *all = oracle_decoder(want, ctx, NULL);
    oracle_step(want, all);
    lora_decoder_destroy(all);
    for (int i = 0; i < O_TENSORS; i++) {
        if (!got->t[i].g || !has_turn(i, turn)) continue;
        bool trains[O_TENSORS] = {false};
        trains[i] = true;
        lora_decoder *d = oracle_decoder(got, ctx, trains);
        for (int r = LORA_RECOMPUTE_NONE; r <= LORA_RECOMPUTE_ATTENTION; r++) {
            if (is_emulated() && r != turn / 3 % 3) continue;
            lora_decoder_set_recompute(d, (lora_recompute)r);
            oracle_step(got, d);
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

/* --- memory --- */

static int64_t arena_after_step(oracle_model *m, lora_ctx *ctx, const bool *trains, lora_recompute recompute) {
    lora_decoder *d = oracle_decoder(m, ctx, trains);
    lora_decoder_set_recompute(d, recompute);
    oracle_step(m, d);
    int64_t live = (int64_t)lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes;
    CHECK(live == lora_decoder_arena_bytes(d, O_TOKENS, true), "arena: %lld bytes, forecast %lld", (long long)live,
          (long long)lora_decoder_arena_bytes(d, O_TOKENS, true));
    CHECK(lora_decoder_arena_bytes(d, O_TOKENS, false) < live, "evaluation keeps less than training");
    ctx->engine->mem.fail_after = 0; /* the steady state allocates nothing */
    oracle_step(m, d);
    CHECK(ctx->engine->mem.fail_after == 0, "a second step allocates");
    ctx->engine->mem.fail_after = -1;
    lora_decoder_destroy(d);
    CHECK(lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes == 0, "arena left over");
    return live;
}

static void check_memory_of_methods(void) {
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!OPTIONS[i].scalings && !OPTIONS[i].bottlenecks) continue;
        lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
        oracle_model *m = oracle_new(OPTIONS[i]);
        arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_NONE);
        arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_LAYER);
        arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_ATTENTION);
        oracle_free(m);
        device_ctx_free(ctx);
    }
}

static void check_memory(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *m = oracle_new(OPTIONS[0]);
    bool head[O_TENSORS] = {[O_HEAD] = true}, last_q[O_TENSORS] = {[2 * O_PER_LAYER + O_A] = true, [2 * O_PER_LAYER + O_B] = true};
    int64_t none = arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_NONE), layer = arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_LAYER);
    int64_t last = arena_after_step(m, ctx, last_q, LORA_RECOMPUTE_NONE), only_head = arena_after_step(m, ctx, head, LORA_RECOMPUTE_NONE);
    int64_t attention = arena_after_step(m, ctx, NULL, LORA_RECOMPUTE_ATTENTION);
    CHECK(only_head < last && last < layer && layer < attention && attention < none,
          "arena bytes: head %lld, last layer %lld, recompute %lld, of attention %lld, all %lld", (long long)only_head, (long long)last,
          (long long)layer, (long long)attention, (long long)none);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    CHECK(lora_decoder_arena_bytes(d, INT64_MAX / 2, true) == INT64_MAX, "a size beyond the address space is not wrapped");
    lora_decoder_destroy(d);
    oracle_free(m);
    device_ctx_free(ctx);
}

static void check_on_device(void) {
    static expectation expected[N_OPTIONS];
    for (int i = 0; i < N_OPTIONS; i++) {
        check_gradients(OPTIONS[i], i, &expected[i]);
        check_alone(OPTIONS[i], i);
        check_bf16_activations(OPTIONS[i]);
    }
    FOR_EACH_DEVICE_ISA(isa) for (int i = 0; i < N_OPTIONS; i++) check_bits(OPTIONS[i], isa);
    check_int8_activations_refused(OPTIONS[0]);
    check_weight_formats(OPTIONS[0]);
    check_memory();
    check_memory_of_methods();
    check_decoder_cache();
    check_decoder_refusals();
}

void check_decoder(void) {
    for (int i = 0; i < N_OPTIONS; i++) check_int8_activations(OPTIONS[i]);
    on_every_device(check_on_device);
}
