/* Packed matrix product after Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008).
 * B is decoded inside the packing step, in both orientations; there is no second copy.
 *
 *   a wide output: tasks of a few column strips of a group of rows; one thread owns its part of C from the first k to the last
 *       for each pass, a k block with the small ones that follow   pack the strips of B into L2
 *         for each panel, for each strip, for each block           micro-kernel into C, or into a tile that stays in L2
 *   a narrow output (LoRA's low rank): B is packed once and shared, tasks are row panels
 *       for each panel, for each strip, for each k block  micro-kernel into one tile */
#include "lora_c/ops/gemm.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/gemm_pass.h"
#include "lora_c/ops/gemm_right.h"
#include "lora_c/ops/gemm_small.h"

/* Speeds of other values against these, bench_gemm on one core of an AMD EPYC (Zen 4, AVX-512), medians of interleaved runs whose
 * noise is 2 %: WIDE_STRIPS 2 is 1.00 to 1.08 with up to 512 rows, but 0.91 with 2048 rows, float32 operands and 4096 columns;
 * 1 is 0.98 to 1.06, 8 no different. NARROW_STRIPS 0, 1 and 16: no different. GROUPED_WIDTH 4096, so that 512 rows pack a weight
 * of 2048 x 2048 twice: 0.97. TASKS and the groups are for more cores and not measured so. */
enum {
    TASKS = 16,           /* aimed at per output and group, so that a few threads share the work evenly */
    GROUP_PANELS = 18,    /* at least, 252 rows: B is packed once per group */
    MOST_GROUPS = 2,      /* of a chunk: a machine has few caches that threads do not share */
    GROUPED_WIDTH = 2048, /* from here on packing B again costs more than rows that move between caches */
    WIDE_STRIPS = 4,      /* per task at most: 128 columns, a k block of B and the C tiles fit L2 */
    NARROW_STRIPS = 4,    /* outputs up to here share B */
    SHARED_WORDS = 4 * 1024 * 1024,
};

typedef struct output_plan {
    const lora_gemm_output *o;
    int64_t n_strips, strip_words, n_blocks; /* strip_words: all k blocks of one strip */
    bool narrow;
    bool in_c;                   /* tiles are parts of C */
    bool one_pass;               /* a finished tile is written at once */
    int64_t per_task;            /* strips, or panels of a narrow output */
    int64_t first_task, n_tasks; /* within a group */
    float *shared_b;             /* [strip][k block], narrow only */
} output_plan;

typedef struct gemm_job {
    const lora_kernels *kernels;
    const lora_gemm_path *path;    /* of the first term: what all have in common, tiles and their panels */
    int64_t n_panels, block_words; /* of one strip and k block, the longest */
    int64_t pass_words;            /* of one strip and pass, at most */
    int64_t n_groups, group_tasks; /* Groups of rows, all their tasks one behind the other: so a thread that works through a
                                    * part of the tasks reads and writes its own rows, here and in the operations around. */
    output_plan plans[LORA_GEMM_OUTPUTS];
    int n_plans;
    float *workers; /* per thread: strips of B, C tiles, scratch of the packing */
    int64_t b_words, tile_words, worker_words;
} gemm_job;

static int64_t group_panel(const gemm_job *job, int64_t group) { return job->n_panels * group / job->n_groups; }

/* Of the tile behind strip s of the panels l: of the next panel, whose height may differ by one, behind the last strip. */
static void fetch_next(const gemm_job *job, const output_plan *p, const lora_gemm_left_panels *l, int64_t first, int64_t n, int64_t s) {
    const int64_t next = s + 1 < n ? s + 1 : 0, row = next ? l->row : l->row + l->height, col = (first + next) * job->path->nr;
    const int64_t m = p->o->terms[0].left->m;
    lora_gemm_fetch_tile(p->o, row, lora_min_i64(l->height, m - row), col, lora_min_i64(job->path->nr, p->o->n - col));
}

static void wide_task(const gemm_job *job, const output_plan *p, int64_t group, int64_t task, float *b, float *tiles, float *scratch) {
    int64_t begin = group_panel(job, group), end = group_panel(job, group + 1);
    int64_t first = task * p->per_task, n = lora_min_i64(p->per_task, p->n_strips - first), size = job->path->mr * job->path->nr;
    lora_gemm_pass q;
    for (int64_t index = 0; index < p->n_blocks;) {
        index = lora_gemm_choose_blocks(p->o, index, job->pass_words, &q);
        lora_gemm_pack_pass(job->kernels, p->o, first, n, b, scratch, &q);
        for (int64_t panel = begin; panel < end; panel++) {
            const lora_gemm_left_panels l = lora_gemm_panels_of(&q, panel);
            for (int64_t s = 0; s < n; s++) {
                if (q.last || p->in_c) fetch_next(job, p, &l, first, n, s);
                lora_gemm_multiply(p->o, p->in_c, &q, &l, first + s, s, tiles + (p->one_pass ? 0 : (panel - begin) * n + s) * size);
            }
        }
    }
}

static void narrow_task(const gemm_job *job, const output_plan *p, int64_t group, int64_t task, float *tile) {
    int64_t begin = group_panel(job, group) + task * p->per_task;
    int64_t end = lora_min_i64(begin + p->per_task, group_panel(job, group + 1));
    lora_gemm_pass q;
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t strip = 0; strip < p->n_strips; strip++)
            for (int64_t index = 0, before = 0; index < p->n_blocks; before = index) {
                index = lora_gemm_choose_blocks(p->o, index, job->pass_words, &q);
                for (int i = 0; i < q.n; i++) q.b[i] = p->shared_b + strip * p->strip_words + (before + i) * job->block_words;
                const lora_gemm_left_panels l = lora_gemm_panels_of(&q, panel);
                lora_gemm_multiply(p->o, p->in_c, &q, &l, strip, 0, tile);
            }
}

static void product_task(void *arg, int64_t task, int worker) {
    const gemm_job *job = arg;
    const output_plan *p = job->plans + job->n_plans - 1;
    int64_t group = task / job->group_tasks;
    task %= job->group_tasks;
    while (task < p->first_task) p--;
    float *b = job->workers + worker * job->worker_words, *tiles = b + job->b_words, *scratch = tiles + job->tile_words;
    if (p->narrow)
        narrow_task(job, p, group, task - p->first_task, tiles);
    else
        wide_task(job, p, group, task - p->first_task, b, tiles, scratch);
}

/* Packs one strip of a narrow output, all k. */
static void shared_task(void *arg, int64_t task, int worker) {
    const gemm_job *job = arg;
    const output_plan *p = job->plans;
    for (; !p->narrow || task >= p->n_strips; p++) task -= p->narrow ? p->n_strips : 0;
    float *scratch = job->workers + worker * job->worker_words + job->b_words + job->tile_words;
    for (int64_t index = 0; index < p->n_blocks; index++) {
        const lora_gemm_block c = lora_gemm_block_at(p->o, index);
        lora_gemm_pack_block(job->kernels, p->o, &c, task, 1, p->shared_b + task * p->strip_words + index * job->block_words,
                             job->block_words, scratch);
    }
}

/* A block of a GGUF format, up to 256 columns, is decoded once where it lies across the strips. */
static int64_t strips_per_task(const lora_gemm_output *o, int64_t n_strips) {
    for (int t = 0; t < o->n_terms; t++)
        if (o->terms[t].b->kind == LORA_WEIGHT_GGML && !o->terms[t].b_transposed) return LORA_GEMM_MOST_STRIPS;
    return lora_min_i64(lora_max_i64(n_strips / TASKS, 1), WIDE_STRIPS);
}

static output_plan make_plan(const gemm_job *job, const lora_gemm_output *o) {
    output_plan p = {.o = o, .n_strips = lora_div_up(o->n, job->path->nr), .in_c = o->alpha == 1 && !o->bias};
    for (int t = 0; t < o->n_terms; t++) {
        p.n_blocks += lora_gemm_blocks(o->terms[t].left);
        /* int16 adds its blocks to the tile one by one: in rows that lie far apart each would miss the cache */
        if (o->terms[t].left->path->block_steps && !o->terms[t].left->path->whole_blocks) p.in_c = false;
    }
    /* sums of int8 have the same bits whatever the tile, so C is added to all of them at the end */
    if (job->path->whole_blocks && o->accumulate) p.in_c = false;
    lora_gemm_pass first;
    p.one_pass = lora_gemm_choose_blocks(o, 0, job->pass_words, &first) == p.n_blocks;
    p.strip_words = p.n_blocks * job->block_words;
    p.narrow = p.n_strips <= NARROW_STRIPS && p.n_strips * p.strip_words <= SHARED_WORDS;
    int64_t panels = lora_div_up(job->n_panels, job->n_groups);
    p.per_task = p.narrow ? lora_div_up(panels, TASKS) : strips_per_task(o, p.n_strips);
    p.n_tasks = lora_div_up(p.narrow ? panels : p.n_strips, p.per_task);
    return p;
}

lora_status lora_gemm_run(lora_ctx *ctx, const lora_gemm_output *outputs, int n_outputs, lora_error *err) {
    const lora_gemm_left *left = outputs[0].terms[0].left;
    const lora_gemm_path *path = left->path;
    gemm_job job = {.kernels = &ctx->engine->kernels, .path = path, .n_panels = left->n_panels, .n_plans = n_outputs};
    int64_t scratch_words = 0;
    for (int i = 0; i < n_outputs; i++)
        for (int t = 0; t < outputs[i].n_terms; t++) {
            const lora_gemm_path *of_term = outputs[i].terms[t].left->path;
            job.block_words = lora_max_i64(job.block_words, lora_round_up(lora_gemm_panel_words(of_term, of_term->nr, of_term->kc), 16));
            scratch_words = lora_max_i64(scratch_words, lora_gemm_right_scratch(of_term));
        }
    job.pass_words = job.block_words + job.block_words / 4;
    bool wide = left->k >= GROUPED_WIDTH && outputs[0].n >= GROUPED_WIDTH;
    job.n_groups = wide ? 1 : lora_max_i64(1, lora_min_i64(job.n_panels / GROUP_PANELS, MOST_GROUPS));
    int64_t tile = path->mr * path->nr, panels = lora_div_up(job.n_panels, job.n_groups), shared_words = 0, shared_strips = 0;
    job.tile_words = lora_round_up(tile, 16);
    for (int i = 0; i < n_outputs; i++) {
        output_plan p = make_plan(&job, outputs + i);
        p.first_task = job.group_tasks;
        job.group_tasks += p.n_tasks;
        if (p.narrow) {
            shared_words += p.n_strips * p.strip_words;
            shared_strips += p.n_strips;
        } else {
            job.b_words = lora_max_i64(job.b_words, p.per_task * job.pass_words);
            if (!p.one_pass) job.tile_words = lora_max_i64(job.tile_words, lora_round_up(p.per_task * panels * tile, 16));
        }
        job.plans[i] = p;
    }
    job.worker_words = job.b_words + job.tile_words + scratch_words;
    void *memory;
    size_t words = (size_t)(lora_pool_threads(ctx->engine->pool) * job.worker_words + shared_words);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_B, words * sizeof(float), &memory, err));
    float *shared = memory;
    job.workers = shared + shared_words;
    for (int i = 0; i < n_outputs; i++)
        if (job.plans[i].narrow) {
            job.plans[i].shared_b = shared;
            shared += job.plans[i].n_strips * job.plans[i].strip_words;
        }
    lora_parallel_for(ctx->engine->pool, shared_strips, shared_task, &job);
    lora_parallel_near(ctx->engine->pool, job.n_groups * job.group_tasks, product_task, &job);
    return LORA_OK;
}

static lora_status packed_product(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    const lora_gemm_path *path = lora_gemm_path_of(ctx, g->exact ? LORA_PRECISION_EXACT : ctx->view.precision);
    int64_t n_chunks = lora_div_up(g->m, LORA_GEMM_CHUNK), longest = lora_div_up(g->m, n_chunks);
    void *words;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)lora_gemm_left_words(path, longest, g->k) * sizeof(float), &words, err));
    for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
        int64_t row = g->m * chunk / n_chunks, rows = g->m * (chunk + 1) / n_chunks - row;
        lora_gemm_left left;
        lora_gemm_pack_left(ctx, path, rows, g->k, g->a + row * g->a_row_stride, g->a_row_stride, g->a_col_stride, words, &left);
        lora_gemm_output o = {.n = g->n,
                              .alpha = g->alpha,
                              .n_terms = 1,
                              .terms = {{.left = &left, .b = g->b, .b_transposed = g->b_transposed}},
                              .c = g->c + row * g->ldc,
                              .ldc = g->ldc,
                              .accumulate = g->accumulate,
                              .bias = g->bias};
        LORA_TRY(lora_gemm_run(ctx, &o, 1, err));
    }
    return LORA_OK;
}

lora_status lora_gemm(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    if (g->m <= 0 || g->n <= 0) return LORA_OK;
    if (lora_gemm_is_small(g)) return lora_gemm_small(ctx, &(lora_small_product){.args = *g}, 1, 0, err);
    return packed_product(ctx, g, err);
}
