/* Linear layers on every device where the cases of check_backend.c do not reach: tokens of a decode alone and together, bit by bit; rows
 * that begin in the middle of NF4's blocks, at odd elements and addresses; weights decoded to the CPU's bytes. */
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/format/nf4_layout.h"
#include "tests/c/check_backend.h"

enum { K = BACKEND_COLS, N = 21, R = 5, COLS = 77, MOST = LORA_DECODE_BATCH };

static lora_adapter make_adapter(op_run *r, int64_t rows, int64_t cols, int64_t rank) {
    return (lora_adapter){.rank = rank,
                          .A = op_floats(r, rank * cols, 0.3f),
                          .B = op_floats(r, rows * rank, 0.3f),
                          .dA = op_floats(r, rank * cols, 1),
                          .dB = op_floats(r, rows * rank, 1),
                          .scale = 0.7f,
                          .dropout_seed = 9};
}

static float *get(op_run *r, lora_mat m) {
    float *host = malloc((size_t)(m.rows * m.ld) * sizeof *host);
    OK(lora_download(r->ctx, host, m.data, (size_t)((m.rows - 1) * m.ld + m.cols) * sizeof *host, ERR));
    OK(lora_sync(r->ctx, ERR));
    return host;
}

/* --- tokens alone and together --- */

/* The group that has row m of groups, as one of row 0; none: no groups. */
static lora_linear_layer alone(const lora_linear_layer *l, int64_t m, lora_mat y, lora_adapter_rows *group) {
    lora_linear_layer one = *l;
    one.y = y;
    one.groups = NULL;
    one.n_groups = 0;
    for (int64_t g = 0; g < l->n_groups; g++) {
        if (m < l->groups[g].first || m >= l->groups[g].first + l->groups[g].rows) continue;
        *group = (lora_adapter_rows){.adapter = l->groups[g].adapter, .rows = 1};
        one.groups = group;
        one.n_groups = 1;
    }
    return one;
}

static lora_mat run_alone(op_run *r, const lora_weight *w, const char *name, int64_t tokens, bool grouped) {
    lora_adapter a[] = {make_adapter(r, N, w->cols, R), make_adapter(r, N, w->cols, 70)};
    lora_mat x = op_mat(r, tokens, w->cols, 1), y = op_mat(r, tokens, N, 1), y1 = op_mat(r, 1, N, 1);
    lora_adapter_rows groups[MOST], group;
    lora_linear_layer layer = {.w = w, .bias = op_floats(r, N, 1), .y = y};
    for (int64_t m = 0; grouped && m + 1 < tokens; m += 3)
        groups[layer.n_groups++] = (lora_adapter_rows){.adapter = &a[m % 2], .first = m, .rows = m + 2 < tokens ? 2 : 1};
    layer.groups = layer.n_groups ? groups : NULL;
    if (!grouped) layer.adapter = &a[1];
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    float *together = get(r, y);
    for (int64_t m = 0; m < tokens; m++) {
        lora_linear_layer one = alone(&layer, m, y1, &group);
        OK(lora_linear_forward(r->ctx, lora_mat_rows(x, m, 1), 1, &one, ERR));
        float *single = get(r, y1);
        CHECK(memcmp(single, together + m * y.ld, N * sizeof(float)) == 0, "%s on %s: token %d of %d has other bits alone", name,
              lora_ctx_device(r->ctx), (int)m, (int)tokens);
        free(single);
    }
    free(together);
    return y;
}

static void check_alone(op_run *r, const lora_weight *w, const char *name, int64_t tokens, bool grouped) {
    op_keep_mat(r, name, run_alone(r, w, name, tokens, grouped));
}

static void tokens_alone(op_run *r) {
    for (int kind = 0; kind < backend_weights(); kind++) {
        backend_weight host = backend_make_weight(r, kind, N);
        lora_weight w = op_weight(r, &host.w);
        check_alone(r, &w, host.name, kind % 2 ? MOST : 3, kind % 3 == 0);
        backend_free_weight(&host);
    }
}

/* --- decoded weights --- */

static void check_decoded(op_run *r, const lora_weight *on_host, const lora_weight *w, const char *name) {
    int64_t n = w->rows * w->cols;
    lora_ctx *cpu = check_ctx(LORA_ISA_REF, 1);
    float *merged = op_floats(r, n, 1), *want = malloc((size_t)n * sizeof *want);
    OK(lora_linear_merge(r->ctx, w, NULL, NULL, 1, merged, ERR));
    OK(lora_linear_merge(cpu, on_host, NULL, NULL, 1, want, ERR));
    float *got = get(r, lora_mat_f32(merged, w->rows, w->cols, w->cols));
    CHECK(memcmp(got, want, (size_t)n * sizeof *got) == 0, "%s on %s: decoded to other bytes", name, lora_ctx_device(r->ctx));
    op_keep(r, name, merged, n, VALUES_F32);
    free(got), free(want);
    lora_ctx_destroy(cpu);
}

/* Scales of scales for any number of scales. */
static void check_odd_nesting(op_run *r) {
    backend_weight host = backend_make_weight(r, 3, N);
    enum { NESTED = 50 };
    const float nested[(N * K / LORA_NF4_BLOCK + NESTED - 1) / NESTED] = {0.5f, 0.7f};
    lora_weight odd = host.w;
    odd.nf4.nested_block_size = NESTED;
    odd.nf4.nested_absmax = nested;
    lora_weight w = op_weight(r, &odd);
    check_decoded(r, &odd, &w, "NF4 with scales of 50 scales");
    check_alone(r, &w, "NF4 with scales of 50 scales", 2, false);
    backend_free_weight(&host);
}

static void decoded(op_run *r) {
    check_odd_nesting(r);
    for (int kind = 0; kind < backend_weights(); kind++) {
        backend_weight host = backend_make_weight(r, kind, N);
        lora_weight w = op_weight(r, &host.w);
        check_decoded(r, &host.w, &w, host.name);
        backend_free_weight(&host);
    }
}

/* --- odd shapes --- */

static backend_weight make_nf4(op_run *r, int64_t rows, int64_t cols, int64_t block_size) {
    int64_t blocks = lora_nf4_blocks(rows, cols, block_size), bytes = lora_nf4_code_bytes(rows, cols);
    backend_weight b = {.name = "NF4"};
    float *x = b.memory[0] = malloc((size_t)(rows * cols) * sizeof *x), *absmax = b.memory[1] = malloc((size_t)blocks * sizeof *absmax);
    uint8_t *codes = b.memory[2] = malloc((size_t)bytes + 64);
    check_normal(x, rows * cols, ++r->seed, 0.3f);
    OK(lora_nf4_quantize(r->ctx, x, LORA_F32, rows, cols, block_size, codes, absmax, ERR));
    lora_nf4 q = {.rows = rows, .cols = cols, .block_size = block_size, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    b.w = lora_weight_nf4(&q);
    return b;
}

/* bfloat16 whose rows begin at odd elements of an odd address. */
static lora_weight odd_bf16(op_run *r, int64_t rows, int64_t cols) {
    int64_t ld = cols + 2;
    float *x = malloc((size_t)(rows * ld + 1) * sizeof *x);
    uint16_t *narrow = malloc((size_t)(rows * ld + 1) * sizeof *narrow);
    check_normal(x, rows * ld + 1, ++r->seed, 0.3f);
    for (int64_t i = 0; i <= rows * ld; i++) narrow[i] = lora_f32_to_bf16(x[i]);
    uint16_t *sent = op_send(r, narrow, (size_t)(rows * ld + 1) * sizeof *narrow);
    free(x), free(narrow);
    return lora_weight_bf16(sent + 1, rows, cols, ld);
}

static void run_odd(op_run *r, const lora_weight *w, int64_t tokens) {
    lora_adapter a = make_adapter(r, w->rows, w->cols, 3);
    lora_mat x = op_mat(r, tokens, w->cols, 1), y = op_mat(r, tokens, w->rows, 1), dx = op_mat(r, tokens, w->cols, 1);
    lora_linear_layer layer = {.w = w, .bias = op_floats(r, w->rows, 1), .adapter = &a, .y = y, .accumulate = true};
    lora_linear_gradient g = {.dy = op_mat(r, tokens, w->rows, 1), .w = w, .adapter = &a, .dbias = op_floats(r, w->rows, 1)};
    g.dW = op_floats(r, w->rows * w->cols, 1);
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    OK(lora_linear_backward(r->ctx, x, 1, &g, dx, false, ERR));
    op_keep_mat(r, "y", y);
    op_keep_mat(r, "dx", dx);
    op_keep(r, "dA", a.dA, 3 * w->cols, VALUES_F32);
    op_keep(r, "dB", a.dB, w->rows * 3, VALUES_F32);
    op_keep(r, "dW", g.dW, w->rows * w->cols, VALUES_F32);
    op_keep(r, "dbias", g.dbias, w->rows, VALUES_F32);
}

static void odd_shapes(op_run *r) {
    static const int64_t tokens[] = {1, 5, 19};
    backend_weight host = make_nf4(r, N, COLS, LORA_NF4_BLOCK); /* rows begin in the middle of bytes and blocks */
    lora_weight nf4 = op_weight(r, &host.w), bf16 = odd_bf16(r, N, COLS);
    for (int i = 0; i < 3; i++) {
        run_odd(r, &nf4, tokens[i]);
        run_odd(r, &bf16, tokens[i]);
    }
    check_alone(r, &bf16, "odd bfloat16", 7, true);
    check_alone(r, &nf4, host.name, MOST, false);
    check_decoded(r, &host.w, &nf4, host.name);
    backend_free_weight(&host);
    /* The last row ends in the middle of eight elements and with its block: behind it there is no scale. */
    host = make_nf4(r, 16, 60, LORA_NF4_BLOCK);
    nf4 = op_weight(r, &host.w);
    for (int i = 0; i < 3; i++) run_odd(r, &nf4, tokens[i]);
    backend_free_weight(&host);
}

/* --- few tokens in precision fast --- */

/* y within what operands of 8 bits allow: 2^-9 of each, and float32 sums. */
static void check_rounded(op_run *r, const lora_nf4 *host, const char *name, int64_t tokens) {
    const lora_weight on_host = lora_weight_nf4(host), w = op_weight(r, &on_host);
    lora_mat x = op_mat(r, tokens, host->cols, 1), y = op_mat(r, tokens, host->rows, 1);
    lora_linear_layer layer = {.w = &w, .y = y};
    float *from = get(r, x);
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    float *got = get(r, y);
    for (int64_t m = 0; m < tokens; m++)
        for (int64_t n = 0; n < host->rows; n++) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < host->cols; k++) {
                int64_t i = n * host->cols + k;
                double product = (double)from[m * x.ld + k] * host->lut[lora_nf4_code(host->codes, i)] *
                                 (double)lora_nf4_absmax(host, i / host->block_size);
                sum += product;
                magnitude += fabs(product);
            }
            double bound = (2.02 * 0x1p-9 + (double)host->cols * 0x1p-24) * magnitude;
            CHECK(fabs(got[m * y.ld + n] - sum) <= bound, "%s on %s: token %d, output %d: %g, not %g", name, lora_ctx_device(r->ctx),
                  (int)m, (int)n, (double)got[m * y.ld + n], sum);
        }
    free(from), free(got);
}

/* Scales of scales of the blocks of a weight; codes, values and scales are drawn. */
static lora_nf4 nested_of(const lora_nf4 *plain, uint8_t *codes, float *map, float *absmax) {
    lora_nf4 q = *plain;
    int64_t blocks = lora_nf4_blocks(q.rows, q.cols, q.block_size);
    for (int64_t i = 0; i < blocks; i++) codes[i] = (uint8_t)(i * 37);
    for (int i = 0; i < 256; i++) map[i] = (float)(i - 100) / 256;
    for (int64_t i = 0; i < lora_div_up(blocks, 4); i++) absmax[i] = 0.5f + (float)(i % 7);
    q.absmax = NULL, q.absmax_codes = codes, q.nested_map = map, q.nested_absmax = absmax;
    q.nested_block_size = 4, q.nested_offset = 0.3f;
    return q;
}

/* Rows of 9 and of 1 times 128 elements, in the ways that a block of weights may lie in 128; 160 is no multiple. */
static void few_rounded(op_run *r) {
    static const struct {
        int64_t cols, block_size, tokens;
        bool nested;
    } cases[] = {{1152, 64, 1, true},   {1152, 64, 16, false}, {128, 64, 3, true}, {1152, 128, 4, true},
                 {1024, 512, 5, false}, {1152, 32, 2, true},   {160, 32, 16, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        backend_weight host = make_nf4(r, N, cases[i].cols, cases[i].block_size);
        uint8_t codes[N * 40];
        float map[256], absmax[N * 10];
        lora_nf4 q = cases[i].nested ? nested_of(&host.w.nf4, codes, map, absmax) : host.w.nf4;
        const lora_weight on_host = lora_weight_nf4(&q), w = op_weight(r, &on_host);
        OK(lora_ctx_set_precision(r->ctx, LORA_PRECISION_FAST, ERR));
        check_rounded(r, &q, "NF4 in precision fast", cases[i].tokens);
        (void)run_alone(r, &w, "NF4 in precision fast", cases[i].tokens, i % 2);
        OK(lora_ctx_set_precision(r->ctx, LORA_PRECISION_EXACT, ERR));
        check_alone(r, &w, "NF4 in precision exact", cases[i].tokens, i % 2);
        backend_free_weight(&host);
    }
}

void check_device_linear(void) {
    static const op_case cases[] = {{"decoded weights", decoded},
                                    {"tokens alone", tokens_alone},
                                    {"odd shapes", odd_shapes},
                                    {"few tokens in precision fast", few_rounded}};
    op_check_cases(cases, sizeof cases / sizeof *cases);
}
