/* Norms, multiples, copies: operations that work row by row. */
#include <inttypes.h>

#include <math.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"

static lora_status check_norm(const lora_norm *norm, int64_t M, lora_error *err) {
    LORA_CHECK(norm != NULL, err, LORA_EINVAL, "norm: expected a pointer, got NULL");
    LORA_CHECK(norm->H >= 1, err, LORA_ESHAPE, "H: expected >= 1, got %" PRId64, norm->H);
    LORA_CHECK(norm->groups >= 1 && norm->groups <= INT64_MAX / 4 / norm->H && norm->groups <= INT64_MAX / 4 / lora_max_i64(M, 1), err,
               LORA_ESHAPE, "groups: expected >= 1, got %" PRId64, norm->groups);
    LORA_CHECK(norm->eps >= 0.0f, err, LORA_EINVAL, "eps: expected >= 0, got %g", (double)norm->eps);
    LORA_CHECK(norm->weight, err, LORA_EINVAL, "weight: expected a pointer, got NULL");
    LORA_CHECK(norm->kind == LORA_NORM_RMS || norm->bias, err, LORA_EINVAL, "bias: expected a pointer, got NULL");
    return LORA_OK;
}

lora_status lora_check_norm_forward(const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    LORA_TRY(check_norm(norm, x.rows, err));
    int64_t M = x.rows, H = norm->H, width = H * norm->groups;
    lora_arg in = lora_named("x", x), out = lora_named("y", y);
    lora_arg weight = lora_named("weight", lora_mat_vector(norm->weight, H)), bias = lora_named("bias", lora_mat_vector(norm->bias, H));
    lora_arg s = lora_named("stats", lora_mat_f32(stats, M, 2 * norm->groups, 2 * norm->groups));
    LORA_TRY(lora_mat_check_f32(in, M, width, err));
    LORA_TRY(lora_mat_check_narrow(out, M, width, err));
    LORA_TRY(lora_mat_same_or_disjoint(out, in, err));
    LORA_TRY(lora_mat_disjoint(out, weight, err));
    LORA_TRY(lora_mat_disjoint(out, bias, err));
    LORA_TRY(lora_mat_disjoint(s, in, err));
    LORA_TRY(lora_mat_disjoint(s, weight, err));
    LORA_TRY(lora_mat_disjoint(s, bias, err));
    return lora_mat_disjoint(s, out, err);
}

lora_status lora_check_norm_backward(const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx, bool accumulate_dx,
                                     float *dweight, float *dbias, lora_error *err) {
    LORA_TRY(check_norm(norm, x.rows, err));
    int64_t M = x.rows, H = norm->H, width = H * norm->groups;
    lora_arg s = lora_named("stats", lora_mat_f32(stats, M, 2 * norm->groups, 2 * norm->groups)), gradient = lora_named("dy", dy);
    lora_arg in[] = {lora_named("x", x), lora_named("weight", lora_mat_vector(norm->weight, H)),
                     lora_named("bias", lora_mat_vector(norm->bias, H)), s};
    lora_arg out[] = {lora_named("dx", dx), lora_named("dweight", lora_mat_vector(dweight, H)),
                      lora_named("dbias", lora_mat_vector(dbias, H))};
    LORA_TRY(lora_mat_check_f32(in[0], M, width, err));
    LORA_TRY(lora_mat_check(s, err));
    LORA_TRY(lora_mat_check_f32(gradient, M, width, err));
    if (dx.data) LORA_TRY(lora_mat_check_f32(out[0], M, width, err));
    for (int o = 0; o < 3; o++) {
        for (int i = 0; i < 4; i++) LORA_TRY(lora_mat_disjoint(out[o], in[i], err));
        for (int i = 0; i < o; i++) LORA_TRY(lora_mat_disjoint(out[o], out[i], err));
        bool in_place = o == 0 && !accumulate_dx;
        LORA_TRY(in_place ? lora_mat_same_or_disjoint(out[o], gradient, err) : lora_mat_disjoint(out[o], gradient, err));
    }
    return LORA_OK;
}

lora_status lora_check_scale_rows(float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    (void)a;
    lora_arg in = lora_named("x", x), out = lora_named("y", y);
    LORA_TRY(lora_mat_check_f32(in, x.rows, x.cols, err));
    LORA_TRY(lora_mat_check_f32(out, x.rows, x.cols, err));
    return accumulate ? lora_mat_disjoint(out, in, err) : lora_mat_same_or_disjoint(out, in, err);
}

lora_status lora_check_add_noise(const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    LORA_CHECK(noise && noise->alpha >= 0.0f && isfinite(noise->alpha), err, LORA_EINVAL, "alpha: expected a finite number >= 0, got %g",
               noise ? (double)noise->alpha : NAN);
    LORA_CHECK(segments && segments->n >= 0, err, LORA_EINVAL, "segments: expected a list, got none");
    LORA_CHECK(segments->n == 0 || (segments->cu_seqlens && segments->on_device), err, LORA_EINVAL,
               "cu_seqlens: expected pointers, got NULL");
    return lora_mat_check_f32(lora_named("x", x), x.rows, x.cols, err);
}

lora_status lora_check_scale_columns(const float *l, lora_mat x, lora_mat y, lora_error *err) {
    lora_arg in = lora_named("x", x), out = lora_named("y", y), scale = lora_named("l", lora_mat_vector(l, x.cols));
    LORA_TRY(lora_mat_check_f32(in, x.rows, x.cols, err));
    LORA_TRY(lora_mat_check_f32(out, x.rows, x.cols, err));
    LORA_TRY(lora_mat_check_f32(scale, 1, x.cols, err));
    LORA_TRY(lora_mat_disjoint(out, scale, err));
    return lora_mat_same_or_disjoint(out, in, err);
}

lora_status lora_check_scale_columns_backward(const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx, float *dl,
                                              lora_error *err) {
    int64_t M = dy.rows, N = dy.cols;
    lora_arg gradient = lora_named("dy", dy), in = lora_named("x", dl ? x : lora_mat_none()), out = lora_named("dx", dx);
    lora_arg scale = lora_named("l", lora_mat_vector(l, N)), dscale = lora_named("dl", lora_mat_vector(dl, N));
    LORA_TRY(lora_mat_check_f32(gradient, M, N, err));
    LORA_TRY(lora_mat_check_f32(scale, 1, N, err));
    if (dl) LORA_TRY(lora_mat_check_f32(in, M, N, err));
    if (dx.data) LORA_TRY(lora_mat_check_f32(out, M, N, err));
    LORA_TRY(accumulate_dx ? lora_mat_disjoint(out, gradient, err) : lora_mat_same_or_disjoint(out, gradient, err));
    const lora_arg read[] = {in, scale, dscale};
    for (int i = 0; i < 3; i++) LORA_TRY(lora_mat_disjoint(out, read[i], err));
    LORA_TRY(lora_mat_disjoint(dscale, gradient, err));
    LORA_TRY(lora_mat_disjoint(dscale, in, err));
    return lora_mat_disjoint(dscale, scale, err);
}

lora_status lora_check_softcap_rows(float softcap, lora_mat x, lora_error *err) {
    LORA_CHECK(softcap > 0.0f, err, LORA_EINVAL, "softcap: expected > 0, got %g", (double)softcap);
    return lora_mat_check_f32(lora_named("x", x), x.rows, x.cols, err);
}

lora_status lora_check_softcap_backward(float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    lora_arg in = lora_named("y", y), out = lora_named("dy", dy);
    LORA_CHECK(softcap > 0.0f, err, LORA_EINVAL, "softcap: expected > 0, got %g", (double)softcap);
    LORA_TRY(lora_mat_check_f32(in, y.rows, y.cols, err));
    LORA_TRY(lora_mat_check_f32(out, y.rows, y.cols, err));
    return lora_mat_disjoint(out, in, err);
}

/* Rows that a call moves; -1 where the tables do not say. */
static int64_t count_rows(lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows) {
    if (from_rows && to_rows) return -1;
    return from_rows ? to.rows : from.rows;
}

lora_status lora_check_copy_rows(lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                                 lora_error *err) {
    (void)accumulate;
    int64_t n = count_rows(from, from_rows, to, to_rows);
    LORA_CHECK(n >= 0, err, LORA_EINVAL, "from_rows, to_rows: expected at most one of them, got both");
    lora_arg in = lora_named("from", from), out = lora_named("to", to);
    lora_arg tables[] = {lora_named("from_rows", lora_mat_vector(from_rows, 2 * n)),
                         lora_named("to_rows", lora_mat_vector(to_rows, 2 * n))};
    LORA_TRY(lora_mat_check_f32(in, from_rows ? from.rows : n, from.cols, err));
    LORA_TRY(lora_mat_check_f32(out, to_rows ? to.rows : n, from.cols, err));
    for (int i = 0; i < 2; i++) LORA_TRY(lora_mat_disjoint(out, tables[i], err));
    return lora_mat_disjoint(out, in, err);
}

lora_status lora_check_convert_rows(lora_mat from, lora_mat to, lora_error *err) {
    lora_arg in = lora_named("from", from), out = lora_named("to", to);
    LORA_TRY(lora_mat_check(in, err));
    LORA_TRY(lora_mat_check(out, err));
    bool wide = from.dtype == LORA_F32;
    lora_arg narrow = wide ? out : in, other = wide ? in : out;
    LORA_CHECK(other.mat.dtype == LORA_F32 && (narrow.mat.dtype == LORA_BF16 || narrow.mat.dtype == LORA_INT8), err, LORA_EDTYPE,
               "to: expected float32 from bfloat16 or int8, or the other way, got %s from %s", lora_dtype_name(to.dtype),
               lora_dtype_name(from.dtype));
    LORA_CHECK(narrow.mat.dtype != LORA_INT8 || ((uintptr_t)narrow.mat.data | (uintptr_t)narrow.mat.ld) % 4 == 0, err, LORA_EINVAL,
               "%s: expected rows of int8 at multiples of 4 bytes, got others", narrow.name);
    LORA_CHECK(from.rows == to.rows && from.cols == to.cols, err, LORA_ESHAPE,
               "to: expected (%" PRId64 ", %" PRId64 "), got (%" PRId64 ", %" PRId64 ")", from.rows, from.cols, to.rows, to.cols);
    return lora_mat_disjoint(out, in, err);
}
