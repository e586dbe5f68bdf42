/* Gradients of RMSNorm and LayerNorm. With w the weight (and its offset), z = (x - mean) r and g = dy w:
 *     dx = r (g - mean(g) - z mean(g z)), without mean(g) for RMS;   dweight = sum of dy z;   dbias = sum of dy */
#include "lora_c/cuda/column_sums.cuh"
#include "lora_c/cuda/norm.cuh"
#include "lora_c/cuda/table.h"

namespace {

struct backward_args {
    lora_norm norm;
    lora_mat dy, x, dx;
    const float *stats;
    bool accumulate;
};

/* g and z of W neighbours */
template <int KIND, int W> struct slopes {
    lora_floats<W> g, z;
    __device__ __forceinline__ slopes(const lora_norm &norm, const float *dy, const float *x, int64_t i, float r, float mean) {
        lora_floats<W> w = lora_get<W>(norm.weight + i);
        g = lora_get<W>(dy + i);
        z = lora_get<W>(x + i);
        for (int k = 0; k < W; k++) {
            g.v[k] = g.v[k] * (KIND == LORA_NORM_RMS ? norm.weight_offset + w.v[k] : w.v[k]);
            z.v[k] = (KIND == LORA_NORM_RMS ? z.v[k] : z.v[k] - mean) * r;
        }
    }
};

template <int KIND, int W, bool BLOCK> __global__ void __launch_bounds__(LORA_NORM_MOST_THREADS, 1) norm_rows_backward(backward_args a) {
    lora_team<BLOCK> team;
    const int64_t groups = a.norm.groups, H = a.norm.H;
    for (int64_t row = team.first; row < a.x.rows * groups; row += team.step) {
        int64_t m = row / groups, begin = (row - m * groups) * H;
        const float *dy = lora_at(a.dy, m, begin), *x = lora_at(a.x, m, begin), r = a.stats[2 * row], mean = a.stats[2 * row + 1];
        float *dx = lora_at(a.dx, m, begin), sum = 0, dot = 0;
        for (int64_t i = team.rank * W; i < H; i += team.size * W) {
            slopes<KIND, W> s(a.norm, dy, x, i, r, mean);
            for (int k = 0; k < W; k++) {
                if (KIND == LORA_NORM_LAYER) sum = sum + s.g.v[k];
                dot = fmaf(s.g.v[k], s.z.v[k], dot);
            }
        }
        if (KIND == LORA_NORM_LAYER) sum = team.sum(sum) / (float)H;
        dot = team.sum(dot) / (float)H;
        for (int64_t i = team.rank * W; i < H; i += team.size * W) { /* dx may be dy or x: a thread reads what it writes */
            slopes<KIND, W> s(a.norm, dy, x, i, r, mean);
            lora_floats<W> d;
            for (int k = 0; k < W; k++) d.v[k] = r * ((KIND == LORA_NORM_LAYER ? s.g.v[k] - sum : s.g.v[k]) - s.z.v[k] * dot);
            if (a.accumulate) {
                lora_floats<W> before = lora_get<W>(dx + i);
                for (int k = 0; k < W; k++) d.v[k] = before.v[k] + d.v[k];
            }
            lora_put<W>(dx + i, d);
        }
    }
}

/* dy z and dy of one element; a row is one group of a token. */
struct weight_slopes {
    lora_mat dy, x;
    const float *stats;
    int64_t groups, H;
    __device__ __forceinline__ lora_floats<2> at(int64_t row, int64_t col) const {
        int64_t m = row / groups, k = (row - m * groups) * H + col;
        float d = *lora_at(dy, m, k);
        return {{d * ((*lora_at(x, m, k) - stats[2 * row + 1]) * stats[2 * row]), d}};
    }
};

} // namespace

lora_status lora_cuda_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                    bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    float *const sums[2] = {dweight, dbias};
    if (x.rows == 0) return LORA_OK;
    if (dweight || dbias) /* before dx, which may be dy */
        LORA_TRY(lora_cuda_add_column_sums(ctx, "norm_backward", weight_slopes{dy, x, stats, norm->groups, norm->H}, x.rows * norm->groups,
                                           norm->H, sums, err));
    if (!dx.data) return LORA_OK;
    const backward_args args = {.norm = *norm, .dy = dy, .x = x, .dx = dx, .stats = stats, .accumulate = accumulate_dx};
    const bool wide = lora_norm_wide(norm, dy) && lora_norm_wide(norm, x) && lora_norm_wide(norm, dx);
    static void (*const kernels[2][2][2])(backward_args) = LORA_NORM_KERNELS(norm_rows_backward);
    return lora_norm_launch(lora_cuda_of(ctx), "norm_backward", kernels, norm, wide, x.rows, args, err);
}
