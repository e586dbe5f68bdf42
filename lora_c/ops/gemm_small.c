/* Every weight row is read once and multiplied with all the tokens. */
#include "lora_c/ops/gemm_small.h"

#include <stdatomic.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/gemm_right.h"
#include "lora_c/ops/weight.h"

/* Bytes of a weight that a task reads: a few microseconds. bench_decode, 135M, two threads on an AMD EPYC (Zen 4): 8 KiB give 0.94 to
 * 1.11 of the tokens a second, 128 KiB 0.94 to 1.04, their means 1.02 and 0.99. */
enum { TASK_BYTES = 32768 };

_Static_assert(LORA_SMALL_M >= LORA_DECODE_BATCH, "a batch of that size promises the bits of each token alone");

/* How the rows of a weight are read. Precision int8 reads 4 bits as ROWS_INT8, and packs
 * panels for the kernel of many tokens beyond most_tokens of its path; the bits are the same. */
typedef enum row_format { ROWS_F32, ROWS_BF16, ROWS_NF4, ROWS_INT8, ROWS_PANELS, ROWS_DECODED } row_format;

typedef struct product {
    const lora_small_product *given;
    row_format format;
    int64_t first_task, rows_per_task;
} product;

/* The tokens as a kernel takes them; token i lies i * stride bytes behind data. */
typedef struct tokens {
    const char *data;
    int64_t stride;
} tokens;

typedef struct small_job {
    const lora_kernels *kernels;
    const lora_gemv_path *path, *int8; /* int8: NULL in other precisions */
    const lora_gemm_path *panels;      /* of the same products */
    const product *products;
    int64_t n_products, n_tasks, n_leading_tasks;
    _Atomic int64_t next_leading, leading_done;
    lora_gemm_left left;               /* the tokens of ROWS_PANELS */
    tokens arranged, rounded, tokens8; /* for NF4 and for bfloat16 rows, where the path wants them other than they are */
    float *buffers;                    /* per worker: scales of a block of rows, or one decoded row */
    int64_t buffer_floats;
} small_job;

/* NF4 blocks ignore row ends; where one would lie in two rows, the row is decoded first. */
static row_format format_of(const small_job *job, const lora_small_product *p) {
    const lora_weight *w = p->args.b;
    if (job->int8 && p->base && lora_gemm_packs_from_4_bits(w)) return p->args.m <= job->int8->most_tokens ? ROWS_INT8 : ROWS_PANELS;
    switch (w->kind) {
    case LORA_WEIGHT_F32: return ROWS_F32;
    case LORA_WEIGHT_BF16: return ROWS_BF16;
    case LORA_WEIGHT_NF4: return w->cols % w->nf4.block_size == 0 ? ROWS_NF4 : ROWS_DECODED;
    case LORA_WEIGHT_GGML: return ROWS_DECODED;
    }
    return ROWS_DECODED;
}

static int64_t row_bytes(const lora_weight *w, row_format format) {
    return format == ROWS_F32 ? 4 * w->cols : format == ROWS_BF16 ? 2 * w->cols : lora_div_up(w->cols, 2);
}

static int64_t panel_floats(const lora_gemm_path *path) { return lora_round_up(lora_gemm_panel_words(path, path->nr, path->kc), 16); }

static int64_t buffer_floats(const small_job *job, const lora_weight *w, row_format format) {
    if (format == ROWS_PANELS) return panel_floats(job->panels) + LORA_SMALL_M * job->panels->nr;
    if (format == ROWS_NF4) return LORA_GEMV_ROWS * (w->cols / w->nf4.block_size) + LORA_GEMV_SCALES_PAST_END;
    return format == ROWS_INT8 ? LORA_GEMV_INT8_SCRATCH : format == ROWS_DECODED ? w->cols : 0;
}

/* sums (rows, m) of rows r .. r + rows - 1 with tokens i .. i + m - 1 */
static void multiply(const small_job *job, const lora_gemm_args *g, row_format format, int64_t r, int64_t rows, int64_t i, int64_t m,
                     float *buffer, float *sums) {
    const lora_gemv_path *u = job->path;
    const lora_weight *w = g->b;
    const float *x = g->a + i * g->a_row_stride;
    int64_t k = g->k, stride = g->a_row_stride * (int64_t)sizeof *x;
    const tokens arranged = job->arranged, rounded = job->rounded;
    switch (format) {
    case ROWS_F32: u->f32(rows, k, (const float *)w->dense.data + r * w->dense.ld, w->dense.ld, m, x, stride, sums); break;
    case ROWS_BF16:
        u->bf16(rows, k, (const uint16_t *)w->dense.data + r * w->dense.ld, w->dense.ld, m,
                rounded.data ? rounded.data + i * rounded.stride : (const void *)x, rounded.data ? rounded.stride : stride, sums);
        break;
    case ROWS_NF4: u->nf4(&w->nf4, r, rows, m, arranged.data + i * arranged.stride, arranged.stride, buffer, sums); break;
    case ROWS_INT8:
        job->int8->nf4(&w->nf4, r, rows, m, job->tokens8.data + i * job->tokens8.stride, job->tokens8.stride, buffer, sums);
        break;
    case ROWS_PANELS: break; /* multiply_panels */
    case ROWS_DECODED:
        for (int64_t j = 0; j < rows; j++)
            u->f32(1, k, lora_weight_run(job->kernels, w, r + j, 0, k, buffer), k, m, x, stride, sums + j * m);
        break;
    }
}

static void write_sum(const lora_gemm_args *g, int64_t r, int64_t i, float sum) {
    float *c = g->c + i * g->ldc + r, value = g->alpha * sum + (g->bias ? g->bias[r] : 0.0f);
    *c = g->accumulate ? *c + value : value;
}

static void write_sums(const lora_gemm_args *g, int64_t r, int64_t rows, int64_t i, int64_t m, const float *sums) {
    for (int64_t t = 0; t < m; t++)
        for (int64_t j = 0; j < rows; j++) write_sum(g, r + j, i + t, sums[j * m + t]);
}

/* Rows begin .. end with all the tokens by the kernels of many tokens: a panel of rows is packed, for the caches, and used at once. */
static void multiply_panels(const small_job *job, const lora_gemm_args *g, int64_t begin, int64_t end, float *buffer) {
    const lora_gemm_path *path = job->panels;
    float *tile = buffer + panel_floats(path);
    for (int64_t r = begin; r < end; r += path->nr) {
        const int64_t rows = lora_min_i64(path->nr, end - r), width = lora_gemm_strip_width(path, rows);
        for (int64_t k = 0; k < g->k; k += path->kc) {
            const int64_t n = lora_min_i64(path->kc, g->k - k);
            path->pack_nf4_rows(&g->b->nf4, r, rows, k, n, width, buffer);
            for (int64_t p = 0; p < job->left.n_panels; p++) {
                const int64_t first = lora_gemm_panel_row(&job->left, p), height = lora_gemm_panel_row(&job->left, p + 1) - first;
                path->micro(height, width, lora_gemm_steps(path, n), lora_gemm_left_panel(&job->left, k, p), buffer, tile + first * width,
                            width, k > 0);
            }
        }
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < rows; j++) write_sum(g, r + j, i, tile[i * width + j]);
    }
}

/* Rows begin .. end with all the tokens. */
static void multiply_rows(const small_job *job, const lora_gemm_args *g, row_format format, int64_t begin, int64_t end, float *buffer) {
    float sums[LORA_GEMV_ROWS * LORA_GEMV_TOKENS];
    if (format == ROWS_PANELS) {
        multiply_panels(job, g, begin, end, buffer);
        return;
    }
    for (int64_t r = begin; r < end; r += LORA_GEMV_ROWS)
        for (int64_t i = 0, m; i < g->m; i += m) {
            int64_t rows = lora_min_i64(LORA_GEMV_ROWS, end - r);
            m = lora_min_i64(format == ROWS_INT8 ? job->int8->tokens : LORA_GEMV_TOKENS, g->m - i);
            multiply(job, g, format, r, rows, i, m, buffer, sums);
            write_sums(g, r, rows, i, m, sums);
        }
}

static void run_task(small_job *job, int64_t task, int worker) {
    const product *p = job->products + job->n_products - 1;
    while (task < p->first_task) p--;
    const lora_small_product *given = p->given;
    int64_t begin = (task - p->first_task) * p->rows_per_task, end = lora_min_i64(begin + p->rows_per_task, given->args.n);
    multiply_rows(job, &given->args, p->format, begin, end, job->buffers + worker * job->buffer_floats);
    if (given->n_updates == 0) return;
    lora_wait_for_count(&job->leading_done, job->n_leading_tasks);
    for (int64_t u = 0; u < given->n_updates; u++) multiply_rows(job, given->updates + u, ROWS_F32, begin, end, NULL);
}

/* Leading tasks first, so that all of them have begun when a task behind them waits. */
static void task_after_leading(void *arg, int64_t task, int worker) {
    small_job *job = arg;
    while (atomic_load_explicit(&job->next_leading, memory_order_relaxed) < job->n_leading_tasks) {
        int64_t leading = atomic_fetch_add_explicit(&job->next_leading, 1, memory_order_relaxed);
        if (leading >= job->n_leading_tasks) break;
        run_task(job, leading, worker);
        atomic_fetch_add_explicit(&job->leading_done, 1, memory_order_release);
    }
    run_task(job, job->n_leading_tasks + task, worker);
}

bool lora_gemm_is_small(const lora_gemm_args *g) { return g->b_transposed && g->m <= LORA_SMALL_M && g->a_col_stride == 1; }

static tokens arrange(const lora_gemv_path *path, const lora_gemm_args *g, char *to, int64_t stride) {
    for (int64_t i = 0; i < g->m; i++) path->arrange(g->k, g->a + i * g->a_row_stride, to + i * stride);
    return (tokens){.data = to, .stride = stride};
}

static int64_t arranged_bytes(const lora_gemv_path *path, int64_t k) {
    return lora_round_up(lora_div_up(k, path->group) * path->group_bytes, LORA_ALIGN);
}

/* Once for all the products, which have the same tokens: those of g. */
static lora_status prepare_tokens(lora_ctx *ctx, small_job *job, const lora_gemm_args *g, const bool *any, lora_error *err) {
    const lora_gemv_path *u = job->path;
    int64_t arranged = any[ROWS_NF4] ? arranged_bytes(u, g->k) : 0, arranged8 = any[ROWS_INT8] ? arranged_bytes(job->int8, g->k) : 0;
    int64_t panels = any[ROWS_PANELS] ? lora_gemm_left_words(job->panels, g->m, g->k) * (int64_t)sizeof(float) : 0;
    int64_t rounded = any[ROWS_BF16] && u->round_bf16 ? lora_round_up(g->k * (int64_t)sizeof(uint16_t), LORA_ALIGN) : 0;
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)(panels + g->m * (arranged + arranged8 + rounded)), &memory, err));
    if (panels) lora_gemm_pack_left(ctx, job->panels, g->m, g->k, g->a, g->a_row_stride, 1, memory, &job->left);
    char *to = (char *)memory + panels;
    if (arranged) job->arranged = arrange(u, g, to, arranged);
    to += g->m * arranged;
    if (arranged8) job->tokens8 = arrange(job->int8, g, to, arranged8);
    to += g->m * arranged8;
    for (int64_t i = 0; i < g->m && rounded; i++) u->round_bf16(g->k, g->a + i * g->a_row_stride, (uint16_t *)(void *)(to + i * rounded));
    if (rounded) job->rounded = (tokens){.data = to, .stride = rounded};
    return LORA_OK;
}

static const lora_gemv_path *path_of(const lora_ctx *ctx, bool exact) {
    const lora_gemm_arithmetic fast = ctx->engine->kernels.gemm.fast;
    return &ctx->engine->kernels.gemv.paths[!exact && ctx->view.precision != LORA_PRECISION_EXACT ? fast : LORA_GEMM_EXACT];
}

lora_status lora_gemm_small(lora_ctx *ctx, const lora_small_product *products, int64_t n, int64_t n_leading, lora_error *err) {
    LORA_CHECK(n >= 1 && n <= LORA_SMALL_PRODUCTS, err, LORA_EINVAL, "products: expected 1 to %d, got %lld", LORA_SMALL_PRODUCTS,
               (long long)n);
    product job_products[LORA_SMALL_PRODUCTS];
    small_job job = {
        .kernels = &ctx->engine->kernels, .path = path_of(ctx, products->args.exact), .products = job_products, .n_products = n};
    if (ctx->view.precision == LORA_PRECISION_INT8) job.int8 = &ctx->engine->kernels.gemv.int8;
    job.panels = &ctx->engine->kernels.gemm.int8;
    bool any[ROWS_DECODED + 1] = {false};
    for (int64_t i = 0; i < n; i++) {
        const lora_gemm_args *g = &products[i].args;
        row_format format = format_of(&job, products + i);
        int64_t rows_per_task = lora_max_i64(1, TASK_BYTES / row_bytes(g->b, format));
        if (format == ROWS_INT8 || format == ROWS_PANELS) rows_per_task = lora_round_up(rows_per_task, LORA_GEMM_MAX_NR);
        job_products[i] = (product){.given = products + i, .format = format, .first_task = job.n_tasks, .rows_per_task = rows_per_task};
        job.buffer_floats = lora_max_i64(job.buffer_floats, lora_round_up(buffer_floats(&job, g->b, format), 16));
        job.n_tasks += lora_div_up(g->n, rows_per_task);
        any[format] = true;
        if (i < n_leading) job.n_leading_tasks = job.n_tasks;
    }
    LORA_TRY(prepare_tokens(ctx, &job, &products[n - 1].args, any, err));
    void *memory;
    size_t bytes = (size_t)(lora_pool_threads(ctx->engine->pool) * job.buffer_floats) * sizeof(float);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_B, bytes, &memory, err));
    job.buffers = memory;
    lora_parallel_near(ctx->engine->pool, job.n_tasks - job.n_leading_tasks, task_after_leading, &job); /* rows read in a row */
    return LORA_OK;
}
