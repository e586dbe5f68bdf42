/* Rows that lie more than 2^31 elements and 2^32 bytes apart: on devices whose memory is taken up by what is touched, as the shim's is.
 * Results have the bits that rows close together have. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/check_ops.h"
#include "tests/c/devices.h"

enum { ROWS = 3, COLS = 64, MATS = 4 };
#define FAR (((int64_t)1 << 31) + 64) /* elements */

typedef struct far_case {
    lora_ctx *ctx;
    lora_mat m[MATS];
    float *weights; /* (COLS) */
    int32_t *ids;   /* (ROWS), the last row first */
} far_case;

static lora_status norm(far_case *c, lora_error *err) {
    lora_norm norm = {.kind = LORA_NORM_RMS, .H = COLS, .groups = 1, .eps = 1e-5f, .weight = c->weights};
    LORA_TRY(lora_norm_forward(c->ctx, &norm, c->m[0], c->m[1], NULL, err));
    return lora_norm_forward(c->ctx, &norm, c->m[1], c->m[2], NULL, err);
}
static lora_status mlp(far_case *c, lora_error *err) {
    LORA_TRY(lora_mlp_forward(c->ctx, LORA_SILU, c->m[0], c->m[1], c->m[2], err));
    return lora_mlp_backward(c->ctx, LORA_SILU, c->m[2], c->m[0], c->m[1], c->m[0], c->m[3], err);
}
static lora_status columns(far_case *c, lora_error *err) {
    LORA_TRY(lora_softcap_rows(c->ctx, 1.5f, c->m[0], err));
    LORA_TRY(lora_scale_columns(c->ctx, c->weights, c->m[0], c->m[1], err));
    return lora_scale_columns_backward(c->ctx, c->weights, c->m[1], c->m[0], c->m[2], true, c->m[3].data, err);
}
static lora_status conversion(far_case *c, lora_error *err) {
    lora_mat half = c->m[1];
    half.dtype = LORA_BF16;
    LORA_TRY(lora_convert_rows(c->ctx, c->m[0], half, err));
    LORA_TRY(lora_convert_rows(c->ctx, half, c->m[2], err));
    return lora_copy_rows(c->ctx, c->m[2], NULL, c->m[1], NULL, false, err); /* halves lie at other addresses */
}
static lora_status embedding(far_case *c, lora_error *err) {
    LORA_TRY(lora_embedding_backward(c->ctx, c->ids, c->m[0], c->m[1], err));
    return lora_copy_rows(c->ctx, c->m[1], NULL, c->m[2], NULL, true, err);
}
static lora_status few(far_case *c, lora_error *err) {
    lora_weight w = lora_weight_f32(c->m[1].data, ROWS, COLS, c->m[1].ld);
    lora_mat y = c->m[2];
    y.cols = ROWS;
    lora_linear_layer layer = {.w = &w, .y = y};
    return lora_linear_forward(c->ctx, c->m[0], 1, &layer, err);
}

static const struct {
    const char *name;
    lora_status (*run)(far_case *, lora_error *);
} CASES[] = {{"norm", norm}, {"mlp", mlp}, {"columns", columns}, {"conversion", conversion}, {"embedding", embedding}, {"few", few}};

/* Runs a case on rows ld apart; results: the rows of all matrices and the weights. False: there is no such memory. */
static bool run(int which, int64_t ld, float *results) {
    far_case c = {.ctx = device_ctx(LORA_ISA_AUTO, 1)};
    float rows[COLS];
    int32_t ids[ROWS];
    bool made = true;
    c.weights = lora_ctx_alloc(c.ctx, LORA_MEM_SCRATCH, sizeof rows);
    c.ids = lora_ctx_alloc(c.ctx, LORA_MEM_SCRATCH, sizeof ids);
    for (int i = 0; i < ROWS; i++) ids[i] = ROWS - 1 - i;
    check_normal(rows, COLS, 99, 1);
    OK(lora_upload(c.ctx, c.ids, ids, sizeof ids, ERR));
    OK(lora_upload(c.ctx, c.weights, rows, sizeof rows, ERR));
    OK(lora_sync(c.ctx, ERR));
    for (int i = 0; i < MATS; i++) {
        c.m[i] = lora_mat_f32(lora_ctx_alloc_uncleared(c.ctx, LORA_MEM_SCRATCH, (size_t)((ROWS - 1) * ld + COLS) * sizeof(float)), ROWS,
                              COLS, ld);
        made = made && c.m[i].data;
        for (int m = 0; made && m < ROWS; m++) {
            check_normal(rows, COLS, (uint64_t)(10 * i + m), 1);
            OK(lora_upload(c.ctx, (float *)c.m[i].data + m * ld, rows, sizeof rows, ERR));
            OK(lora_sync(c.ctx, ERR));
        }
    }
    if (made) OK(CASES[which].run(&c, ERR));
    for (int i = 0; made && i < MATS * ROWS; i++)
        OK(lora_download(c.ctx, results + i * COLS, (float *)c.m[i / ROWS].data + i % ROWS * ld, COLS * sizeof(float), ERR));
    OK(lora_download(c.ctx, results + MATS * ROWS * COLS, c.weights, COLS * sizeof(float), ERR));
    OK(lora_sync(c.ctx, ERR));
    for (int i = 0; i < MATS; i++) lora_ctx_free(c.ctx, c.m[i].data);
    lora_ctx_free(c.ctx, c.weights);
    lora_ctx_free(c.ctx, c.ids);
    device_ctx_free(c.ctx);
    return made;
}

static void check_on_device(void) {
    enum { RESULTS = (MATS * ROWS + 1) * COLS };
    static float near[RESULTS], apart[RESULTS];
    if (strncmp(device_in_use()->name, "shim", 4) != 0) return; /* others have no memory without end */
    for (int i = 0; i < (int)(sizeof CASES / sizeof *CASES); i++) {
        CHECK(run(i, COLS, near), "%s: no memory", CASES[i].name);
        CHECK(run(i, FAR, apart), "%s: no memory for rows 2^31 elements apart", CASES[i].name);
        CHECK(memcmp(near, apart, sizeof near) == 0, "%s: other results from rows 2^31 elements apart", CASES[i].name);
    }
}

void check_device_offsets(void) { on_every_device(check_on_device); }
