/* Adapters folded into their matrix: every element, and the row lengths of DoRA, within the bounds of linear.h, in both precisions;
 * what is folded in comes out again; where A begins. */
#include <math.h>

#include "check_ops.h"

enum { N = 40, K = 130, R = 6 };

typedef struct inputs {
    float *w, *A, *B;
    lora_weight weight;
    lora_adapter adapter;
} inputs;

static inputs make(void) {
    restart_random();
    inputs in = {.w = random_floats(N * K, -1, 1), .A = random_floats(R * K, -1, 1), .B = random_floats(N * R, -1, 1)};
    in.weight = lora_weight_f32(in.w, N, K, K);
    in.adapter = (lora_adapter){.rank = R, .A = in.A, .B = in.B, .scale = 0.7f};
    return in;
}

static void release(inputs *in) { free(in->w), free(in->A), free(in->B); }

/* (B A)[n, k], and the same of magnitudes */
static double update_of(const inputs *in, int64_t n, int64_t k, double *size) {
    double sum = 0;
    *size = 0;
    for (int64_t r = 0; r < R; r++) {
        double product = (double)in->B[n * R + r] * (double)in->A[r * K + k];
        sum += product;
        *size += fabs(product);
    }
    return sum;
}

static void check_folded(lora_ctx *ctx, const inputs *in) {
    guarded merged = guarded_new(N * K, 1), back = guarded_new(N * K, 0);
    for (float sign = -1; sign <= 1; sign += 2) {
        OK(lora_linear_merge(ctx, &in->weight, &in->adapter, NULL, sign, merged.data, ERR));
        lora_weight folded = lora_weight_f32(merged.data, N, K, K);
        OK(lora_linear_merge(ctx, &folded, &in->adapter, NULL, -sign, back.data, ERR));
        for (int64_t i = 0; i < N * K; i++) {
            double size, s = (double)in->adapter.scale, update = sign * s * update_of(in, i / K, i % K, &size);
            double want = (double)in->w[i] + update, bound = (R + 2) * U * s * size + U * fabs(want);
            close_to("merged", merged.data[i], want, bound);
            /* the same update with the other sign: the two roundings of the sums remain */
            close_to("taken out again", back.data[i], (double)in->w[i], U * fabs((double)merged.data[i]) + U * fabs((double)in->w[i]));
        }
    }
    CHECK(guarded_ok(&merged) && guarded_ok(&back), "guard bands");
    mix(merged.data, N * K * sizeof(float));
    guarded_free(&merged), guarded_free(&back);
}

static void check_norms(lora_ctx *ctx, const inputs *in) {
    guarded norm = guarded_new(N, 1);
    OK(lora_dora_norm(ctx, &in->weight, &in->adapter, norm.data, ERR));
    for (int64_t n = 0; n < N; n++) {
        double squares = 0, largest = 0;
        for (int64_t k = 0; k < K; k++) {
            double size, s = (double)in->adapter.scale, v = (double)in->w[n * K + k] + s * update_of(in, n, k, &size);
            squares += v * v;
            largest += pow(fabs((double)in->w[n * K + k]) + s * size, 2);
        }
        close_to("norm", norm.data[n], sqrt(squares), (R + 3) * U * sqrt(largest));
    }
    CHECK(guarded_ok(&norm), "guard bands");
    guarded_free(&norm);
}

static uint64_t run_all(lora_ctx *ctx, lora_gemm_arithmetic path) {
    (void)path; /* float32 in every precision */
    begin_run();
    inputs in = make();
    check_folded(ctx, &in);
    check_norms(ctx, &in);
    release(&in);
    return hash_of_run();
}

static void check_begin(void) {
    enum { IN = 9 };
    float a[R * IN], again[R * IN], other[R * IN], lowest = 1, highest = -1;
    lora_adapter_init(R, IN, 5, a);
    lora_adapter_init(R, IN, 5, again);
    lora_adapter_init(R, IN, 6, other);
    for (int i = 0; i < R * IN; i++) lowest = fminf(lowest, a[i]), highest = fmaxf(highest, a[i]);
    CHECK(memcmp(a, again, sizeof a) == 0 && memcmp(a, other, sizeof a) != 0, "A is a function of its seed");
    CHECK(lowest >= -1.0f / 3 && lowest < -0.3f && highest < 1.0f / 3 && highest > 0.3f, "A lies in [%g, %g]", (double)lowest,
          (double)highest);
}

void check_merge_bound(void);
void check_merge_bound(void) {
    check_every_path(run_all);
    check_begin();
}
