#include "tests/c/attention_errors.h"

#include <math.h>

enum { OUTPUTS = 4 };
static const char *const names[OUTPUTS] = {"o", "dq", "dk", "dv"};

/* Sums of squared differences from the truth. */
typedef struct errors {
    double rounded[OUTPUTS], fast[OUTPUTS], size[OUTPUTS];
} errors;

static void add(errors *e, int which, const double *truth, const double *rounded, const float *x, int64_t ld, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < width; i++) {
            double want = truth[r * width + i], a = rounded[r * width + i] - want, b = (double)x[r * ld + i] - want;
            e->size[which] += want * want;
            e->rounded[which] += a * a;
            e->fast[which] += b * b;
        }
    }
}

static void add_segment(errors *e, const attention_batch *b, int64_t s) {
    attention_oracle truth = attention_batch_oracle(b, s, 0, false), rounded = attention_batch_oracle(b, s, 0, true);
    int64_t row = b->cu[s], T = truth.T, q_width = attention_q_width(b), k_width = attention_k_width(b);
    const float *dq = b->dqkv + row * b->ld, *dk = dq + q_width;
    add(e, 0, truth.o, rounded.o, b->out + row * b->ld_out, b->ld_out, T, q_width);
    add(e, 1, truth.dq, rounded.dq, dq, b->ld, T, q_width);
    add(e, 2, truth.dk, rounded.dk, dk, b->ld, T, k_width);
    add(e, 3, truth.dv, rounded.dv, dk + k_width, b->ld, T, k_width);
    attention_oracle_destroy(&truth);
    attention_oracle_destroy(&rounded);
}

void attention_errors_check(const attention_batch *b, const char *what) {
    errors e = {{0}, {0}, {0}};
    for (int64_t s = 0; s < b->n; s++) add_segment(&e, b, s);
    for (int i = 0; i < OUTPUTS; i++) /* two draws of the same roundings differ a little */
        CHECK(sqrt(e.fast[i]) <= 1.15 * sqrt(e.rounded[i]) + 1e-6 * sqrt(e.size[i]),
              "%s: D %d heads %d/%d window %d cap %g, %s: error %.3g of its size, bfloat16 operands %.3g", what, (int)b->shape.head_dim,
              (int)b->shape.n_heads, (int)b->shape.n_kv_heads, (int)b->shape.sliding_window, (double)b->shape.softcap, names[i],
              sqrt(e.fast[i] / e.size[i]), sqrt(e.rounded[i] / e.size[i]));
}
