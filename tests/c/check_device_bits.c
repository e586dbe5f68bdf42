/* Operations on rows whose bits are the same on every device: results have one rounding, or an order that is promised. */
#include <math.h>

#include "tests/c/check_backend.h"
#include "tests/c/device_shapes.h"

static void products(op_run *r) {
    for (int i = 0; i < N_SHAPES; i++) {
        lora_mat x = shaped(r, i), y = shaped(r, i);
        float *l = op_floats(r, SHAPES[i].cols + 1, 1);
        OK(lora_scale_columns(r->ctx, l, x, y, ERR));
        OK(lora_scale_columns(r->ctx, l + 1, x, x, ERR));
        OK(lora_scale_rows(r->ctx, 0.7f, y, y, false, ERR));
        keep(r, "y", y);
        keep(r, "in place", x);
    }
}

static void noise(op_run *r) {
    for (int i = 0; i < N_SHAPES; i++) {
        int32_t rows = (int32_t)SHAPES[i].rows, starts[] = {0, rows / 3, rows / 3 + 1, rows};
        lora_segments segments = {.n = rows ? 3 : 0, .cu_seqlens = starts, .on_device = op_send(r, starts, sizeof starts)};
        lora_mat x = shaped(r, i);
        OK(lora_add_noise(r->ctx, &(lora_noise){.alpha = 5, .seed = 3 + (1ull << 40), .stream = 1ull << 33}, &segments, x, ERR));
        keep(r, "x", x);
    }
}

static void copies(op_run *r) {
    int64_t numbers[70];
    for (int i = 0; i < N_SHAPES; i++) {
        int64_t n = SHAPES[i].rows;
        for (int64_t k = 0; k < n; k++) numbers[k] = n - 1 - k;
        const int64_t *rows = op_send(r, numbers, sizeof numbers);
        for (int k = 0; k < 6; k++) {
            lora_mat from = shaped(r, i), to = shaped(r, i);
            OK(lora_copy_rows(r->ctx, from, k / 2 == 1 ? rows : NULL, to, k / 2 == 2 ? rows : NULL, k % 2, ERR));
            keep(r, "to", to);
        }
    }
}

/* Infinities, NaN and numbers halfway between two of bfloat16, too. */
static void conversions(op_run *r) {
    static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x7fc12345, 0xff812345, 0x7f7fffff,
                                   0x3f808000, 0x3f818000, 0x00000001, 0x80000000};
    for (int i = 0; i < N_SHAPES; i++) {
        lora_mat x = shaped(r, i), back = shaped(r, i), narrow = shaped(r, i);
        if (x.rows > 0) OK(lora_upload(r->ctx, x.data, odd, sizeof odd, ERR));
        narrow.dtype = LORA_BF16;
        OK(lora_convert_rows(r->ctx, x, narrow, ERR));
        OK(lora_convert_rows(r->ctx, narrow, back, ERR));
        keep(r, "bfloat16", narrow);
        keep(r, "float32", back);
    }
}

enum { TOKENS = 600, V = 40 };

static const int32_t *some_ids(op_run *r) {
    int32_t ids[TOKENS];
    for (int32_t i = 0; i < TOKENS; i++) ids[i] = i % 3 ? i * i % (V - 1) : 7; /* one often, the last never */
    return op_send(r, ids, sizeof ids);
}

static void embeddings(op_run *r) {
    const int32_t *ids = some_ids(r);
    for (int i = 0; i < backend_weights(); i++) {
        backend_weight host = backend_make_weight(r, i, V);
        lora_weight w = op_weight(r, &host.w);
        lora_mat y = mat(r, 5, host.w.cols, 0);
        OK(lora_embedding_forward(r->ctx, ids, &w, y, ERR));
        keep(r, host.name, y);
        if (w.kind == LORA_WEIGHT_F32 || w.kind == LORA_WEIGHT_BF16) { /* rows that are not aligned */
            w.rows = V - 1;
            w.dense.data = (const char *)w.dense.data + (w.kind == LORA_WEIGHT_F32 ? 4 : 2);
            OK(lora_embedding_forward(r->ctx, ids, &w, y, ERR));
            keep(r, host.name, y);
        }
        backend_free_weight(&host);
    }
}

/* Rows that begin anywhere in a block, and in a byte; the last one ends in the middle of one. */
static void odd_4bit_rows(op_run *r) {
    enum { ROWS = 39, K = 205, BLOCKS = (ROWS * K + 63) / 64 };
    static float x[ROWS * K], absmax[BLOCKS];
    static uint8_t codes[(ROWS * K + 1) / 2 + 64];
    int32_t each[60];
    for (int32_t i = 0; i < 60; i++) each[i] = i % ROWS;
    const int32_t *ids = op_send(r, each, sizeof each);
    check_normal(x, ROWS * K, ++r->seed, 1);
    lora_nf4 q = {.rows = ROWS, .cols = K, .block_size = 64, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    OK(lora_nf4_quantize(r->ctx, x, LORA_F32, ROWS, K, 64, codes, absmax, ERR));
    lora_weight host = lora_weight_nf4(&q), w = op_weight(r, &host);
    for (int64_t padding = 0; padding < 4; padding += 3) {
        lora_mat y = mat(r, 60, K, padding);
        OK(lora_embedding_forward(r->ctx, ids, &w, y, ERR));
        keep(r, "y", y);
    }
}

static void embedding_gradients(op_run *r) {
    for (int64_t padding = 0; padding < 2; padding++) {
        const int32_t *ids = some_ids(r);
        lora_mat dy = mat(r, TOKENS, 36, padding), dW = mat(r, V, 36, 4);
        OK(lora_embedding_backward(r->ctx, ids, dy, dW, ERR));
        keep(r, "dW", dW);
    }
}

static const op_case CASES[] = {
    {"products", products},
    {"noise", noise},
    {"copies", copies},
    {"conversions", conversions},
    {"embedding", embeddings},
    {"embedding of odd rows", odd_4bit_rows},
    {"embedding, backward", embedding_gradients},
};

void check_device_bits(void) { op_check_same_bits(CASES, sizeof CASES / sizeof *CASES); }
