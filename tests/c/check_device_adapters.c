/* Adapters of many tokens on every device where the cases of check_backend.c do not reach: low-rank products that forward keeps,
 * updates that are part of the product with W, and dropout under DoRA. */
#include "tests/c/check_backend.h"

enum { K = BACKEND_COLS, N = 21, R = 5 };

static lora_adapter make_adapter(op_run *r, int64_t rows, int64_t cols, int64_t rank) {
    return (lora_adapter){.rank = rank,
                          .A = op_floats(r, rank * cols, 0.3f),
                          .B = op_floats(r, rows * rank, 0.3f),
                          .dA = op_floats(r, rank * cols, 1),
                          .dB = op_floats(r, rows * rank, 1),
                          .scale = 0.7f,
                          .dropout_seed = 9};
}

static float *get(op_run *r, lora_mat m) {
    float *host = malloc((size_t)(m.rows * m.ld) * sizeof *host);
    OK(lora_download(r->ctx, host, m.data, (size_t)((m.rows - 1) * m.ld + m.cols) * sizeof *host, ERR));
    OK(lora_sync(r->ctx, ERR));
    return host;
}

/* --- what forward keeps for backward --- */

static void kept_low(op_run *r) {
    enum { TOKENS = 35 };
    backend_weight host = backend_make_weight(r, 2, N);
    lora_weight w = op_weight(r, &host.w);
    lora_mat x = op_mat(r, TOKENS, K, 1), y = op_mat(r, TOKENS, N, 1), dy = op_mat(r, TOKENS, N, 1);
    for (int dropped = 0; dropped < 2; dropped++) {
        float *dB[2], zeros[N * R] = {0};
        lora_adapter a = make_adapter(r, N, K, R);
        CHECK(lora_linear_keeps_low(r->ctx, TOKENS, &a), "many tokens keep what B's gradient needs");
        lora_adapter_pass pass = {.dropout = dropped ? 0.4f : 0, .dropout_stream = 3, .low = op_floats(r, TOKENS * R, 1)};
        lora_linear_layer layer = {.w = &w, .adapter = &a, .pass = pass, .y = y};
        OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
        for (int i = 0; i < 2; i++) {
            a.dB = op_send(r, zeros, sizeof zeros);
            lora_linear_gradient g = {.dy = dy, .w = &w, .adapter = &a, .pass = pass};
            if (i) g.pass.low = NULL;
            OK(lora_linear_backward(r->ctx, x, 1, &g, lora_mat_none(), false, ERR));
            dB[i] = get(r, lora_mat_f32(a.dB, N, R, R));
        }
        CHECK(memcmp(dB[0], dB[1], sizeof zeros) == 0, "%s: kept and formed again, dB has other bits", lora_ctx_device(r->ctx));
        op_keep_mat(r, "y", y);
        op_keep(r, "dB", a.dB, N * R, VALUES_F32);
        free(dB[0]), free(dB[1]);
    }
    backend_free_weight(&host);
}

/* --- updates in the product with W --- */

/* Three layers that share x, two of them with adapters whose ranks the product takes in. */
static void run_joined(op_run *r, int kind, float dropout, bool keeps, bool accumulate) {
    enum { TOKENS = 26, ROWS = 24, LAYERS = 3 };
    static const int64_t ranks[LAYERS] = {8, 0, 16};
    backend_weight host[LAYERS];
    lora_weight w[LAYERS];
    lora_adapter a[LAYERS];
    lora_linear_layer layers[LAYERS];
    lora_linear_gradient gradients[LAYERS];
    lora_mat x = op_mat(r, TOKENS, K, 1), dx = op_mat(r, TOKENS, K, 1);
    for (int i = 0; i < LAYERS; i++) {
        host[i] = backend_make_weight(r, kind, ROWS);
        w[i] = op_weight(r, &host[i].w);
        a[i] = make_adapter(r, ROWS, K, ranks[i] + 1);
        a[i].rank = ranks[i];
        lora_adapter_pass pass = {.dropout = dropout, .dropout_stream = 3 + (uint64_t)i};
        if (keeps && ranks[i]) pass.low = op_floats(r, TOKENS * ranks[i], 1);
        const lora_adapter *adapter = ranks[i] ? &a[i] : NULL;
        layers[i] = (lora_linear_layer){.w = &w[i],
                                        .adapter = adapter,
                                        .pass = pass,
                                        .y = op_mat(r, TOKENS, ROWS, 1),
                                        .bias = op_floats(r, ROWS, 1),
                                        .accumulate = accumulate};
        gradients[i] = (lora_linear_gradient){.dy = op_mat(r, TOKENS, ROWS, 1), .w = &w[i], .adapter = adapter, .pass = pass};
    }
    OK(lora_linear_forward(r->ctx, x, LAYERS, layers, ERR));
    OK(lora_linear_backward(r->ctx, x, LAYERS, gradients, dx, accumulate, ERR));
    op_keep_mat(r, "dx", dx);
    for (int i = 0; i < LAYERS; i++) {
        op_keep_mat(r, "y", layers[i].y);
        if (ranks[i]) op_keep(r, "dA", a[i].dA, ranks[i] * K, VALUES_F32);
        if (ranks[i]) op_keep(r, "dB", a[i].dB, ROWS * ranks[i], VALUES_F32);
        backend_free_weight(&host[i]);
    }
}

static void joined_updates(op_run *r) {
    for (int kind = 0; kind < 5; kind++) run_joined(r, kind, 0, kind % 2, kind % 3 == 0);
    run_joined(r, 3, 0.3f, false, true);
    run_joined(r, 3, 0.3f, true, false);
}

/* --- DoRA under dropout --- */

/* Row ROW of W + s B A is nothing but zeros: it has no direction. */
static void clear_row(op_run *r, const lora_weight *w, const lora_adapter *a) {
    enum { ROW = 2 };
    static const float zeros[K + R] = {0};
    OK(lora_upload(r->ctx, (float *)(uintptr_t)w->dense.data + ROW * w->dense.ld, zeros, K * sizeof *zeros, ERR));
    OK(lora_upload(r->ctx, (float *)(uintptr_t)a->B + ROW * R, zeros, R * sizeof *zeros, ERR));
}

static void run_dora(op_run *r, int64_t tokens, bool accumulate) {
    backend_weight host = backend_make_weight(r, 0, N);
    lora_weight w = op_weight(r, &host.w);
    lora_adapter a = make_adapter(r, N, K, R);
    a.magnitude = op_floats(r, N, 1);
    a.dmagnitude = op_floats(r, N, 1);
    clear_row(r, &w, &a);
    lora_mat x = op_mat(r, tokens, K, 1), y = op_mat(r, tokens, N, 1), dx = op_mat(r, tokens, K, 1);
    float *norm = op_floats(r, N, 1), *dW = op_floats(r, N * K, 1), *dbias = op_floats(r, N, 1);
    OK(lora_dora_norm(r->ctx, &w, &a, norm, ERR));
    const lora_adapter_pass pass = {.dropout = 0.3f, .dropout_stream = 5, .norm = norm};
    lora_linear_layer layer = {.w = &w, .bias = op_floats(r, N, 1), .adapter = &a, .pass = pass, .y = y, .accumulate = accumulate};
    lora_linear_gradient g = {.dy = op_mat(r, tokens, N, 1), .w = &w, .adapter = &a, .pass = pass, .dW = dW, .dbias = dbias};
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    OK(lora_linear_backward(r->ctx, x, 1, &g, dx, accumulate, ERR));
    op_keep_mat(r, "y", y);
    op_keep_mat(r, "dx", dx);
    op_keep(r, "dA", a.dA, R * K, VALUES_F32);
    op_keep(r, "dB", a.dB, N * R, VALUES_F32);
    op_keep(r, "dmagnitude", a.dmagnitude, N, VALUES_F32);
    op_keep(r, "dW", dW, N * K, VALUES_F32);
    op_keep(r, "dbias", dbias, N, VALUES_F32);
    backend_free_weight(&host);
}

static void dora_dropout(op_run *r) {
    run_dora(r, 4, true);
    run_dora(r, 23, false);
    run_dora(r, 23, true);
}

void check_device_adapters(void) {
    static const op_case cases[] = {{"kept low", kept_low}, {"joined updates", joined_updates}, {"DoRA with dropout", dora_dropout}};
    op_check_cases(cases, sizeof cases / sizeof *cases);
}
