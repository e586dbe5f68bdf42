/* The loss of numbers that are compared with values. Only the last token of a sequence has some, so that there are few rows, and
 * no threads and no kernels: everything is formed in float64. */
#include <math.h>
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"

/* The loss of one number, and its slope. */
static double loss_of(lora_values_kind kind, double y, double v, double *slope) {
    if (kind == LORA_VALUES_SQUARED_ERROR) {
        *slope = 2 * (y - v);
        return (y - v) * (y - v);
    }
    double small = exp(-fabs(y)); /* s(y) is 1 / (1 + small) from 0 on, small / (1 + small) below */
    *slope = (y >= 0 ? 1 : small) / (1 + small) - v;
    return fmax(y, 0) - y * v + log1p(small);
}

lora_status lora_cpu_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    (void)ctx, (void)err; /* nothing that it needs can be refused */
    double sum = 0, N = (double)y.cols;
    for (int64_t m = 0; m < y.rows; m++) {
        double weight = (double)loss->loss_weight[m], row = 0, slope;
        const float *numbers = lora_mat_row(y, m), *values = loss->values + m * y.cols;
        float *to = dy.data ? lora_mat_row(dy, m) : NULL;
        if (loss->row_loss) loss->row_loss[m] = 0;
        if (weight == 0) {
            if (to) memset(to, 0, (size_t)y.cols * sizeof *to);
            continue;
        }
        for (int64_t n = 0; n < y.cols; n++) {
            row += loss_of(loss->kind, (double)numbers[n], (double)values[n], &slope);
            if (to) to[n] = (float)((double)loss->grad_scale * weight / N * slope);
        }
        if (loss->row_loss) loss->row_loss[m] = (float)(row / N);
        sum += weight * (row / N);
    }
    *loss->loss_sum = sum;
    return LORA_OK;
}
