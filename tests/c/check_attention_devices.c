/* Attention on every device in both precisions: against float64 loops, with past keys against the same without, bits against packing. */
#include <string.h>

#include "lora_c/backend.h"
#include "tests/c/attention_device.h"
#include "tests/c/attention_errors.h"
#include "tests/c/devices.h"

/* --- against the oracle --- */

typedef struct device_shape {
    int64_t D, H, KV, window;
    float softcap, size;
    bool aligned;
} device_shape;

static const int LENGTHS[] = {1, 130, 3, 65};
enum { N_LENGTHS = 4 };

static attention_batch make_batch(const device_shape *s) {
    attention_batch b =
        attention_batch_create_apart(s->D, s->H, s->KV, s->window, N_LENGTHS, LENGTHS, s->size, s->aligned ? 4 : 3, s->aligned ? 8 : 1);
    b.shape.softcap = s->softcap;
    return b;
}

static double operand_of(const lora_ctx *ctx) { return lora_ctx_precision(ctx) == LORA_PRECISION_FAST ? 0x1p-8 : 0; }
static const char *device_rung(const lora_ctx *ctx) { return lora_ctx_precision(ctx) == LORA_PRECISION_FAST ? "fast" : "exact"; }

static void check_shape(lora_ctx *ctx, const device_shape *shape) {
    attention_batch b = make_batch(shape);
    device_run_batch(ctx, &b);
    for (int64_t s = 0; s < b.n; s++) {
        attention_oracle a = attention_batch_oracle(&b, s, operand_of(ctx), false);
        attention_batch_compare(&b, s, &a, device_rung(ctx));
        attention_oracle_destroy(&a);
    }
    CHECK(attention_batch_guards_hold(&b), "%s: wrote outside its outputs", device_rung(ctx));
    attention_batch_destroy(&b);
}

/* Every segment alone has the bits that it has among others. */
static void check_packing(lora_ctx *ctx, const device_shape *shape) {
    attention_batch all = make_batch(shape);
    device_run_batch(ctx, &all);
    for (int s = 0; s < N_LENGTHS; s++) {
        attention_batch one = attention_batch_create_apart(shape->D, shape->H, shape->KV, shape->window, 1, &LENGTHS[s], 1,
                                                           shape->aligned ? 4 : 3, shape->aligned ? 8 : 1);
        one.shape.softcap = shape->softcap;
        memcpy(one.qkv, all.qkv + all.cu[s] * all.ld, (size_t)(one.M * one.ld) * sizeof(float));
        memcpy(one.dout, all.dout + all.cu[s] * all.ld_out, (size_t)(one.M * one.ld_out) * sizeof(float));
        device_run_batch(ctx, &one);
        CHECK(attention_batch_same(&all, all.cu[s], &one, 0, one.M), "%s: packing changes bits of segment %d", device_rung(ctx), s);
        attention_batch_destroy(&one);
    }
    attention_batch_destroy(&all);
}

/* --- past keys --- */

/* A table of keys and the queries behind its last rows: segment s has the last queries[s] of lengths[s] tokens. */
typedef struct cached {
    int64_t n;
    int lengths[MAX_SEGMENTS], queries[MAX_SEGMENTS];
} cached;

/* The outputs of the queries of b's segments first .. first + c->n - 1 that c names, each against all keys up to its own; o: (rows,
 * ld_out). */
static void run_cached(lora_ctx *ctx, const attention_batch *b, const cached *c, int64_t first, float *o, float *lse) {
    int32_t cu[MAX_SEGMENTS + 1] = {0};
    int64_t start[MAX_SEGMENTS], length[MAX_SEGMENTS], Q = attention_q_width(b), KV = attention_k_width(b), H = b->shape.n_heads;
    for (int64_t s = 0; s < c->n; s++) {
        start[s] = b->cu[first + s];
        length[s] = c->lengths[s];
        cu[s + 1] = cu[s] + c->queries[s];
    }
    int64_t M = cu[c->n];
    float *q = attention_buffer(M * b->ld), *out = attention_buffer(M * b->ld_out), *sums = attention_buffer(M * H);
    for (int64_t s = 0; s < c->n; s++) {
        const float *from = b->qkv + (start[s] + length[s] - c->queries[s]) * b->ld;
        memcpy(q + cu[s] * b->ld, from, (size_t)(c->queries[s] * b->ld) * sizeof(float));
    }
    copied qs = device_send_buffer(ctx, q, M * b->ld), kvs = device_send_buffer(ctx, b->qkv, b->M * b->ld),
           outs = device_send_buffer(ctx, out, M * b->ld_out);
    copied lses = device_send_buffer(ctx, sums, M * H);
    void *lists[] = {device_send(ctx, cu, sizeof cu), device_send(ctx, start, sizeof start), device_send(ctx, length, sizeof length)};
    lora_segments segments = {.n = c->n, .cu_seqlens = cu, .on_device = lists[0]};
    lora_kv kv = {.k = kvs.data + Q, .v = kvs.data + Q + KV, .ldk = b->ld, .ldv = b->ld, .start = lists[1], .length = lists[2]};
    OK_OR_END(lora_attention_forward(ctx, &b->shape, &segments, lora_mat_f32(qs.data, M, Q, b->ld), &kv,
                                     lora_mat_f32(outs.data, M, Q, b->ld_out), lses.data, &error));
    device_fetch_buffer(ctx, &outs, out);
    device_fetch_buffer(ctx, &lses, sums);
    for (int64_t r = 0; r < M; r++) memcpy(o + r * Q, out + r * b->ld_out, (size_t)Q * sizeof(float));
    memcpy(lse, sums, (size_t)(M * H) * sizeof(float));
    float *hosts[] = {q, out, sums}, *devices[] = {qs.memory, kvs.memory, outs.memory, lses.memory};
    for (int i = 0; i < 3; i++) attention_buffer_free(hosts[i]);
    for (int i = 0; i < 4; i++) lora_ctx_free(ctx, devices[i]);
    for (int i = 0; i < 3; i++) lora_ctx_free(ctx, lists[i]);
}

/* o and lse of segment s of b against those of its last queries among all. */
static void compare_cached(const attention_oracle *a, int64_t queries, const float *o, const float *lse, const char *what) {
    int64_t Q = a->H * a->D, skipped = a->T - queries;
    double worst_o = 0, worst_lse = 0;
    for (int64_t i = 0; i < queries * Q; i++) {
        double bound = a->tol_o[skipped * a->H + i / a->D];
        worst_o = worse(worst_o, fabs((double)o[i] - a->o[skipped * Q + i]) / bound);
    }
    for (int64_t i = 0; i < queries * a->H; i++)
        worst_lse = worse(worst_lse, fabs((double)lse[i] - a->lse[skipped * a->H + i]) / a->tol_lse[skipped * a->H + i]);
    CHECK(worst_o <= 1 && worst_lse <= 1, "%s: %d queries behind %d keys, D %d window %d: errors over bounds o %.2g lse %.2g", what,
          (int)queries, (int)skipped, (int)a->D, (int)a->window, worst_o, worst_lse);
}

/* Single queries, a prompt without past keys, few and many queries behind some, enough of them to be shared among blocks; each alone has
 * the same bits. */
static void check_cache(lora_ctx *ctx, const device_shape *shape) {
    enum { M = 1 + 96 + 70 + 5 + 1 };
    static const cached all = {.n = 5, .lengths = {700, 96, 90, 270, 40}, .queries = {1, 96, 70, 5, 1}};
    attention_batch b = attention_batch_create(shape->D, shape->H, shape->KV, shape->window, all.n, all.lengths, shape->size);
    b.shape.softcap = shape->softcap;
    int64_t Q = attention_q_width(&b), H = shape->H, row = 0;
    float *o = attention_buffer(M * Q), *one = attention_buffer(M * Q), *lse = attention_buffer(M * H), *one_lse = attention_buffer(M * H);
    run_cached(ctx, &b, &all, 0, o, lse);
    for (int64_t s = 0; s < all.n; s++) {
        cached alone = {.n = 1, .lengths = {all.lengths[s]}, .queries = {all.queries[s]}};
        double operand = all.queries[s] < all.lengths[s] ? 0 : operand_of(ctx); /* past keys meet float32 ones in every precision */
        attention_oracle a = attention_batch_oracle(&b, s, operand, false);
        compare_cached(&a, all.queries[s], o + row * Q, lse + row * H, device_rung(ctx));
        attention_oracle_destroy(&a);
        run_cached(ctx, &b, &alone, s, one, one_lse);
        CHECK(attention_same_rows(o + row * Q, one, all.queries[s], Q, Q) &&
                  attention_same_rows(lse + row * H, one_lse, all.queries[s], H, H),
              "%s: neighbours change bits of the queries behind %d keys", device_rung(ctx), all.lengths[s] - all.queries[s]);
        row += all.queries[s];
    }
    float *buffers[] = {o, one, lse, one_lse};
    for (int i = 0; i < 4; i++) attention_buffer_free(buffers[i]);
    attention_batch_destroy(&b);
}

/* Operands are bfloat16, and nothing else is. */
static void check_roundings(lora_ctx *ctx, const device_shape *shape) {
    attention_batch b = make_batch(shape);
    device_run_batch(ctx, &b);
    attention_errors_check(&b, "fast");
    float *fast = attention_buffer(b.M * b.ld_out);
    memcpy(fast, b.out, (size_t)(b.M * b.ld_out) * sizeof(float));
    OK_OR_END(lora_ctx_set_precision(ctx, LORA_PRECISION_EXACT, &error));
    device_run_batch(ctx, &b);
    OK_OR_END(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, &error));
    int64_t at = b.cu[1] * b.ld_out; /* of the longest segment */
    bool rounds =
        !lora_backend_of(ctx)->backend->linear_operand || lora_linear_operand(ctx, LENGTHS[1]) == LORA_BF16; /* a GPU before 8.0 does not */
    CHECK(rounds != attention_same_rows(fast + at, b.out + at, LENGTHS[1], b.ld_out, attention_q_width(&b)), "D %d: fast is %s",
          (int)shape->D, rounds ? "exact" : "not exact");
    attention_buffer_free(fast);
    attention_batch_destroy(&b);
}

static void check_all_roundings(lora_ctx *ctx) {
    static const device_shape shapes[] = {
        {32, 4, 2, 0, 0, 1.5f, true},  {64, 3, 1, 70, 0, 1.5f, true},   {48, 8, 1, 0, 3, 1.5f, false},
        {96, 2, 2, 0, 0, 1.5f, false}, {128, 2, 1, 40, 0, 1.5f, false}, {256, 2, 2, 0, 0, 1.5f, true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_roundings(ctx, &shapes[i]);
}

static void check_on(lora_ctx *ctx) {
    static const device_shape shapes[] = {
        {1, 1, 1, 0, 0, 1, false},  {7, 4, 2, 5, 0, 1, false},      {20, 40, 1, 20, 0, 1, false}, {16, 6, 2, 0, 50, 1, true},
        {64, 4, 1, 0, 0, 1, true},  {64, 3, 1, 70, 0.7f, 1, false}, {80, 2, 2, 64, 0, 1, true},   {96, 3, 3, 1, 0, 1, true},
        {128, 4, 2, 0, 0, 1, true}, {128, 2, 1, 90, 2, 1, false},   {130, 2, 1, 0, 0, 1, false},  {256, 2, 1, 33, 0, 1, true},
        {300, 1, 1, 0, 0, 1, true}, {16, 4, 2, 0, 0, 60, true}, /* logits of some thousands */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_shape(ctx, &shapes[i]);
    check_packing(ctx, &shapes[1]);
    check_packing(ctx, &shapes[4]);
    check_packing(ctx, &shapes[9]);
    check_cache(ctx, &shapes[1]);
    check_cache(ctx, &shapes[4]);
    check_cache(ctx, &(device_shape){130, 2, 1, 300, 0.7f, 1, false});
}

void check_attention_devices(void);
void check_attention_devices(void) {
    const checked_device *devices;
    int n = checked_devices(&devices);
    for (int d = 1; d < n; d++) {
        lora_ctx *ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 2);
        for (int p = LORA_PRECISION_EXACT; p <= LORA_PRECISION_FAST; p++) {
            OK_OR_END(lora_ctx_set_precision(ctx, (lora_precision)p, &error));
            check_on(ctx);
            if (p == LORA_PRECISION_FAST && devices[d].tolerance[0] > 0) check_all_roundings(ctx); /* others have the CPU's bits */
        }
        device_ctx_free(ctx);
    }
}
