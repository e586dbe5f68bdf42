/* RMSNorm and LayerNorm over packed tokens: a row, or one group of it, belongs to a warp, or to a block where it is wide.
 * Source   RMSNorm, arXiv:1910.07467, eq. 4; LayerNorm, arXiv:1607.06450, eq. 4 */
#include "lora_c/cuda/norm.cuh"
#include "lora_c/cuda/table.h"

namespace {

struct norm_args {
    lora_norm norm;
    lora_mat x, y; /* y of any type */
    float *stats;  /* (rows, groups, 2), or NULL */
};

/* 1 / sqrt(mean((x - mean)^2) + eps); the mean is 0 for RMS. */
template <int KIND, int W, bool BLOCK>
__device__ __forceinline__ float inverse_deviation(const norm_args &a, lora_team<BLOCK> &team, const float *x, float *mean) {
    const float H = (float)a.norm.H;
    *mean = 0;
    if (KIND == LORA_NORM_LAYER) {
        float sum = 0;
        for (int64_t i = team.rank * W; i < a.norm.H; i += team.size * W) {
            lora_floats<W> v = lora_get<W>(x + i);
            for (int k = 0; k < W; k++) sum = sum + v.v[k];
        }
        *mean = team.sum(sum) / H;
    }
    float square = 0;
    for (int64_t i = team.rank * W; i < a.norm.H; i += team.size * W) {
        lora_floats<W> v = lora_get<W>(x + i);
        for (int k = 0; k < W; k++) {
            float d = v.v[k] - *mean;
            square = fmaf(d, d, square);
        }
    }
    return 1.0f / sqrtf(team.sum(square) / H + a.norm.eps);
}

template <int KIND, int W, bool BLOCK> __global__ void __launch_bounds__(LORA_NORM_MOST_THREADS, 1) norm_rows(norm_args a) {
    lora_team<BLOCK> team;
    const int64_t groups = a.norm.groups, H = a.norm.H;
    for (int64_t row = team.first; row < a.x.rows * groups; row += team.step) {
        int64_t m = row / groups, begin = (row - m * groups) * H;
        const float *x = lora_at(a.x, m, begin);
        float mean, r = inverse_deviation<KIND, W, BLOCK>(a, team, x, &mean);
        for (int64_t i = team.rank * W; i < H; i += team.size * W) { /* y may be x: a thread reads what it writes */
            lora_floats<W> v = lora_get<W>(x + i), w = lora_get<W>(a.norm.weight + i), b;
            if (KIND == LORA_NORM_LAYER) b = lora_get<W>(a.norm.bias + i);
            for (int k = 0; k < W; k++)
                v.v[k] = KIND == LORA_NORM_RMS ? v.v[k] * r * (a.norm.weight_offset + w.v[k]) : (v.v[k] - mean) * r * w.v[k] + b.v[k];
            lora_put_at<W>(a.y, m, begin + i, v);
        }
        if (!a.stats || team.rank != 0) continue;
        a.stats[2 * row] = r;
        a.stats[2 * row + 1] = mean;
    }
}

} // namespace

lora_status lora_cuda_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    const norm_args args = {.norm = *norm, .x = x, .y = y, .stats = stats};
    static void (*const kernels[2][2][2])(norm_args) = LORA_NORM_KERNELS(norm_rows);
    if (x.rows == 0) return LORA_OK;
    return lora_norm_launch(lora_cuda_of(ctx), "norm_forward", kernels, norm, lora_norm_wide(norm, x) && lora_norm_wide(norm, y), x.rows,
                            args, err);
}
