/* LoRA's linear layer: what is checked of the arguments, and which layers are plain and which DoRA's. */
#include "lora_c/linear.h"

#include "lora_c/base/mat.h"
#include "lora_c/ops/dora.h"
#include "lora_c/ops/linear_plain.h"
#include "lora_c/ops/rows.h"

/* --- checks --- */

static lora_status check_adapter(const lora_adapter *a, const lora_adapter_pass *pass, lora_error *err) {
    if (!a) return LORA_OK;
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    LORA_CHECK(!a->magnitude || pass->norm, err, LORA_EINVAL, "adapter: expected norm beside DoRA's magnitude, got NULL; call lora_dora_norm");
    LORA_CHECK(pass->dropout >= 0 && pass->dropout < 1, err, LORA_EINVAL, "lora_dropout: expected 0 <= p < 1, got %g", (double)pass->dropout);
    return LORA_OK;
}

static lora_status check_count(int64_t n, lora_error *err) {
    LORA_CHECK(n >= 1 && n <= LORA_LINEAR_LAYERS, err, LORA_EINVAL, "layers: expected 1 to %d, got %lld", LORA_LINEAR_LAYERS, (long long)n);
    return LORA_OK;
}

static lora_status check_weights(int64_t M, const lora_weight *first, const lora_weight *w, lora_error *err) {
    LORA_TRY(lora_rows_check_weight("w", w, err));
    LORA_CHECK(M > 0, err, LORA_ESHAPE, "x: expected (M, %lld) with M > 0, got M %lld", (long long)w->cols, (long long)M);
    LORA_CHECK(w->cols == first->cols, err, LORA_ESHAPE, "layers: expected the same K = %lld in all, got %lld", (long long)first->cols,
               (long long)w->cols);
    return LORA_OK;
}

static lora_status check_linear_forward(lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    LORA_TRY(check_count(n, err));
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(check_weights(x.rows, layers->w, l->w, err));
        LORA_TRY(lora_mat_check_f32(lora_named("x", x), x.rows, l->w->cols, err));
        LORA_TRY(lora_mat_check_f32(lora_named("y", l->y), x.rows, l->w->rows, err));
        LORA_TRY(check_adapter(l->adapter, &l->pass, err));
        LORA_TRY(lora_mat_disjoint(lora_named("y", l->y), lora_named("x", x), err));
    }
    return LORA_OK;
}

static bool needs_input(const lora_linear_gradient *g) {
    const lora_adapter *a = g->adapter;
    return g->dW || (a && (a->dA || a->dB || a->dmagnitude));
}

static lora_status check_linear_backward(lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx, bool accumulate_dx,
                                         lora_error *err) {
    (void)accumulate_dx;
    LORA_TRY(check_count(n, err));
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_gradient *g = gradients + i;
        int64_t M = gradients->dy.rows, K = g->w->cols;
        LORA_TRY(check_weights(M, gradients->w, g->w, err));
        LORA_TRY(lora_mat_check_f32(lora_named("dy", g->dy), M, g->w->rows, err));
        LORA_TRY(check_adapter(g->adapter, &g->pass, err));
        LORA_CHECK(x.data || !needs_input(g), err, LORA_EINVAL, "x: expected the forward input, got none");
        if (x.data) LORA_TRY(lora_mat_check_f32(lora_named("x", x), M, K, err));
        if (!dx.data) continue;
        LORA_TRY(lora_mat_check_f32(lora_named("dx", dx), M, K, err));
        LORA_TRY(lora_mat_disjoint(lora_named("dx", dx), lora_named("x", x), err));
        LORA_TRY(lora_mat_disjoint(lora_named("dx", dx), lora_named("dy", g->dy), err));
    }
    return LORA_OK;
}

/* --- passes --- */

static bool is_dora(const lora_adapter *a) { return a && a->magnitude; }

static bool any_dora(int64_t n, const lora_linear_layer *layers) {
    for (int64_t i = 0; i < n; i++)
        if (is_dora(layers[i].adapter)) return true;
    return false;
}

lora_status lora_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    LORA_TRY(check_linear_forward(x, n, layers, err));
    if (!any_dora(n, layers)) return lora_linear_plain_forward(ctx, x, n, layers, err);
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(is_dora(l->adapter) ? lora_dora_forward(ctx, x, l, err) : lora_linear_plain_forward(ctx, x, 1, l, err));
    }
    return LORA_OK;
}

lora_status lora_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                 bool accumulate_dx, lora_error *err) {
    LORA_TRY(check_linear_backward(x, n, gradients, dx, accumulate_dx, err));
    lora_linear_gradient plain[LORA_LINEAR_LAYERS];
    int n_plain = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!is_dora(gradients[i].adapter)) {
            plain[n_plain++] = gradients[i];
            continue;
        }
        LORA_TRY(lora_dora_backward(ctx, x, gradients + i, dx, accumulate_dx, err));
        accumulate_dx = true;
    }
    return n_plain ? lora_linear_plain_backward(ctx, x, n_plain, plain, dx, accumulate_dx, err) : LORA_OK;
}

bool lora_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    (void)ctx; /* the same for every kernel */
    return adapter->dB && !adapter->magnitude && M > LORA_SMALL_M;
}
