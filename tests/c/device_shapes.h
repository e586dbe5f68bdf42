/* Shapes that devices treat apart: rows aligned for wide loads and not, wider than a block's reach, behind each other and not, none. */
#ifndef LORA_TESTS_DEVICE_SHAPES_H
#define LORA_TESTS_DEVICE_SHAPES_H

#include "tests/c/op_run.h"

typedef struct shape {
    int64_t rows, cols, padding;
} shape;

static const shape SHAPES[] = {{5, 64, 0}, {3, 2504, 8}, {4, 1027, 0}, {3, 1031, 2}, {0, 16, 0}, {70, 3, 1}};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };

/* Random, with padding between the rows. */
static inline lora_mat mat(op_run *r, int64_t rows, int64_t cols, int64_t padding) {
    return lora_mat_f32(op_floats(r, rows * (cols + padding), 1), rows, cols, cols + padding);
}
static inline lora_mat shaped(op_run *r, int i) { return mat(r, SHAPES[i].rows, SHAPES[i].cols, SHAPES[i].padding); }

static inline void keep(op_run *r, const char *what, lora_mat m) {
    if (m.rows > 0) op_keep_mat(r, what, m);
}

void check_device_bits(void);

#endif
