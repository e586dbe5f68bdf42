/* Every element of y = x W^T + bias + s drop(x) A^T B^T within the bound of lora_linear_forward, on every rung and with every
 * arithmetic of the products: of a few tokens and of many, with weights of 32 and of 16 bits. */
#include <math.h>

#include "check_ops.h"
#include "lora_c/base/half.h"
#include "lora_c/base/philox.h"

enum { K = 200, N = 40, R = 5, MOST_M = 50, SCALE_BLOCK = 64 };

/* Inputs, and x with its dropout. */
typedef struct inputs {
    float *x, *w, *bias, *A, *B;
    uint16_t *half;
    double kept[MOST_M * K];
    float scale, dropout;
} inputs;

static void make(inputs *in, float dropout) {
    restart_random();
    *in = (inputs){.x = random_floats(MOST_M * K, -2, 2),
                   .w = random_floats(N * K, -1, 1),
                   .bias = random_floats(N, -1, 1),
                   .A = random_floats(R * K, -1, 1),
                   .B = random_floats(N * R, -1, 1),
                   .half = malloc(N * K * sizeof(uint16_t)),
                   .scale = -0.7f,
                   .dropout = dropout};
    for (int i = 0; i < MOST_M * K; i += 3) in->x[i] *= 0x1p-6f; /* blocks of unlike values, which share a scale */
    for (int i = 0; i < N * K; i++) in->w[i] = lora_bf16_to_f32(in->half[i] = lora_f32_to_bf16(in->w[i]));
    for (int i = 0; i < MOST_M * K; i++) {
        bool dropped = dropout > 0 && lora_philox_uniform(9, 4, (uint64_t)i) < dropout;
        in->kept[i] = dropped ? 0 : (double)in->x[i] / (1 - (double)dropout);
    }
}

static void release(inputs *in) { free(in->x), free(in->w), free(in->bias), free(in->A), free(in->B), free(in->half); }

/* Sums of products of k values: as they are, of their magnitudes, and with the largest of each 64 values for each. */
typedef struct sums {
    double sum, magnitude, tops;
} sums;

static sums sums_of(const double *a, const float *b, int64_t k) {
    sums s = {0};
    for (int64_t begin = 0; begin < k; begin += SCALE_BLOCK) {
        int64_t end = begin + SCALE_BLOCK < k ? begin + SCALE_BLOCK : k;
        double top_a = 0, top_b = 0;
        for (int64_t i = begin; i < end; i++) {
            s.sum += a[i] * b[i];
            s.magnitude += fabs(a[i] * b[i]);
            top_a = fmax(top_a, fabs(a[i]));
            top_b = fmax(top_b, fabs((double)b[i]));
        }
        s.tops += (double)(end - begin) * top_a * top_b;
    }
    return s;
}

static bool base_is_int8; /* of many tokens, or with dropout; the adapter's products have the path of FAST */

/* The value of y[m, n], and the bound of its error. */
static void want(const inputs *in, lora_gemm_arithmetic path, int64_t m, int64_t n, double *value, double *bound) {
    double x[K], low[R], low_size[R], low_tops[R];
    for (int64_t i = 0; i < K; i++) x[i] = in->x[m * K + i];
    for (int64_t r = 0; r < R; r++) {
        sums s = sums_of(in->kept + m * K, in->A + r * K, K);
        low[r] = s.sum, low_size[r] = s.magnitude, low_tops[r] = s.tops;
    }
    sums main = sums_of(x, in->w + n * K, K), update = sums_of(low, in->B + n * R, R);
    sums of_sizes = sums_of(low_size, in->B + n * R, R), of_tops = sums_of(low_tops, in->B + n * R, R);
    double s = fabs((double)in->scale), bias = in->bias[n], T = s * of_sizes.magnitude, S = main.magnitude + T + fabs(bias);
    *value = main.sum + bias + (double)in->scale * update.sum;
    *bound = (2 * K + R + 16) * U * S;
    if (path == LORA_GEMM_BF16) *bound += (0x1p-7 + 0x1p-14) * (S + T);
    if (path == LORA_GEMM_INT16) *bound += 0x1p-12 * (main.tops + fabs(bias) + 2 * s * of_tops.tops);
    if (base_is_int8) *bound += (1.0 / 127 + 0x1p-15) * main.tops;
}

static void check_case(lora_ctx *ctx, lora_gemm_arithmetic path, const inputs *in, int64_t M, bool halves) {
    guarded y = guarded_new(M * N, 1);
    lora_weight w = halves ? lora_weight_bf16(in->half, N, K, K) : lora_weight_f32(in->w, N, K, K);
    lora_adapter a = {.rank = R, .A = in->A, .B = in->B, .scale = in->scale, .dropout = in->dropout, .dropout_seed = 9};
    lora_linear_layer layer = {.w = &w,
                               .bias = in->bias,
                               .adapter = &a,
                               .pass = {.dropout = in->dropout, .dropout_stream = 4},
                               .y = lora_mat_f32(y.data, M, N, N)};
    OK(lora_linear_forward(ctx, lora_mat_f32(in->x, M, K, K), 1, &layer, ERR));
    double worst = 0;
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double value, bound, share;
            want(in, path, m, n, &value, &bound);
            share = fabs((double)y.data[m * N + n] - value) / bound;
            worst = share <= worst ? worst : isnan(share) ? INFINITY : share;
        }
    CHECK(worst <= 1 && guarded_ok(&y), "%s, operands %s, %d tokens, dropout %g, %s: error %.3g of its bound",
          lora_isa_name(lora_ctx_isa(ctx)), lora_ctx_operands(ctx), (int)M, (double)in->dropout, halves ? "bfloat16" : "float32", worst);
    mix(y.data, (size_t)(M * N) * sizeof(float));
    guarded_free(&y);
}

static uint64_t run_precision(lora_ctx *ctx, lora_gemm_arithmetic path) {
    static const int64_t tokens[] = {1, 3, 16, 25, MOST_M};
    begin_run();
    for (int d = 0; d < 2; d++) {
        static inputs in;
        make(&in, d ? 0.25f : 0);
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
            for (int halves = 0; halves < 2; halves++) {
                base_is_int8 = ctx->view.precision == LORA_PRECISION_INT8 && (d || tokens[i] > LORA_SMALL_M);
                check_case(ctx, path, &in, tokens[i], halves);
            }
        release(&in);
    }
    return hash_of_run();
}

static uint64_t run_int8(lora_ctx *ctx, lora_gemm_arithmetic path) {
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, ERR));
    return run_precision(ctx, path);
}

void check_linear_bound(void);
void check_linear_bound(void) {
    check_every_path(run_precision);
    check_every_path(run_int8);
}
