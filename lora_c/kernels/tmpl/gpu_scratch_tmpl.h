/* What the CUDA plug-in works in during a training step, as pure functions of shapes and of what a GPU is: the plug-in takes its sizes from
 * here, and so does the device "meta", which forecasts GPUs that are not in this machine. Includers have nn.h before it.
 * Each buffer is a slot, as large as the largest that an operation asks of it; the operation's file is named beside it. */
#ifndef LORA_KERNELS_GPU_SCRATCH_TMPL_H
#define LORA_KERNELS_GPU_SCRATCH_TMPL_H

#include "lora_c/base/util.h"
#include "lora_c/types.h"

/* cross_entropy.c. Each weight that is read is used for as many rows as a chunk has: 512 for a vocabulary of 128k, at which bfloat16
 * products are not bound by memory (H200: 989 TFLOP/s over 4.8 TB/s are 206 FLOP per byte, 2 bytes per weight). */
enum {
    LORA_GPU_LOGIT_BYTES = 256 << 20,
    LORA_GPU_MOST_ROWS = 1024,
    LORA_GPU_LEAST_ROWS = 64,
    LORA_GPU_SLICE_BYTES = 64 << 20,
    LORA_GPU_MOST_SLICE = 16384,
    LORA_GPU_LEAST_SLICE = 256,
};
/* attention_few.cu, attention_fast.cu, column_sums.cuh, products.c, memory.c, linear_merge.c */
enum {
    LORA_GPU_FEW = 64, /* rows of a segment up to which attention shares its keys among blocks */
    LORA_GPU_FEW_SPLITS = 32,
    LORA_GPU_FEW_ROWS = 16,
    LORA_GPU_FEW_BYTES = 64 << 20, /* for what is to be merged, unless one item needs more */
    LORA_GPU_WIDEST_HEAD = 256,
    LORA_GPU_ATTENTION_SHARED = 4 * 64 * (256 + 8) * 2 + 2 * 32 * 3 * 4 + 40,
    LORA_GPU_SUM_ROWS = 64,    /* of a block at least */
    LORA_GPU_SUM_CHUNKS = 512, /* of the rows at most */
    LORA_GPU_WORKSPACE = 32 << 20,
    LORA_GPU_LIST = 1 << 16,
    LORA_GPU_NORMED = (16 << 20) * 4,
    LORA_GPU_AMPERE = 8, /* the first whose tensor cores take bfloat16 */
    LORA_GPU_VECTOR = 16,
};

typedef struct lora_gpu_facts {
    int major;            /* of the compute capability */
    int64_t shared_bytes; /* that a block may have */
    bool is_fast;         /* the precision of the context */
} lora_gpu_facts;

static inline lora_dtype lora_gpu_operands(const lora_gpu_facts *gpu) {
    return !gpu->is_fast ? LORA_F32 : gpu->major >= LORA_GPU_AMPERE ? LORA_BF16 : LORA_F16;
}

/* Float16 is nothing to keep activations and gradients in: its exponents are too few for them. */
static inline lora_dtype lora_gpu_linear_operand(const lora_gpu_facts *gpu, int64_t M) {
    return M > LORA_DECODE_BATCH && lora_gpu_operands(gpu) == LORA_BF16 ? LORA_BF16 : LORA_F32;
}

static inline bool lora_gpu_keeps_low(int64_t M, const lora_adapter *a) { return a->dB && !a->magnitude && M > LORA_DECODE_BATCH; }

static inline bool lora_gpu_attention_is_fast(const lora_gpu_facts *gpu, int64_t D) {
    if (!gpu->is_fast || gpu->major < LORA_GPU_AMPERE) return false;
    return D <= LORA_GPU_WIDEST_HEAD / 2 || (D <= LORA_GPU_WIDEST_HEAD && gpu->shared_bytes >= LORA_GPU_ATTENTION_SHARED);
}
static inline int64_t lora_gpu_attention_width(int64_t D) {
    return D <= LORA_GPU_WIDEST_HEAD / 2 ? lora_round_up(D, 32) : (int64_t)LORA_GPU_WIDEST_HEAD;
}

static inline int64_t lora_gpu_few_floats(int64_t D) { return LORA_GPU_FEW_SPLITS * LORA_GPU_FEW_ROWS * (D + 2); }
static inline int64_t lora_gpu_few_items(int64_t items, int64_t D) {
    return lora_min_i64(items, lora_max_i64(1, LORA_GPU_FEW_BYTES / 4 / lora_gpu_few_floats(D)));
}
static inline int64_t lora_gpu_few_bytes(int64_t n_segments, int64_t n_kv_heads, int64_t D) {
    int64_t items = n_segments * lora_div_up(LORA_GPU_FEW, LORA_GPU_FEW_ROWS) * n_kv_heads;
    return lora_gpu_few_items(items, D) * lora_gpu_few_floats(D) * 4;
}

/* Rows of a chunk, columns of the vocabulary whose weights are decoded at a time, floats between rows of logits. */
typedef struct lora_gpu_head_sizes {
    int64_t rows, slice, ld;
} lora_gpu_head_sizes;

static inline int64_t lora_gpu_clamp(int64_t n, int64_t least, int64_t most) { return lora_max_i64(least, lora_min_i64(n, most)); }

static inline lora_gpu_head_sizes lora_gpu_head_sizes_of(int64_t M, int64_t V, int64_t H, lora_dtype operands) {
    lora_gpu_head_sizes s;
    s.ld = lora_round_up(V, 8);
    int64_t row = lora_max_i64(1, s.ld * 4), weight = lora_max_i64(1, H * (int64_t)lora_dtype_bytes(operands));
    int64_t rows = LORA_GPU_LOGIT_BYTES / row / LORA_GPU_LEAST_ROWS * LORA_GPU_LEAST_ROWS;
    s.rows = lora_min_i64(M, lora_gpu_clamp(rows, LORA_GPU_LEAST_ROWS, LORA_GPU_MOST_ROWS));
    int64_t slice = LORA_GPU_SLICE_BYTES / weight / LORA_GPU_LEAST_SLICE * LORA_GPU_LEAST_SLICE;
    s.slice = lora_gpu_clamp(slice, LORA_GPU_LEAST_SLICE, LORA_GPU_MOST_SLICE);
    return s;
}
static inline int64_t lora_gpu_head_row_bytes(int64_t M) { return 8 + M * (8 + 8 + 4); } /* count; index, loss, unscale */
static inline int64_t lora_gpu_head_x_bytes(int64_t rows, int64_t H, lora_dtype operands, bool with_weight) {
    int64_t one = lora_round_up(rows * lora_round_up(H, 8) * (int64_t)lora_dtype_bytes(operands), 256);
    return one * (with_weight ? 2 : 1);
}

/* A dense weight as a matrix; absent where it is another. */
static inline lora_mat lora_gpu_dense(const lora_weight *w) {
    lora_mat m = lora_mat_f32(NULL, w->rows, w->cols, w->cols);
    bool is_half = w->kind == LORA_WEIGHT_GGML && (w->ggml.type == LORA_GGML_F16 || w->ggml.type == LORA_GGML_BF16);
    if (is_half) {
        m.data = (void *)w->ggml.blocks;
        m.dtype = w->ggml.type == LORA_GGML_F16 ? LORA_F16 : LORA_BF16;
    } else if (w->kind == LORA_WEIGHT_F32 || w->kind == LORA_WEIGHT_BF16) {
        m.data = (void *)w->dense.data;
        m.ld = w->dense.ld;
        m.dtype = w->kind == LORA_WEIGHT_F32 ? LORA_F32 : LORA_BF16;
    }
    return m;
}

/* Whether a product reads w as it is stored, without decoding it first. */
static inline bool lora_gpu_is_operand(const lora_weight *w, lora_dtype dtype) {
    const lora_mat m = lora_gpu_dense(w);
    bool aligned = (uintptr_t)m.data % LORA_GPU_VECTOR == 0 && m.ld * (int64_t)lora_dtype_bytes(dtype) % LORA_GPU_VECTOR == 0;
    return m.data && m.dtype == dtype && (dtype == LORA_F32 || aligned);
}

/* --- slots, counted in float64: sizes of models that nothing could hold are forecast, too --- */

typedef struct lora_gpu_step {
    const lora_scratch_shape *s;
    const lora_gpu_facts *gpu;
    lora_dtype operands, of_head;
    lora_gpu_head_sizes head;
    double M, operand; /* tokens; bytes of an element of an operand */
    bool rounds, few;  /* operands have 16 bits; few tokens */
} lora_gpu_step;

static inline lora_gpu_step lora_gpu_step_of(const lora_scratch_shape *s, const lora_gpu_facts *gpu) {
    lora_gpu_step t;
    t.s = s;
    t.gpu = gpu;
    t.operands = lora_gpu_operands(gpu);
    t.of_head = s->head_trains && t.operands == LORA_F16 ? LORA_F32 : t.operands;
    t.head = lora_gpu_head_sizes_of(s->n_tokens, s->head.rows, s->head.cols, t.of_head);
    t.M = (double)s->n_tokens;
    t.operand = (double)lora_dtype_bytes(t.operands);
    t.rounds = t.operands != LORA_F32;
    t.few = s->n_tokens <= LORA_DECODE_BATCH;
    return t;
}

static inline void lora_gpu_reach(double *most, double elements, double of_one) {
    if (elements * of_one > *most) *most = elements * of_one;
}
static inline double lora_gpu_eights(int64_t n) { return (double)lora_round_up(n, 8); }

/* Whether a weight that is stored so is not an operand as it is. */
static inline bool lora_gpu_is_decoded(lora_dtype operands, int kind) {
    return !(kind == LORA_STORED_FLOAT32 && operands == LORA_F32) && !(kind == LORA_STORED_BFLOAT16 && operands == LORA_BF16);
}

static inline double lora_gpu_weight(const lora_gpu_step *t) {
    double most = 0;
    for (int kind = 0; kind < LORA_STORED_KINDS; kind++) /* linear_plain.c: W with what stands beside it */
        if (lora_gpu_is_decoded(t->operands, kind)) lora_gpu_reach(&most, (double)t->s->weights[kind], t->operand);
    if (t->rounds) lora_gpu_reach(&most, (double)t->s->factor, t->operand); /* linear_plain.c: A, B */
    if (t->s->normed) {                                                     /* linear_merge.c: rows of W for the norms of DoRA */
        double all = (double)t->s->normed * 4, at_a_time = LORA_GPU_NORMED;
        lora_gpu_reach(&most, all < at_a_time ? all : at_a_time, 1);
    }
    if (!lora_gpu_is_operand(&t->s->head, t->of_head)) /* cross_entropy.c: a slice of the head */
        lora_gpu_reach(&most, (double)lora_min_i64(t->head.slice, t->s->head.rows) * lora_gpu_eights(t->s->head.cols),
                       (double)lora_dtype_bytes(t->of_head));
    return most;
}

static inline double lora_gpu_left(const lora_gpu_step *t) {
    double most = 0;
    if (t->rounds) lora_gpu_reach(&most, t->M * lora_gpu_eights(t->s->dy + t->s->lent), t->operand);           /* linear_plain.c: dy */
    if (t->rounds) lora_gpu_reach(&most, (double)t->s->merged * lora_gpu_eights(t->s->head.cols), t->operand); /* linear_merge.c: dW */
    lora_gpu_reach(&most, (double)lora_gpu_head_x_bytes(t->head.rows, t->s->head.cols, t->of_head, t->s->head_trains),
                   1);                                      /* cross_entropy.c */
    if (lora_gpu_attention_is_fast(t->gpu, t->s->head_dim)) /* attention_fast_backward.cu: q, k, v, dout */
        lora_gpu_reach(&most, 2 * (double)(t->s->n_heads + t->s->n_kv_heads) * t->M * (double)lora_gpu_attention_width(t->s->head_dim), 2);
    return most;
}

static inline double lora_gpu_right(const lora_gpu_step *t) {
    double most = 0;
    if (t->rounds && t->s->x) lora_gpu_reach(&most, t->M * lora_gpu_eights(t->s->x + t->s->lent), t->operand);  /* linear_plain.c: x */
    if (t->few && t->s->dropped) lora_gpu_reach(&most, 3 * t->M * (double)lora_round_up(t->s->dropped, 16), 4); /* linear_few.c: drop(x) */
    if (t->rounds) lora_gpu_reach(&most, (double)t->s->merged_rank * lora_gpu_eights(t->s->head.cols), t->operand); /* linear_merge.c: A */
    return most;
}

static inline double lora_gpu_low(const lora_gpu_step *t) {
    double most = 0;
    lora_gpu_reach(&most, t->M * lora_gpu_eights(t->s->rank), t->operand); /* linear_plain.c: t, u */
    if (t->few && t->s->rank)
        lora_gpu_reach(&most, 3 * (double)lora_round_up(t->s->n_tokens * t->s->rank, 16), 4); /* linear_few.c: x A^T */
    lora_gpu_reach(&most, (double)t->head.rows * (double)t->s->head.cols, 4);                 /* cross_entropy.c: dx of a chunk */
    return most;
}

static inline double lora_gpu_narrow(const lora_gpu_step *t) {
    double most = 0;
    if (t->rounds && t->s->low_kept) lora_gpu_reach(&most, t->M * lora_gpu_eights(t->s->rank), t->operand);      /* t of the forward pass */
    if (t->rounds) lora_gpu_reach(&most, (double)t->s->merged * lora_gpu_eights(t->s->merged_rank), t->operand); /* linear_merge.c: B */
    return most;
}

static inline double lora_gpu_result(const lora_gpu_step *t) {
    double most = 0;
    lora_gpu_reach(&most, (double)t->head.rows * (double)t->head.ld, 4);                         /* cross_entropy.c: logits of a chunk */
    if (t->s->dropped) lora_gpu_reach(&most, t->M * lora_gpu_eights(t->s->dropped), t->operand); /* linear_plain.c: drop(x) */
    return most;
}

static inline double lora_gpu_sums(const lora_gpu_step *t) {
    double most = 0;
    const int64_t M = t->s->n_tokens, of_chunk = lora_max_i64(LORA_GPU_SUM_ROWS, lora_div_up(M, LORA_GPU_SUM_CHUNKS));
    lora_gpu_reach(&most, (double)lora_gpu_head_row_bytes(M), 1); /* cross_entropy.c: rows with weight */
    lora_gpu_reach(&most, t->M * (double)t->s->n_heads, 4);       /* attention_backward.cu: delta */
    lora_gpu_reach(&most, (double)lora_gpu_few_bytes(t->s->n_segments, t->s->n_kv_heads, t->s->head_dim), 1); /* attention_few.cu */
    if (t->s->dropped) lora_gpu_reach(&most, t->M * (double)lora_round_up(t->s->dropped, 4), 4);              /* linear_plain.c: u A */
    lora_gpu_reach(&most, (double)lora_div_up(M, of_chunk) * (double)t->s->summed, 4); /* column_sums.cuh: norms, biases, scalings */
    lora_gpu_reach(&most, t->M, 8);                                                    /* values.cu: losses of rows */
    return most;
}

/** Bytes of all slots, with the workspace of the products' library. */
static inline int64_t lora_gpu_scratch_bytes(const lora_scratch_shape *shape, const lora_gpu_facts *gpu) {
    static const double most = 4611686018427387904.0; /* 2^62 */
    const lora_gpu_step t = lora_gpu_step_of(shape, gpu);
    double dora = t.M * (double)shape->dora * 4; /* linear_dora.c */
    double all = lora_gpu_weight(&t) + lora_gpu_left(&t) + lora_gpu_right(&t) + lora_gpu_low(&t) + lora_gpu_narrow(&t) +
                 lora_gpu_result(&t) + lora_gpu_sums(&t) + dora + LORA_GPU_WORKSPACE + LORA_GPU_LIST;
    return (int64_t)(all < most ? all : most);
}

#endif
