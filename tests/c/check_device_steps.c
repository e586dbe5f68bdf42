/* Training and decoding on every device: what an optimizer keeps moves between devices with the same bits, and a step costs a constant
 * number of transfers. */
#include "tests/c/check_ops.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

/* --- AdamW --- */

enum { ARRAYS = 4, MOST = 20000, STEPS = 20 };
static const int64_t SIZES[ARRAYS] = {5, MOST, 0, 777};

/* What a run of training has on the host between two devices. */
typedef struct progress {
    float *data[ARRAYS], *moments[ARRAYS][2];
    int64_t steps;
} progress;

static progress begin(void) {
    progress p = {0};
    for (int i = 0; i < ARRAYS; i++) {
        p.data[i] = calloc((size_t)SIZES[i] + 1, sizeof(float));
        check_normal(p.data[i], SIZES[i], (uint64_t)i, 1);
        for (int which = 0; which < 2; which++) p.moments[i][which] = calloc((size_t)SIZES[i] + 1, sizeof(float));
    }
    return p;
}

static void end(progress *p) {
    for (int i = 0; i < ARRAYS; i++) free(p->data[i]), free(p->moments[i][0]), free(p->moments[i][1]);
}

/* Moments into the optimizer, or out of it. */
static void move_state(lora_optimizer *opt, progress *p, bool in) {
    for (int i = 0; i < ARRAYS; i++)
        for (int which = 0; which < 2; which++) {
            float *host = p->moments[i][which];
            if (in)
                OK(lora_optimizer_set_moment(opt, i, (lora_moment)which, host, ERR));
            else
                OK(lora_optimizer_get_moment(opt, i, (lora_moment)which, host, ERR));
        }
    if (in) OK(lora_optimizer_set_steps(opt, p->steps, ERR));
    p->steps = lora_optimizer_steps(opt);
}

/* Goes on to so many steps on the device of ctx; every second step is clipped. */
static void train(lora_ctx *ctx, progress *p, int64_t to) {
    static const lora_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1};
    lora_param params[ARRAYS];
    float *grads[ARRAYS];
    lora_optimizer *opt;
    for (int i = 0; i < ARRAYS; i++) {
        grads[i] = calloc((size_t)SIZES[i] + 1, sizeof(float));
        params[i] = (lora_param){.data = p->data[i], .grad = SIZES[i] ? grads[i] : NULL, .n = SIZES[i], .decay = i % 2 == 0, .lr_ratio = 1};
        OK(mirror_floats(ctx, &params[i].data, SIZES[i], ERR));
        OK(mirror_floats(ctx, &params[i].grad, SIZES[i], ERR));
    }
    OK(lora_optimizer_create(ctx, LORA_ADAMW, params, ARRAYS, &options, &opt, ERR));
    move_state(opt, p, true);
    for (int64_t step = p->steps + 1; step <= to; step++) {
        double norm = 0;
        for (int i = 0; i < ARRAYS; i++) check_normal(grads[i], SIZES[i], 1000 + 10 * (uint64_t)step + (uint64_t)i, 1);
        lora_step_options o = {.lr = 1e-2, .grad_scale = 0.5, .max_grad_norm = step % 2 ? 1.5 : 1e9};
        OK(MIRRORED(lora_optimizer_step(opt, &o, &norm, ERR)));
        same_on_every_device("norm", &norm, sizeof norm);
    }
    OK(MIRRORED(lora_optimizer_zero_grad(opt, ERR)));
    bool zero = true;
    for (int64_t i = 0; i < MOST; i++) zero &= grads[1][i] == 0;
    CHECK(zero, "gradients after zero_grad");
    move_state(opt, p, false);
    lora_optimizer_destroy(opt);
    mirror_forget(ctx);
    for (int i = 0; i < ARRAYS; i++) free(grads[i]);
}

static void check_equal(const progress *got, const progress *want, const char *what) {
    if (device_in_use()->tolerance[0] > 0) return;
    CHECK(got->steps == want->steps && want->steps == STEPS, "%s: %lld steps", what, (long long)got->steps);
    for (int i = 0; i < ARRAYS; i++) {
        size_t bytes = (size_t)SIZES[i] * sizeof(float);
        CHECK(memcmp(got->data[i], want->data[i], bytes) == 0, "%s: other bits in array %d", what, i);
        for (int which = 0; which < 2; which++)
            CHECK(memcmp(got->moments[i][which], want->moments[i][which], bytes) == 0, "%s: moment %d of array %d", what, which, i);
    }
}

static void check_optimizer(lora_ctx *ctx) {
    lora_ctx *cpu = check_ctx(LORA_ISA_AUTO, 2);
    progress whole = begin(), away = begin(), back = begin();
    train(ctx, &whole, STEPS);
    for (int i = 0; i < ARRAYS; i++) same_on_every_device("trained array", whole.data[i], (size_t)SIZES[i] * sizeof(float));
    train(cpu, &away, STEPS / 2);
    train(ctx, &away, STEPS);
    check_equal(&away, &whole, "from the CPU");
    train(ctx, &back, STEPS / 2);
    train(cpu, &back, STEPS);
    check_equal(&back, &whole, "to the CPU");
    end(&whole), end(&away), end(&back);
    lora_ctx_destroy(cpu);
}

/* Steps that are refused change nothing on the device either. */
static void check_refused_step(lora_ctx *ctx) {
    static const lora_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    float data[3] = {1, 2, 3}, grad[3] = {1, INFINITY, 1}, moment[3] = {9, 9, 9};
    lora_param param = {.data = data, .grad = grad, .n = 3, .lr_ratio = 1};
    lora_optimizer *opt;
    lora_step_options o = {.lr = 1, .grad_scale = 1};
    double norm;
    OK(mirror_floats(ctx, &param.data, 3, ERR));
    OK(mirror_floats(ctx, &param.grad, 3, ERR));
    OK(lora_optimizer_create(ctx, LORA_ADAMW, &param, 1, &options, &opt, ERR));
    REFUSED(LORA_EINVAL, "gradients: expected finite numbers, got a norm of inf", MIRRORED(lora_optimizer_step(opt, &o, &norm, ERR)));
    OK(lora_optimizer_get_moment(opt, 0, LORA_MOMENT_FIRST, moment, ERR));
    CHECK(data[0] == 1 && data[1] == 2 && data[2] == 3 && moment[0] == 0 && lora_optimizer_steps(opt) == 0,
          "a refused step changed something");
    lora_optimizer_destroy(opt);
    mirror_forget(ctx);
}

/* --- what a step sends and brings --- */

static lora_transfers counted; /* until now */

static void begin_count(const lora_ctx *ctx) { counted = lora_ctx_transfers(ctx); }

/* On the CPU an output is where it should be without a download, and nothing is waited for twice. */
static void expect(const lora_ctx *ctx, const char *what, lora_transfers want) {
    lora_transfers now = lora_ctx_transfers(ctx);
    if (ctx->view.backend->host_memory) return;
    int64_t uploads = now.uploads - counted.uploads, downloads = now.downloads - counted.downloads, syncs = now.syncs - counted.syncs;
    CHECK(uploads == want.uploads && downloads == want.downloads && syncs == want.syncs, "%s: %lld uploads, %lld downloads, %lld syncs",
          what, (long long)uploads, (long long)downloads, (long long)syncs);
    CHECK(now.downloaded_bytes - counted.downloaded_bytes == want.downloaded_bytes, "%s: %lld bytes came back", what,
          (long long)(now.downloaded_bytes - counted.downloaded_bytes));
}

static void count_training(lora_ctx *ctx, tiny_decoder *t, const lora_optimizer_options *options) {
    lora_batch batch = tiny_batch();
    double loss, norm;
    lora_optimizer *opt;
    static float weights[100], gradients[100];
    float *data = weights, *grad = gradients;
    OK(mirror_floats(ctx, &data, 100, ERR));
    OK(mirror_floats(ctx, &grad, 100, ERR));
    lora_param params[2] = {{.data = data, .grad = grad, .n = 60, .lr_ratio = 1},
                            {.data = data + 60, .grad = grad + 60, .n = 40, .lr_ratio = 1}};
    OK(lora_optimizer_create(ctx, LORA_ADAMW, params, 2, options, &opt, ERR));
    for (int step = 0; step < 3; step++) { /* the first one, too */
        begin_count(ctx);
        OK(lora_decoder_forward_backward(t->decoder, &batch, 1, &loss, ERR));
        expect(ctx, "forward_backward", (lora_transfers){.uploads = 1, .downloads = 1, .syncs = 1, .downloaded_bytes = 8});
        begin_count(ctx);
        OK(lora_optimizer_step(opt, &(lora_step_options){.lr = 1e-3, .grad_scale = 1, .max_grad_norm = 1}, &norm, ERR));
        expect(ctx, "a step of the optimizer", (lora_transfers){.downloads = 1, .syncs = 1, .downloaded_bytes = 8});
        begin_count(ctx);
        OK(lora_optimizer_zero_grad(opt, ERR));
        expect(ctx, "zero_grad", (lora_transfers){0});
    }
    lora_optimizer_destroy(opt);
}

static void count_evaluation(lora_ctx *ctx, lora_decoder *d) {
    enum { LOGITS = TINY_TOKENS * TINY_VOCAB };
    static float logits[LOGITS], losses[TINY_TOKENS], states[TINY_TOKENS * 24];
    lora_batch batch = tiny_batch();
    double loss;
    begin_count(ctx);
    OK(lora_decoder_loss(d, &batch, &loss, NULL, ERR));
    expect(ctx, "loss", (lora_transfers){.uploads = 1, .downloads = 1, .syncs = 1, .downloaded_bytes = 8});
    begin_count(ctx);
    OK(lora_decoder_loss(d, &batch, &loss, losses, ERR));
    expect(ctx, "losses of tokens",
           (lora_transfers){.uploads = 1, .downloads = 2, .syncs = 1, .downloaded_bytes = 8 + (int64_t)sizeof losses});
    begin_count(ctx);
    OK(lora_decoder_logits(d, &batch, logits, ERR));
    expect(ctx, "logits", (lora_transfers){.uploads = 1, .downloads = 1, .syncs = 1, .downloaded_bytes = sizeof logits});
    begin_count(ctx);
    OK(lora_decoder_hidden_states(d, &batch, 1, states, ERR));
    expect(ctx, "hidden states", (lora_transfers){.uploads = 1, .downloads = 1, .syncs = 1, .downloaded_bytes = sizeof states});
    same_on_every_device("losses of tokens", losses, sizeof losses);
    same_on_every_device("logits", logits, sizeof logits);
    same_on_every_device("hidden states", states, sizeof states);
}

static void count_decoding(lora_ctx *ctx, lora_decoder *d) {
    enum { TOKENS = 9 };
    static const int32_t ids[TOKENS] = {3, 20, 37, 4, 21, 9, 1, 0, 49}, prompt[] = {0, 4}, one[] = {0, 1}, sequence[] = {1};
    lora_kv_cache *cache = NULL;
    float logits[TINY_VOCAB];
    size_t live = lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes;
    begin_count(ctx);
    OK(lora_kv_cache_create(d, 2, TOKENS, &cache, ERR));
    expect(ctx, "a cache", (lora_transfers){0});
    size_t keys_and_values = 2 * 2 * 2 * TOKENS * 12 * sizeof(float); /* layers, both, sequences, tokens, width */
    CHECK(lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes >= live + keys_and_values, "a cache is memory of the device");
    for (int i = 0; i < 6; i++) {
        begin_count(ctx);
        OK(lora_decoder_decode(d, cache, 1, i ? one : prompt, sequence, ids + (i ? 3 + i : 0), NULL, logits, ERR));
        expect(ctx, i ? "a token" : "a prompt",
               (lora_transfers){.uploads = 1, .downloads = 1, .syncs = 1, .downloaded_bytes = sizeof logits});
        same_on_every_device("logits", logits, sizeof logits);
    }
    begin_count(ctx);
    OK(lora_kv_cache_truncate(cache, 1, 2, ERR));
    lora_kv_cache_destroy(cache);
    expect(ctx, "the end of a cache", (lora_transfers){0});
}

/* A profile waits for each operation and changes nothing else. */
static void check_profiled(lora_ctx *ctx, lora_decoder *d) {
    lora_batch batch = tiny_batch();
    double plain = 0, profiled = 1;
    OK(lora_decoder_loss(d, &batch, &plain, NULL, ERR));
    lora_ctx_set_profiling(ctx, true);
    OK(lora_decoder_loss(d, &batch, &profiled, NULL, ERR));
    CHECK(plain == profiled, "loss %.17g, with a profile %.17g", plain, profiled);
    CHECK(lora_ctx_op_cost(ctx, LORA_OP_ROPE).calls > 0 && lora_ctx_op_cost(ctx, LORA_OP_NORM_FORWARD).seconds > 0, "costs of operations");
    lora_ctx_set_profiling(ctx, false);
}

static void check_on_device(void) {
    static const lora_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_optimizer(ctx);
    check_refused_step(ctx);
    tiny_decoder t;
    OK(tiny_decoder_make(ctx, 0.1f, -1, &t, ERR));
    count_training(ctx, &t, &options);
    count_evaluation(ctx, t.decoder);
    count_decoding(ctx, t.decoder);
    check_profiled(ctx, t.decoder);
    tiny_decoder_free(&t);
    device_ctx_free(ctx);
}

void check_device_steps(void) { on_every_device(check_on_device); }
