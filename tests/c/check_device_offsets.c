/* Rows and elements beyond 2^31: each operation as it is on rows close together (far_rows.h). */
#include "tests/c/devices.h"
#include "tests/c/far_rows.h"

enum { ROWS = 3, COLS = 64, HALF = COLS / 2, OTHER = COLS /* of small */ };

/* --- norms, activations, columns --- */

static lora_status norm(far_rows *f, lora_error *err) {
    lora_norm norm = {.kind = LORA_NORM_RMS, .H = COLS, .groups = 1, .eps = 1e-5f, .weight = f->small};
    LORA_TRY(lora_norm_forward(f->ctx, &norm, f->m[0], f->m[1], NULL, err));
    return lora_norm_forward(f->ctx, &norm, f->m[1], f->m[2], NULL, err);
}
static lora_status norm_backward(far_rows *f, lora_error *err) {
    float *stats = f->small + 2 * OTHER, *dweight = f->small + 3 * OTHER, *dbias = f->small + 4 * OTHER;
    lora_norm layer = {.kind = LORA_NORM_LAYER, .H = COLS, .groups = 1, .eps = 1e-5f, .weight = f->small, .bias = f->small + OTHER};
    lora_norm heads = {.kind = LORA_NORM_RMS, .H = HALF, .groups = 2, .eps = 1e-5f, .weight = f->small, .weight_offset = 1};
    LORA_TRY(lora_norm_forward(f->ctx, &layer, f->m[0], f->m[1], stats, err));
    LORA_TRY(lora_norm_backward(f->ctx, &layer, f->m[1], f->m[0], stats, f->m[2], false, dweight, dbias, err));
    LORA_TRY(lora_norm_forward(f->ctx, &heads, f->m[0], f->m[1], stats, err));
    return lora_norm_backward(f->ctx, &heads, f->m[1], f->m[0], stats, f->m[2], true, dweight, NULL, err);
}
static lora_status mlp(far_rows *f, lora_error *err) {
    LORA_TRY(lora_mlp_forward(f->ctx, LORA_SILU, f->m[0], f->m[1], f->m[2], err));
    return lora_mlp_backward(f->ctx, LORA_SILU, f->m[2], f->m[0], f->m[1], f->m[0], f->m[3], err);
}
static lora_status columns(far_rows *f, lora_error *err) {
    LORA_TRY(lora_softcap_rows(f->ctx, 1.5f, f->m[0], err));
    LORA_TRY(lora_softcap_backward(f->ctx, 1.5f, f->m[0], f->m[3], err));
    LORA_TRY(lora_scale_columns(f->ctx, f->small, f->m[0], f->m[1], err));
    LORA_TRY(lora_scale_columns_backward(f->ctx, f->small, f->m[1], f->m[0], f->m[2], true, f->small + OTHER, err));
    return lora_scale_rows(f->ctx, 3, f->m[2], f->m[3], true, err);
}

/* --- rows as they are --- */

static lora_status conversion(far_rows *f, lora_error *err) {
    lora_mat half = f->m[1];
    half.dtype = LORA_BF16;
    LORA_TRY(lora_convert_rows(f->ctx, f->m[0], half, err));
    LORA_TRY(lora_convert_rows(f->ctx, half, f->m[2], err));
    return lora_copy_rows(f->ctx, f->m[2], NULL, f->m[1], NULL, false, err); /* halves lie at other addresses */
}
static lora_status copies(far_rows *f, lora_error *err) {
    LORA_TRY(lora_copy_rows(f->ctx, f->m[0], f->rows_of, f->m[1], NULL, true, err));
    return lora_copy_rows(f->ctx, f->m[1], NULL, f->m[2], f->rows_of, false, err);
}
static lora_status noise(far_rows *f, lora_error *err) {
    static const int32_t starts[] = {0, 1, ROWS};
    int32_t *on_device = far_send(f->ctx, starts, sizeof starts);
    lora_noise noise = {.alpha = 5, .seed = 3, .stream = 4};
    lora_status status = lora_add_noise(f->ctx, &noise, &(lora_segments){2, starts, on_device}, f->m[0], err);
    lora_ctx_free(f->ctx, on_device);
    return status;
}
static lora_status embedding(far_rows *f, lora_error *err) {
    lora_weight table = lora_weight_f32(f->m[1].data, ROWS, COLS, f->ld);
    lora_mat half = f->m[3];
    half.dtype = LORA_BF16;
    LORA_TRY(lora_embedding_backward(f->ctx, f->ids, f->m[0], f->m[1], err));
    LORA_TRY(lora_embedding_forward(f->ctx, f->ids, &table, f->m[2], err));
    LORA_TRY(lora_convert_rows(f->ctx, f->m[1], half, err));
    table = lora_weight_bf16(half.data, ROWS, COLS, f->ld);
    LORA_TRY(lora_embedding_forward(f->ctx, f->ids, &table, f->m[1], err));
    return lora_copy_rows(f->ctx, f->m[2], NULL, f->m[3], NULL, false, err); /* where halves were */
}

/* --- positions --- */

/* The rows of the tables are positions as far apart as the rows are. */
static lora_status rope(far_rows *f, lora_error *err) {
    int64_t step = f->ld / HALF;
    int32_t positions[ROWS];
    for (int i = 0; i < ROWS; i++) positions[i] = (int32_t)((ROWS - 1 - i) * step);
    int32_t *on_device = far_send(f->ctx, positions, sizeof positions);
    lora_rotations tables = {.cos = f->m[1].data, .sin = f->m[2].data, .n_positions = (ROWS - 1) * step + 1, .half = HALF};
    lora_status status = lora_rope(f->ctx, &tables, 1, COLS, on_device, f->m[0], false, err);
    lora_ctx_free(f->ctx, on_device);
    return status;
}

static const far_case CASES[] = {
    {"norm", ROWS, COLS, 3, LORA_PRECISION_EXACT, false, norm},
    {"norm backward", ROWS, COLS, 3, LORA_PRECISION_EXACT, false, norm_backward},
    {"mlp", ROWS, COLS, 4, LORA_PRECISION_EXACT, false, mlp},
    {"columns", ROWS, COLS, 4, LORA_PRECISION_EXACT, false, columns},
    {"conversion", ROWS, COLS, 3, LORA_PRECISION_EXACT, false, conversion},
    {"copies", ROWS, COLS, 3, LORA_PRECISION_EXACT, false, copies},
    {"noise", ROWS, COLS, 1, LORA_PRECISION_EXACT, false, noise},
    {"embedding", ROWS, COLS, 4, LORA_PRECISION_EXACT, false, embedding},
    {"rope", ROWS, COLS, 3, LORA_PRECISION_EXACT, true, rope},
};

static void check_on_device(void) {
    if (!far_has_room()) return; /* others have no memory without end */
    far_check(CASES, sizeof CASES / sizeof *CASES);
    check_far_layers();
    check_far_weights();
    check_far_arrays();
    check_far_dropout();
    check_far_optim();
}

void check_device_offsets(void) { on_every_device(check_on_device); }
