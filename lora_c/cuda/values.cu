/* The loss of numbers that are compared with values, in float64: a row belongs to a warp, and one block adds the rows. */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/team.cuh"

namespace {

enum { THREADS = 256, ROWS = THREADS / LORA_CUDA_WARP };

struct values_args {
    lora_values loss;
    lora_mat y, dy;
    double *weighted; /* (M): the row's part of the sum */
};

/* The loss of one number, and its slope. */
__device__ __forceinline__ double loss_of(lora_values_kind kind, double y, double v, double *slope) {
    if (kind == LORA_VALUES_SQUARED_ERROR) {
        *slope = 2 * (y - v);
        return (y - v) * (y - v);
    }
    double small = exp(-fabs(y)); /* s(y) is 1 / (1 + small) from 0 on, small / (1 + small) below */
    *slope = (y >= 0 ? 1 : small) / (1 + small) - v;
    return fmax(y, 0.0) - y * v + log1p(small);
}

/* dy may be y: a thread reads what it writes. */
__global__ void __launch_bounds__(THREADS) values_rows(values_args a) {
    lora_team<false> team;
    const int64_t N = a.y.cols;
    for (int64_t m = team.first; m < a.y.rows; m += team.step) {
        double weight = (double)a.loss.loss_weight[m], row = 0, slope;
        for (int64_t n = team.rank; n < N; n += team.size) {
            float d = 0;
            if (weight != 0) {
                row = row + loss_of(a.loss.kind, (double)*lora_at(a.y, m, n), (double)a.loss.values[m * N + n], &slope);
                d = (float)((double)a.loss.grad_scale * weight / (double)N * slope);
            }
            if (a.dy.data) *lora_at(a.dy, m, n) = d;
        }
        row = lora_warp_sum(row) / (double)N;
        if (team.rank != 0) continue;
        if (a.loss.row_loss) a.loss.row_loss[m] = weight != 0 ? (float)row : 0;
        a.weighted[m] = weight != 0 ? weight * row : 0;
    }
}

struct sum_args {
    const double *terms;
    int64_t n;
    double *sum;
};

__global__ void __launch_bounds__(THREADS) sum_terms(sum_args a) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < a.n; i += THREADS) sum = sum + a.terms[i];
    sum = lora_block_sum(sum, lora_shared<double[LORA_CUDA_WARP]>());
    if (threadIdx.x == 0) *a.sum = sum;
}

} // namespace

lora_status lora_cuda_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    void *terms;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)lora_max_i64(1, y.rows) * sizeof(double), &terms, err));
    const values_args rows = {.loss = *loss, .y = y, .dy = dy, .weighted = (double *)terms};
    LORA_TRY(LORA_CUDA_LAUNCH(c, values_rows, lora_cuda_grid(lora_div_up(y.rows, ROWS)), THREADS, 0, rows, err));
    const sum_args sums = {.terms = (const double *)terms, .n = y.rows, .sum = loss->loss_sum};
    return LORA_CUDA_LAUNCH(c, sum_terms, dim3(1), THREADS, LORA_CUDA_WARP * sizeof(double), sums, err);
}
