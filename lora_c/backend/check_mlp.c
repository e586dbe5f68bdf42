/* What lies between the projections of the feed-forward layer. */
#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

static lora_status check_activation(lora_activation activation, lora_error *err) {
    LORA_CHECK((int)activation >= 0 && activation < LORA_ACTIVATIONS, err, LORA_EINVAL, "activation: expected 0 to %d, got %d",
               LORA_ACTIVATIONS - 1, (int)activation);
    return LORA_OK;
}

static bool is_gated(lora_mat gate, lora_mat up) { return up.data || gate.rows == 0 || gate.cols == 0; }

/* An empty up is no absent one. */
lora_status lora_check_mlp_forward(lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    int64_t M = gate.rows, inner = gate.cols;
    lora_arg g = lora_named("gate", gate), u = lora_named("up", up), out = lora_named("h", h);
    LORA_TRY(check_activation(activation, err));
    LORA_TRY(lora_mat_check_f32(g, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_f32(u, M, inner, err));
    LORA_TRY(lora_mat_check_narrow(out, M, inner, err));
    LORA_TRY(lora_mat_same_or_disjoint(out, g, err));
    return lora_mat_same_or_disjoint(out, u, err);
}

lora_status lora_check_mlp_backward(lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate, lora_mat dup,
                                    lora_error *err) {
    bool gated = is_gated(gate, up);
    int64_t M = gate.rows, inner = gate.cols;
    lora_arg d = lora_named("dh", dh), g = lora_named("gate", gate), u = lora_named("up", up);
    lora_arg dg = lora_named("dgate", dgate), du = lora_named("dup", dup);
    LORA_TRY(check_activation(activation, err));
    LORA_CHECK(gated || !dup.data, err, LORA_EINVAL, "dup: expected NULL without up, got a pointer");
    LORA_TRY(lora_mat_check_f32(d, M, inner, err));
    LORA_TRY(lora_mat_check_f32(g, M, inner, err));
    LORA_TRY(lora_mat_check_narrow(dg, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_f32(u, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_narrow(du, M, inner, err));
    LORA_TRY(lora_mat_same_or_disjoint(dg, g, err));
    LORA_TRY(lora_mat_disjoint(dg, u, err));
    LORA_TRY(gated ? lora_mat_disjoint(dg, d, err) : lora_mat_same_or_disjoint(dg, d, err));
    if (gated) LORA_TRY(lora_mat_same_or_disjoint(du, u, err));
    LORA_TRY(lora_mat_same_or_disjoint(du, d, err));
    LORA_TRY(lora_mat_disjoint(du, g, err));
    return lora_mat_disjoint(du, dg, err);
}
