/* How large the buffers of a device become in a training step: each slot as large as the largest that an operation asks of it. */
#include "lora_c/base/util.h"
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/attention_few.h"
#include "lora_c/cuda/column_sums.cuh"
#include "lora_c/cuda/head.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

namespace {

const double FLOAT = sizeof(float), DOUBLE = sizeof(double);
const double WORKSPACE = 32 << 20;                /* products.c */
const double LIST = 1 << 16;                      /* memory.c */
const double NORMED = (16 << 20) * sizeof(float); /* linear_merge.c */

/* Counted in float64: sizes of models that nothing could hold are forecast, too. */
struct slot {
    double bytes;
    void operator()(double elements, double of_one) { bytes = elements * of_one > bytes ? elements * of_one : bytes; }
};

struct step {
    const lora_scratch_shape *s;
    lora_dtype operands, of_head;
    lora_cuda_head_sizes head;
    double M, operand; /* tokens; bytes of an element of an operand */
    bool rounds, few;  /* operands have 16 bits; few tokens */
};

double eights(int64_t n) { return (double)lora_round_up(n, 8); }

step step_of(const lora_ctx *ctx, const lora_scratch_shape *s) {
    step t = {s, lora_cuda_operands(ctx), LORA_F32, {}, (double)s->n_tokens, 0, false, s->n_tokens <= LORA_DECODE_BATCH};
    t.operand = (double)lora_dtype_bytes(t.operands);
    t.rounds = t.operands != LORA_F32;
    t.of_head = s->head_trains && t.operands == LORA_F16 ? LORA_F32 : t.operands;
    t.head = lora_cuda_head_sizes_of(s->n_tokens, s->head.rows, s->head.cols, t.of_head);
    return t;
}

/* Whether a weight that is stored so is not an operand as it is. */
bool is_decoded(lora_dtype operands, int kind) {
    return !(kind == LORA_STORED_FLOAT32 && operands == LORA_F32) && !(kind == LORA_STORED_BFLOAT16 && operands == LORA_BF16);
}

double weight(const step &t) {
    slot most = {0};
    for (int kind = 0; kind < LORA_STORED_KINDS; kind++) /* linear_plain.c: W with what stands beside it */
        if (is_decoded(t.operands, kind)) most((double)t.s->weights[kind], t.operand);
    if (t.rounds) most((double)t.s->factor, t.operand); /* linear_plain.c: A, B */
    if (t.s->normed) {                                  /* linear_merge.c: rows of W for the norms of DoRA */
        double all = (double)t.s->normed * FLOAT;
        most(all < NORMED ? all : NORMED, 1);
    }
    if (!lora_cuda_is_operand(&t.s->head, t.of_head)) /* cross_entropy.c: a slice of the head */
        most((double)lora_min_i64(t.head.slice, t.s->head.rows) * eights(t.s->head.cols), (double)lora_dtype_bytes(t.of_head));
    return most.bytes;
}

double left(const lora_ctx *ctx, const step &t) {
    slot most = {0};
    if (t.rounds) most(t.M * eights(t.s->dy + t.s->lent), t.operand);                              /* linear_plain.c: dy */
    if (t.rounds) most((double)t.s->merged * eights(t.s->head.cols), t.operand);                   /* linear_merge.c: dW */
    most((double)lora_cuda_head_x_bytes(&t.head, t.s->head.cols, t.of_head, t.s->head_trains), 1); /* cross_entropy.c: x */
    if (lora_cuda_attention_is_fast(ctx, t.s->head_dim)) /* attention_fast_backward.cu: q, k, v, dout */
        most(2 * (double)(t.s->n_heads + t.s->n_kv_heads) * t.M * (double)lora_cuda_attention_width(t.s->head_dim), sizeof(uint16_t));
    return most.bytes;
}

double right(const step &t) {
    slot most = {0};
    if (t.rounds && t.s->x) most(t.M * eights(t.s->x + t.s->lent), t.operand);                 /* linear_plain.c: x */
    if (t.few && t.s->dropped) most(3 * t.M * (double)lora_round_up(t.s->dropped, 16), FLOAT); /* linear_few.c: drop(x) */
    if (t.rounds) most((double)t.s->merged_rank * eights(t.s->head.cols), t.operand);          /* linear_merge.c: A */
    return most.bytes;
}

double low(const step &t) {
    slot most = {0};
    most(t.M * eights(t.s->rank), t.operand);                                                      /* linear_plain.c: t, u */
    if (t.few && t.s->rank) most(3 * (double)lora_round_up(t.s->n_tokens * t.s->rank, 16), FLOAT); /* linear_few.c: x A^T */
    most((double)t.head.rows * (double)t.s->head.cols, FLOAT);                                     /* cross_entropy.c: dx of a chunk */
    return most.bytes;
}

double narrow(const step &t) {
    slot most = {0};
    if (t.rounds && t.s->low_kept) most(t.M * eights(t.s->rank), t.operand);       /* linear_plain.c: t of the forward pass */
    if (t.rounds) most((double)t.s->merged * eights(t.s->merged_rank), t.operand); /* linear_merge.c: B */
    return most.bytes;
}

double result(const step &t) {
    slot most = {0};
    most((double)t.head.rows * (double)t.head.ld, FLOAT);          /* cross_entropy.c: logits of a chunk */
    if (t.s->dropped) most(t.M * eights(t.s->dropped), t.operand); /* linear_plain.c: drop(x) */
    return most.bytes;
}

double sums(const step &t) {
    slot most = {0};
    const int64_t M = t.s->n_tokens, of_chunk = lora_max_i64(LORA_SUM_ROWS, lora_div_up(M, LORA_SUM_CHUNKS));
    most((double)lora_cuda_head_lay_rows(M, NULL, NULL), 1);                                         /* cross_entropy.c: rows with weight */
    most(t.M * (double)t.s->n_heads, FLOAT);                                                         /* attention_backward.cu: delta */
    most((double)lora_cuda_attention_few_bytes(t.s->n_segments, t.s->n_kv_heads, t.s->head_dim), 1); /* attention_few.cu: parts of o */
    if (t.s->dropped) most(t.M * (double)lora_round_up(t.s->dropped, 4), FLOAT);                     /* linear_plain.c: u A */
    most((double)lora_div_up(M, of_chunk) * (double)t.s->summed, FLOAT); /* column_sums.cuh: norms, biases, scalings */
    most(t.M, DOUBLE);                                                   /* values.cu: losses of rows */
    return most.bytes;
}

/* linear_dora.c */
double dora(const step &t) { return t.M * (double)t.s->dora * FLOAT; }

} // namespace

int64_t lora_cuda_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    static const double most = 0x1p62;
    const step t = step_of(ctx, shape);
    double all = weight(t) + left(ctx, t) + right(t) + low(t) + narrow(t) + result(t) + sums(t) + dora(t) + WORKSPACE + LIST;
    return (int64_t)(all < most ? all : most);
}
