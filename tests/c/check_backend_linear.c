/* Linear layers and optimizers as operations of a backend's table: see check_backend.c. */
#include "tests/c/check_backend.h"

enum { K = BACKEND_COLS, N = 43, R = 5, STREAM = 4 };
/* One token, few (rows of W are read as they are), many (they are packed). */
static const int64_t TOKENS[] = {1, 9, 61};
enum { N_TOKENS = sizeof TOKENS / sizeof *TOKENS };

static lora_adapter make_adapter(op_run *r, int64_t rows, bool dora, float dropout) {
    return (lora_adapter){.rank = R,
                          .A = op_floats(r, R * K, 0.3f),
                          .B = op_floats(r, rows * R, 0.3f),
                          .magnitude = dora ? op_floats(r, rows, 1) : NULL,
                          .dA = op_floats(r, R * K, 1),
                          .dB = op_floats(r, rows * R, 1),
                          .dmagnitude = dora ? op_floats(r, rows, 1) : NULL,
                          .scale = 0.7f,
                          .dropout = dropout,
                          .dropout_seed = 9};
}

static lora_adapter_pass make_pass(op_run *r, const lora_weight *w, const lora_adapter *a, int64_t tokens) {
    lora_adapter_pass pass = {.dropout = a->dropout, .dropout_stream = STREAM};
    if (lora_linear_keeps_low(r->ctx, tokens, a)) pass.low = op_floats(r, tokens * R, 1);
    if (!a->magnitude) return pass;
    float *norm = op_floats(r, w->rows, 1);
    OK(lora_dora_norm(r->ctx, w, a, norm, ERR));
    pass.norm = norm;
    return pass;
}

/* Three layers of the same x: plain with a bias, with an adapter and dropout, with DoRA. */
static void run_layers(op_run *r, const lora_weight *w, int64_t tokens, bool backward) {
    lora_mat x = op_mat(r, tokens, K, 1), dx = op_mat(r, tokens, K, 1);
    lora_adapter adapters[3] = {{0}, make_adapter(r, N, false, 0.25f), make_adapter(r, N, true, 0)};
    lora_linear_layer layers[3];
    lora_linear_gradient gradients[3];
    for (int i = 0; i < 3; i++) {
        lora_adapter *a = i ? &adapters[i] : NULL;
        lora_adapter_pass pass = a ? make_pass(r, w, a, tokens) : (lora_adapter_pass){0};
        layers[i] = (lora_linear_layer){
            .w = w, .bias = i ? NULL : op_floats(r, N, 1), .adapter = a, .pass = pass, .y = op_mat(r, tokens, N, 1), .accumulate = i == 1};
        gradients[i] = (lora_linear_gradient){.dy = op_mat(r, tokens, N, 1), .w = w, .adapter = a, .pass = pass};
    }
    if (w->kind == LORA_WEIGHT_F32) gradients[0].dW = op_floats(r, N * K, 1), gradients[0].dbias = op_floats(r, N, 1);
    OK(lora_linear_forward(r->ctx, x, 3, layers, ERR));
    for (int i = 0; i < 3 && !backward; i++) op_keep_mat(r, "y", layers[i].y);
    if (!backward) return;
    OK(lora_linear_backward(r->ctx, x, 3, gradients, dx, tokens == 9, ERR));
    op_keep_mat(r, "dx", dx);
    for (int i = 1; i < 3; i++) {
        op_keep(r, "dA", adapters[i].dA, R * K, VALUES_F32);
        op_keep(r, "dB", adapters[i].dB, N * R, VALUES_F32);
    }
    op_keep(r, "dmagnitude", adapters[2].dmagnitude, N, VALUES_F32);
    if (!gradients[0].dW) return;
    op_keep(r, "dW", gradients[0].dW, N * K, VALUES_F32);
    op_keep(r, "dbias", gradients[0].dbias, N, VALUES_F32);
}

/* Rows with adapters of their own, and two with none. */
static void run_groups(op_run *r, const lora_weight *w) {
    enum { TOKENS_OF_GROUPS = 9 };
    lora_adapter a[] = {make_adapter(r, N, false, 0), make_adapter(r, N, false, 0)};
    lora_adapter_rows groups[] = {{&a[0], 0, 3}, {&a[1], 3, 2}, {&a[0], 6, 2}};
    lora_linear_layer layer = {.w = w, .bias = op_floats(r, N, 1), .y = op_mat(r, TOKENS_OF_GROUPS, N, 1), .groups = groups, .n_groups = 3};
    OK(lora_linear_forward(r->ctx, op_mat(r, TOKENS_OF_GROUPS, K, 1), 1, &layer, ERR));
    memset(a, 0, sizeof a); /* structs are read during the call */
    memset(groups, 0, sizeof groups);
    op_keep_mat(r, "y of groups", layer.y);
}

static void run_weights(op_run *r, bool backward) {
    for (int kind = 0; kind < backend_weights(); kind++) {
        backend_weight host = backend_make_weight(r, kind, N);
        lora_weight w = op_weight(r, &host.w);
        for (int i = 0; i < N_TOKENS; i++) run_layers(r, &w, TOKENS[i], backward);
        if (!backward) run_groups(r, &w);
        backend_free_weight(&host);
    }
}

static void linear_forward(op_run *r) { run_weights(r, false); }
static void linear_backward(op_run *r) { run_weights(r, true); }

static void run_merges(op_run *r, bool merge) {
    for (int kind = 0; kind < backend_weights(); kind++) {
        backend_weight host = backend_make_weight(r, kind, N);
        lora_weight w = op_weight(r, &host.w);
        lora_adapter a = make_adapter(r, N, kind % 2, 0);
        float *norm = op_floats(r, N, 1), *merged = op_floats(r, N * K, 1);
        OK(lora_dora_norm(r->ctx, &w, &a, norm, ERR));
        static const float none = 0; /* what has no direction becomes zeros */
        OK(lora_upload(r->ctx, norm + 3, &none, sizeof none, ERR));
        if (merge) OK(lora_linear_merge(r->ctx, &w, kind == 2 ? NULL : &a, a.magnitude ? norm : NULL, kind == 4 ? -1 : 1, merged, ERR));
        op_keep(r, host.name, merge ? merged : norm, merge ? N * K : N, VALUES_F32);
        backend_free_weight(&host);
    }
}

static void dora_norm(op_run *r) { run_merges(r, false); }
static void linear_merge(op_run *r) { run_merges(r, true); }

static void linear_merge_backward(op_run *r) {
    lora_adapter a = make_adapter(r, N, false, 0);
    OK(lora_linear_merge_backward(r->ctx, &a, op_mat(r, N, K, 1), ERR));
    op_keep(r, "dA", a.dA, R * K, VALUES_F32);
    op_keep(r, "dB", a.dB, N * R, VALUES_F32);
}

/* --- optimizers --- */

enum { ARRAYS = 4, TOTAL = 5 + 0 + 40000 + 777 };
static const int64_t SIZES[ARRAYS] = {5, 0, 40000, 777};

static void make_params(op_run *r, lora_param *params) {
    for (int i = 0; i < ARRAYS; i++)
        params[i] = (lora_param){
            .data = op_floats(r, SIZES[i], 1), .grad = op_floats(r, SIZES[i], 1), .n = SIZES[i], .decay = i % 2 == 0, .lr_ratio = 1};
}

static void adamw_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    float zeros[TOTAL] = {0}, *m = op_send(r, zeros, sizeof zeros), *v = op_send(r, zeros, sizeof zeros);
    lora_adamw_hyper hyper = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.5};
    for (hyper.step = 1; hyper.step <= 3; hyper.step++) OK(lora_adamw_step(r->ctx, ARRAYS, params, m, v, &hyper, ERR));
    for (int i = 0; i < ARRAYS; i++)
        if (SIZES[i]) op_keep(r, "data", params[i].data, SIZES[i], VALUES_F32);
    op_keep(r, "m", m, TOTAL, VALUES_F32);
    op_keep(r, "v", v, TOTAL, VALUES_F32);
}

static void keep_arrays(op_run *r, const lora_param *params) {
    for (int i = 0; i < ARRAYS; i++)
        if (SIZES[i]) op_keep(r, "data", params[i].data, SIZES[i], VALUES_F32);
}

static void adamw8bit_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    int64_t blocks = 0;
    for (int i = 0; i < ARRAYS; i++) blocks += (SIZES[i] + LORA_ADAMW8BIT_BLOCK - 1) / LORA_ADAMW8BIT_BLOCK;
    float zeros[TOTAL] = {0};
    lora_adamw8bit_state state = {.m = op_send(r, zeros, TOTAL + 3), .v = op_send(r, zeros, TOTAL + 3)};
    state.m_absmax = op_send(r, zeros, (size_t)blocks * 4);
    state.v_absmax = op_send(r, zeros, (size_t)blocks * 4);
    lora_adamw_hyper hyper = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.5};
    for (hyper.step = 1; hyper.step <= 3; hyper.step++) OK(lora_adamw8bit_step(r->ctx, ARRAYS, params, &state, &hyper, ERR));
    keep_arrays(r, params);
    op_keep(r, "m_absmax", state.m_absmax, blocks, VALUES_F32);
    op_keep(r, "v_absmax", state.v_absmax, blocks, VALUES_F32);
}

static void sgd_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    float zeros[TOTAL] = {0}, *m = op_send(r, zeros, sizeof zeros);
    lora_sgd_hyper hyper = {.lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true, .grad_scale = 0.5};
    for (hyper.step = 1; hyper.step <= 3; hyper.step++) OK(lora_sgd_step(r->ctx, ARRAYS, params, m, &hyper, ERR));
    keep_arrays(r, params);
    op_keep(r, "m", m, TOTAL, VALUES_F32);
}

static void lion_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    float zeros[TOTAL] = {0}, *m = op_send(r, zeros, sizeof zeros);
    lora_lion_hyper hyper = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_scale = 0.5};
    for (int i = 0; i < 3; i++) OK(lora_lion_step(r->ctx, ARRAYS, params, m, &hyper, ERR));
    keep_arrays(r, params);
    op_keep(r, "m", m, TOTAL, VALUES_F32);
}

static void adafactor_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    float zeros[TOTAL] = {0};
    lora_adafactor_state state = {.row = op_send(r, zeros, sizeof zeros), .col = op_send(r, zeros, sizeof zeros)};
    state.m = op_send(r, zeros, sizeof zeros);
    for (int i = 0; i < ARRAYS; i++) params[i].cols = SIZES[i] % 5 == 0 ? 5 : 0;
    lora_adafactor_hyper hyper = {.eps1 = 1e-30, .eps2 = 1e-3, .clip_threshold = 1, .decay_rate = -0.8, .beta1 = 0.9, .weight_decay = 0.1};
    hyper.scale_parameter = hyper.relative_step = true;
    hyper.grad_scale = 0.5;
    for (hyper.step = 1; hyper.step <= 3; hyper.step++) OK(lora_adafactor_step(r->ctx, ARRAYS, params, &state, &hyper, ERR));
    keep_arrays(r, params);
    op_keep(r, "m", state.m, TOTAL, VALUES_F32);
    op_keep(r, "row", state.row, TOTAL, VALUES_F32);
    op_keep(r, "col", state.col, TOTAL, VALUES_F32);
}

static void muon_step(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    float zeros[TOTAL] = {0}, *m = op_send(r, zeros, sizeof zeros);
    for (int i = 0; i < ARRAYS; i++) params[i].cols = SIZES[i] % 5 == 0 ? 5 : 1;
    lora_muon_hyper hyper = {.lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .eps = 1e-7, .a = 3.4445, .b = -4.775, .c = 2.0315};
    hyper.nesterov = true;
    hyper.ns_steps = 5;
    hyper.grad_scale = 0.5;
    for (int i = 0; i < 3; i++) OK(lora_muon_step(r->ctx, ARRAYS, params, m, &hyper, ERR));
    keep_arrays(r, params);
    op_keep(r, "m", m, TOTAL, VALUES_F32);
}

static void sum_of_squares(op_run *r) {
    lora_param params[ARRAYS];
    make_params(r, params);
    double *sum = (double *)(void *)op_floats(r, 2, 1);
    OK(lora_sum_of_squares(r->ctx, ARRAYS, params, sum, ERR));
    op_keep(r, "sum", sum, 1, VALUES_F64);
}

/* The entries linear_keeps_low and scratch_bytes answer on the host: the first is asked by these cases, the second below. */
static const op_case CASES[] = {
    {"linear_forward", linear_forward},
    {"linear_backward", linear_backward},
    {"dora_norm", dora_norm},
    {"linear_merge", linear_merge},
    {"linear_merge_backward", linear_merge_backward},
    {"adamw_step", adamw_step},
    {"adamw8bit_step", adamw8bit_step},
    {"sgd_step", sgd_step},
    {"lion_step", lion_step},
    {"adafactor_step", adafactor_step},
    {"muon_step", muon_step},
    {"sum_of_squares", sum_of_squares},
};
_Static_assert(sizeof CASES / sizeof *CASES + 2 == BACKEND_LINEAR_ENTRIES, "every entry has a case");

static void check_scratch(void) {
    const checked_device *devices;
    int n = checked_devices(&devices);
    lora_scratch_shape shape = {.n_tokens = 64, .widest = 256, .head = {.rows = 1000, .cols = 128}};
    for (int d = 0; d < n; d++) {
        lora_ctx *ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 2);
        CHECK(lora_scratch_bytes(ctx, &shape) >= 0, "%s: scratch", devices[d].name);
        device_ctx_free(ctx);
    }
}

void check_backend_linear(void) {
    op_check_cases(CASES, sizeof CASES / sizeof *CASES);
    check_scratch();
}
