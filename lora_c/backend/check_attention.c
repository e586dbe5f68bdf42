/* Rotations and attention. */
#include <inttypes.h>
#include <math.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

lora_status lora_check_rope_table(int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq, double scale,
                                  float *cos, float *sin, lora_error *err) {
    (void)scale;
    lora_arg c = lora_named("cos", lora_mat_f32(cos, n_positions, half, half)),
             s = lora_named("sin", lora_mat_f32(sin, n_positions, half, half));
    lora_arg f = lora_named("inv_freq", lora_mat_vector(inv_freq, 2 * half)); /* float64: two elements of 4 bytes each */
    lora_arg p = lora_named("positions", lora_mat_vector(positions, n_positions));
    LORA_TRY(lora_mat_check(c, err));
    LORA_TRY(lora_mat_check(s, err));
    LORA_TRY(lora_mat_check(f, err));
    LORA_TRY(lora_mat_disjoint(s, c, err));
    LORA_TRY(lora_mat_disjoint(c, f, err));
    LORA_TRY(lora_mat_disjoint(s, f, err));
    LORA_TRY(lora_mat_disjoint(c, p, err));
    return lora_mat_disjoint(s, p, err);
}

lora_status lora_check_rope(const lora_rotations *r, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x, bool backward,
                            lora_error *err) {
    (void)backward;
    LORA_CHECK(r, err, LORA_EINVAL, "rotations: expected a pointer, got NULL");
    LORA_CHECK(head_dim >= 2, err, LORA_ESHAPE, "head_dim: expected >= 2, got %" PRId64, head_dim);
    LORA_CHECK(r->half >= 1 && r->half <= head_dim / 2, err, LORA_ESHAPE, "half: expected 1 to %" PRId64 " (head_dim / 2), got %" PRId64,
               head_dim / 2, r->half);
    LORA_CHECK(n_heads >= 0 && n_heads <= INT64_MAX / head_dim, err, LORA_ESHAPE, "n_heads: expected >= 0, got %" PRId64, n_heads);
    lora_arg out = lora_named("x", x), p = lora_named("positions", lora_mat_vector(positions, x.rows));
    lora_arg c = lora_named("cos", lora_mat_f32(r->cos, r->n_positions, r->half, r->half));
    lora_arg s = lora_named("sin", lora_mat_f32(r->sin, r->n_positions, r->half, r->half));
    LORA_TRY(lora_mat_check_f32(out, x.rows, n_heads * head_dim, err));
    LORA_TRY(lora_mat_check(p, err));
    LORA_TRY(lora_mat_check(c, err));
    LORA_TRY(lora_mat_check(s, err));
    LORA_TRY(lora_mat_disjoint(out, p, err));
    LORA_TRY(lora_mat_disjoint(out, c, err));
    return lora_mat_disjoint(out, s, err);
}

enum { MAX_HEAD_DIM = 1 << 16, MAX_HEADS = 1 << 16 };

static lora_status check_shape(const lora_attention_shape *shape, const lora_segments *segments, lora_error *err) {
    LORA_CHECK(shape, err, LORA_EINVAL, "shape: expected a pointer, got NULL");
    LORA_CHECK(shape->n_kv_heads >= 1 && shape->n_heads >= 1 && shape->n_heads <= MAX_HEADS && shape->n_heads % shape->n_kv_heads == 0, err,
               LORA_ESHAPE, "n_heads: expected a positive multiple of n_kv_heads, got %lld and %lld", (long long)shape->n_heads,
               (long long)shape->n_kv_heads);
    LORA_CHECK(shape->head_dim >= 1 && shape->head_dim <= MAX_HEAD_DIM, err, LORA_ESHAPE, "head_dim: expected 1 .. %d, got %lld",
               MAX_HEAD_DIM, (long long)shape->head_dim);
    LORA_CHECK(shape->sliding_window >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %lld", (long long)shape->sliding_window);
    LORA_CHECK(shape->softcap >= 0 && shape->softcap < INFINITY, err, LORA_EINVAL, "softcap: expected >= 0, got %g",
               (double)shape->softcap);
    LORA_CHECK(segments, err, LORA_EINVAL, "segments: expected a pointer, got NULL");
    LORA_CHECK(segments->n >= 0, err, LORA_ESHAPE, "segments: expected n >= 0, got %lld", (long long)segments->n);
    LORA_CHECK(segments->n == 0 || segments->cu_seqlens, err, LORA_EINVAL, "cu_seqlens: expected a pointer, got NULL");
    LORA_CHECK(segments->n == 0 || segments->on_device, err, LORA_EINVAL, "on_device: expected cu_seqlens on the device, got NULL");
    return LORA_OK;
}

lora_status lora_check_attention_forward(const lora_attention_shape *shape, const lora_segments *segments, lora_mat q, const lora_kv *kv,
                                         lora_mat o, float *lse, lora_error *err) {
    LORA_TRY(check_shape(shape, segments, err));
    int64_t M = q.rows, width = shape->n_heads * shape->head_dim, kv_width = shape->n_kv_heads * shape->head_dim;
    lora_arg in = lora_named("q", q), out = lora_named("o", o), sums = lora_named("lse", lora_mat_vector(lse, M * shape->n_heads));
    LORA_TRY(lora_mat_check_f32(in, M, width, err));
    LORA_TRY(lora_mat_check_narrow(out, M, width, err));
    LORA_TRY(lora_mat_disjoint(out, in, err));
    LORA_TRY(lora_mat_disjoint(sums, in, err));
    LORA_TRY(lora_mat_disjoint(sums, out, err));
    if (segments->n == 0) return LORA_OK;
    LORA_CHECK(kv, err, LORA_EINVAL, "kv: expected a pointer, got NULL");
    LORA_CHECK(kv->start && kv->length, err, LORA_EINVAL, "kv: expected start and length of the segments, got NULL");
    LORA_TRY(lora_mat_check(lora_named("k", lora_mat_f32(kv->k, M, kv_width, kv->ldk)), err)); /* M rows or more */
    return lora_mat_check(lora_named("v", lora_mat_f32(kv->v, M, kv_width, kv->ldv)), err);
}

lora_status lora_check_attention_backward(const lora_attention_shape *shape, const lora_segments *segments,
                                          const lora_attention_gradient *gradient, lora_error *err) {
    LORA_TRY(check_shape(shape, segments, err));
    LORA_CHECK(gradient, err, LORA_EINVAL, "gradient: expected a pointer, got NULL");
    const lora_attention_gradient *g = gradient;
    int64_t M = g->q.rows, H = shape->n_heads, width = H * shape->head_dim, kv_width = shape->n_kv_heads * shape->head_dim;
    const lora_arg in[] = {lora_named("q", g->q), lora_named("k", g->k),       lora_named("v", g->v),
                           lora_named("o", g->o), lora_named("dout", g->dout), lora_named("lse", lora_mat_f32(g->lse, M, H, H))};
    const lora_arg out[] = {lora_named("dq", g->dq), lora_named("dk", g->dk), lora_named("dv", g->dv)};
    const int64_t widths[] = {width, kv_width, kv_width, width, width, H};
    const int o_at = 3;
    for (int i = 0; i < 6; i++)
        LORA_TRY(i == o_at ? lora_mat_check_narrow(in[i], M, widths[i], err) : lora_mat_check_f32(in[i], M, widths[i], err));
    for (int i = 0; i < 3; i++) LORA_TRY(lora_mat_check_f32(out[i], M, widths[i], err));
    for (int o = 0; o < 3; o++) {
        for (int i = 0; i < 6; i++) LORA_TRY(lora_mat_disjoint(out[o], in[i], err));
        for (int i = 0; i < o; i++) LORA_TRY(lora_mat_disjoint(out[o], out[i], err));
    }
    return LORA_OK;
}
