/* Linear layers, DoRA's norms and merging. */
#include <inttypes.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

static lora_status check_adapter(const lora_adapter *a, const lora_adapter_pass *pass, lora_error *err) {
    if (!a) return LORA_OK;
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    LORA_CHECK(!a->magnitude || pass->norm, err, LORA_EINVAL,
               "adapter: expected norm beside DoRA's magnitude, got NULL; call lora_dora_norm");
    LORA_CHECK(pass->dropout >= 0 && pass->dropout < 1, err, LORA_EINVAL, "lora_dropout: expected 0 <= p < 1, got %g",
               (double)pass->dropout);
    return LORA_OK;
}

static lora_status check_group(const lora_adapter_rows *g, int64_t end_before, int64_t M, lora_error *err) {
    const lora_adapter *a = g->adapter;
    LORA_CHECK(a && a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "groups: expected adapters with A, B and r > 0, got r %lld",
               a ? (long long)a->rank : 0);
    LORA_CHECK(!a->magnitude, err, LORA_EINVAL, "groups: expected adapters without DoRA, got one with it");
    LORA_CHECK(g->first >= end_before && g->rows > 0 && g->rows <= M - g->first, err, LORA_EINVAL,
               "groups: expected rising runs of rows of %lld, got %lld rows from row %lld behind row %lld", (long long)M,
               (long long)g->rows, (long long)g->first, (long long)end_before);
    return LORA_OK;
}

static lora_status check_groups(const lora_linear_layer *l, int64_t M, lora_error *err) {
    if (l->n_groups == 0) return LORA_OK;
    LORA_CHECK(l->groups && l->n_groups > 0, err, LORA_EINVAL, "groups: expected an array of %lld, got none", (long long)l->n_groups);
    LORA_CHECK(!l->adapter && l->pass.dropout == 0, err, LORA_EINVAL, "groups: expected no adapter and no dropout beside them, got one");
    LORA_CHECK(M <= LORA_DECODE_BATCH, err, LORA_EINVAL, "groups: expected at most %d tokens, got %lld", LORA_DECODE_BATCH, (long long)M);
    int64_t end = 0;
    for (int64_t i = 0; i < l->n_groups; i++) {
        LORA_TRY(check_group(l->groups + i, end, M, err));
        end = l->groups[i].first + l->groups[i].rows;
    }
    return LORA_OK;
}

static lora_status check_count(int64_t n, lora_error *err) {
    LORA_CHECK(n >= 1 && n <= LORA_LINEAR_LAYERS, err, LORA_EINVAL, "layers: expected 1 to %d, got %lld", LORA_LINEAR_LAYERS, (long long)n);
    return LORA_OK;
}

static lora_status check_weights(int64_t M, const lora_weight *first, const lora_weight *w, lora_error *err) {
    LORA_TRY(lora_mat_check_weight("w", w, err));
    LORA_CHECK(M > 0, err, LORA_ESHAPE, "x: expected (M, %lld) with M > 0, got M %lld", (long long)w->cols, (long long)M);
    LORA_CHECK(w->cols == first->cols, err, LORA_ESHAPE, "layers: expected the same K = %lld in all, got %lld", (long long)first->cols,
               (long long)w->cols);
    return LORA_OK;
}

lora_status lora_check_linear_forward(lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    LORA_TRY(check_count(n, err));
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(check_weights(x.rows, layers->w, l->w, err));
        LORA_TRY(lora_mat_check_narrow(lora_named("x", x), x.rows, l->w->cols, err));
        LORA_TRY(lora_mat_check_f32(lora_named("y", l->y), x.rows, l->w->rows, err));
        LORA_TRY(check_adapter(l->adapter, &l->pass, err));
        LORA_TRY(check_groups(l, x.rows, err));
        LORA_TRY(lora_mat_disjoint(lora_named("y", l->y), lora_named("x", x), err));
    }
    return LORA_OK;
}

static bool needs_input(const lora_linear_gradient *g) {
    const lora_adapter *a = g->adapter;
    return g->dW || (a && (a->dA || a->dB || a->dmagnitude));
}

lora_status lora_check_linear_backward(lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx, bool accumulate_dx,
                                       lora_error *err) {
    (void)accumulate_dx;
    LORA_TRY(check_count(n, err));
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_gradient *g = gradients + i;
        int64_t M = gradients->dy.rows, K = g->w->cols;
        LORA_TRY(check_weights(M, gradients->w, g->w, err));
        LORA_TRY(lora_mat_check_narrow(lora_named("dy", g->dy), M, g->w->rows, err));
        LORA_TRY(check_adapter(g->adapter, &g->pass, err));
        LORA_CHECK(x.data || !needs_input(g), err, LORA_EINVAL, "x: expected the forward input, got none");
        if (x.data) LORA_TRY(lora_mat_check_narrow(lora_named("x", x), M, K, err));
        if (!dx.data) continue;
        LORA_TRY(lora_mat_check_f32(lora_named("dx", dx), M, K, err));
        LORA_TRY(lora_mat_disjoint(lora_named("dx", dx), lora_named("x", x), err));
        LORA_TRY(lora_mat_disjoint(lora_named("dx", dx), lora_named("dy", g->dy), err));
    }
    return LORA_OK;
}

static lora_status check_low_rank(const lora_adapter *a, lora_error *err) {
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    return LORA_OK;
}

lora_status lora_check_dora_norm(const lora_weight *w, const lora_adapter *a, float *norm, lora_error *err) {
    LORA_TRY(lora_mat_check_weight("w", w, err));
    LORA_CHECK(norm, err, LORA_EINVAL, "norm: expected a pointer, got NULL");
    return check_low_rank(a, err);
}

lora_status lora_check_linear_merge(const lora_weight *w, const lora_adapter *a, const float *norm, float sign, float *merged,
                                    lora_error *err) {
    LORA_TRY(lora_mat_check_weight("w", w, err));
    LORA_CHECK(merged, err, LORA_EINVAL, "merged: expected a pointer, got NULL");
    if (!a) return LORA_OK;
    LORA_TRY(check_low_rank(a, err));
    LORA_CHECK(!a->magnitude || norm, err, LORA_EINVAL, "adapter: expected norm beside DoRA's magnitude, got NULL; call lora_dora_norm");
    LORA_CHECK(!a->magnitude || sign == 1, err, LORA_EINVAL, "sign: expected 1 with DoRA, got %g; keep the base to undo it", (double)sign);
    return LORA_OK;
}

lora_status lora_check_linear_merge_backward(const lora_adapter *a, lora_mat dmerged, lora_error *err) {
    LORA_TRY(check_low_rank(a, err));
    LORA_CHECK(!a->magnitude, err, LORA_EINVAL, "adapter: expected one without DoRA, got one with it");
    LORA_CHECK(dmerged.rows > 0 && dmerged.cols > 0, err, LORA_ESHAPE,
               "dmerged: expected a shape >= (1, 1), got (%" PRId64 ", %" PRId64 ")", dmerged.rows, dmerged.cols);
    return lora_mat_check_f32(lora_named("dmerged", dmerged), dmerged.rows, dmerged.cols, err);
}
