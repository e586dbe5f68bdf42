/* Activations of 16 bits on the devices that take them: a result in bfloat16 is the float32 one, rounded once; an operand in bfloat16 makes
 * what float32 of its values makes, bit by bit; nothing is written beside it. And who refuses what. */
#include <stdio.h>

#include "lora_c/base/half.h"
#include "lora_c/base/mat.h"
#include "tests/c/device_shapes.h"

enum { BAND = 24 /* elements before and behind a matrix of 16 bits */, MARK = 0xA5A5 };

/* --- matrices of both types --- */

typedef struct both {
    lora_mat f32, bf16;
} both;

static float *fetch(op_run *r, const void *device, size_t bytes) {
    float *host = malloc(bytes + 4);
    OK(lora_download(r->ctx, host, device, bytes, ERR));
    OK(lora_sync(r->ctx, ERR));
    return host;
}

/* The matrix of 16 bits begins BAND elements into its memory, all of which is marked but for the values (NULL: none). */
static lora_mat send_narrow(op_run *r, const float *values, int64_t rows, int64_t cols, int64_t ld) {
    int64_t n = rows * ld + 2 * BAND;
    uint16_t *host = malloc((size_t)n * sizeof *host);
    for (int64_t i = 0; i < n; i++) host[i] = MARK;
    for (int64_t row = 0; values && row < rows; row++)
        for (int64_t col = 0; col < cols; col++) host[BAND + row * ld + col] = lora_f32_to_bf16(values[row * ld + col]);
    uint16_t *device = op_send(r, host, (size_t)n * sizeof *host);
    free(host);
    return (lora_mat){.data = device + BAND, .rows = rows, .cols = cols, .ld = ld, .dtype = LORA_BF16};
}

/* Results to be. */
static both outputs(op_run *r, int64_t rows, int64_t cols, int64_t padding) {
    return (both){.f32 = mat(r, rows, cols, padding), .bf16 = send_narrow(r, NULL, rows, cols, cols + padding)};
}

/* Random numbers; rounded: the float32 ones are those of bfloat16, too. */
static both inputs(op_run *r, int64_t rows, int64_t cols, int64_t padding, bool rounded) {
    int64_t ld = cols + padding, n = rows * ld;
    float *host = malloc((size_t)(n + 1) * sizeof *host);
    check_normal(host, n, ++r->seed, 1);
    for (int64_t i = 0; rounded && i < n; i++) host[i] = lora_bf16_to_f32(lora_f32_to_bf16(host[i]));
    both m = {.f32 = lora_mat_f32(op_send(r, host, (size_t)n * sizeof *host), rows, cols, ld),
              .bf16 = send_narrow(r, host, rows, cols, ld)};
    free(host);
    return m;
}

static void same_rounded(op_run *r, const char *what, both m) {
    int64_t ld = m.bf16.ld, n = m.bf16.rows * ld;
    float *wide = fetch(r, m.f32.data, (size_t)n * sizeof *wide);
    uint16_t *memory = (uint16_t *)(void *)fetch(r, (uint16_t *)m.bf16.data - BAND, (size_t)(n + 2 * BAND) * sizeof *memory);
    int64_t wrong = 0, beside = 0;
    for (int64_t i = -BAND; i < n + BAND; i++) {
        bool inside = i >= 0 && i < n && i % ld < m.bf16.cols;
        wrong += inside && memory[BAND + i] != lora_f32_to_bf16(wide[i]);
        beside += !inside && memory[BAND + i] != MARK;
    }
    CHECK(wrong == 0 && beside == 0, "%s (%d, %d), rows of %d, on %s: %d elements are not the rounded ones, %d beside it are written", what,
          (int)m.bf16.rows, (int)m.bf16.cols, (int)ld, lora_ctx_device(r->ctx), (int)wrong, (int)beside);
    free(wide), free(memory);
}

static void same_floats(op_run *r, const char *what, const void *a, const void *b, int64_t n) {
    float *x = fetch(r, a, (size_t)n * sizeof *x), *y = fetch(r, b, (size_t)n * sizeof *y);
    CHECK(memcmp(x, y, (size_t)n * sizeof *x) == 0, "%s on %s: other bits than from float32", what, lora_ctx_device(r->ctx));
    free(x), free(y);
}

/* --- norms and activations --- */

static void norms(op_run *r) {
    for (int i = 0; i < 2 * N_SHAPES; i++) {
        shape s = SHAPES[i / 2];
        lora_norm norm = {.kind = i % 2 ? LORA_NORM_LAYER : LORA_NORM_RMS, .H = s.cols, .groups = i % 3 ? 1 : 2, .eps = 1e-5f};
        norm.weight = op_floats(r, s.cols, 1);
        norm.bias = op_floats(r, s.cols, 1);
        lora_mat x = mat(r, s.rows, norm.groups * s.cols, s.padding);
        both y = outputs(r, s.rows, norm.groups * s.cols, s.padding);
        OK(lora_norm_forward(r->ctx, &norm, x, y.f32, NULL, ERR));
        OK(lora_norm_forward(r->ctx, &norm, x, y.bf16, NULL, ERR));
        same_rounded(r, "y of a norm", y);
    }
}

static void activations(op_run *r) {
    for (int i = 0; i < LORA_ACTIVATIONS * N_SHAPES; i++) {
        lora_activation kind = (lora_activation)(i % LORA_ACTIVATIONS);
        shape s = SHAPES[i / LORA_ACTIVATIONS];
        lora_mat gate = mat(r, s.rows, s.cols, s.padding), up = mat(r, s.rows, s.cols, s.padding), dh = mat(r, s.rows, s.cols, s.padding),
                 none = lora_mat_none();
        both h = outputs(r, s.rows, s.cols, s.padding), dgate = outputs(r, s.rows, s.cols, s.padding),
             dup = outputs(r, s.rows, s.cols, s.padding), alone = outputs(r, s.rows, s.cols, s.padding);
        OK(lora_mlp_forward(r->ctx, kind, gate, up, h.f32, ERR));
        OK(lora_mlp_forward(r->ctx, kind, gate, up, h.bf16, ERR));
        same_rounded(r, "h", h);
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, up, dgate.f32, dup.f32, ERR));
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, up, dgate.bf16, dup.bf16, ERR));
        same_rounded(r, "dgate", dgate);
        same_rounded(r, "dup", dup);
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, none, alone.f32, none, ERR));
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, none, alone.bf16, none, ERR));
        same_rounded(r, "dgate without up", alone);
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, up, dgate.bf16, up, ERR)); /* one of each type */
        same_rounded(r, "dgate beside a dup in the place of up", dgate);
        for (int64_t row = 0; row < s.rows; row++) /* what lies between the rows differs */
            same_floats(r, "dup in the place of up", lora_mat_row(up, row), lora_mat_row(dup.f32, row), s.cols);
    }
}

/* --- attention: segments with few rows and with many, with past keys and without, heads that are aligned and not --- */

enum { SEGMENTS = 3 };
typedef struct attention_case {
    int64_t D, H, KV, padding;
    int32_t cu[SEGMENTS + 1];
} attention_case;

static void run_attention(op_run *r, const attention_case *c, int64_t past) {
    int64_t M = c->cu[SEGMENTS], Q = c->H * c->D, W = c->KV * c->D, start[SEGMENTS], length[SEGMENTS];
    lora_attention_shape shape = {.n_heads = c->H, .n_kv_heads = c->KV, .head_dim = c->D, .scale = 0.3f};
    for (int s = 0; s < SEGMENTS; s++) {
        start[s] = c->cu[s] + s * past;
        length[s] = c->cu[s + 1] - c->cu[s] + past;
    }
    lora_segments segments = {.n = SEGMENTS, .cu_seqlens = c->cu, .on_device = op_send(r, c->cu, sizeof c->cu)};
    lora_mat q = mat(r, M, Q, c->padding), k = mat(r, M + SEGMENTS * past, W, 0), v = mat(r, M + SEGMENTS * past, W, 0);
    lora_kv kv = {.k = k.data, .v = v.data, .ldk = k.ld, .ldv = v.ld, .start = op_send(r, start, sizeof start)};
    kv.length = op_send(r, length, sizeof length);
    float *lse = op_floats(r, M * c->H, 1);
    both o = outputs(r, M, Q, c->padding);
    OK(lora_attention_forward(r->ctx, &shape, &segments, q, &kv, o.f32, lse, ERR));
    OK(lora_attention_forward(r->ctx, &shape, &segments, q, &kv, o.bf16, lse, ERR));
    same_rounded(r, "o", o);
    if (past) return;
    both given = inputs(r, M, Q, c->padding, true);
    lora_mat dout = mat(r, M, Q, c->padding), d[2][3];
    for (int i = 0; i < 2; i++) {
        d[i][0] = mat(r, M, Q, 0), d[i][1] = mat(r, M, W, 0), d[i][2] = mat(r, M, W, 0);
        lora_attention_gradient g = {.q = q, .k = k, .v = v, .o = i ? given.bf16 : given.f32, .dout = dout, .lse = lse};
        g.dq = d[i][0], g.dk = d[i][1], g.dv = d[i][2];
        OK(lora_attention_backward(r->ctx, &shape, &segments, &g, ERR));
    }
    for (int i = 0; i < 3; i++) same_floats(r, "gradients of attention", d[1][i].data, d[0][i].data, M * d[0][i].cols);
}

static void attentions(op_run *r) {
    static const attention_case of[] = {{.D = 16, .H = 4, .KV = 2, .padding = 0, .cu = {0, 3, 50, 121}},
                                        {.D = 7, .H = 3, .KV = 1, .padding = 2, .cu = {0, 25, 26, 60}},
                                        {.D = 64, .H = 2, .KV = 2, .padding = 8, .cu = {0, 70, 70, 83}},
                                        {.D = 260, .H = 1, .KV = 1, .padding = 1, .cu = {0, 66, 67, 70}}};
    for (int i = 0; i < 4; i++) {
        run_attention(r, &of[i], 0);
        run_attention(r, &of[i], 5);
    }
}

/* --- linear layers --- */

typedef struct linear_case {
    int64_t tokens, K, N, padding, rank;
    float dropout;
    bool dora;
} linear_case;

/* What one run of both directions leaves. */
typedef struct linear_results {
    lora_mat y, dx;
    float *dA, *dB, *dW, *dbias, *dmagnitude;
} linear_results;

static linear_results run_linear(op_run *r, const linear_case *c, lora_mat x, lora_mat dy) {
    uint64_t seed = r->seed; /* the same numbers in each run */
    r->seed = 5000;
    lora_weight w = lora_weight_f32(op_floats(r, c->N * c->K, 0.3f), c->N, c->K, c->K);
    linear_results out = {.y = mat(r, c->tokens, c->N, 0),
                          .dx = mat(r, c->tokens, c->K, 0),
                          .dA = op_floats(r, c->rank * c->K, 1),
                          .dB = op_floats(r, c->N * c->rank, 1),
                          .dW = op_floats(r, c->N * c->K, 1),
                          .dbias = op_floats(r, c->N, 1),
                          .dmagnitude = op_floats(r, c->N, 1)};
    lora_adapter a = {.rank = c->rank, .A = op_floats(r, c->rank * c->K, 0.3f), .B = op_floats(r, c->N * c->rank, 0.3f), .scale = 0.7f};
    a.dA = out.dA, a.dB = out.dB, a.dropout_seed = 9;
    lora_adapter_pass pass = {.dropout = c->dropout, .dropout_stream = 4, .norm = op_floats(r, c->N, 1)};
    if (c->dora) a.magnitude = op_floats(r, c->N, 1), a.dmagnitude = out.dmagnitude;
    if (c->dora) OK(lora_dora_norm(r->ctx, &w, &a, (float *)pass.norm, ERR));
    lora_linear_layer layer = {.w = &w, .bias = op_floats(r, c->N, 1), .adapter = &a, .pass = pass, .y = out.y};
    lora_linear_gradient g = {.dy = dy, .w = &w, .adapter = &a, .pass = pass, .dW = out.dW, .dbias = out.dbias};
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    OK(lora_linear_backward(r->ctx, x, 1, &g, out.dx, false, ERR));
    r->seed = seed;
    return out;
}

static void same_linear(op_run *r, const char *what, const linear_case *c, const linear_results *a, const linear_results *b) {
    same_floats(r, what, a->y.data, b->y.data, c->tokens * c->N);
    same_floats(r, what, a->dx.data, b->dx.data, c->tokens * c->K);
    same_floats(r, what, a->dA, b->dA, c->rank * c->K);
    same_floats(r, what, a->dB, b->dB, c->N * c->rank);
    same_floats(r, what, a->dW, b->dW, c->N * c->K);
}

static void linears(op_run *r) {
    static const linear_case of[] = {{.tokens = 19, .K = 64, .N = 24, .rank = 3},
                                     {.tokens = 20, .K = 37, .N = 11, .rank = 3, .padding = 2},
                                     {.tokens = 33, .K = 45, .N = 13, .rank = 3, .padding = 3, .dropout = 0.3f},
                                     {.tokens = 18, .K = 40, .N = 16, .rank = 3, .dora = true},
                                     {.tokens = 21, .K = 44, .N = 9, .rank = 3, .padding = 1, .dropout = 0.3f, .dora = true},
                                     {.tokens = 5, .K = 37, .N = 11, .rank = 3, .padding = 1},
                                     {.tokens = 6, .K = 48, .N = 16, .rank = 3, .dora = true},
                                     /* the update is part of the product: rows lend no columns, some, more than are needed */
                                     {.tokens = 19, .K = 64, .N = 24, .rank = 8},
                                     {.tokens = 23, .K = 48, .N = 40, .rank = 16, .padding = 16},
                                     {.tokens = 33, .K = 56, .N = 32, .rank = 8, .padding = 24, .dropout = 0.3f},
                                     {.tokens = 26, .K = 72, .N = 16, .rank = 8, .padding = 8, .dora = true},
                                     {.tokens = 20, .K = 40, .N = 13, .rank = 8, .padding = 3}};
    for (int i = 0; i < (int)(sizeof of / sizeof *of); i++) {
        const linear_case *c = &of[i];
        both x = inputs(r, c->tokens, c->K, c->padding, true), dy = inputs(r, c->tokens, c->N, c->padding, true);
        linear_results wide = run_linear(r, c, x.f32, dy.f32), narrow = run_linear(r, c, x.bf16, dy.bf16);
        same_linear(r, "a linear layer", c, &narrow, &wide);
        same_floats(r, "dbias", narrow.dbias, wide.dbias, c->N);
        same_floats(r, "dmagnitude", narrow.dmagnitude, wide.dmagnitude, c->N);
    }
}

/* Whoever rounds: what lora_linear_operand promises. */
static void rounded_by_the_caller(op_run *r) {
    static const linear_case of[] = {{.tokens = 19, .K = 37, .N = 11, .rank = 3, .padding = 2},
                                     {.tokens = 19, .K = 40, .N = 16, .rank = 8, .padding = 8}};
    bool fast = lora_ctx_precision(r->ctx) == LORA_PRECISION_FAST;
    CHECK(lora_linear_operand(r->ctx, of->tokens) == (fast ? LORA_BF16 : LORA_F32), "operands of many tokens");
    CHECK(lora_linear_operand(r->ctx, LORA_DECODE_BATCH) == LORA_F32, "few tokens are read as they are");
    for (int i = 0; i < 2; i++) {
        const linear_case *c = &of[i];
        both x = inputs(r, c->tokens, c->K, c->padding, false), dy = inputs(r, c->tokens, c->N, c->padding, false);
        linear_results wide = run_linear(r, c, x.f32, dy.f32), narrow = run_linear(r, c, x.bf16, dy.bf16);
        if (fast) same_linear(r, "a linear layer whose operands the caller rounds", c, &narrow, &wide);
    }
}

/* --- what is refused --- */

/* Each operation with one matrix of 16 bits where it may be: text is what follows the name of the argument. */
static void refusals(op_run *r, lora_status status, const char *text, lora_dtype dtype) {
    enum { M = 20, W = 16 };
    lora_mat m = mat(r, M, W, 0), other = mat(r, M, W, 0), third = mat(r, M, W, 0), out = mat(r, M, W, 0),
             narrow = send_narrow(r, NULL, M, W, W);
    narrow.dtype = dtype;
    char said[8][96];
    static const char *const names[] = {"y", "h", "dgate", "dup", "o", "x", "dy", "x"};
    for (int i = 0; i < 8; i++) snprintf(said[i], sizeof said[i], "%s: expected float32%s", names[i], text);
    lora_norm norm = {.H = W, .groups = 1, .weight = op_floats(r, W, 1)};
    lora_weight w = lora_weight_f32(op_floats(r, W * W, 1), W, W, W);
    lora_linear_layer layer = {.w = &w, .y = out};
    lora_linear_gradient g = {.dy = narrow, .w = &w}, g32 = {.dy = m, .w = &w};
    static const int32_t cu[] = {0, M};
    static const int64_t start[] = {0}, length[] = {M};
    lora_attention_shape shape = {.n_heads = 1, .n_kv_heads = 1, .head_dim = W, .scale = 1};
    lora_segments segments = {.n = 1, .cu_seqlens = cu, .on_device = op_send(r, cu, sizeof cu)};
    lora_kv kv = {.k = m.data, .v = other.data, .ldk = W, .ldv = W, .start = op_send(r, start, sizeof start)};
    kv.length = op_send(r, length, sizeof length);
    REFUSED(status, said[0], lora_norm_forward(r->ctx, &norm, m, narrow, NULL, ERR));
    REFUSED(status, said[1], lora_mlp_forward(r->ctx, LORA_SILU, m, other, narrow, ERR));
    REFUSED(status, said[2], lora_mlp_backward(r->ctx, LORA_SILU, m, other, third, narrow, out, ERR));
    REFUSED(status, said[3], lora_mlp_backward(r->ctx, LORA_SILU, m, other, third, out, narrow, ERR));
    REFUSED(status, said[4], lora_attention_forward(r->ctx, &shape, &segments, third, &kv, narrow, NULL, ERR));
    REFUSED(status, said[5], lora_linear_forward(r->ctx, narrow, 1, &layer, ERR));
    REFUSED(status, said[6], lora_linear_backward(r->ctx, m, 1, &g, out, false, ERR));
    REFUSED(status, said[7], lora_linear_backward(r->ctx, narrow, 1, &g32, out, false, ERR));
}

static void refuse_on_others(op_run *r) {
    char text[64];
    snprintf(text, sizeof text, " on %s, got bfloat16", lora_ctx_device(r->ctx));
    refusals(r, LORA_EDTYPE, text, LORA_BF16);
    CHECK(lora_linear_operand(r->ctx, 100) == LORA_F32, "float32 on %s", lora_ctx_device(r->ctx));
}

static void refuse(op_run *r) {
    lora_mat x = mat(r, 20, 16, 0), y = x, gate = mat(r, 20, 16, 0);
    lora_norm norm = {.H = 16, .groups = 1, .weight = op_floats(r, 16, 1)};
    y.dtype = LORA_BF16;
    refusals(r, LORA_EDTYPE, " or bfloat16, got float16", LORA_F16);
    REFUSED(LORA_EINVAL, "y: expected memory apart from x", lora_norm_forward(r->ctx, &norm, x, y, NULL, ERR));
    REFUSED(LORA_EINVAL, "h: expected memory apart from gate", lora_mlp_forward(r->ctx, LORA_SILU, x, gate, y, ERR));
    REFUSED(LORA_EINVAL, "dup: expected memory apart from up",
            lora_mlp_backward(r->ctx, LORA_SILU, gate, mat(r, 20, 16, 0), x, mat(r, 20, 16, 0), y, ERR));
    REFUSED(LORA_EDTYPE, "x: expected float32, got bfloat16", lora_scale_rows(r->ctx, 1, send_narrow(r, NULL, 20, 16, 16), x, false, ERR));
}

/* --- */

static void run(void (*one)(op_run *), lora_ctx *ctx, lora_precision precision) {
    static op_run r;
    r = (op_run){.ctx = ctx, .seed = 100};
    OK(lora_ctx_set_precision(ctx, precision, ERR));
    one(&r);
    for (int i = 0; i < r.n_arrays; i++) lora_ctx_free(ctx, r.arrays[i]);
}

void check_device_narrow(void) {
    static void (*const of[])(op_run *) = {norms, activations, attentions, linears, rounded_by_the_caller, refuse};
    const checked_device *devices;
    int n = checked_devices(&devices);
    for (int d = 0; d < n; d++) {
        lora_ctx *ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 2);
        bool takes = ctx->view.backend->linear_operand != NULL;
        for (int p = LORA_PRECISION_EXACT; p <= LORA_PRECISION_FAST; p++) {
            if (!takes) run(refuse_on_others, ctx, (lora_precision)p);
            for (int i = 0; takes && i < (int)(sizeof of / sizeof *of); i++) run(of[i], ctx, (lora_precision)p);
        }
        device_ctx_free(ctx);
    }
}
