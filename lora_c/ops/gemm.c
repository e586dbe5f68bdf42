/* Packed matrix product after Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008).
 * B is decoded from float32, bfloat16, NF4 or GGUF blocks inside the packing step, in both orientations; there is no second copy.
 *
 *   for each chunk of A's rows           all threads pack the chunk once
 *     task (row block, column block)     one thread owns its part of C from the first k to the last
 *       for each k block                 pack B (kc x nc), then micro-kernels into C tiles that stay in L2 */
#include "lora_c/ops/gemm.h"

#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm_small.h"
#include "lora_c/ops/weight.h"

enum {
    CHUNK_ROWS = 1008, /* rows of A packed at once: a multiple of 6 and 14; larger would only grow the buffer */
    WIDE_TASKS = 4,    /* fewer column blocks than this: split the rows too, so that every thread has work */
};

typedef struct gemm_job {
    const lora_kernels *kernels;
    const lora_gemm_args *g;
    int64_t first_row, rows;    /* the chunk of A */
    int64_t n_panels, n_kblocks;/* of the chunk */
    int64_t row_block, n_row_blocks, n_col_blocks;
    float *packed_a;            /* [k block][panel][kc][mr] */
    float *packed_b;            /* per worker */
    float *tiles;               /* per worker */
    float *rowbuf;              /* per worker */
    int64_t b_floats, tile_floats, rowbuf_floats;
} gemm_job;

/* One k block of one panel of A: [kc][mr], rows beyond the matrix are zero. */
static void pack_a_task(void *arg, int64_t task, int worker) {
    (void)worker;
    gemm_job *job = arg;
    const lora_gemm_args *g = job->g;
    const lora_gemm_kernels *u = &job->kernels->gemm;
    int64_t panel = task % job->n_panels, block = task / job->n_panels, mr = u->mr;
    int64_t k0 = block * u->kc, kc = lora_min_i64(u->kc, g->k - k0), r0 = panel * mr, rows = lora_min_i64(mr, job->rows - r0);
    float *out = job->packed_a + block * u->kc * job->n_panels * mr + panel * kc * mr;
    const float *a = g->a + (job->first_row + r0) * g->a_row_stride + k0 * g->a_col_stride;
    if (rows < mr) memset(out, 0, (size_t)(kc * mr) * sizeof *out);
    if (g->a_col_stride == 1) {
        const float *source[LORA_GEMM_MAX_MR];
        for (int64_t i = 0; i < rows; i++) source[i] = a + i * g->a_row_stride;
        u->transpose(source, rows, kc, out, mr);
        return;
    }
    for (int64_t k = 0; k < kc; k++)
        for (int64_t i = 0; i < rows; i++) out[k * mr + i] = a[i * g->a_row_stride + k * g->a_col_stride];
}

/* op(B) = W^T: rows of W become columns. Rows are decoded first, then transposed nr at a time. */
static void pack_b_transposed(const gemm_job *job, int64_t k0, int64_t kc, int64_t j0, int64_t nc, float *out, float *rowbuf) {
    const lora_gemm_kernels *u = &job->kernels->gemm;
    for (int64_t j = 0; j < nc; j += u->nr, out += kc * u->nr) {
        const float *rows[LORA_GEMM_MAX_NR];
        int64_t n = lora_min_i64(u->nr, nc - j);
        for (int64_t i = 0; i < n; i++)
            rows[i] = lora_weight_run(job->kernels, job->g->b, j0 + j + i, k0, kc, rowbuf + i * u->kc);
        if (n < u->nr) memset(out, 0, (size_t)(kc * u->nr) * sizeof *out);
        u->transpose(rows, n, kc, out, u->nr);
    }
}

/* op(B) = W: rows of W are the k index already. */
static void pack_b_straight(const gemm_job *job, int64_t k0, int64_t kc, int64_t j0, int64_t nc, float *out, float *rowbuf) {
    const lora_gemm_kernels *u = &job->kernels->gemm;
    for (int64_t k = 0; k < kc; k++) {
        const float *row = lora_weight_run(job->kernels, job->g->b, k0 + k, j0, nc, rowbuf);
        float *to = out + k * u->nr;
        for (int64_t j = 0; j < nc; j += u->nr, to += kc * u->nr) {
            int64_t n = lora_min_i64(u->nr, nc - j);
            memcpy(to, row + j, (size_t)n * sizeof *to);
            if (n < u->nr) memset(to + n, 0, (size_t)(u->nr - n) * sizeof *to);
        }
    }
}

/* alpha, bias and accumulation happen once, when the finished tile leaves the cache. */
static void write_tile(const lora_gemm_args *g, const float *tile, int64_t ld_tile, int64_t i0, int64_t rows, int64_t j0, int64_t cols) {
    for (int64_t i = 0; i < rows; i++, tile += ld_tile) {
        float *c = g->c + (i0 + i) * g->ldc + j0;
        const float *bias = g->bias ? g->bias + j0 : NULL;
        if (g->accumulate && bias)
            for (int64_t j = 0; j < cols; j++) c[j] += g->alpha * tile[j] + bias[j];
        else if (g->accumulate)
            for (int64_t j = 0; j < cols; j++) c[j] += g->alpha * tile[j];
        else if (bias)
            for (int64_t j = 0; j < cols; j++) c[j] = g->alpha * tile[j] + bias[j];
        else
            for (int64_t j = 0; j < cols; j++) c[j] = g->alpha * tile[j];
    }
}

static void product_task(void *arg, int64_t task, int worker) {
    gemm_job *job = arg;
    const lora_gemm_args *g = job->g;
    const lora_gemm_kernels *u = &job->kernels->gemm;
    int64_t mr = u->mr, nr = u->nr, j0 = task % job->n_col_blocks * u->nc, nc = lora_min_i64(u->nc, g->n - j0);
    int64_t p0 = task / job->n_col_blocks * job->row_block, p1 = lora_min_i64(p0 + job->row_block, job->n_panels);
    float *b = job->packed_b + worker * job->b_floats, *tiles = job->tiles + worker * job->tile_floats;
    float *rowbuf = job->rowbuf + worker * job->rowbuf_floats;
    int64_t n_strips = lora_div_up(nc, nr);
    for (int64_t block = 0; block < job->n_kblocks; block++) {
        int64_t k0 = block * u->kc, kc = lora_min_i64(u->kc, g->k - k0);
        const float *a = job->packed_a + block * u->kc * job->n_panels * mr;
        (g->b_transposed ? pack_b_transposed : pack_b_straight)(job, k0, kc, j0, nc, b, rowbuf);
        for (int64_t strip = 0; strip < n_strips; strip++)
            for (int64_t p = p0; p < p1; p++)
                u->micro(kc, a + p * kc * mr, b + strip * kc * nr, tiles + ((p - p0) * n_strips + strip) * mr * nr, block > 0);
    }
    for (int64_t p = p0; p < p1; p++)
        for (int64_t strip = 0; strip < n_strips; strip++)
            write_tile(g, tiles + ((p - p0) * n_strips + strip) * mr * nr, nr, job->first_row + p * mr,
                       lora_min_i64(mr, job->rows - p * mr), j0 + strip * nr, lora_min_i64(nr, nc - strip * nr));
}

static lora_status packed_product(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    const lora_gemm_kernels *u = &ctx->kernels.gemm;
    int64_t chunk = lora_min_i64(g->m, CHUNK_ROWS), panels = lora_div_up(chunk, u->mr), threads = lora_pool_threads(ctx->pool);
    gemm_job job = {.kernels = &ctx->kernels, .g = g, .n_kblocks = lora_div_up(g->k, u->kc), .n_col_blocks = lora_div_up(g->n, u->nc)};
    int64_t row_split = lora_max_i64(1, lora_div_up(WIDE_TASKS, job.n_col_blocks));
    job.row_block = lora_max_i64(lora_div_up(panels, row_split), 1);
    job.b_floats = u->kc * lora_round_up(u->nc, u->nr);
    job.tile_floats = job.row_block * u->mr * lora_round_up(u->nc, u->nr);
    job.rowbuf_floats = lora_max_i64(u->kc * u->nr, u->nc) + 16;
    job.rowbuf_floats = lora_round_up(job.rowbuf_floats, 16);
    void *a, *b, *c;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)(panels * u->mr * g->k) * sizeof(float), &a, err));
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_B, (size_t)(threads * (job.b_floats + job.rowbuf_floats)) * sizeof(float), &b, err));
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_C, (size_t)(threads * job.tile_floats) * sizeof(float), &c, err));
    job.packed_a = a;
    job.packed_b = b;
    job.rowbuf = job.packed_b + threads * job.b_floats;
    job.tiles = c;
    for (job.first_row = 0; job.first_row < g->m; job.first_row += chunk) {
        job.rows = lora_min_i64(chunk, g->m - job.first_row);
        job.n_panels = lora_div_up(job.rows, u->mr);
        job.n_row_blocks = lora_div_up(job.n_panels, job.row_block);
        lora_parallel_for(ctx->pool, job.n_panels * job.n_kblocks, pack_a_task, &job);
        lora_parallel_for(ctx->pool, job.n_row_blocks * job.n_col_blocks, product_task, &job);
    }
    return LORA_OK;
}

lora_status lora_gemm(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    if (g->m <= 0 || g->n <= 0) return LORA_OK;
    if (lora_gemm_is_small(g)) return lora_gemm_small(ctx, &(lora_small_product){.args = *g}, 1, 0, err);
    return packed_product(ctx, g, err);
}
