/* The tokens are cut into groups, so that a thread reads the rows that it wrote before; the partial sums are small. */
#include "lora_c/ops/low_rank_sums.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/gemm_right.h"

/* bench_gemm with rank 16 on one core of an AMD EPYC (Zen 4, AVX-512), against these values: BLOCK_ROWS 64, 128 and 512 give 0.98,
 * 0.99 and 0.97 of the speed, TASK_STRIPS 1, 2 and 16 give 0.98, 1.00 and 1.00, with a noise of 2 %: neither matters there. */
enum {
    BLOCK_ROWS = 256, /* tokens whose wide operand is packed at a time */
    GROUP_ROWS = 252, /* tokens of a group at least, as many as a group of rows in gemm.c */
    TASK_STRIPS = 4,
    TASK_COLUMNS = 512,
    ADD_COLUMNS = 16,        /* of a result: rows of a transposed one stay in L1 */
    PARTIAL_BYTES = 8 << 20, /* of all the groups together, unless one takes more */
};

/* One sum: where its partial sums and its packed low-rank operand are, [group][…] and [group][block][panel]. */
typedef struct part {
    int64_t n_panels, ld, partial_words, low_words; /* of a group */
    float *partial, *low;
} part;

typedef struct sums_job {
    const lora_gemm_path *path;
    const lora_low_rank_sum *sums;
    int n;
    part parts[LORA_LOW_RANK_SUMS];
    int64_t row, rows, n_groups; /* of a chunk of the tokens */
    int64_t group_tasks;
    int64_t block_words; /* of a low-rank operand's longest panel */
    float *workers;
    int64_t worker_words;
} sums_job;

static int64_t group_row(const sums_job *job, int64_t group) { return job->row + job->rows * group / job->n_groups; }
static int64_t n_blocks(const sums_job *job) { return lora_div_up(lora_div_up(job->rows, job->n_groups), BLOCK_ROWS); }
static int64_t panel_row(const sums_job *job, int i, int64_t panel) { return job->sums[i].rank * panel / job->parts[i].n_panels; }

static float *low_panel(const sums_job *job, int i, int64_t group, int64_t block, int64_t panel) {
    const part *p = &job->parts[i];
    return p->low + group * p->low_words + (block * p->n_panels + panel) * job->block_words;
}

static void low_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const sums_job *job = arg;
    int64_t group = task / job->n, begin = group_row(job, group), end = group_row(job, group + 1);
    int i = (int)(task % job->n);
    const lora_low_rank_sum *s = &job->sums[i];
    for (int64_t row = begin, block = 0; row < end; row += BLOCK_ROWS, block++)
        for (int64_t panel = 0; panel < job->parts[i].n_panels; panel++) {
            int64_t r = panel_row(job, i, panel), height = panel_row(job, i, panel + 1) - r;
            job->path->pack_columns(s->low + row * s->rank + r, s->rank, height, lora_min_i64(BLOCK_ROWS, end - row), height,
                                    low_panel(job, i, group, block, panel));
        }
}

static bool shares_wide(const lora_low_rank_sum *a, const lora_low_rank_sum *b) {
    return a->wide == b->wide && a->ld == b->ld && a->cols == b->cols;
}

/* The first sum of a task's wide operand, and the strip that it begins with; sums that share the operand follow. */
static int find_operand(const sums_job *job, int64_t task, int64_t *strip) {
    int i = 0;
    for (int64_t here;; task -= here) {
        here = lora_div_up(lora_div_up(job->sums[i].cols, job->path->nr), TASK_STRIPS);
        if (task < here) break;
        for (int first = i; shares_wide(&job->sums[i], &job->sums[first]);) i++;
    }
    *strip = task * TASK_STRIPS;
    return i;
}

static void strip_sums(const sums_job *job, int64_t group, int first, int64_t strip, float *packed) {
    const lora_low_rank_sum *s = &job->sums[first];
    int64_t end = group_row(job, group + 1), col = strip * job->path->nr;
    int64_t cols = lora_min_i64(job->path->nr, s->cols - col), width = lora_gemm_strip_width(job->path, cols);
    for (int64_t row = group_row(job, group), block = 0; row < end; row += BLOCK_ROWS, block++) {
        int64_t n = lora_min_i64(BLOCK_ROWS, end - row), steps = lora_gemm_steps(job->path, n);
        job->path->pack_columns(s->wide + row * s->ld + col, s->ld, cols, n, width, packed);
        for (int i = first; i < job->n && shares_wide(&job->sums[i], s); i++)
            for (int64_t panel = 0; panel < job->parts[i].n_panels; panel++) {
                const part *p = &job->parts[i];
                int64_t r = panel_row(job, i, panel), height = panel_row(job, i, panel + 1) - r;
                float *tile = p->partial + group * p->partial_words + r * p->ld + col;
                job->path->micro(height, width, steps, low_panel(job, i, group, block, panel), packed, tile, p->ld, block > 0);
            }
    }
}

static void sum_task(void *arg, int64_t task, int worker) {
    const sums_job *job = arg;
    int64_t strip, group = task / job->group_tasks;
    int first = find_operand(job, task % job->group_tasks, &strip);
    int64_t end = lora_min_i64(strip + TASK_STRIPS, lora_div_up(job->sums[first].cols, job->path->nr));
    for (; strip < end; strip++) strip_sums(job, group, first, strip, job->workers + worker * job->worker_words);
}

/* Adds the groups of ADD_COLUMNS columns of one sum, in order, to its result. */
static void add_columns(const lora_low_rank_sum *s, const part *p, int64_t n_groups, int64_t begin, int64_t end) {
    int64_t row_stride = s->transposed ? 1 : s->cols, col_stride = s->transposed ? s->rank : 1;
    for (int64_t group = 0; group < n_groups; group++)
        for (int64_t r = 0; r < s->rank; r++) {
            const float *from = p->partial + group * p->partial_words + r * p->ld;
            float *to = s->out + r * row_stride;
            for (int64_t j = begin; j < end; j++) to[j * col_stride] += s->alpha * from[j];
        }
}

/* Tasks that add up the results of sum i: none where an earlier sum has the same result (layers that are rows of one matrix
 * share A), whose tasks then add both. */
static int64_t add_tasks_of(const sums_job *job, int i) {
    for (int j = 0; j < i; j++)
        if (job->sums[j].out == job->sums[i].out) return 0;
    return lora_div_up(job->sums[i].cols, TASK_COLUMNS);
}

static void add_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const sums_job *job = arg;
    int first = 0;
    for (int64_t here; task >= (here = add_tasks_of(job, first)); task -= here) first++;
    int64_t begin = task * TASK_COLUMNS, end = lora_min_i64(begin + TASK_COLUMNS, job->sums[first].cols);
    for (int64_t j = begin; j < end; j += ADD_COLUMNS)
        for (int i = first; i < job->n; i++)
            if (job->sums[i].out == job->sums[first].out)
                add_columns(&job->sums[i], &job->parts[i], job->n_groups, j, lora_min_i64(j + ADD_COLUMNS, end));
}

static int64_t add_tasks(const sums_job *job) {
    int64_t tasks = 0;
    for (int i = 0; i < job->n; i++) tasks += add_tasks_of(job, i);
    return tasks;
}

/* Sizes that depend on the shapes only. Returns the words of all the memory; sets the pointers when memory is given. */
static int64_t lay(sums_job *job, float *memory) {
    int64_t at = 0;
    for (int i = 0; i < job->n; i++) {
        part *p = &job->parts[i];
        p->n_panels = lora_div_up(job->sums[i].rank, job->path->mr);
        p->ld = lora_round_up(job->sums[i].cols, job->path->nr);
        p->partial_words = lora_round_up(job->sums[i].rank * p->ld, 16);
        p->low_words = n_blocks(job) * p->n_panels * job->block_words;
        p->partial = memory ? memory + at : NULL;
        p->low = memory ? p->partial + job->n_groups * p->partial_words : NULL;
        at += job->n_groups * (p->partial_words + p->low_words);
    }
    job->workers = memory ? memory + at : NULL;
    return at;
}

static void plan_chunk(sums_job *job) {
    int64_t bytes = 0;
    for (int i = 0; i < job->n; i++) bytes += job->sums[i].rank * job->sums[i].cols * (int64_t)sizeof(float);
    job->n_groups = lora_max_i64(1, lora_min_i64(job->rows / GROUP_ROWS, PARTIAL_BYTES / bytes));
    job->block_words = lora_round_up(lora_gemm_panel_words(job->path, job->path->mr, BLOCK_ROWS), 16);
    job->worker_words = lora_round_up(lora_gemm_panel_words(job->path, job->path->nr, BLOCK_ROWS), 16);
    job->group_tasks = 0;
    for (int i = 0; i < job->n; i++)
        if (i == 0 || !shares_wide(&job->sums[i], &job->sums[i - 1]))
            job->group_tasks += lora_div_up(lora_div_up(job->sums[i].cols, job->path->nr), TASK_STRIPS);
}

lora_status lora_low_rank_sums(lora_ctx *ctx, int64_t M, int n, const lora_low_rank_sum *sums, lora_error *err) {
    if (n == 0) return LORA_OK;
    sums_job job = {.path = lora_gemm_path_of(ctx, ctx->view.precision), .sums = sums, .n = n};
    int64_t chunks = lora_div_up(M, LORA_GEMM_CHUNK);
    for (int64_t c = 0; c < chunks; c++) {
        job.row = M * c / chunks;
        job.rows = M * (c + 1) / chunks - job.row;
        plan_chunk(&job);
        int64_t words = lay(&job, NULL) + lora_pool_threads(ctx->engine->pool) * job.worker_words;
        void *memory;
        LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_B, (size_t)words * sizeof(float), &memory, err));
        lay(&job, memory);
        lora_parallel_near(ctx->engine->pool, job.n_groups * n, low_task, &job);
        lora_parallel_near(ctx->engine->pool, job.n_groups * job.group_tasks, sum_task, &job);
        lora_parallel_for(ctx->engine->pool, add_tasks(&job), add_task, &job);
    }
    return LORA_OK;
}
