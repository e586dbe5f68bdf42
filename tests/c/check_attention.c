/* Attention against float64 loops, on every rung of this CPU; bits against threads, packing and caching. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention_oracle.h"
#include "check.h"
#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/util.h"
#include "lora_c/nn.h"

enum { GUARD = 19, MAX_SEGMENTS = 8 };

/* A packed batch in fused buffers: rows of qkv are [q | k | v | gap], of out [o | gap], with NaN in every gap and in a
 * band around each buffer. The gap is odd, so rows are misaligned in every way. */
typedef struct batch {
    lora_attention_shape shape;
    int64_t n, M, ld, ld_out;
    int32_t cu[MAX_SEGMENTS + 1];
    float *qkv, *dqkv, *out, *dout, *lse;
} batch;

static uint32_t seed = 1;
static float uniform(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)(seed >> 8 << 8) * 0x1p-31f;
}

static float *nan_buffer(int64_t n) {
    float *p = malloc((size_t)(n + 2 * GUARD) * sizeof(float));
    for (int64_t i = 0; i < n + 2 * GUARD; i++)
        p[i] = NAN;
    return p + GUARD;
}

static void free_buffer(float *p) { free(p - GUARD); }

static int64_t q_width(const batch *b) { return b->shape.n_heads * b->shape.head_dim; }
static int64_t k_width(const batch *b) { return b->shape.n_kv_heads * b->shape.head_dim; }

static void fill(float *p, int64_t rows, int64_t ld, int64_t width, float size) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++)
            p[r * ld + i] = size * uniform();
}

static batch batch_create(int64_t D, int64_t H, int64_t KV, int64_t window, int64_t n, const int *lengths, float size) {
    batch b = {.shape = {H, KV, D, (float)(1.0 / sqrt((double)D)), window, 0}, .n = n};
    for (int64_t s = 0; s < n; s++)
        b.cu[s + 1] = b.cu[s] + lengths[s];
    b.M = b.cu[n];
    b.ld = (H + 2 * KV) * D + 3;
    b.ld_out = H * D + 1;
    b.qkv = nan_buffer(b.M * b.ld);
    b.dqkv = nan_buffer(b.M * b.ld);
    b.out = nan_buffer(b.M * b.ld_out);
    b.dout = nan_buffer(b.M * b.ld_out);
    b.lse = nan_buffer(b.M * H);
    fill(b.qkv, b.M, b.ld, b.ld - 3, size);
    fill(b.dout, b.M, b.ld_out, b.ld_out - 1, 1.0f);
    return b;
}

static void batch_destroy(batch *b) {
    float *all[] = {b->qkv, b->dqkv, b->out, b->dout, b->lse};
    for (int i = 0; i < 5; i++)
        free_buffer(all[i]);
}

static void run(lora_ctx *ctx, batch *b) {
    lora_kv_view kv[MAX_SEGMENTS];
    float *k = b->qkv + q_width(b), *v = k + k_width(b), *dk = b->dqkv + q_width(b), *dv = dk + k_width(b);
    for (int64_t s = 0; s < b->n; s++)
        kv[s] = (lora_kv_view){k + b->cu[s] * b->ld, v + b->cu[s] * b->ld, b->ld, b->ld, b->cu[s + 1] - b->cu[s]};
    lora_error err;
    lora_status status = lora_attention_forward(ctx, &b->shape, b->n, b->cu, b->qkv, b->ld, kv, b->out, b->ld_out,
                                                b->lse, &err);
    CHECK(status == LORA_OK, "forward: %s", err.message);
    status = lora_attention_backward(ctx, &b->shape, b->n, b->cu, b->qkv, b->ld, k, b->ld, v, b->ld, b->out, b->ld_out,
                                     b->lse, b->dout, b->ld_out, b->dqkv, b->ld, dk, b->ld, dv, b->ld, &err);
    CHECK(status == LORA_OK, "backward: %s", err.message);
}

static lora_ctx *context(lora_isa isa, int n_threads) {
    lora_ctx *ctx = NULL;
    lora_error err;
    lora_status status = lora_ctx_create(&(lora_ctx_options){.n_threads = n_threads, .isa = isa}, &ctx, &err);
    CHECK(status == LORA_OK, "context: %s", err.message);
    return ctx;
}

/* The largest error of rows x (heads * D) as a share of its bound, one bound per (row, head); NaN counts as infinite. */
static double worst(const float *x, int64_t ld, const double *want, const double *bound, int64_t rows, int64_t heads,
                    int64_t D) {
    double w = 0;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < heads * D; i++) {
            double e = fabs((double)x[r * ld + i] - want[r * heads * D + i]) / (bound[r * heads + i / D] + 1e-30);
            w = e <= w ? w : isnan(e) ? INFINITY : e;
        }
    }
    return w;
}

static void load(double *dst, const float *src, int64_t rows, int64_t ld, int64_t width) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++)
            dst[r * width + i] = src[r * ld + i];
}

static attention_oracle oracle_of(const batch *b, int64_t s) {
    attention_oracle a;
    int64_t row = b->cu[s], T = b->cu[s + 1] - row;
    const float *q = b->qkv + row * b->ld, *k = q + q_width(b), *v = k + k_width(b);
    attention_oracle_create(&a, T, 0, b->shape.n_heads, b->shape.n_kv_heads, b->shape.head_dim, b->shape.sliding_window,
                            b->shape.scale);
    a.softcap = b->shape.softcap;
    load(a.q, q, T, b->ld, q_width(b));
    load(a.k, k, T, b->ld, k_width(b));
    load(a.v, v, T, b->ld, k_width(b));
    load(a.dout, b->dout + row * b->ld_out, T, b->ld_out, q_width(b));
    attention_oracle_forward(&a);
    attention_oracle_backward(&a);
    return a;
}

static void compare(const batch *b, int64_t s, const attention_oracle *a, const char *what) {
    int64_t row = b->cu[s], H = a->H, KV = a->KV, D = a->D;
    const float *dq = b->dqkv + row * b->ld, *dk = dq + q_width(b), *dv = dk + k_width(b);
    double o = worst(b->out + row * b->ld_out, b->ld_out, a->o, a->tol_o, a->T, H, D);
    double lse = worst(b->lse + row * H, H, a->lse, a->tol_lse, a->T, H, 1);
    double q = worst(dq, b->ld, a->dq, a->tol_dq, a->T, H, D);
    double k = worst(dk, b->ld, a->dk, a->tol_dk, a->T, KV, D), v = worst(dv, b->ld, a->dv, a->tol_dv, a->T, KV, D);
    CHECK(o <= 1 && lse <= 1 && q <= 1 && k <= 1 && v <= 1,
          "%s D %d heads %d/%d window %d length %d: errors over bounds o %.2g lse %.2g dq %.2g dk %.2g dv %.2g", what,
          (int)D, (int)H, (int)KV, (int)a->window, (int)a->T, o, lse, q, k, v);
}

/* Every gap and band still NaN */
static bool guards_hold(const float *p, int64_t rows, int64_t ld, int64_t width) {
    for (int64_t i = 1; i <= GUARD; i++)
        if (!isnan(p[-i]) || !isnan(p[rows * ld + i - 1]))
            return false;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = width; i < ld; i++)
            if (!isnan(p[r * ld + i]))
                return false;
    return true;
}

static void check_shape(lora_ctx **ctx, lora_isa lowest, int64_t D, int64_t H, int64_t KV, int64_t window, float softcap) {
    static const int lengths[] = {1, 2, 130, 3, 17, 64, 65};
    batch b = batch_create(D, H, KV, window, 7, lengths, 1.0f);
    b.shape.softcap = softcap;
    attention_oracle a[7];
    for (int64_t s = 0; s < b.n; s++)
        a[s] = oracle_of(&b, s);
    for (lora_isa isa = lowest; isa <= lora_cpu_best_isa(); isa++) {
        run(ctx[isa], &b);
        for (int64_t s = 0; s < b.n; s++)
            compare(&b, s, &a[s], lora_isa_name(isa));
        CHECK(guards_hold(b.out, b.M, b.ld_out, b.ld_out - 1) && guards_hold(b.dqkv, b.M, b.ld, b.ld - 3) &&
                  guards_hold(b.lse, b.M, H, H),
              "%s: wrote outside its outputs", lora_isa_name(isa));
    }
    for (int64_t s = 0; s < b.n; s++)
        attention_oracle_destroy(&a[s]);
    batch_destroy(&b);
}

static void check_shapes(lora_ctx **ctx) {
    static const int dims[] = {1, 3, 8, 16, 64, 80, 128}, heads[][2] = {{1, 1}, {4, 2}, {8, 4}, {9, 3}};
    static const int windows[] = {0, 1, 5, 64};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        for (size_t h = 0; h < 4; h++) {
            for (size_t w = 0; w < 4; w++) {
                if (dims[d] > 16 && w != h) /* wide heads: one window each, to bound the time */
                    continue;
                check_shape(ctx, dims[d] <= 3 ? LORA_ISA_REF : LORA_ISA_PORTABLE, dims[d], heads[h][0], heads[h][1],
                            windows[w], 0);
                if (w == h) /* caps that bend the scores a little, much, and to a step */
                    check_shape(ctx, dims[d] <= 3 ? LORA_ISA_REF : LORA_ISA_PORTABLE, dims[d], heads[h][0], heads[h][1],
                                windows[w], w == 0 ? 50.0f : w == 1 ? 1.0f : 0.25f);
            }
        }
    }
    check_shape(ctx, LORA_ISA_PORTABLE, 256, 2, 1, 0, 0);
    check_shape(ctx, LORA_ISA_PORTABLE, 4, 40, 1, 0, 0); /* a group wider than a panel */
}

/* Logits of some thousands: nothing may overflow, and one key may take all the weight. */
static void check_large_logits(lora_ctx *ctx) {
    static const int lengths[] = {1, 70};
    batch b = batch_create(16, 4, 2, 0, 2, lengths, 60.0f);
    run(ctx, &b);
    for (int64_t s = 0; s < b.n; s++) {
        attention_oracle a = oracle_of(&b, s);
        compare(&b, s, &a, "large logits");
        attention_oracle_destroy(&a);
    }
    batch_destroy(&b);
}

static bool same_rows(const float *a, const float *b, int64_t rows, int64_t ld, int64_t width) {
    for (int64_t r = 0; r < rows; r++)
        if (memcmp(a + r * ld, b + r * ld, (size_t)width * sizeof(float)))
            return false;
    return true;
}

static bool same_outputs(const batch *a, int64_t a_row, const batch *b, int64_t b_row, int64_t rows) {
    int64_t H = a->shape.n_heads;
    return same_rows(a->out + a_row * a->ld_out, b->out + b_row * b->ld_out, rows, a->ld_out, a->ld_out - 1) &&
           same_rows(a->dqkv + a_row * a->ld, b->dqkv + b_row * b->ld, rows, a->ld, a->ld - 3) &&
           same_rows(a->lse + a_row * H, b->lse + b_row * H, rows, H, H);
}

static void check_threads(lora_isa isa) {
    static const int lengths[] = {300, 1, 97, 40}, threads[] = {2, 3, 8};
    lora_ctx *ctx = context(isa, 1);
    batch a = batch_create(24, 6, 2, 0, 4, lengths, 1.0f), b = a;
    b.out = nan_buffer(b.M * b.ld_out);
    b.dqkv = nan_buffer(b.M * b.ld);
    b.lse = nan_buffer(b.M * 6);
    run(ctx, &a);
    for (int i = 0; i < 3; i++) {
        lora_error err;
        CHECK(lora_ctx_set_threads(ctx, threads[i], &err) == LORA_OK, "threads: %s", err.message);
        run(ctx, &b);
        CHECK(same_outputs(&a, 0, &b, 0, a.M), "%s: %d threads change bits", lora_isa_name(isa), threads[i]);
    }
    free_buffer(b.out);
    free_buffer(b.dqkv);
    free_buffer(b.lse);
    batch_destroy(&a);
    lora_ctx_destroy(ctx);
}

static void check_packing(lora_ctx *ctx, float softcap) {
    static const int lengths[] = {5, 200, 1, 33, 96, 97};
    for (int64_t window = 0; window <= 50; window += 50) {
        batch all = batch_create(20, 6, 3, window, 6, lengths, 1.0f);
        all.shape.softcap = softcap;
        run(ctx, &all);
        for (int s = 0; s < 6; s++) {
            batch one = batch_create(20, 6, 3, window, 1, &lengths[s], 1.0f);
            one.shape.softcap = softcap;
            memcpy(one.qkv, all.qkv + all.cu[s] * all.ld, (size_t)(one.M * one.ld) * sizeof(float));
            memcpy(one.dout, all.dout + all.cu[s] * all.ld_out, (size_t)(one.M * one.ld_out) * sizeof(float));
            run(ctx, &one);
            CHECK(same_outputs(&all, all.cu[s], &one, 0, one.M), "%s: packing changes bits of segment %d",
                  lora_isa_name(lora_ctx_isa(ctx)), s);
            batch_destroy(&one);
        }
        batch_destroy(&all);
    }
}

/* A prompt in pieces against the growing cache, down to single tokens, equals the prompt in one piece bit for bit. */
static void check_cache(lora_ctx *ctx, int64_t window, float softcap) {
    static const int length = 230, pieces[] = {100, 1, 1, 90, 37, 1};
    batch b = batch_create(20, 6, 2, window, 1, &length, 1.0f);
    b.shape.softcap = softcap;
    run(ctx, &b);
    float *o = nan_buffer(b.M * b.ld_out);
    int64_t done = 0;
    for (int i = 0; i < 6; i++) {
        int32_t cu[2] = {0, pieces[i]};
        const float *q = b.qkv + done * b.ld, *k = b.qkv + q_width(&b);
        lora_kv_view kv = {k, k + k_width(&b), b.ld, b.ld, done + pieces[i]};
        lora_error err;
        lora_status status = lora_attention_forward(ctx, &b.shape, 1, cu, q, b.ld, &kv, o + done * b.ld_out, b.ld_out,
                                                    NULL, &err);
        CHECK(status == LORA_OK, "cache: %s", err.message);
        done += pieces[i];
    }
    CHECK(done == b.M && same_rows(o, b.out, b.M, b.ld_out, b.ld_out - 1), "%s: cached pieces differ, window %d",
          lora_isa_name(lora_ctx_isa(ctx)), (int)window);
    free_buffer(o);
    batch_destroy(&b);
}

/* The oracle's own gradient against central differences of its forward: L = sum of dout * o. */
static void check_oracle(float softcap) {
    static const int length = 6;
    batch b = batch_create(3, 4, 2, 4, 1, &length, 1.0f);
    b.shape.softcap = softcap;
    attention_oracle a = oracle_of(&b, 0);
    const struct { double *x, *dx; int64_t n; } inputs[] = {
        {a.q, a.dq, a.T * 12}, {a.k, a.dk, a.T * 6}, {a.v, a.dv, a.T * 6}};
    for (int i = 0; i < 3; i++) {
        for (int64_t n = 0; n < inputs[i].n; n++) {
            const double h = 1e-5, x = inputs[i].x[n];
            double loss[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                inputs[i].x[n] = side ? x + h : x - h;
                attention_oracle_forward(&a);
                for (int64_t d = 0; d < a.T * 12; d++)
                    loss[side] += a.dout[d] * a.o[d];
            }
            inputs[i].x[n] = x;
            double slope = (loss[1] - loss[0]) / (2 * h); /* error about h^2 + 1e-15 / h */
            CHECK(fabs(slope - inputs[i].dx[n]) < 1e-8, "oracle input %d element %d: %g against %g", i, (int)n,
                  inputs[i].dx[n], slope);
        }
    }
    attention_oracle_destroy(&a);
    batch_destroy(&b);
}

static void check_refusals(lora_ctx *ctx) {
    float x[64] = {0};
    lora_error err;
    int32_t cu[] = {0, 2}, falling[] = {2, 0};
    lora_attention_shape shape = {2, 1, 4, 0.5f, 0, 0}, heads = {3, 2, 4, 0.5f, 0, 0}, cap = {2, 1, 4, 0.5f, 0, -1};
    lora_kv_view kv = {x, x, 4, 4, 2}, few = {x, x, 4, 4, 1};
    float *o = x + 16;
    CHECK(lora_attention_forward(ctx, &heads, 1, cu, x, 12, &kv, o, 12, NULL, &err) == LORA_ESHAPE, "heads 3/2");
    CHECK(lora_attention_forward(ctx, &cap, 1, cu, x, 8, &kv, o, 8, NULL, &err) == LORA_EINVAL, "softcap -1");
    CHECK(lora_attention_forward(ctx, &shape, 1, falling, x, 8, &kv, o, 8, NULL, &err) == LORA_EINVAL, "cu falls");
    CHECK(lora_attention_forward(ctx, &shape, 1, cu, x, 8, &few, o, 8, NULL, &err) == LORA_ESHAPE, "too few keys");
    CHECK(lora_attention_forward(ctx, &shape, 1, cu, x, 7, &kv, o, 8, NULL, &err) == LORA_ESHAPE, "ldq too small");
    CHECK(lora_attention_forward(ctx, &shape, 1, cu, NULL, 8, &kv, o, 8, NULL, &err) == LORA_EINVAL, "q is NULL");
    CHECK(lora_attention_forward(ctx, &shape, 0, NULL, NULL, 8, NULL, NULL, 8, NULL, &err) == LORA_OK, "nothing to do");
}

void check_attention(void);
void check_attention(void) {
    lora_ctx *ctx[LORA_ISA_AVX512 + 1] = {NULL};
    for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa++)
        ctx[isa] = context(isa, 2);
    check_oracle(0);
    check_oracle(0.7f);
    check_shapes(ctx);
    check_refusals(ctx[LORA_ISA_PORTABLE]);
    for (lora_isa isa = LORA_ISA_PORTABLE; isa <= lora_cpu_best_isa(); isa++) {
        check_large_logits(ctx[isa]);
        check_threads(isa);
        check_packing(ctx[isa], 0);
        check_packing(ctx[isa], 0.7f);
        check_cache(ctx[isa], 0, 0);
        check_cache(ctx[isa], 50, 0);
        check_cache(ctx[isa], 50, 0.7f);
    }
    for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa++)
        lora_ctx_destroy(ctx[isa]);
}
