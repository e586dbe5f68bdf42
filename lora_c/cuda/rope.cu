/* Rotary position embedding: the table of angles and the rotation.
 * Source   RoFormer, arXiv:2104.09864, eq. 34; half-split pairing of Hugging Face folders */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256 };

struct table_args {
    int64_t n_positions, half;
    const int32_t *positions; /* NULL: 0, 1, ... */
    const double *inv_freq;
    double scale;
    float *cosine, *sine;
};

__global__ void __launch_bounds__(THREADS) rope_angles(table_args a) {
    const int64_t n = a.n_positions * a.half;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        int64_t p = i / a.half;
        double angle = (double)(a.positions ? a.positions[p] : p) * a.inv_freq[i - p * a.half];
        a.cosine[i] = (float)(a.scale * cos(angle));
        a.sine[i] = (float)(a.scale * sin(angle));
    }
}

struct rope_args {
    lora_rotations table;
    int64_t head_dim, pieces_of_head, pieces; /* a piece: W pairs; of a head, of a row */
    const int32_t *positions;
    lora_mat x;
    float sign; /* 1, or -1 backward */
};

template <int W> __global__ void __launch_bounds__(THREADS, 1) rope_rows(rope_args a) {
    const int64_t half = a.table.half, n = a.x.rows * a.pieces;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        int64_t m = i / a.pieces, piece = i - m * a.pieces, head = piece / a.pieces_of_head, k = (piece - head * a.pieces_of_head) * W;
        int64_t angle = a.positions[m] * half + k;
        float *x = lora_at(a.x, m, head * a.head_dim + k);
        lora_floats<W> c = lora_get<W>(a.table.cos + angle), s = lora_get<W>(a.table.sin + angle), p = lora_get<W>(x),
                       q = lora_get<W>(x + half), to_p, to_q;
        for (int j = 0; j < W; j++) {
            float sine = a.sign * s.v[j];
            to_p.v[j] = p.v[j] * c.v[j] - q.v[j] * sine;
            to_q.v[j] = q.v[j] * c.v[j] + p.v[j] * sine;
        }
        lora_put<W>(x, to_p);
        lora_put<W>(x + half, to_q);
    }
}

} // namespace

lora_status lora_cuda_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                                 double scale, float *cos, float *sin, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    if (n_positions == 0 || half == 0) return LORA_OK;
    void *frequencies;
    LORA_TRY(lora_cuda_upload_list(c, inv_freq, (size_t)half * sizeof *inv_freq, &frequencies, err));
    const table_args args = {.n_positions = n_positions,
                             .half = half,
                             .positions = positions,
                             .inv_freq = (const double *)frequencies,
                             .scale = scale,
                             .cosine = cos,
                             .sine = sin};
    return LORA_CUDA_LAUNCH(c, rope_angles, lora_cuda_grid(lora_div_up(n_positions * half, THREADS)), THREADS, 0, args, err);
}

lora_status lora_cuda_rope(lora_ctx *ctx, const lora_rotations *table, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                           lora_mat x, bool backward, lora_error *err) {
    const int64_t half = table->half;
    const bool wide = lora_wide(x) && lora_aligned(table->cos) && lora_aligned(table->sin) && half % 4 == 0 && head_dim % 4 == 0;
    const int64_t of_head = wide ? half / 4 : half, pieces = n_heads * of_head;
    if (x.rows == 0 || pieces == 0) return LORA_OK;
    const rope_args args = {.table = *table,
                            .head_dim = head_dim,
                            .pieces_of_head = of_head,
                            .pieces = pieces,
                            .positions = positions,
                            .x = x,
                            .sign = backward ? -1.0f : 1.0f};
    return lora_cuda_launch_kernel(lora_cuda_of(ctx), "rope", wide ? rope_rows<4> : rope_rows<1>,
                                   lora_cuda_grid(lora_div_up(x.rows * pieces, THREADS)), THREADS, 0, args, err);
}
