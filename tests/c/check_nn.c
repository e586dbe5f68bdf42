/* The operations of nn.h (attention and the head apart) against double loops, their refusals, and the same bits for any
 * number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/c/check_ops.h"
#include "lora_c/base/half.h"
#include "lora_c/nf4.h"
#include "lora_c/nn.h"

static void check_norm(lora_ctx *ctx, int64_t M, int64_t H) {
    int64_t ldx = H + 3, ldy = H + 1;
    float *x = random_floats(M * ldx, -2, 2), *w = random_floats(H, -2, 2), *y = random_floats(M * ldy, 5, 6);
    float *stats = random_floats(2 * M, 0, 0), *dy = random_floats(M * ldy, -1, 1), *dx = random_floats(M * ldx, -1, 1);
    float *dx0 = copy_floats(dx, M * ldx), *dw = random_floats(H, -1, 1), *dw0 = copy_floats(dw, H);
    lora_norm norm = {.kind = LORA_NORM_RMS, .H = H, .groups = 1, .eps = 1e-6f, .weight = w};
    lora_mat X = lora_mat_f32(x, M, H, ldx);
    OK(lora_norm_forward(ctx, &norm, X, lora_mat_f32(y, M, H, ldy), stats, ERR));
    OK(lora_norm_backward(ctx, &norm, lora_mat_f32(dy, M, H, ldy), X, stats, lora_mat_f32(dx, M, H, ldx), true, dw, NULL, ERR));
    double factor = (double)H / 8 + 12;
    for (int64_t m = 0; m < M; m++) {
        double square = 0, dot = 0, magnitude = 0;
        for (int64_t i = 0; i < H; i++) {
            double v = x[m * ldx + i], g = (double)dy[m * ldy + i] * w[i];
            square += v * v, dot += g * v, magnitude += fabs(g * v);
        }
        double r = 1 / sqrt(square / (double)H + 1e-6f);
        close_to("rstd", stats[2 * m], r, factor * U * r);
        for (int64_t i = 0; i < H; i++) {
            double v = x[m * ldx + i], g = (double)dy[m * ldy + i] * w[i], before = dx0[m * ldx + i];
            close_to("rmsnorm y", y[m * ldy + i], v * r * w[i], factor * U * fabs(v * r * w[i]));
            close_to("rmsnorm dx", dx[m * ldx + i], before + r * g - r * r * r * dot / (double)H * v,
                     U * (factor * (r * fabs(g) + 4 * r * r * r * magnitude / (double)H * fabs(v)) + 2 * fabs(before)));
        }
        for (int64_t i = H; i < ldy; i++) CHECK(y[m * ldy + i] >= 5, "rmsnorm wrote between the rows");
    }
    for (int64_t i = 0; i < H; i++) {
        double sum = dw0[i], magnitude = fabs(sum);
        for (int64_t m = 0; m < M; m++) {
            double t = (double)dy[m * ldy + i] * x[m * ldx + i] * stats[2 * m];
            sum += t, magnitude += fabs(t);
        }
        close_to("rmsnorm dweight", dw[i], sum, ((double)M + 6) * U * magnitude);
    }
    mix(y, (size_t)(M * ldy) * 4), mix(dx, (size_t)(M * ldx) * 4), mix(dw, (size_t)H * 4);
    free(x), free(w), free(y), free(stats), free(dy), free(dx), free(dx0), free(dw), free(dw0);
}

/* Rows of several vectors, each normed by itself; y and dx in place; the plain loop over the kernels' formulas. */
static void check_groups(lora_ctx *ctx, lora_norm_kind kind, int64_t M, int64_t groups, int64_t H) {
    int64_t ld = groups * H + 5, n = M * ld;
    float *x = random_floats(n, -1, 3), *w = random_floats(H, -2, 2), *b = random_floats(H, -1, 1), *y = copy_floats(x, n);
    float *stats = random_floats(2 * M * groups, 0, 0), *dy = random_floats(n, -1, 1), *dx = copy_floats(dy, n);
    float *dw = random_floats(H, 0, 0), *db = random_floats(H, 0, 0);
    memset(dw, 0, (size_t)H * 4), memset(db, 0, (size_t)H * 4);
    float offset = kind == LORA_NORM_RMS ? 1.0f : 0.0f;
    lora_norm norm = {.kind = kind, .H = H, .groups = groups, .eps = 1e-3f, .weight_offset = offset, .weight = w, .bias = b};
    double *want_dw = calloc((size_t)H, 8), *want_db = calloc((size_t)H, 8), factor = ((double)H / 8 + 12) * U, spread = 0;
    lora_mat X = lora_mat_f32(x, M, groups * H, ld), Y = lora_mat_f32(y, M, groups * H, ld), dX = lora_mat_f32(dx, M, groups * H, ld);
    OK(lora_norm_forward(ctx, &norm, Y, Y, stats, ERR));
    OK(lora_norm_backward(ctx, &norm, dX, X, stats, dX, false, dw, kind == LORA_NORM_RMS ? NULL : db, ERR));
    for (int64_t m = 0; m < M; m++)
        for (int64_t g = 0; g < groups; g++) {
            const float *xs = x + m * ld + g * H, *ds = dy + m * ld + g * H;
            double mean = 0, square = 0, sum = 0, dot = 0;
            for (int64_t i = 0; i < H && kind == LORA_NORM_LAYER; i++) mean += xs[i] / (double)H;
            for (int64_t i = 0; i < H; i++) square += (xs[i] - mean) * (xs[i] - mean) / (double)H;
            double r = 1 / sqrt(square + 1e-3f);
            for (int64_t i = 0; i < H; i++) {
                double gradient = (double)ds[i] * ((double)w[i] + (double)offset);
                sum += kind == LORA_NORM_LAYER ? gradient / (double)H : 0, dot += gradient * (xs[i] - mean) * r / (double)H;
            }
            double error = factor * r * (1 + 3 * r) * 40; /* of mean and variance, relative to the spread */
            for (int64_t i = 0; i < H; i++) {
                double z = (xs[i] - mean) * r, weight = (double)w[i] + (double)offset;
                close_to("norm y", y[m * ld + g * H + i], z * weight + (kind == LORA_NORM_LAYER ? b[i] : 0), error * (1 + fabs(weight)));
                close_to("norm dx", dx[m * ld + g * H + i], r * (ds[i] * weight - sum - z * dot), error * r * (2 + fabs(z)));
                want_dw[i] += ds[i] * z, want_db[i] += ds[i], spread = fmax(spread, error * (1 + fabs(z)));
            }
        }
    double terms = (double)(M * groups);
    for (int64_t i = 0; i < H; i++) {
        close_to("norm dweight", dw[i], want_dw[i], terms * (spread + terms * U * 40));
        if (kind == LORA_NORM_LAYER) close_to("norm dbias", db[i], want_db[i], terms * terms * U);
    }
    for (int64_t m = 0; m < M; m++)
        for (int64_t i = groups * H; i < ld; i++)
            CHECK(y[m * ld + i] == x[m * ld + i] && dx[m * ld + i] == dy[m * ld + i], "norm wrote a gap");
    mix(y, (size_t)n * 4), mix(dx, (size_t)n * 4), mix(dw, (size_t)H * 4), mix(db, (size_t)H * 4);
    free(x), free(w), free(b), free(y), free(stats), free(dy), free(dx), free(dw), free(db), free(want_dw), free(want_db);
}

/* Columns times a vector, and its gradient. */
static void check_scale_columns(lora_ctx *ctx, int64_t M, int64_t N) {
    int64_t ld = N + 3;
    float *x = random_floats(M * ld, -2, 2), *y = random_floats(M * ld, -2, 2), *y0 = copy_floats(y, M * ld), *l = random_floats(N, -2, 2);
    float *dl = random_floats(N, -1, 1), *before = copy_floats(dl, N), *dx = random_floats(M * ld, -1, 1), *dx0 = copy_floats(dx, M * ld);
    lora_mat X = lora_mat_f32(x, M, N, ld), Y = lora_mat_f32(y, M, N, ld), DX = lora_mat_f32(dx, M, N, ld);
    OK(lora_scale_columns(ctx, l, X, Y, ERR));
    for (int64_t i = 0; i < M * ld; i++) CHECK(y[i] == (i % ld < N ? l[i % ld] * x[i] : y0[i]), "scale columns at %lld", (long long)i);
    mix(y, (size_t)(M * ld) * 4);
    OK(lora_scale_columns_backward(ctx, l, Y, X, DX, true, dl, ERR));
    for (int64_t n = 0; n < N; n++) {
        double sum = before[n], size = 0;
        for (int64_t m = 0; m < M; m++) sum += (double)y[m * ld + n] * x[m * ld + n], size += fabs((double)y[m * ld + n] * x[m * ld + n]);
        double steps = (double)(M / 32);
        close_to("dl", dl[n], sum, (35 + steps) * U * size + 2 * (1 + steps) * U * fabs((double)before[n]));
        for (int64_t m = 0; m < M; m++) {
            double part = (double)l[n] * y[m * ld + n];
            close_to("dx", dx[m * ld + n], dx0[m * ld + n] + part, 3 * U * (fabs(part) + fabs((double)dx0[m * ld + n])));
        }
    }
    for (int64_t i = 0; i < M * ld; i++) CHECK(i % ld < N || dx[i] == dx0[i], "scale columns backward wrote a gap");
    mix(dl, (size_t)N * 4), mix(dx, (size_t)(M * ld) * 4);
    float *alone = copy_floats(before, N);
    memcpy(y0, y, (size_t)(M * ld) * 4);
    OK(lora_scale_columns_backward(ctx, l, Y, X, lora_mat_none(), false, alone, ERR)); /* the vector alone */
    OK(lora_scale_columns_backward(ctx, l, Y, lora_mat_none(), Y, false, NULL, ERR));  /* in place, without it */
    CHECK(!memcmp(alone, dl, (size_t)N * 4), "dl alone has other bits");
    for (int64_t i = 0; i < M * ld; i++) CHECK(y[i] == (i % ld < N ? l[i % ld] * y0[i] : y0[i]), "scale columns backward in place");
    free(x), free(y), free(y0), free(l), free(dl), free(before), free(dx), free(dx0), free(alone);
}

/* Multiples, sums and the soft cap of rows. */
static void check_scale(lora_ctx *ctx, int64_t M, int64_t N) {
    int64_t ld = N + 2;
    float *x = random_floats(M * ld, -2, 2), *y = random_floats(M * ld, -2, 2), *y0 = copy_floats(y, M * ld);
    lora_mat Y = lora_mat_f32(y, M, N, ld);
    OK(lora_scale_rows(ctx, 0.3f, lora_mat_f32(x, M, N, ld), Y, true, ERR));
    for (int64_t i = 0; i < M * ld; i++)
        close_to("scale and add", y[i], i % ld < N ? y0[i] + 0.3f * (double)x[i] : (double)y0[i], 2 * U * 3);
    mix(y, (size_t)(M * ld) * 4);
    memcpy(y0, y, (size_t)(M * ld) * 4);
    OK(lora_scale_rows(ctx, -2.0f, Y, Y, false, ERR));
    for (int64_t i = 0; i < M * ld; i++) close_to("scale", y[i], (i % ld < N ? -2 : 1) * (double)y0[i], 0);
    memcpy(y0, y, (size_t)(M * ld) * 4);
    OK(lora_softcap_rows(ctx, 1.5f, Y, ERR));
    for (int64_t i = 0; i < M * ld; i++)
        close_to("softcap", y[i], i % ld < N ? 1.5 * tanh(y0[i] / 1.5) : (double)y0[i], 8 * U * fabs((double)y0[i]));
    mix(y, (size_t)(M * ld) * 4);
    REFUSED(LORA_EINVAL, "softcap: expected > 0", lora_softcap_rows(ctx, 0, Y, ERR));
    float *dy = copy_floats(x, M * ld);
    OK(lora_softcap_backward(ctx, 1.5f, Y, lora_mat_f32(dy, M, N, ld), ERR));
    for (int64_t i = 0; i < M * ld; i++) {
        double slope = i % ld < N ? 1 - pow(y[i] / 1.5, 2) : 1;
        close_to("softcap backward", dy[i], x[i] * slope, 4 * U * fabs((double)x[i]));
    }
    REFUSED(LORA_EINVAL, "softcap: expected > 0", lora_softcap_backward(ctx, 0, Y, lora_mat_f32(dy, M, N, ld), ERR));
    REFUSED(LORA_EINVAL, "dy: expected", lora_softcap_backward(ctx, 1, Y, Y, ERR));
    free(dy);
    free(x), free(y), free(y0);
}

/* The first rotary elements of each head turn, the rest stays. */
static void check_rope(lora_ctx *ctx, int64_t M, int64_t heads, int64_t D, int64_t rotary) {
    int64_t n_positions = 97, half = rotary / 2, ldx = heads * D + 5;
    double inv_freq[64];
    for (int64_t i = 0; i < half; i++) inv_freq[i] = pow(10000.0, -2.0 * (double)i / (double)rotary);
    float *c = random_floats(n_positions * half, 0, 0), *s = random_floats(n_positions * half, 0, 0);
    OK(lora_rope_table(ctx, n_positions, NULL, half, inv_freq, 1.5, c, s, ERR));
    for (int64_t p = 0; p < n_positions; p++)
        for (int64_t i = 0; i < half; i++) {
            close_to("rope cos", c[p * half + i], 1.5 * cos((double)p * inv_freq[i]), 1.5 * U);
            close_to("rope sin", s[p * half + i], 1.5 * sin((double)p * inv_freq[i]), 1.5 * U);
        }
    int32_t *positions = malloc((size_t)M * 4 + 1);
    for (int64_t m = 0; m < M; m++) positions[m] = (int32_t)((m * 31) % n_positions);
    float *x = random_floats(M * ldx, -2, 2), *x0 = copy_floats(x, M * ldx);
    lora_rotations rotations = {.cos = c, .sin = s, .n_positions = n_positions, .half = half};
    lora_mat X = lora_mat_f32(x, M, heads * D, ldx);
    OK(lora_rope(ctx, &rotations, heads, D, positions, X, false, ERR));
    for (int64_t m = 0; m < M; m++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) {
                double a = x0[m * ldx + h * D + i], b = x0[m * ldx + h * D + i + half];
                double co = c[positions[m] * half + i], si = s[positions[m] * half + i];
                close_to("rope", x[m * ldx + h * D + i], a * co - b * si, 6 * U * (fabs(a) + fabs(b)));
                close_to("rope", x[m * ldx + h * D + i + half], b * co + a * si, 6 * U * (fabs(a) + fabs(b)));
            }
    for (int64_t i = 0; i < M * heads * D; i++)
        if (i % D >= rotary)
            CHECK(x[i / (heads * D) * ldx + i % (heads * D)] == x0[i / (heads * D) * ldx + i % (heads * D)], "rope turned too much");
    mix(x, (size_t)(M * ldx) * 4);
    OK(lora_rope(ctx, &rotations, heads, D, positions, X, true, ERR));
    for (int64_t m = 0; m < M; m++) /* a rotation and its transpose: the square of the scale */
        for (int64_t i = 0; i < heads * D; i++) close_to("rope back", x[m * ldx + i], (i % D < rotary ? 2.25 : 1) * x0[m * ldx + i], 1e-5);
    positions[M - 1] = (int32_t)n_positions;
    REFUSED(LORA_EINVAL, "got 97", lora_rope(ctx, &rotations, heads, D, positions, X, true, ERR));
    free(c), free(s), free(positions), free(x), free(x0);
}

static void check_swiglu(lora_ctx *ctx, int64_t M, int64_t I) {
    int64_t ld = 2 * I; /* gate and up side by side, as a fused projection leaves them */
    float *gu = random_floats(M * ld, -6, 6), *gu0 = copy_floats(gu, M * ld), *h = random_floats(M * I, 0, 0);
    float *dh = random_floats(M * I, -1, 1);
    lora_mat gate = lora_mat_f32(gu, M, I, ld), up = lora_mat_f32(gu + I, M, I, ld);
    OK(lora_mlp_forward(ctx, LORA_SILU, gate, up, lora_mat_f32(h, M, I, I), ERR));
    OK(lora_mlp_backward(ctx, LORA_SILU, lora_mat_f32(dh, M, I, I), gate, up, gate, up, ERR));
    for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < I; i++) {
            double g = gu0[m * ld + i], u = gu0[m * ld + I + i], d = dh[m * I + i], s = 1 / (1 + exp(-g));
            close_to("swiglu h", h[m * I + i], u * g * s, 9 * U * fabs(u * g * s));
            close_to("swiglu dgate", gu[m * ld + i], d * u * s * (1 + g * (1 - s)), 17 * U * (1 + fabs(g)) * fabs(d * u));
            close_to("swiglu dup", gu[m * ld + I + i], d * g * s, 9 * U * fabs(d * g * s));
        }
    mix(h, (size_t)(M * I) * 4), mix(gu, (size_t)(M * ld) * 4);
    if (I > 1) REFUSED(LORA_EINVAL, "overlapping", lora_mlp_forward(ctx, LORA_SILU, gate, up, lora_mat_f32(gu + 1, M, I, ld), ERR));
    free(gu), free(gu0), free(h), free(dh);
}

/* Without a gate, and ReLU with one. */
static void check_other_activations(lora_ctx *ctx, int64_t M, int64_t I) {
    int64_t n = M * I;
    float *g = random_floats(n, -6, 6), *u = random_floats(n, -2, 2), *h = random_floats(n, 0, 0), *dh = random_floats(n, -1, 1);
    float *dg = random_floats(n, 0, 0), *du = random_floats(n, 0, 0);
    lora_mat gate = lora_mat_f32(g, M, I, I), up = lora_mat_f32(u, M, I, I), H = lora_mat_f32(h, M, I, I), D = lora_mat_f32(dh, M, I, I);
    lora_mat none = lora_mat_none(), DG = lora_mat_f32(dg, M, I, I), DU = lora_mat_f32(du, M, I, I);
    OK(lora_mlp_forward(ctx, LORA_SILU, gate, none, H, ERR));
    OK(lora_mlp_backward(ctx, LORA_SILU, D, gate, none, DG, none, ERR));
    for (int64_t i = 0; i < n; i++) {
        double x = g[i], s = 1 / (1 + exp(-x));
        close_to("silu", h[i], x * s, 9 * U * fabs(x * s));
        close_to("silu backward", dg[i], dh[i] * s * (1 + x * (1 - s)), 17 * U * (1 + fabs(x)) * fabs((double)dh[i]));
    }
    mix(h, (size_t)n * 4), mix(dg, (size_t)n * 4);
    for (int gated = 0; gated < 2; gated++) {
        OK(lora_mlp_forward(ctx, LORA_RELU, gate, gated ? up : none, H, ERR));
        OK(lora_mlp_backward(ctx, LORA_RELU, D, gate, gated ? up : none, DG, gated ? DU : none, ERR));
        for (int64_t i = 0; i < n; i++) {
            float x = g[i] > 0 ? g[i] : 0, factor = gated ? u[i] : 1;
            CHECK(h[i] == factor * x, "relu: %g of %g", (double)h[i], (double)g[i]);
            CHECK(dg[i] == (g[i] > 0 ? dh[i] * factor : 0), "relu backward: %g of %g", (double)dg[i], (double)g[i]);
            if (gated) CHECK(du[i] == dh[i] * x, "relu backward: dup");
        }
    }
    OK(lora_mlp_backward(ctx, LORA_RELU, D, gate, none, D, none, ERR)); /* in place */
    OK(lora_mlp_backward(ctx, LORA_RELU, DG, gate, none, gate, none, ERR));
    free(g), free(u), free(h), free(dh), free(dg), free(du);
}

static void check_geglu(lora_ctx *ctx, int64_t M, int64_t I, bool gated) {
    int64_t ld = 2 * I;
    float *gu = random_floats(M * ld, -3, 3), *gu0 = copy_floats(gu, M * ld), *h = random_floats(M * I, 0, 0);
    float *dh = random_floats(M * I, -1, 1);
    lora_mat gate = lora_mat_f32(gu, M, I, ld), up = gated ? lora_mat_f32(gu + I, M, I, ld) : lora_mat_none();
    OK(lora_mlp_forward(ctx, LORA_GELU_TANH, gate, up, lora_mat_f32(h, M, I, I), ERR));
    OK(lora_mlp_backward(ctx, LORA_GELU_TANH, lora_mat_f32(dh, M, I, I), gate, up, gate, up, ERR));
    for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < I; i++) {
            double g = gu0[m * ld + i], u = gated ? gu0[m * ld + I + i] : 1, d = dh[m * I + i], k = sqrt(2 / acos(-1.0));
            double t = tanh(k * (g + 0.044715 * g * g * g)), gelu = 0.5 * g * (1 + t);
            double slope = 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * k * (1 + 3 * 0.044715 * g * g);
            close_to("geglu h", h[m * I + i], u * gelu, 60 * U * fabs(u) * (fabs(gelu) + 1e-3));
            close_to("geglu dgate", gu[m * ld + i], d * u * slope, 180 * U * fabs(d * u));
            if (gated)
                close_to("geglu dup", gu[m * ld + I + i], d * gelu, 60 * U * fabs(d) * (fabs(gelu) + 1e-3));
            else
                CHECK(gu[m * ld + I + i] == gu0[m * ld + I + i], "geglu wrote an up that is not there");
        }
    mix(h, (size_t)(M * I) * 4), mix(gu, (size_t)(M * ld) * 4);
    free(gu), free(gu0), free(h), free(dh);
}

static void check_embedding(lora_ctx *ctx, int64_t M, int64_t V, int64_t H) {
    int64_t ld = H + 2;
    float *w = random_floats(V * ld, -2, 2), *y = random_floats(M * H, 0, 0), *dense = random_floats(V * H, -2, 2);
    uint16_t *half = malloc((size_t)(V * ld) * 2);
    for (int64_t i = 0; i < V * ld; i++) half[i] = lora_f32_to_bf16(w[i]);
    int32_t *ids = calloc((size_t)M + 1, sizeof *ids);
    for (int64_t m = 0; m < M; m++) ids[m] = (int32_t)((m * 7 + m / 3) % V);

    lora_weight f32 = lora_weight_f32(w, V, H, ld);
    lora_mat Y = lora_mat_f32(y, M, H, H);
    OK(lora_embedding_forward(ctx, ids, &f32, Y, ERR));
    for (int64_t m = 0; m < M; m++) CHECK(!memcmp(y + m * H, w + ids[m] * ld, (size_t)H * 4), "embedding float32");
    lora_weight bf16 = lora_weight_bf16(half, V, H, ld);
    OK(lora_embedding_forward(ctx, ids, &bf16, Y, ERR));
    for (int64_t i = 0; i < M * H; i++) CHECK(y[i] == lora_bf16_to_f32(half[ids[i / H] * ld + i % H]), "embedding bfloat16");

    int64_t n_blocks = lora_nf4_blocks(V, H, 64);
    uint8_t *codes = calloc((size_t)lora_nf4_code_bytes(V, H) + 64, 1);
    float *absmax = random_floats(n_blocks, 0, 0), *decoded = random_floats(V * H, 0, 0);
    OK(lora_nf4_quantize(ctx, dense, LORA_F32, V, H, 64, codes, absmax, ERR));
    lora_nf4 q = {.rows = V, .cols = H, .block_size = 64, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    lora_weight nf4 = lora_weight_nf4(&q);
    OK(lora_nf4_dequantize(ctx, &q, 0, V * H, decoded, LORA_F32, ERR));
    OK(lora_embedding_forward(ctx, ids, &nf4, Y, ERR));
    for (int64_t m = 0; m < M; m++) CHECK(!memcmp(y + m * H, decoded + ids[m] * H, (size_t)H * 4), "embedding NF4");

    float *dW = random_floats(V * H, -1, 1), *want = copy_floats(dW, V * H);
    OK(lora_embedding_backward(ctx, ids, Y, lora_mat_f32(dW, V, H, H), ERR));
    for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < H; i++) want[ids[m] * H + i] += y[m * H + i];
    double worst = 0;
    for (int64_t i = 0; i < V * H; i++) worst = worse(worst, fabs((double)dW[i] - want[i]));
    CHECK(worst <= 4 * (double)M * U * ((double)M + 1), "embedding backward: %g", worst);
    mix(dW, (size_t)(V * H) * 4);
    ids[M / 2] = -1;
    REFUSED(LORA_EINVAL, "got -1", lora_embedding_forward(ctx, ids, &f32, Y, ERR));
    REFUSED(LORA_EINVAL, "got -1", lora_embedding_backward(ctx, ids, Y, lora_mat_f32(dW, V, H, H), ERR));
    free(w), free(y), free(dense), free(half), free(ids), free(codes), free(absmax), free(decoded), free(dW), free(want);
}

static void check_refusals(lora_ctx *ctx) {
    float x[64] = {0}, y[64], w[8] = {0};
    lora_norm norm = {.kind = LORA_NORM_RMS, .H = 8, .groups = 1, .weight = w}, no_weight = norm, empty = norm, no_bias = norm;
    no_weight.weight = NULL;
    empty.H = 0;
    no_bias.kind = LORA_NORM_LAYER;
    lora_mat X = lora_mat_f32(x, 4, 8, 8), Y = lora_mat_f32(y, 4, 8, 8), none = lora_mat_f32(NULL, 0, 8, 8), half = Y;
    half.dtype = LORA_BF16;
    lora_rotations turn = {.cos = w, .sin = w, .n_positions = 1, .half = 1}, wide = {.cos = w, .sin = w, .n_positions = 1, .half = 4};
    REFUSED(LORA_ESHAPE, "x: expected a row stride >= 8, got 7", lora_norm_forward(ctx, &norm, lora_mat_f32(x, 4, 8, 7), Y, NULL, ERR));
    REFUSED(LORA_ESHAPE, "x: expected (4, 8), got (4, 7)", lora_norm_forward(ctx, &norm, lora_mat_f32(x, 4, 7, 8), Y, NULL, ERR));
    REFUSED(LORA_ESHAPE, "y: expected (4, 8), got (3, 8)", lora_norm_forward(ctx, &norm, X, lora_mat_f32(y, 3, 8, 8), NULL, ERR));
    REFUSED(LORA_EDTYPE, "y: expected float32 on cpu, got bfloat16", lora_norm_forward(ctx, &norm, X, half, NULL, ERR));
    REFUSED(LORA_EINVAL, "y: expected", lora_norm_forward(ctx, &norm, X, lora_mat_f32(x + 4, 4, 8, 8), NULL, ERR));
    REFUSED(LORA_EINVAL, "weight: expected", lora_norm_forward(ctx, &no_weight, X, Y, NULL, ERR));
    REFUSED(LORA_EINVAL, "bias: expected", lora_norm_forward(ctx, &no_bias, X, Y, NULL, ERR));
    REFUSED(LORA_ESHAPE, "H: expected", lora_norm_forward(ctx, &empty, X, Y, NULL, ERR));
    REFUSED(LORA_ESHAPE, "head_dim: expected >= 2", lora_rope(ctx, &turn, 1, 1, NULL, lora_mat_f32(x, 1, 1, 8), false, ERR));
    REFUSED(LORA_ESHAPE, "half: expected 1 to 3", lora_rope(ctx, &wide, 1, 7, NULL, lora_mat_f32(x, 1, 7, 8), false, ERR));
    REFUSED(LORA_EINVAL, "activation: expected 0 to 2, got 3", lora_mlp_forward(ctx, LORA_ACTIVATIONS, X, X, Y, ERR));
    REFUSED(LORA_ESHAPE, "y: expected (4, 8), got (3, 8)", lora_scale_columns(ctx, w, X, lora_mat_f32(y, 3, 8, 8), ERR));
    REFUSED(LORA_EINVAL, "l: expected", lora_scale_columns(ctx, NULL, X, Y, ERR));
    REFUSED(LORA_EINVAL, "y: expected", lora_scale_columns(ctx, w, X, lora_mat_f32(x + 4, 4, 8, 8), ERR));
    REFUSED(LORA_EINVAL, "y: expected", lora_scale_columns(ctx, y + 3, X, Y, ERR));
    REFUSED(LORA_EINVAL, "x: expected", lora_scale_columns_backward(ctx, w, X, lora_mat_f32(NULL, 4, 8, 8), Y, false, y + 32, ERR));
    REFUSED(LORA_EINVAL, "dx: expected", lora_scale_columns_backward(ctx, w, X, Y, X, true, NULL, ERR));
    REFUSED(LORA_EINVAL, "dl: expected", lora_scale_columns_backward(ctx, w, X, Y, lora_mat_none(), false, w, ERR));
    OK(lora_norm_forward(ctx, &norm, none, none, NULL, ERR));
}

static uint64_t run_all(lora_ctx *ctx) {
    static const int64_t rows[] = {1, 2, 7, 33, 65, 131}, widths[] = {1, 3, 8, 17, 64, 172, 576};
    begin_run();
    for (int r = 0; r < 6; r++)
        for (int c = 0; c < 7; c++) {
            check_norm(ctx, rows[r], widths[c]);
            check_swiglu(ctx, rows[r], widths[c]);
            check_geglu(ctx, rows[r], widths[c], true);
            check_other_activations(ctx, rows[r], widths[c]);
            check_scale_columns(ctx, rows[r], widths[c]);
            check_geglu(ctx, rows[r], widths[c], false);
            check_groups(ctx, LORA_NORM_RMS, rows[r], 3, widths[c]);
            check_groups(ctx, LORA_NORM_LAYER, rows[r], 1, widths[c]);
            check_scale(ctx, rows[r], widths[c]);
            check_embedding(ctx, rows[r], 29, widths[c]);
        }
    for (int r = 0; r < 6; r++) {
        check_rope(ctx, rows[r], 3, 2, 2), check_rope(ctx, rows[r], 2, 34, 34), check_rope(ctx, rows[r], 4, 64, 64);
        check_rope(ctx, rows[r], 3, 33, 24);
    }
    check_refusals(ctx);
    return hash_of_run();
}

void check_nn(void) {
    for (int isa = LORA_ISA_REF; isa <= LORA_ISA_LAST; isa++) {
        uint64_t first = 0;
        for (int n = 0; n < 4; n++) {
            static const int threads[] = {1, 2, 3, 8};
            lora_ctx *ctx;
            lora_error err;
            lora_ctx_options options = {.n_threads = threads[n], .isa = (lora_isa)isa};
            lora_status status = lora_ctx_create(&options, &ctx, &err);
            if (status == LORA_EUNSUPPORTED) return; /* this CPU stops at the rung below */
            CHECK(status == LORA_OK, "context: %s", err.message);
            if (status != LORA_OK) return;
            uint64_t got = run_all(ctx);
            if (n == 0) {
                first = got;
                tell_hash("run", ctx, got);
            }
            CHECK(got == first, "%s: %d threads give other bits than 1", lora_isa_name((lora_isa)isa), threads[n]);
            lora_ctx_destroy(ctx);
        }
    }
}
