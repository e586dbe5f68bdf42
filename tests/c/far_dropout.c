/* Dropout of rows whose elements have indices beyond 2^31: the mask of the last rows is that of their whole indices. */
#include <stdlib.h>

#include "lora_c/base/philox.h"
#include "tests/c/devices.h"
#include "tests/c/far_rows.h"
#include "tests/c/shim_symbols.h"

enum {
    COLS = 2048,
    ROWS = (1 << 20) + 2, /* the last two have indices from 2^31 on */
    LAST = 4,             /* rows with content, at the end */
    END_BLOCKS = 64,      /* of each launch, that run: more than LAST rows take */
};
#define RATE 0.25f

static const uint64_t SEED = 7, STREAM = 2;

/* What is kept of a row, over what a layer of ones keeps of it. */
static double kept(const float *x, int64_t row) {
    double sum = 0;
    for (int64_t k = 0; k < COLS; k++)
        if (lora_philox_uniform(SEED, STREAM, (uint64_t)(row * COLS + k)) >= RATE) sum += x[k];
    return sum / (1 - RATE);
}

/* y = B A dropout(x) of a base of zeros, where A and B are ones: the sums of what is kept. */
static void forward(lora_ctx *ctx, const float last[LAST][COLS], float y_last[LAST]) {
    float ones[COLS], zeros[COLS] = {0};
    for (int k = 0; k < COLS; k++) ones[k] = 1;
    float *x = lora_ctx_alloc_uncleared(ctx, LORA_MEM_SCRATCH, (size_t)ROWS * COLS * sizeof *x);
    float *y = lora_ctx_alloc_uncleared(ctx, LORA_MEM_SCRATCH, ROWS * sizeof *y);
    OK(lora_upload(ctx, x + (int64_t)(ROWS - LAST) * COLS, last, LAST * COLS * sizeof *x, ERR));
    float *A = far_send(ctx, ones, sizeof ones), *B = far_send(ctx, ones, sizeof *ones), *base = far_send(ctx, zeros, sizeof zeros);
    lora_weight w = lora_weight_f32(base, 1, COLS, COLS);
    lora_adapter adapter = {.rank = 1, .A = A, .B = B, .scale = 1, .dropout = RATE, .dropout_seed = SEED};
    lora_adapter_pass pass = {.dropout = RATE, .dropout_stream = STREAM};
    lora_linear_layer layer = {.w = &w, .adapter = &adapter, .pass = pass, .y = lora_mat_f32(y, ROWS, 1, 1)};
    OK(lora_linear_forward(ctx, lora_mat_f32(x, ROWS, COLS, COLS), 1, &layer, ERR));
    OK(lora_download(ctx, y_last, y + ROWS - LAST, LAST * sizeof *y, ERR));
    OK(lora_sync(ctx, ERR));
    void *all[] = {x, y, A, B, base};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lora_ctx_free(ctx, all[i]);
}

void check_far_dropout(void) {
    static float last[LAST][COLS];
    float y[LAST] = {0};
    shim_symbols shim;
    CHECK(find_shim_symbols(&shim), "the shim does not tell what it can");
    restart_random();
    for (int i = 0; i < LAST; i++)
        for (int k = 0; k < COLS; k++) last[i][k] = uniform(0, 1);
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 1);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_EXACT, ERR));
    shim.run_ends(END_BLOCKS);
    forward(ctx, last, y);
    shim.run_ends(0);
    device_ctx_free(ctx);
    for (int i = 0; i < LAST; i++) {
        double want = kept(last[i], ROWS - LAST + i);
        close_to("what dropout keeps beyond 2^31", y[i], want, 1e-5 * want);
    }
}
