#include "lora_c/ops/head_pass.h"

#include <math.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/gemm_right.h"
#include "lora_c/ops/weight.h"

/* BLOCK_BYTES by lora_linear_cross_entropy with dx of 504 rows, on one core of an AMD EPYC (Zen 4, AVX-512), bfloat16 heads of
 * 16384 x 576 and 4096 x 2048: 160, 320 and 1280 KiB give 0.96 to 1.03 of the speed, their means 1.00. */
enum {
    BLOCK_BYTES = 640 << 10, /* of both packings of a block, in L2 */
    BLOCK_MIN = 64,
    BLOCK_MAX = 256,
    ACC_BYTES = 16 << 20, /* of all the ranges together */
    RANGES_MIN = 4,
    RANGES_MAX = 16,
};

static int64_t strips(const lora_head_pass *p, int64_t columns) { return lora_div_up(columns, p->path->nr); }
static int64_t tile_words(const lora_head_pass *p) { return lora_round_up(p->path->mr * p->path->nr, 16); }
static int64_t k_block_words(const lora_head_pass *p, int64_t k) {
    return lora_round_up(lora_gemm_panel_words(p->path, p->path->nr, k), 16);
}

/* Of one thread: W packed for the logits, W packed for the gradient, logits of a panel, the same packed, scratch. */
typedef struct head_buffers {
    float *forward, *back, *logits, *capped, *packed, *scratch;
} head_buffers;

static int64_t carve(const lora_head_pass *p, float *base, head_buffers *out) {
    int64_t row = p->block * p->path->mr, at = 0;
    int64_t sizes[6] = {strips(p, p->block) * p->panel_words,
                        p->gradient ? strips(p, p->w->cols) * p->back_words : 0,
                        row,
                        p->block,
                        lora_gemm_left_words(p->path, p->path->mr, p->block),
                        lora_gemm_right_scratch(p->path)};
    float **to[6] = {&out->forward, &out->back, &out->logits, &out->capped, &out->packed, &out->scratch};
    for (int i = 0; i < 6; i++) {
        *to[i] = base ? base + at : NULL;
        at += lora_round_up(sizes[i], 16);
    }
    return at;
}

static void choose_blocks(lora_head_pass *p) {
    int64_t V = p->w->rows, H = p->w->cols, bytes = 4 / p->path->k_per_step;
    int64_t block = BLOCK_BYTES / (2 * bytes * H) / 64 * 64;
    p->block = lora_min_i64(lora_max_i64(block, BLOCK_MIN), BLOCK_MAX);
    int64_t ranges = ACC_BYTES / (LORA_HEAD_ROWS * H * (int64_t)sizeof(float));
    ranges = lora_min_i64(lora_max_i64(ranges, RANGES_MIN), RANGES_MAX);
    p->range = lora_round_up(lora_div_up(V, ranges), p->block);
    p->n_ranges = lora_div_up(V, p->range);
}

/* Sizes of a pass; returns the words of all its memory. */
static int64_t plan(const lora_ctx *ctx, const lora_loss_head *head, int64_t rows, lora_head_pass *p) {
    *p = (lora_head_pass){.kernels = &ctx->engine->kernels,
                          .path = head->trains ? lora_gemm_path_of(ctx, ctx->view.precision) : lora_gemm_base_path_of(ctx),
                          .w = head->w,
                          .map = head->map,
                          .gradient = head->gradient};
    choose_blocks(p);
    int64_t H = p->w->cols, n_panels = lora_div_up(rows, p->path->mr);
    for (int64_t k = 0; k < H; k += p->path->kc) p->panel_words += k_block_words(p, lora_min_i64(p->path->kc, H - k));
    p->back_words = k_block_words(p, p->block);
    p->acc_words = p->gradient ? n_panels * strips(p, H) * tile_words(p) : 0;
    p->x_words = lora_gemm_left_words(p->path, rows, H);
    p->row_words = lora_round_up(rows, 16);
    head_buffers none;
    p->worker_words = carve(p, NULL, &none);
    return p->x_words + p->row_words * (1 + 3 * p->n_ranges) + p->n_ranges * p->acc_words +
           lora_pool_threads(ctx->engine->pool) * p->worker_words;
}

int64_t lora_head_pass_bytes(const lora_ctx *ctx, const lora_loss_head *head, int64_t rows) {
    lora_head_pass unused;
    return plan(ctx, head, rows, &unused) * (int64_t)sizeof(float);
}

lora_status lora_head_pass_create(lora_ctx *ctx, const lora_loss_head *head, int64_t rows, lora_head_pass *p, lora_error *err) {
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_HEAD, (size_t)plan(ctx, head, rows, p) * sizeof(float), &memory, err));
    p->x.words = memory;
    p->rest = (double *)(p->x.words + p->x_words);
    p->max = (float *)(p->rest + p->row_words * p->n_ranges);
    p->at_target = p->max + p->row_words * p->n_ranges;
    p->acc = p->at_target + p->row_words;
    p->workers = p->acc + p->n_ranges * p->acc_words;
    return LORA_OK;
}

/* Tiles of one panel: [strip of H]. */
static float *acc_panel(const lora_head_pass *p, int64_t range, int64_t panel) {
    return p->acc + range * p->acc_words + panel * strips(p, p->w->cols) * tile_words(p);
}

static int64_t acc_width(const lora_head_pass *p, int64_t strip) {
    return lora_gemm_strip_width(p->path, p->w->cols - strip * p->path->nr);
}

static void pack_forward(const lora_head_pass *p, int64_t v, int64_t n, const head_buffers *b) {
    float *panel = b->forward;
    for (int64_t s = 0; s < strips(p, n); s++)
        for (int64_t k = 0; k < p->w->cols; k += p->path->kc) {
            int64_t here = lora_min_i64(p->path->kc, p->w->cols - k), first = v + s * p->path->nr;
            lora_gemm_right right = {.b = p->w,
                                     .b_transposed = true,
                                     .first_col = first,
                                     .n_cols = lora_min_i64(p->path->nr, v + n - first),
                                     .k0 = k,
                                     .n = here};
            lora_gemm_pack_right(p->kernels, p->path, &right, panel, 0, b->scratch);
            panel += k_block_words(p, here);
        }
}

static void pack_back(const lora_head_pass *p, int64_t v, int64_t n, const head_buffers *b) {
    int64_t H = p->w->cols, most = LORA_GEMM_MOST_STRIPS * p->path->nr;
    for (int64_t j = 0; j < H; j += most) {
        lora_gemm_right right = {.b = p->w, .first_col = j, .n_cols = lora_min_i64(most, H - j), .k0 = v, .n = n};
        lora_gemm_pack_right(p->kernels, p->path, &right, b->back + j / p->path->nr * p->back_words, p->back_words, b->scratch);
    }
}

/* logits (height, n) with row stride block, a multiple of the strips. */
static void panel_logits(const lora_head_pass *p, int64_t panel, int64_t height, int64_t n, const head_buffers *b) {
    const lora_gemm_path *path = p->path;
    const float *packed = b->forward;
    for (int64_t j = 0; j < n; j += path->nr) {
        int64_t width = lora_gemm_strip_width(path, n - j);
        for (int64_t k = 0; k < p->w->cols; k += path->kc) {
            int64_t here = lora_min_i64(path->kc, p->w->cols - k);
            path->micro(height, width, lora_gemm_steps(path, here), lora_gemm_left_panel(&p->x, k, panel), packed, b->logits + j, p->block,
                        k > 0);
            packed += k_block_words(p, here);
        }
    }
    for (int64_t i = 0; i < height && p->map.scale != 1; i++)
        p->kernels->rowwise.scale(n, p->map.scale, b->logits + i * p->block, b->logits + i * p->block);
}

/* Turns the logits of a row into exp(logit - max) * slope, 0 at the target. Returns what the earlier sums are worth. */
static float take_row(const lora_head_pass *p, int64_t range, int64_t row, int64_t v, int64_t n, float *logits, float *capped) {
    const lora_rowwise_kernels *k = &p->kernels->rowwise;
    int64_t at = range * p->x.m + row, target = p->targets[row] - v;
    if (p->map.softcap > 0) k->softcap_forward(n, p->map.softcap, logits);
    if (target >= 0 && target < n) {
        p->at_target[row] = logits[target];
        logits[target] = -INFINITY;
    }
    bool slope = p->gradient && p->map.softcap > 0;
    if (slope) memcpy(capped, logits, (size_t)n * sizeof(float));
    if (slope && target >= 0 && target < n) capped[target] = 0;

    float before = p->max[at], top = k->max(n, logits), max = top > before ? top : before, worth = 1;
    double sum = k->exp_sum(n, max == -INFINITY ? 0 : max, logits);
    if (max > before) {
        float distance = before - max;
        k->exp(1, &distance, &worth);
    }
    p->max[at] = max;
    p->rest[at] = p->rest[at] * (double)worth + sum;
    if (slope) k->softcap_backward(n, p->map.softcap, capped, logits);
    return worth;
}

static void scale_acc_row(const lora_head_pass *p, float *tiles, int64_t i, float worth) {
    for (int64_t s = 0; s < strips(p, p->w->cols); s++, tiles += tile_words(p)) {
        float *row = tiles + i * acc_width(p, s);
        p->kernels->rowwise.scale(acc_width(p, s), worth, row, row);
    }
}

static void panel_gradient(const lora_head_pass *p, int64_t height, int64_t n, bool first, float *tiles, const head_buffers *b) {
    const lora_gemm_path *path = p->path;
    path->pack_left_rows(b->logits, p->block, height, n, height, b->packed);
    for (int64_t s = 0; s < strips(p, p->w->cols); s++, tiles += tile_words(p))
        path->micro(height, acc_width(p, s), lora_gemm_steps(path, n), b->packed, b->back + s * p->back_words, tiles, acc_width(p, s),
                    !first);
}

static void block_task(const lora_head_pass *p, int64_t range, int64_t v, int64_t n, const head_buffers *b) {
    bool first = v == range * p->range;
    pack_forward(p, v, n, b);
    if (p->gradient) pack_back(p, v, n, b);
    for (int64_t panel = 0; panel < p->x.n_panels; panel++) {
        int64_t row = lora_gemm_panel_row(&p->x, panel), height = lora_gemm_panel_row(&p->x, panel + 1) - row;
        float *tiles = acc_panel(p, range, panel);
        panel_logits(p, panel, height, n, b);
        for (int64_t i = 0; i < height; i++) {
            float worth = take_row(p, range, row + i, v, n, b->logits + i * p->block, b->capped);
            if (p->gradient && !first && worth != 1) scale_acc_row(p, tiles, i, worth);
        }
        if (p->gradient) panel_gradient(p, height, n, first, tiles, b);
    }
}

static void range_task(void *arg, int64_t range, int worker) {
    const lora_head_pass *p = arg;
    int64_t begin = range * p->range, end = lora_min_i64(begin + p->range, p->w->rows);
    head_buffers b;
    carve(p, p->workers + worker * p->worker_words, &b);
    for (int64_t row = 0; row < p->x.m; row++) {
        p->max[range * p->x.m + row] = -INFINITY;
        p->rest[range * p->x.m + row] = 0;
    }
    for (int64_t v = begin; v < end; v += p->block) block_task(p, range, v, lora_min_i64(p->block, end - v), &b);
}

void lora_head_pass_run(lora_ctx *ctx, lora_head_pass *p, int64_t n, const float *x, int64_t ldx, const int32_t *targets) {
    p->targets = targets;
    lora_gemm_pack_left(ctx, p->path, n, p->w->cols, x, ldx, 1, p->x.words, &p->x);
    lora_parallel_for(ctx->engine->pool, p->n_ranges, range_task, p);
}

/* fmax, whose loops end GCC 12 for aarch64 with an internal error (vect_transform_reduction). */
static double larger(double a, double b) { return b > a || isnan(a) ? b : a; }

static double row_max(const lora_head_pass *p, int64_t row) {
    double max = (double)p->at_target[row];
    for (int64_t r = 0; r < p->n_ranges; r++) max = larger(max, (double)p->max[r * p->x.m + row]);
    return max;
}

lora_head_row lora_head_pass_row(const lora_head_pass *p, int64_t row) {
    double max = row_max(p, row), others = 0, target = exp((double)p->at_target[row] - max);
    for (int64_t r = 0; r < p->n_ranges; r++) {
        int64_t at = r * p->x.m + row;
        if (p->rest[at] != 0) others += p->rest[at] * exp((double)p->max[at] - max);
    }
    double log_sum = max + log(target + others);
    double loss = target == 1 ? log1p(others) : log_sum - (double)p->at_target[row];
    return (lora_head_row){.loss = loss, .log_sum = log_sum, .others = others / (target + others)};
}

void lora_head_pass_gradient(const lora_head_pass *p, int64_t row, const lora_head_row *sums, float factor, float *dx, float *buffer) {
    const lora_rowwise_kernels *k = &p->kernels->rowwise;
    int64_t H = p->w->cols, panel = row * p->x.n_panels / p->x.m;
    while (lora_gemm_panel_row(&p->x, panel + 1) <= row) panel++;
    int64_t i = row - lora_gemm_panel_row(&p->x, panel);
    double slope = p->map.softcap > 0 ? 1 - pow((double)p->at_target[row] / (double)p->map.softcap, 2) : 1;
    float at_target = (float)(-(double)factor * (double)p->map.scale * slope * sums->others);
    k->scale(H, at_target, lora_weight_run(p->kernels, p->w, p->targets[row], 0, H, buffer), dx);
    for (int64_t r = 0; r < p->n_ranges; r++) {
        float share = (float)((double)factor * (double)p->map.scale * exp((double)p->max[r * p->x.m + row] - sums->log_sum));
        const float *tiles = acc_panel(p, r, panel);
        for (int64_t s = 0; s < strips(p, H); s++, tiles += tile_words(p))
            k->axpy(lora_min_i64(p->path->nr, H - s * p->path->nr), share, tiles + i * acc_width(p, s), dx + s * p->path->nr);
    }
}
