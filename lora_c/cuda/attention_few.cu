/* FlashAttention-2 forward in float32 for segments with few rows, as in decoding: their keys are shared among blocks, whose results are
 * then merged. How the keys are shared follows from their number alone. */
#include "lora_c/cuda/attention_few.h"
#include "lora_c/cuda/attention_forward.cuh"
#include "lora_c/cuda/weights.h"

namespace {

enum { SPLITS = LORA_GPU_FEW_SPLITS, SPLIT_KEYS = 256, FEW_ROWS = LORA_GPU_FEW_ROWS };

struct few_args {
    forward_args forward;
    float *partial, *sums; /* (items, SPLITS, 16, D) and (items, SPLITS, 16, 2): weighted values; maximum, denominator */
    int64_t item, tiles;   /* the first item, tiles of a segment */
};

/* Tile `item` of a segment with few rows, or none. */
__device__ attention_place few_place_of(const few_args &f, int64_t item) {
    const attention_problem &p = f.forward.p;
    attention_place at;
    at.kv_head = item % p.KV;
    at.segment = item / p.KV / f.tiles;
    at.tile = item / p.KV % f.tiles;
    at.first = p.cu[at.segment];
    at.n = p.cu[at.segment + 1] - at.first;
    int64_t rows = at.n * p.group;
    if (rows > ATTENTION_FEW || at.tile * FEW_ROWS >= rows) at.n = 0;
    return at;
}

/* Keys per split of a range. */
__device__ int64_t split_keys(const forward_range &r) {
    return lora_max_i64(SPLIT_KEYS, lora_round_up(lora_div_up(r.end - r.begin, SPLITS), EXACT_KEYS));
}

template <int CC> __global__ void __launch_bounds__(EXACT_THREADS, 2) attention_forward_few(few_args f) {
    const forward_args &a = f.forward;
    attention_place at = few_place_of(f, f.item + blockIdx.x);
    if (at.n == 0) return;
    forward_range r = range_of(a, at, FEW_ROWS);
    int64_t each = split_keys(r), col = (int64_t)blockIdx.y * EXACT_COLS * CC, split = (int64_t)blockIdx.x * SPLITS + blockIdx.z;
    r.begin += blockIdx.z * each;
    if (r.begin >= r.end) return; /* the merge does not look at it */
    r.end = lora_min_i64(r.end, r.begin + each);
    forward_state<1, CC> st;
    meet_keys<1, CC>(a, at, r, col, st);
    int64_t row = split * FEW_ROWS + threadIdx.x / EXACT_SIDE;
    exact_store<CC>(f.partial + row * a.p.D, st.out[0], col, a.p.D, 1);
    if (col > 0 || threadIdx.x % EXACT_SIDE) return;
    f.sums[2 * row] = st.top[0];
    f.sums[2 * row + 1] = st.sum[0];
}

/* A block merges the splits of a tile, row after row. */
__global__ void __launch_bounds__(EXACT_THREADS) attention_merge(few_args f) {
    const forward_args &a = f.forward;
    attention_place at = few_place_of(f, f.item + blockIdx.x);
    if (at.n == 0) return;
    forward_range r = range_of(a, at, FEW_ROWS);
    int rows = (int)lora_min_i64(FEW_ROWS, at.n * a.p.group - r.row);
    int splits = (int)lora_div_up(r.end - r.begin, split_keys(r));
    for (int row = 0; row < rows; row++) {
        const int64_t to = attention_output_at(a.p, at, a.o, r.row + row), first = (int64_t)blockIdx.x * SPLITS * FEW_ROWS + row;
        float top = -INFINITY, sum = 0;
        for (int z = 0; z < splits; z++) top = fmaxf(top, f.sums[2 * (first + z * FEW_ROWS)]);
        for (int z = 0; z < splits; z++) {
            const float *s = f.sums + 2 * (first + z * FEW_ROWS);
            sum = fmaf(s[1], expf(s[0] - top), sum);
        }
        for (int64_t d = threadIdx.x; d < a.p.D; d += EXACT_THREADS) {
            float out = 0;
            for (int z = 0; z < splits; z++)
                out = fmaf(f.partial[(first + z * FEW_ROWS) * a.p.D + d], expf(f.sums[2 * (first + z * FEW_ROWS)] - top), out);
            lora_store(a.o.data, to + d, a.o.dtype, out / sum);
        }
        if (a.lse && threadIdx.x == 0) a.lse[attention_sums_at(a.p, at, r.row + row)] = top + logf(sum);
    }
}

template <int CC> lora_status launch(lora_cuda *c, const few_args &f, int64_t items, lora_error *err) {
    dim3 grid((uint32_t)items, (uint32_t)lora_div_up(f.forward.p.D, EXACT_COLS * CC), SPLITS);
    LORA_TRY(LORA_CUDA_LAUNCH(c, attention_forward_few<CC>, grid, EXACT_THREADS, sizeof(exact_shared<1>), f, err));
    return LORA_CUDA_LAUNCH(c, attention_merge, dim3(grid.x), EXACT_THREADS, 0, f, err);
}

int64_t items_at_a_time(int64_t items, int64_t D) { return lora_gpu_few_items(items, D); }

} // namespace

size_t lora_cuda_attention_few_bytes(int64_t n_segments, int64_t n_kv_heads, int64_t head_dim) {
    return (size_t)lora_gpu_few_bytes(n_segments, n_kv_heads, head_dim);
}

lora_status lora_cuda_attention_few(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                    const lora_kv *kv, lora_mat o, float *lse, int64_t rows, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    int64_t D = shape->head_dim, tiles = lora_div_up(rows, FEW_ROWS), items = segments->n * tiles * shape->n_kv_heads;
    int64_t item_floats = lora_gpu_few_floats(D), batch = items_at_a_time(items, D);
    void *memory = NULL;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(batch * item_floats) * sizeof(float), &memory, err));
    few_args f = {forward_args_of(shape, segments, q, kv, o, lse), (float *)memory, (float *)memory + batch * SPLITS * FEW_ROWS * D, 0,
                  tiles};
    for (; f.item < items; f.item += batch) {
        int64_t n = lora_min_i64(batch, items - f.item);
        LORA_TRY(D <= EXACT_COLS ? launch<1>(c, f, n, err) : launch<2>(c, f, n, err));
    }
    return LORA_OK;
}
