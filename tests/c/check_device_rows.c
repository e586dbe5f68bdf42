/* The operations on rows in the shapes that devices treat apart: rows aligned for wide loads and not, wider than a block's reach, more of
 * them than one block sums, results in the place of inputs, none at all. */
#include <math.h>

#include "tests/c/device_shapes.h"

/* --- norms --- */

/* Rows for a warp and for a block, groups, and more rows than one block sums. */
static void norms(op_run *r) {
    static const struct {
        int64_t rows, H, groups, padding;
    } of[] = {{3, 64, 3, 4}, {2, 1536, 1, 0}, {2, 1029, 2, 0}, {1, 8200, 1, 0}, {700, 8, 1, 0}, {90, 7, 2, 3}, {0, 8, 1, 0}};
    for (int i = 0; i < 2 * (int)(sizeof of / sizeof *of); i++) {
        int64_t rows = of[i / 2].rows, H = of[i / 2].H, groups = of[i / 2].groups, padding = of[i / 2].padding;
        lora_norm norm = {.kind = i % 2 ? LORA_NORM_LAYER : LORA_NORM_RMS, .H = H, .groups = groups, .eps = 1e-5f};
        norm.weight = op_floats(r, H, 1);
        norm.bias = i % 2 ? op_floats(r, H, 1) : NULL;
        norm.weight_offset = i % 4 ? 0 : 1;
        lora_mat x = mat(r, rows, groups * H, padding), y = mat(r, rows, groups * H, padding), dx = mat(r, rows, groups * H, padding);
        float *stats = op_floats(r, rows * groups * 2, 1), *dw = op_floats(r, H, 1), *db = op_floats(r, H, 1);
        OK(lora_norm_forward(r->ctx, &norm, x, y, stats, ERR));
        keep(r, "y", y);
        OK(lora_norm_backward(r->ctx, &norm, y, x, stats, dx, true, dw, i % 2 ? db : NULL, ERR));
        keep(r, "dx", dx);
        OK(lora_norm_backward(r->ctx, &norm, y, x, stats, y, false, dw, NULL, ERR));
        keep(r, "dx in the place of dy", y);
        OK(lora_norm_backward(r->ctx, &norm, dx, x, stats, lora_mat_none(), false, dw, i % 2 ? db : NULL, ERR));
        op_keep(r, "dweight", dw, H, VALUES_F32);
        op_keep(r, "dbias", db, H, VALUES_F32);
        OK(lora_norm_forward(r->ctx, &norm, x, x, NULL, ERR));
        keep(r, "y in the place of x", x);
    }
}

/* --- columns, soft cap, activations --- */

static void column_gradients(op_run *r) {
    static const shape of[] = {{200, 33, 0}, {70, 64, 4}, {0, 5, 0}};
    for (int i = 0; i < 3; i++) {
        lora_mat dy = mat(r, of[i].rows, of[i].cols, of[i].padding), x = mat(r, of[i].rows, of[i].cols, 0);
        float *l = op_floats(r, of[i].cols, 1), *dl = op_floats(r, of[i].cols, 1);
        OK(lora_scale_columns_backward(r->ctx, l, dy, x, x, true, NULL, ERR));
        OK(lora_scale_columns_backward(r->ctx, l, dy, x, dy, false, dl, ERR));
        keep(r, "dx added to", x);
        keep(r, "dx in the place of dy", dy);
        op_keep(r, "dl", dl, of[i].cols, VALUES_F32);
    }
}

static void caps(op_run *r) {
    for (int i = 0; i < N_SHAPES; i++) {
        lora_mat x = shaped(r, i), dy = shaped(r, i);
        OK(lora_softcap_rows(r->ctx, 1.5f, x, ERR));
        OK(lora_softcap_backward(r->ctx, 1.5f, x, dy, ERR));
        keep(r, "x", x);
        keep(r, "dy", dy);
    }
}

/* Every second number from where exp overflows to where it vanishes, the others near 0. */
static lora_mat far_numbers(op_run *r, int64_t rows, int64_t cols) {
    static const float ends[] = {-1e30f, -1e20f, -300, -100, -88, -12.5f, -11.5f, -5, -1e-30f, 0, 1e-30f, 5, 11.5f, 12.5f, 88, 100, 1e9f};
    enum { ENDS = sizeof ends / sizeof *ends };
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = i % 2 ? ends[i / 2 % ENDS] : 0.2f * (float)(i % 61 - 30);
    lora_mat m = lora_mat_f32(op_send(r, x, (size_t)(rows * cols) * sizeof *x), rows, cols, cols);
    free(x);
    return m;
}

static void activations(op_run *r) {
    for (int i = 0; i < LORA_ACTIVATIONS * N_SHAPES; i++) {
        lora_activation kind = (lora_activation)(i % LORA_ACTIVATIONS);
        int s = i / LORA_ACTIVATIONS;
        lora_mat gate = shaped(r, s), up = shaped(r, s), dh = shaped(r, s), h = shaped(r, s), alone = shaped(r, s), none = lora_mat_none();
        OK(lora_mlp_forward(r->ctx, kind, gate, up, h, ERR));
        keep(r, "h", h);
        OK(lora_mlp_forward(r->ctx, kind, alone, none, alone, ERR));
        keep(r, "h in the place of gate", alone);
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, none, alone, none, ERR));
        keep(r, "dgate alone", alone);
        OK(lora_mlp_backward(r->ctx, kind, dh, gate, up, gate, i % 2 ? dh : up, ERR));
        keep(r, "dgate in the place of gate", gate);
        keep(r, "dup", i % 2 ? dh : up);
    }
}

/* Results of gates far out are finite; those near 0 are right by themselves, however small. */
static void far_gates(op_run *r) {
    for (int i = 0; i < LORA_ACTIVATIONS; i++) {
        lora_mat gate = far_numbers(r, 6, 34), h = mat(r, 6, 34, 0), dgate = mat(r, 6, 34, 0), dh = mat(r, 6, 34, 0);
        OK(lora_mlp_forward(r->ctx, (lora_activation)i, gate, lora_mat_none(), h, ERR));
        OK(lora_mlp_backward(r->ctx, (lora_activation)i, dh, gate, lora_mat_none(), dgate, lora_mat_none(), ERR));
        for (int64_t k = 0; k < 6 * 34; k += 2) op_keep(r, "h near 0", (float *)h.data + k, 1, VALUES_F32);
        op_keep(r, "h", h.data, 6 * 34, VALUES_F32);
        op_keep(r, "dgate", dgate.data, 6 * 34, VALUES_F32);
    }
}

/* --- rotations --- */

static void rotations(op_run *r) {
    enum { M = 70, POSITIONS = 90 };
    static const struct {
        int64_t heads, head_dim, half, padding;
    } of[] = {{3, 32, 16, 4}, {2, 40, 16, 0}, {5, 6, 3, 1}, {1, 2, 1, 0}};
    double inv_freq[16];
    int32_t numbers[M];
    for (int i = 0; i < 16; i++) inv_freq[i] = pow(10, -i / 3.0);
    for (int32_t i = 0; i < M; i++) numbers[i] = i * 7 % POSITIONS;
    const int32_t *positions = op_send(r, numbers, sizeof numbers);
    for (int i = 0; i < 8; i++) {
        int64_t half = of[i / 2].half;
        float *c = op_floats(r, POSITIONS * half, 1), *s = op_floats(r, POSITIONS * half, 1);
        lora_rotations table = {.cos = c, .sin = s, .n_positions = POSITIONS, .half = half};
        lora_mat x = mat(r, M, of[i / 2].heads * of[i / 2].head_dim, of[i / 2].padding);
        OK(lora_rope_table(r->ctx, POSITIONS, NULL, half, inv_freq, 1, c, s, ERR));
        OK(lora_rope(r->ctx, &table, of[i / 2].heads, of[i / 2].head_dim, positions, x, i % 2, ERR));
        keep(r, "x", x);
    }
}

/* --- losses of values --- */

/* Rows without weight have values that are no numbers. */
static void values(op_run *r) {
    static const shape of[] = {{300, 3, 0}, {5, 70, 2}, {0, 4, 0}};
    for (int i = 0; i < 6; i++) {
        int64_t M = of[i / 2].rows, N = of[i / 2].cols;
        float *host = malloc((size_t)(M * N + 1) * sizeof *host), weights[300];
        for (int64_t k = 0; k < M * N; k++) host[k] = k / N % 3 ? (float)(k % 5) / 4 : NAN;
        for (int64_t m = 0; m < M; m++) weights[m] = (float)(m % 3) / 2;
        lora_mat y = mat(r, M, N, of[i / 2].padding), dy = mat(r, M, N, 0);
        double *sum = (double *)(void *)op_floats(r, 2, 1);
        lora_values loss = {.kind = (lora_values_kind)(i % 2),
                            .values = op_send(r, host, (size_t)(M * N) * sizeof *host),
                            .loss_weight = op_send(r, weights, (size_t)M * sizeof *weights),
                            .grad_scale = 0.5f,
                            .loss_sum = sum};
        OK(lora_values_loss(r->ctx, y, &loss, dy, ERR));
        keep(r, "dy", dy);
        op_keep(r, "loss_sum", sum, 1, VALUES_F64);
        free(host);
    }
}

static const op_case CASES[] = {
    {"norms", norms},
    {"columns, backward", column_gradients},
    {"soft cap", caps},
    {"activations", activations},
    {"activations of far gates", far_gates},
    {"rotations", rotations},
    {"loss of values", values},
};

void check_device_rows(void) {
    op_check_cases(CASES, sizeof CASES / sizeof *CASES);
    check_device_bits();
}
