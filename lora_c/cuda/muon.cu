/* Muon: matrix after matrix, each brought near orthogonal by products.
 * Source   kellerjordan.github.io/posts/muon (2024): the Newton-Schulz iteration of fifth order */
#include "lora_c/cuda/optim.cuh"
#include "lora_c/cuda/optim_squares.cuh"
#include "lora_c/cuda/products.h"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = LORA_CUDA_OPTIM_THREADS, ELEMENTS = LORA_CUDA_OPTIM_ELEMENTS, TILE = 32, TILE_ROWS = THREADS / TILE };

/* One matrix with its work: r <= s are its sides. */
struct muon_matrix {
    float *data;
    const float *grad;
    float *m;
    int64_t n, rows, cols, r, s;
    float *x, *y;       /* (r, s); y as the array lies, before and after the products */
    float *gram, *poly; /* (r, r) */
    double *partial;
    float *factor; /* (1): 1 / norm */
    double eps;
    lora_muon_constants momentum;
    float decay, rate;
};

__device__ __forceinline__ int task_count(const muon_matrix &s) {
    return (int)lora_min_i64(ELEMENTS, s.n - (int64_t)blockIdx.x * ELEMENTS);
}

/* y = the momentum's direction, partial = sums of its squares. */
__global__ void __launch_bounds__(THREADS) momentum(muon_matrix s) {
    int64_t first = (int64_t)blockIdx.x * ELEMENTS;
    int count = task_count(s);
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        float u;
        lora_formulas::muon_momentum(1, s.grad + first + i, s.m + first + i, &u, &s.momentum);
        s.y[first + i] = u;
        sum += (double)u * (double)u;
    }
    sum = lora_block_sum(sum, lora_shared<lora_block_partial>().of_warp);
    if (threadIdx.x == 0) s.partial[blockIdx.x] = sum;
}

/* One block. */
__global__ void __launch_bounds__(THREADS) find_factor(muon_matrix s) {
    double sum = 0;
    for (int64_t t = threadIdx.x; t < lora_div_up(s.n, ELEMENTS); t += THREADS) sum += s.partial[t];
    sum = lora_block_sum(sum, lora_shared<lora_block_partial>().of_warp);
    if (threadIdx.x == 0) *s.factor = (float)(1.0 / fmax(sqrt(sum), s.eps));
}

struct turn_args {
    const float *from, *factor; /* factor NULL: 1 */
    float *to;
    int64_t rows, cols, across; /* across: tiles along a row */
};

struct tile {
    float of[TILE][TILE + 1];
};

/* to (cols, rows) = factor * from (rows, cols)^T, a tile for each block. */
__global__ void __launch_bounds__(THREADS) turn(turn_args s) {
    tile &t = lora_shared<tile>();
    int64_t row = blockIdx.x / s.across * TILE, col = blockIdx.x % s.across * TILE;
    int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    float factor = s.factor ? *s.factor : 1.0f;
    for (int k = y; k < TILE; k += TILE_ROWS)
        if (row + k < s.rows && col + x < s.cols) t.of[k][x] = factor * s.from[(row + k) * s.cols + col + x];
    __syncthreads();
    for (int k = y; k < TILE; k += TILE_ROWS)
        if (col + k < s.cols && row + x < s.rows) s.to[(col + k) * s.rows + row + x] = t.of[x][k];
}

__global__ void __launch_bounds__(THREADS) scale_all(muon_matrix s) {
    int64_t first = (int64_t)blockIdx.x * ELEMENTS;
    int count = task_count(s);
    for (int i = threadIdx.x; i < count; i += THREADS) s.x[first + i] = *s.factor * s.y[first + i];
}

__global__ void __launch_bounds__(THREADS) take_step(muon_matrix s) {
    int64_t first = (int64_t)blockIdx.x * ELEMENTS;
    int count = task_count(s);
    for (int i = threadIdx.x; i < count; i += THREADS) lora_formulas::decayed_step(1, s.data + first + i, s.y + first + i, s.decay, s.rate);
}

lora_status turn_matrix(lora_cuda *c, const float *from, int64_t rows, int64_t cols, const float *factor, float *to, lora_error *err) {
    const turn_args args = {from, factor, to, rows, cols, lora_div_up(cols, TILE)};
    return LORA_CUDA_LAUNCH(c, turn, lora_cuda_blocks(args.across * lora_div_up(rows, TILE), 1), THREADS, sizeof(tile), args, err);
}

/* out (m, n) = alpha a (m, k) b + beta added, of which out gets a copy first. */
lora_status product(lora_cuda *c, lora_mat a, lora_mat b, bool transpose_b, float alpha, float beta, const float *added, lora_mat out,
                    lora_error *err) {
    if (added) {
        size_t bytes = (size_t)(out.rows * out.cols) * sizeof(float);
        LORA_TRY(lora_cuda_check(c, c->api->copy(out.data, added, bytes, lora_cuda_stream(c)), "cudaMemcpyAsync", err));
    }
    const lora_cuda_product p = {a, b, false, transpose_b, out, alpha, added ? beta : 0.0f, nullptr, nullptr};
    return lora_cuda_multiply(c, &p, err);
}

lora_mat whole(const float *data, int64_t rows, int64_t cols) { return lora_mat_f32(data, rows, cols, cols); }

/* x = a x + (b G + c G G) x with G = x x^T, ns_steps times. */
lora_status newton_schulz(lora_cuda *c, const lora_muon_hyper *h, muon_matrix *s, lora_error *err) {
    lora_mat gram = whole(s->gram, s->r, s->r), poly = whole(s->poly, s->r, s->r);
    for (int64_t i = 0; i < h->ns_steps; i++) {
        lora_mat x = whole(s->x, s->r, s->s), y = whole(s->y, s->r, s->s);
        LORA_TRY(product(c, x, x, true, 1.0f, 0.0f, nullptr, gram, err));
        LORA_TRY(product(c, gram, gram, false, (float)h->c, (float)h->b, s->gram, poly, err));
        LORA_TRY(product(c, poly, x, false, 1.0f, (float)h->a, s->x, y, err));
        float *old = s->x;
        s->x = s->y;
        s->y = old;
    }
    return LORA_OK;
}

lora_status step_matrix(lora_cuda *c, const lora_muon_hyper *h, muon_matrix *s, lora_error *err) {
    dim3 tasks = lora_cuda_blocks(s->n, ELEMENTS);
    bool turned = s->rows > s->cols;
    LORA_TRY(LORA_CUDA_LAUNCH(c, momentum, tasks, THREADS, sizeof(lora_block_partial), *s, err));
    LORA_TRY(LORA_CUDA_LAUNCH(c, find_factor, dim3(1), THREADS, sizeof(lora_block_partial), *s, err));
    if (turned) /* the short side comes first */
        LORA_TRY(turn_matrix(c, s->y, s->rows, s->cols, s->factor, s->x, err));
    else
        LORA_TRY(LORA_CUDA_LAUNCH(c, scale_all, tasks, THREADS, 0, *s, err));
    LORA_TRY(newton_schulz(c, h, s, err));
    if (turned)
        LORA_TRY(turn_matrix(c, s->x, s->r, s->s, nullptr, s->y, err));
    else
        s->y = s->x;
    return LORA_CUDA_LAUNCH(c, take_step, tasks, THREADS, 0, *s, err);
}

/* What a matrix has of its own. */
void describe(const lora_muon_hyper *h, const lora_param *p, float *m, muon_matrix *s) {
    s->data = p->data;
    s->grad = p->grad;
    s->m = m;
    s->n = p->n;
    s->cols = p->cols;
    s->rows = p->n / p->cols;
    s->r = lora_min_i64(s->rows, s->cols);
    s->s = lora_max_i64(s->rows, s->cols);
    double lr = h->lr * p->lr_ratio, rows = (double)s->rows, cols = (double)s->cols;
    double ratio = h->match_rms_adamw ? 0.2 * sqrt(fmax(rows, cols)) : sqrt(fmax(1.0, rows / cols));
    s->decay = p->decay ? (float)(1.0 - lr * h->weight_decay) : 1.0f;
    s->rate = (float)(lr * ratio);
}

/* Room for the largest array, its products' operands aligned to 256 bytes. */
lora_status take_scratch(lora_cuda *c, int64_t n_params, const lora_param *params, muon_matrix *s, lora_error *err) {
    int64_t most = 0, square = 0;
    for (int64_t i = 0; i < n_params; i++) {
        int64_t r = lora_min_i64(params[i].cols, params[i].n / params[i].cols);
        most = lora_max_i64(most, lora_round_up(params[i].n, LORA_ALIGN));
        square = lora_max_i64(square, lora_round_up(r * r, LORA_ALIGN));
    }
    void *scratch;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_RESULT, (size_t)(2 * most + 2 * square) * sizeof(float), &scratch, err));
    s->x = (float *)scratch;
    s->y = s->x + most;
    s->gram = s->y + most;
    s->poly = s->gram + square;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(lora_div_up(most, ELEMENTS) + 1) * sizeof(double), &scratch, err));
    s->factor = (float *)scratch;
    s->partial = (double *)scratch + 1;
    return LORA_OK;
}

} // namespace

lora_status lora_cuda_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *h,
                                lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    muon_matrix common = {};
    LORA_TRY(take_scratch(c, n_params, params, &common, err));
    common.eps = h->eps;
    common.momentum.grad_scale = (float)h->grad_scale;
    common.momentum.momentum = (float)h->momentum;
    common.momentum.one_minus_momentum = (float)(1.0 - h->momentum);
    common.momentum.nesterov = h->nesterov;
    for (int64_t i = 0; i < n_params; m += params[i++].n) {
        if (params[i].n == 0) continue;
        muon_matrix s = common;
        describe(h, &params[i], m, &s);
        LORA_TRY(step_matrix(c, h, &s, err));
    }
    return LORA_OK;
}
