/* Packing of the left operand, shared by all the threads. */
#include "lora_c/ops/gemm_packed.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/gemm.h"

const lora_gemm_path *lora_gemm_path_of(const lora_ctx *ctx, lora_precision precision) {
    const lora_gemm_kernels *u = &ctx->engine->kernels.gemm;
    return &u->paths[precision == LORA_PRECISION_EXACT ? LORA_GEMM_EXACT : u->fast];
}

const lora_gemm_path *lora_gemm_base_path_of(const lora_ctx *ctx) {
    const lora_precision precision = ctx->view.precision;
    return precision == LORA_PRECISION_INT8 ? &ctx->engine->kernels.gemm.int8 : lora_gemm_path_of(ctx, precision);
}

static int64_t left_words(const lora_gemm_path *path, int64_t m, int64_t n_panels, int64_t n) {
    return lora_gemm_steps(path, n) * m + n_panels * lora_gemm_left_scale_words(path, path->mr, n);
}

int64_t lora_gemm_left_words(const lora_gemm_path *path, int64_t m, int64_t k) {
    int64_t n_panels = lora_div_up(m, path->mr), words = 0;
    for (int64_t k0 = 0; k0 < k; k0 += path->kc) words += left_words(path, m, n_panels, lora_min_i64(path->kc, k - k0));
    return lora_round_up(words, 16);
}

int64_t lora_gemm_scratch(const lora_ctx *ctx, int64_t m, int64_t k) {
    const lora_gemm_path *path = lora_gemm_path_of(ctx, ctx->view.precision), *base = lora_gemm_base_path_of(ctx);
    int64_t rows = lora_min_i64(m, LORA_GEMM_CHUNK), words = lora_gemm_left_words(path, rows, k);
    return (words + (base == path ? 0 : lora_gemm_left_words(base, rows, k))) * (int64_t)sizeof(float);
}

int64_t lora_gemm_panel_row(const lora_gemm_left *left, int64_t panel) { return left->m * panel / left->n_panels; }

lora_gemm_left_block lora_gemm_left_block_at(const lora_gemm_left *left, int64_t k0) {
    const lora_gemm_path *path = left->path;
    const int64_t n = lora_min_i64(path->kc, left->k - k0);
    return (lora_gemm_left_block){.words = left->words + k0 / path->kc * left_words(path, left->m, left->n_panels, path->kc),
                                  .steps = lora_gemm_steps(path, n),
                                  .scale_words = lora_gemm_left_scale_words(path, path->mr, n)};
}

float *lora_gemm_left_panel(const lora_gemm_left *left, int64_t k0, int64_t panel) {
    const lora_gemm_left_block b = lora_gemm_left_block_at(left, k0);
    return lora_gemm_panel_of_block(&b, panel, lora_gemm_panel_row(left, panel));
}

/* One operand, or the same rows for two paths. */
typedef struct left_job {
    const lora_gemm_left *lefts;
    int n_lefts;
    const float *a;
    int64_t row_stride, col_stride;
} left_job;

enum { TASK_PANELS = 4 };

static void pack_panel(const left_job *job, const lora_gemm_left *left, int64_t k0, int64_t panel) {
    const lora_gemm_path *path = left->path;
    int64_t n = lora_min_i64(path->kc, left->k - k0), row = lora_gemm_panel_row(left, panel);
    int64_t height = lora_gemm_panel_row(left, panel + 1) - row;
    const float *a = job->a + row * job->row_stride + k0 * job->col_stride;
    float *out = lora_gemm_left_panel(left, k0, panel);
    if (job->col_stride == 1)
        path->pack_left_rows(a, job->row_stride, height, n, height, out);
    else
        path->pack_columns(a, job->col_stride, height, n, height, out);
}

/* A long k block of some panels; of a second path those blocks that lie in it. */
static void pack_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const left_job *job = arg;
    const int64_t kc = job->lefts->path->kc, blocks = lora_div_up(job->lefts->k, kc), first = task / blocks * TASK_PANELS;
    const int64_t end = lora_min_i64(first + TASK_PANELS, job->lefts->n_panels), k0 = task % blocks * kc;
    const int64_t k_end = lora_min_i64(k0 + kc, job->lefts->k);
    for (int64_t panel = first; panel < end; panel++)
        for (int i = 0; i < job->n_lefts; i++)
            for (int64_t k = k0; k < k_end; k += job->lefts[i].path->kc) pack_panel(job, job->lefts + i, k, panel);
}

static lora_gemm_left left_of(const lora_gemm_path *path, int64_t m, int64_t k, float *words) {
    return (lora_gemm_left){.path = path, .m = m, .k = k, .n_panels = lora_div_up(m, path->mr), .words = words};
}

static void run(lora_ctx *ctx, const left_job *job) {
    const lora_gemm_left *left = job->lefts;
    lora_parallel_near(ctx->engine->pool, lora_div_up(left->n_panels, TASK_PANELS) * lora_div_up(left->k, left->path->kc), pack_task,
                       (void *)job);
}

void lora_gemm_pack_left(lora_ctx *ctx, const lora_gemm_path *path, int64_t m, int64_t k, const float *a, int64_t row_stride,
                         int64_t col_stride, float *words, lora_gemm_left *out) {
    *out = left_of(path, m, k, words);
    run(ctx, &(left_job){.lefts = out, .n_lefts = 1, .a = a, .row_stride = row_stride, .col_stride = col_stride});
}

void lora_gemm_pack_left_twice(lora_ctx *ctx, const lora_gemm_path *const paths[2], int64_t m, int64_t k, const float *a,
                               int64_t row_stride, float *const words[2], lora_gemm_left out[2]) {
    for (int i = 0; i < 2; i++) out[i] = left_of(paths[i], m, k, words[i]);
    run(ctx, &(left_job){.lefts = out, .n_lefts = 2, .a = a, .row_stride = row_stride, .col_stride = 1});
}
