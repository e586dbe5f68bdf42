/* What is read by token id, and the head with its loss. */
#include <math.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

lora_status lora_check_embedding_forward(const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    LORA_TRY(lora_mat_check_weight("w", w, err));
    lora_arg in = lora_named("ids", lora_mat_vector(ids, y.rows)), out = lora_named("y", y);
    LORA_TRY(lora_mat_check_f32(out, y.rows, w->cols, err));
    LORA_TRY(lora_mat_check(in, err));
    return lora_mat_disjoint(out, in, err);
}

lora_status lora_check_embedding_backward(const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    lora_arg in = lora_named("ids", lora_mat_vector(ids, dy.rows)), g = lora_named("dy", dy), out = lora_named("dW", dW);
    LORA_TRY(lora_mat_check_f32(g, dy.rows, dy.cols, err));
    LORA_TRY(lora_mat_check(in, err));
    LORA_TRY(lora_mat_check_f32(out, dW.rows, dy.cols, err));
    LORA_TRY(lora_mat_disjoint(out, in, err));
    return lora_mat_disjoint(out, g, err);
}

static lora_status check_loss(const lora_loss *loss, lora_error *err) {
    LORA_CHECK(loss, err, LORA_EINVAL, "loss: expected a pointer, got NULL");
    lora_logit_map map = loss->map;
    LORA_CHECK(map.scale > 0 && map.scale < INFINITY && map.softcap >= 0 && map.softcap < INFINITY, err, LORA_EINVAL,
               "map: expected a scale > 0 and a softcap >= 0, got %g and %g", (double)map.scale, (double)map.softcap);
    LORA_CHECK(loss->loss_sum != NULL, err, LORA_EINVAL, "loss_sum: expected a pointer, got NULL");
    return LORA_OK;
}

lora_status lora_check_linear_cross_entropy(lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                            lora_error *err) {
    LORA_TRY(lora_mat_check_weight("w", w, err));
    LORA_TRY(check_loss(loss, err));
    int64_t M = x.rows, V = w->rows, H = w->cols;
    lora_mat dense = w->kind == LORA_WEIGHT_F32 ? lora_mat_f32(w->dense.data, V, H, w->dense.ld) : lora_mat_none();
    lora_arg in[] = {lora_named("x", x), lora_named("targets", lora_mat_vector(loss->targets, M)),
                     lora_named("loss_weight", lora_mat_vector(loss->loss_weight, M)), lora_named("w", dense)};
    lora_arg out[] = {lora_named("dx", dx), lora_named("dW", lora_mat_f32(dW, V, H, H)),
                      lora_named("token_loss", lora_mat_vector(loss->token_loss, M))};
    LORA_TRY(lora_mat_check_f32(in[0], M, H, err));
    for (int i = 1; i < 3; i++) LORA_TRY(lora_mat_check(in[i], err));
    if (dx.data) LORA_TRY(lora_mat_check_f32(out[0], M, H, err));
    for (int o = 0; o < 3; o++) {
        for (int i = 0; i < 4; i++) LORA_TRY(lora_mat_disjoint(out[o], in[i], err));
        for (int i = 0; i < o; i++) LORA_TRY(lora_mat_disjoint(out[o], out[i], err));
    }
    return LORA_OK;
}

lora_status lora_check_values_loss(lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    LORA_CHECK(loss, err, LORA_EINVAL, "loss: expected a pointer, got NULL");
    LORA_CHECK(loss->kind == LORA_VALUES_SQUARED_ERROR || loss->kind == LORA_VALUES_BINARY_ENTROPY, err, LORA_EINVAL,
               "kind: expected squared error or binary entropy, got %d", (int)loss->kind);
    LORA_CHECK(loss->loss_sum != NULL, err, LORA_EINVAL, "loss_sum: expected a pointer, got NULL");
    int64_t M = y.rows, N = y.cols;
    lora_arg in[] = {lora_named("y", y), lora_named("values", lora_mat_f32(loss->values, M, N, N)),
                     lora_named("loss_weight", lora_mat_vector(loss->loss_weight, M))};
    lora_arg row_loss = lora_named("row_loss", lora_mat_vector(loss->row_loss, M)), out = lora_named("dy", dy);
    for (int i = 0; i < 2; i++) LORA_TRY(lora_mat_check_f32(in[i], M, N, err));
    LORA_TRY(lora_mat_check(in[2], err));
    if (dy.data) {
        LORA_TRY(lora_mat_check_f32(out, M, N, err));
        if (dy.data != y.data || dy.ld != y.ld) LORA_TRY(lora_mat_disjoint(out, in[0], err));
    }
    LORA_TRY(lora_mat_disjoint(row_loss, out, err));
    for (int i = 0; i < 3; i++) {
        if (i > 0) LORA_TRY(lora_mat_disjoint(out, in[i], err));
        LORA_TRY(lora_mat_disjoint(row_loss, in[i], err));
    }
    return LORA_OK;
}
