/* What the kernels of attention share: which rows and keys a block has.
 *
 * The rows of a segment are its (query, head) pairs for one key/value head, in this order: row = query * group + head % group, so the heads
 * of a group meet a tile of keys together. Tiles of rows are counted from each segment's begin, and what a block does follows from the
 * lengths of its segment alone: no packing of segments changes a bit. */
#ifndef LORA_CUDA_ATTENTION_CUH
#define LORA_CUDA_ATTENTION_CUH

#include "lora_c/cuda/launch.cuh"
#include "lora_c/nn.h"

#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"

#ifdef __CUDACC__ /* another compiler does not know the pragma */
#define LORA_UNROLL LORA_PRAGMA(unroll)
#else
#define LORA_UNROLL
#endif

namespace {

/* Segments of up to so many rows, as in decoding, have float32 operands in every precision, and kernels of their own forward. */
enum { ATTENTION_FEW = LORA_GPU_FEW };

/* A matrix (tokens, heads * D). */
struct attention_matrix {
    float *data;
    int64_t ld;
    bool aligned; /* every head of every row begins at an address that 128-bit accesses may have, and ends at one */
};

/* What attention puts out, likewise, float32 or bfloat16. */
struct attention_output {
    void *data;
    int64_t ld;
    lora_dtype dtype;
    bool aligned;
};

struct attention_problem {
    const int32_t *cu; /* (n + 1), on the device */
    int64_t n;         /* segments */
    int64_t H, KV, D, group, window;
    float scale, softcap;
};

/* What a block works on. */
struct attention_place {
    int64_t segment, tile, kv_head;
    int64_t first; /* row of the matrices that is the segment's first query */
    int64_t n;     /* queries; 0: nothing to do */
};

inline attention_matrix attention_matrix_of(const void *data, int64_t ld, int64_t D) {
    return {(float *)data, ld, (uintptr_t)data % 16 == 0 && ld % 4 == 0 && D % 4 == 0};
}

inline attention_output attention_output_of(lora_mat o, int64_t D) {
    return {o.data, o.ld, o.dtype, (uintptr_t)o.data % 16 == 0 && o.ld * (int64_t)lora_dtype_bytes(o.dtype) % 16 == 0 && D % 4 == 0};
}

inline attention_problem attention_problem_of(const lora_attention_shape *shape, const lora_segments *segments) {
    return {segments->on_device,   segments->n,  shape->n_heads, shape->n_kv_heads, shape->head_dim, shape->n_heads / shape->n_kv_heads,
            shape->sliding_window, shape->scale, shape->softcap};
}

struct attention_sizes {
    int64_t few; /* the most rows of a segment that has few; 0: there is none */
    bool many;   /* whether one has more */
};

inline attention_sizes attention_sizes_of(const attention_problem &p, const int32_t *cu) {
    attention_sizes sizes = {0, false};
    for (int64_t s = 0; s < p.n; s++) {
        int64_t rows = ((int64_t)cu[s + 1] - cu[s]) * p.group;
        if (rows <= ATTENTION_FEW)
            sizes.few = lora_max_i64(sizes.few, rows);
        else
            sizes.many = true;
    }
    return sizes;
}

/* A number not below that of the tiles of segments before s, without a table of them: ceil(x) <= floor(a + x) + 1 - floor(a). */
template <int ROWS>
__host__ __device__ __forceinline__ int64_t attention_tiles_before(const int32_t *cu, int64_t s, int64_t rows_per_token) {
    return ((int64_t)cu[s] - cu[0]) * rows_per_token / ROWS + s;
}

/* Blocks for tiles of ROWS rows, over all key/value heads. cu: of the host. */
template <int ROWS> int64_t attention_blocks(const int32_t *cu, int64_t n, int64_t rows_per_token, int64_t KV) {
    return attention_tiles_before<ROWS>(cu, n, rows_per_token) * KV;
}

/* The place of block `item`; the last tiles of a segment, which see the most keys, come first. */
template <int ROWS> __device__ inline attention_place attention_place_of(const attention_problem &p, int64_t item, int64_t rows_per_token) {
    attention_place at;
    at.kv_head = item % p.KV;
    int64_t index = item / p.KV, low = 0, high = p.n; /* tiles before low <= index < tiles before high */
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (attention_tiles_before<ROWS>(p.cu, mid, rows_per_token) <= index)
            low = mid;
        else
            high = mid;
    }
    at.segment = low;
    at.first = p.cu[low];
    at.n = p.cu[low + 1] - at.first;
    at.tile = lora_div_up(at.n * rows_per_token, ROWS) - 1 - (index - attention_tiles_before<ROWS>(p.cu, low, rows_per_token));
    if (at.tile < 0) at.n = 0; /* one too many */
    return at;
}

/* Where lse and delta of a row of the segment lie. */
__device__ __forceinline__ int64_t attention_sums_at(const attention_problem &p, const attention_place &at, int64_t row) {
    return (at.first + row / p.group) * p.H + at.kv_head * p.group + row % p.group;
}

/* The first element of a row of the segment in an output. */
__device__ __forceinline__ int64_t attention_output_at(const attention_problem &p, const attention_place &at, const attention_output &o,
                                                       int64_t row) {
    return (at.first + row / p.group) * o.ld + (at.kv_head * p.group + row % p.group) * p.D;
}

/* Rows of a tile in memory: row r is the (rem + r)'th of (query, head) pairs counted from data. Of keys: group 1. */
struct attention_rows {
    const float *data;
    int64_t ld, step; /* to the next token, to the next head */
    uint32_t group, rem;
    int n; /* rows that there are; others read as 0 */
    bool aligned;
};

__device__ __forceinline__ int64_t attention_row_at(const attention_rows &v, int r) {
    uint32_t at = v.rem + (uint32_t)r;
    return (int64_t)(at / v.group) * v.ld + (int64_t)(at % v.group) * v.step;
}

/* Rows row .. of the segment at `at`, at most `most` of them. */
__device__ inline attention_rows attention_query_rows(const attention_problem &p, const attention_place &at, const attention_matrix &m,
                                                      int64_t row, int most) {
    int64_t query = row / p.group;
    attention_rows v;
    v.data = m.data + (at.first + query) * m.ld + at.kv_head * p.group * p.D;
    v.ld = m.ld;
    v.step = p.D;
    v.group = (uint32_t)p.group;
    v.rem = (uint32_t)(row - query * p.group);
    v.n = (int)lora_max_i64(0, lora_min_i64(most, at.n * p.group - row));
    v.aligned = m.aligned;
    return v;
}

/* Keys or values from row `first` of their matrix on. */
__device__ inline attention_rows attention_key_rows(const attention_problem &p, const attention_matrix &m, int64_t first, int64_t kv_head,
                                                    int64_t n) {
    attention_rows v;
    v.data = m.data + first * m.ld + kv_head * p.D;
    v.ld = m.ld;
    v.step = 0;
    v.group = 1;
    v.rem = 0;
    v.n = (int)n;
    v.aligned = m.aligned;
    return v;
}

/* Elements c .. c + 3 of row r, zeros where there are none. n_cols: columns that there are. */
__device__ __forceinline__ float4 attention_load4(const attention_rows &v, int r, int64_t c, int64_t n_cols) {
    float4 x = make_float4(0, 0, 0, 0);
    if (r >= v.n || c >= n_cols) return x;
    const float *from = v.data + attention_row_at(v, r) + c;
    if (v.aligned) return *(const float4 *)from;
    x.x = from[0];
    if (c + 1 < n_cols) x.y = from[1];
    if (c + 2 < n_cols) x.z = from[2];
    if (c + 3 < n_cols) x.w = from[3];
    return x;
}

/* The score from a product of q and k; *slope: its derivative by scale * product. */
__device__ __forceinline__ float attention_score(const attention_problem &p, float product, float *slope) {
    float s = p.scale * product;
    *slope = 1;
    if (p.softcap == 0) return s;
    float t = tanhf(s / p.softcap);
    *slope = 1 - t * t;
    return p.softcap * t;
}

/* Whether the query at a position sees key j, both counted from the first key. */
__device__ __forceinline__ bool attention_sees(const attention_problem &p, int64_t position, int64_t j) {
    return j <= position && (p.window == 0 || j > position - p.window);
}

/* The first key, rounded down to a tile of keys, that a query at the position or a later one sees. */
template <int KEYS> __device__ __forceinline__ int64_t attention_first_key(const attention_problem &p, int64_t position) {
    int64_t first = p.window > 0 ? lora_max_i64(0, position - p.window + 1) : 0;
    return first / KEYS * KEYS;
}

} // namespace

#endif
