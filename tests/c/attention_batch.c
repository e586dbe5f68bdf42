#include "tests/c/attention_batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint32_t seed = 1;
static float uniform(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)(seed >> 8 << 8) * 0x1p-31f;
}

float *attention_buffer(int64_t n) {
    float *p = malloc((size_t)(n + 2 * ATTENTION_GUARD) * sizeof(float));
    for (int64_t i = 0; i < n + 2 * ATTENTION_GUARD; i++) p[i] = NAN;
    return p + ATTENTION_GUARD;
}

void attention_buffer_free(float *p) { free(p - ATTENTION_GUARD); }

int64_t attention_q_width(const attention_batch *b) { return b->shape.n_heads * b->shape.head_dim; }
int64_t attention_k_width(const attention_batch *b) { return b->shape.n_kv_heads * b->shape.head_dim; }
static int64_t qkv_width(const attention_batch *b) { return attention_q_width(b) + 2 * attention_k_width(b); }

static void fill(float *p, int64_t rows, int64_t ld, int64_t width, float size) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) p[r * ld + i] = size * uniform();
}

attention_batch attention_batch_create(int64_t D, int64_t H, int64_t KV, int64_t window, int64_t n, const int *lengths, float size) {
    return attention_batch_create_apart(D, H, KV, window, n, lengths, size, 3, 1);
}

attention_batch attention_batch_create_apart(int64_t D, int64_t H, int64_t KV, int64_t window, int64_t n, const int *lengths, float size,
                                             int64_t gap, int64_t gap_out) {
    attention_batch b = {
        .shape = {.n_heads = H, .n_kv_heads = KV, .head_dim = D, .scale = (float)(1.0 / sqrt((double)D)), .sliding_window = window},
        .n = n};
    for (int64_t s = 0; s < n; s++) b.cu[s + 1] = b.cu[s] + lengths[s];
    b.M = b.cu[n];
    b.ld = (H + 2 * KV) * D + gap;
    b.ld_out = H * D + gap_out;
    b.qkv = attention_buffer(b.M * b.ld);
    b.dqkv = attention_buffer(b.M * b.ld);
    b.out = attention_buffer(b.M * b.ld_out);
    b.dout = attention_buffer(b.M * b.ld_out);
    b.lse = attention_buffer(b.M * H);
    fill(b.qkv, b.M, b.ld, qkv_width(&b), size);
    fill(b.dout, b.M, b.ld_out, attention_q_width(&b), 1.0f);
    return b;
}

void attention_batch_destroy(attention_batch *b) {
    float *all[] = {b->qkv, b->dqkv, b->out, b->dout, b->lse};
    for (int i = 0; i < 5; i++) attention_buffer_free(all[i]);
}

lora_segments attention_batch_segments(const attention_batch *b) {
    return (lora_segments){.n = b->n, .cu_seqlens = b->cu, .on_device = b->cu};
}

void attention_batch_run(lora_ctx *ctx, attention_batch *b) {
    int64_t start[MAX_SEGMENTS], length[MAX_SEGMENTS];
    for (int64_t s = 0; s < b->n; s++) {
        start[s] = b->cu[s];
        length[s] = b->cu[s + 1] - b->cu[s];
    }
    attention_batch_run_at(ctx, b, b->cu, start, length);
}

void attention_batch_run_at(lora_ctx *ctx, const attention_batch *b, const int32_t *cu, const int64_t *start, const int64_t *length) {
    int64_t M = b->M, Q = attention_q_width(b), KV = attention_k_width(b);
    lora_segments segments = {.n = b->n, .cu_seqlens = b->cu, .on_device = cu};
    lora_kv kv = {.k = b->qkv + Q, .v = b->qkv + Q + KV, .ldk = b->ld, .ldv = b->ld, .start = start, .length = length};
    lora_mat qkv = lora_mat_f32(b->qkv, M, Q + 2 * KV, b->ld), dqkv = lora_mat_f32(b->dqkv, M, Q + 2 * KV, b->ld);
    lora_mat out = lora_mat_f32(b->out, M, Q, b->ld_out), q = lora_mat_cols(qkv, 0, Q);
    lora_error err;
    lora_status status = lora_attention_forward(ctx, &b->shape, &segments, q, &kv, out, b->lse, &err);
    CHECK(status == LORA_OK, "forward: %s", err.message);
    lora_attention_gradient gradient = {.q = q,
                                        .k = lora_mat_cols(qkv, Q, KV),
                                        .v = lora_mat_cols(qkv, Q + KV, KV),
                                        .o = out,
                                        .dout = lora_mat_f32(b->dout, M, Q, b->ld_out),
                                        .lse = b->lse,
                                        .dq = lora_mat_cols(dqkv, 0, Q),
                                        .dk = lora_mat_cols(dqkv, Q, KV),
                                        .dv = lora_mat_cols(dqkv, Q + KV, KV)};
    status = lora_attention_backward(ctx, &b->shape, &segments, &gradient, &err);
    CHECK(status == LORA_OK, "backward: %s", err.message);
}

lora_ctx *attention_context(lora_isa isa, int n_threads, lora_precision precision) {
    lora_ctx *ctx = NULL;
    lora_error err;
    lora_status status = lora_ctx_create(&(lora_ctx_options){.n_threads = n_threads, .isa = isa, .precision = precision}, &ctx, &err);
    CHECK(status == LORA_OK, "context: %s", err.message);
    return ctx;
}

const char *attention_rung(const lora_ctx *ctx) {
    return lora_ctx_precision(ctx) == LORA_PRECISION_FAST ? "fast" : lora_isa_name(lora_ctx_isa(ctx));
}

/* The largest error of rows x (heads * D) as a share of its bound, one bound per (row, head); NaN counts as infinite. */
static double worst(const float *x, int64_t ld, const double *want, const double *bound, int64_t rows, int64_t heads, int64_t D) {
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
        for (int64_t i = 0; i < width; i++) dst[r * width + i] = src[r * ld + i];
}

attention_oracle attention_batch_oracle(const attention_batch *b, int64_t s, double operand, bool bf16) {
    attention_oracle a;
    int64_t row = b->cu[s], T = b->cu[s + 1] - row;
    const float *q = b->qkv + row * b->ld, *k = q + attention_q_width(b), *v = k + attention_k_width(b);
    attention_oracle_create(&a, T, 0, b->shape.n_heads, b->shape.n_kv_heads, b->shape.head_dim, b->shape.sliding_window, b->shape.scale);
    a.softcap = b->shape.softcap;
    a.operand = operand;
    a.bf16 = bf16;
    load(a.q, q, T, b->ld, attention_q_width(b));
    load(a.k, k, T, b->ld, attention_k_width(b));
    load(a.v, v, T, b->ld, attention_k_width(b));
    load(a.dout, b->dout + row * b->ld_out, T, b->ld_out, attention_q_width(b));
    attention_oracle_forward(&a);
    attention_oracle_backward(&a);
    return a;
}

void attention_batch_compare(const attention_batch *b, int64_t s, const attention_oracle *a, const char *what) {
    int64_t row = b->cu[s], H = a->H, KV = a->KV, D = a->D;
    const float *dq = b->dqkv + row * b->ld, *dk = dq + attention_q_width(b), *dv = dk + attention_k_width(b);
    double o = worst(b->out + row * b->ld_out, b->ld_out, a->o, a->tol_o, a->T, H, D);
    double lse = worst(b->lse + row * H, H, a->lse, a->tol_lse, a->T, H, 1);
    double q = worst(dq, b->ld, a->dq, a->tol_dq, a->T, H, D);
    double k = worst(dk, b->ld, a->dk, a->tol_dk, a->T, KV, D), v = worst(dv, b->ld, a->dv, a->tol_dv, a->T, KV, D);
    CHECK(o <= 1 && lse <= 1 && q <= 1 && k <= 1 && v <= 1,
          "%s D %d heads %d/%d window %d length %d: errors over bounds o %.2g lse %.2g dq %.2g dk %.2g dv %.2g", what, (int)D, (int)H,
          (int)KV, (int)a->window, (int)a->T, o, lse, q, k, v);
}

static bool bands_hold(const float *p, int64_t rows, int64_t ld, int64_t width) {
    for (int64_t i = 1; i <= ATTENTION_GUARD; i++)
        if (!isnan(p[-i]) || !isnan(p[rows * ld + i - 1])) return false;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = width; i < ld; i++)
            if (!isnan(p[r * ld + i])) return false;
    return true;
}

bool attention_batch_guards_hold(const attention_batch *b) {
    return bands_hold(b->out, b->M, b->ld_out, attention_q_width(b)) && bands_hold(b->dqkv, b->M, b->ld, qkv_width(b)) &&
           bands_hold(b->lse, b->M, b->shape.n_heads, b->shape.n_heads);
}

bool attention_same_rows(const float *a, const float *b, int64_t rows, int64_t ld, int64_t width) {
    for (int64_t r = 0; r < rows; r++)
        if (memcmp(a + r * ld, b + r * ld, (size_t)width * sizeof(float))) return false;
    return true;
}

bool attention_batch_same(const attention_batch *a, int64_t a_row, const attention_batch *b, int64_t b_row, int64_t rows) {
    int64_t H = a->shape.n_heads;
    return attention_same_rows(a->out + a_row * a->ld_out, b->out + b_row * b->ld_out, rows, a->ld_out, attention_q_width(a)) &&
           attention_same_rows(a->dqkv + a_row * a->ld, b->dqkv + b_row * b->ld, rows, a->ld, qkv_width(a)) &&
           attention_same_rows(a->lse + a_row * H, b->lse + b_row * H, rows, H, H);
}
