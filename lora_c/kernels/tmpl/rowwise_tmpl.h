/* Bodies of the row-wise kernels over vectors of W floats. The including file defines, for its rung:
 *     W, vec                            lanes (a divisor of 16) and vector type
 *     v_load(p, count), v_store(p, v, count)   the first count lanes (0 elsewhere, nothing touched), count == W: all
 *     v_set v_add v_sub v_mul v_div v_fma(a, b, c) = a b + c   v_fnma(a, b, c) = c - a b   v_max v_sqrt v_exp
 *     v_small(x, limit, a, b)           a where |x| < limit, else b (NaN: b)
 *     v_sum(v), v_top(v)                sum and maximum over the lanes, in a fixed order
 *     squares_state, squares_zero, squares_add(state *, p) for 16 floats at p, squares_total
 *     ROWWISE_FILL                      name of the fill function
 * Each loop body is an inlined function of (index, count); count is the constant W in the main loop, so the masked
 * path exists in the last step only. Sums use four vectors to hide the latency of the addition. */
#include <math.h>

enum { SUMS = 4, BLOCK = 4096 };

/* Calls step(i, count, sum) for i = 0, W, 2W, … with the sums in rotation, and adds them up in index order. */
#define REDUCE(n, total, step)                                                                                                             \
    do {                                                                                                                                   \
        vec s0 = v_set(0.0f), s1 = s0, s2 = s0, s3 = s0;                                                                                   \
        int64_t i_ = 0;                                                                                                                    \
        for (; i_ + SUMS * W <= (n); i_ += SUMS * W) {                                                                                     \
            s0 = step(i_, W, s0);                                                                                                          \
            s1 = step(i_ + W, W, s1);                                                                                                      \
            s2 = step(i_ + 2 * W, W, s2);                                                                                                  \
            s3 = step(i_ + 3 * W, W, s3);                                                                                                  \
        }                                                                                                                                  \
        for (; i_ + W <= (n); i_ += W) s0 = step(i_, W, s0);                                                                               \
        if (i_ < (n)) s1 = step(i_, (n) - i_, s1);                                                                                         \
        (total) = v_sum(v_add(v_add(s0, s1), v_add(s2, s3)));                                                                              \
    } while (0)

/* step(i, count) over the row. */
#define MAP(n, step)                                                                                                                       \
    do {                                                                                                                                   \
        int64_t i_ = 0;                                                                                                                    \
        for (; i_ + W <= (n); i_ += W) step(i_, W);                                                                                        \
        if (i_ < (n)) step(i_, (n) - i_);                                                                                                  \
    } while (0)

static float rmsnorm_forward(int64_t n, const float *x, const float *weight, float offset, float eps, float *y) {
    float sum;
#define STEP(i, c, s) v_fma(v_load(x + (i), c), v_load(x + (i), c), s)
    REDUCE(n, sum, STEP);
#undef STEP
    float rstd = 1.0f / sqrtf(sum / (float)n + eps);
    vec r = v_set(rstd), o = v_set(offset);
#define STEP(i, c) v_store(y + (i), v_mul(v_mul(v_load(x + (i), c), r), v_add(o, v_load(weight + (i), c))), c)
    MAP(n, STEP);
#undef STEP
    return rstd;
}

LORA_INLINE void rmsnorm_dx(const float *dy, const float *x, const float *weight, vec o, vec r, vec c, float *dx, bool accumulate,
                            int64_t i, int64_t count) {
    vec d = v_mul(v_load(dy + i, count), v_add(o, v_load(weight + i, count)));
    d = v_fnma(c, v_load(x + i, count), d);
    v_store(dx + i, accumulate ? v_fma(r, d, v_load(dx + i, count)) : v_mul(r, d), count);
}

static void rmsnorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float offset, float rstd, float *dx,
                             bool accumulate, float *dweight) {
    vec r = v_set(rstd), o = v_set(offset);
    if (dweight) {
#define STEP(i, c) v_store(dweight + (i), v_fma(v_load(dy + (i), c), v_mul(v_load(x + (i), c), r), v_load(dweight + (i), c)), c)
        MAP(n, STEP);
#undef STEP
    }
    if (!dx) return;
    float sum;
#define STEP(i, c, s) v_fma(v_mul(v_load(dy + (i), c), v_add(o, v_load(weight + (i), c))), v_load(x + (i), c), s)
    REDUCE(n, sum, STEP);
#undef STEP
    vec mean = v_set(sum / (float)n * rstd * rstd);
#define STEP(i, c) rmsnorm_dx(dy, x, weight, o, r, mean, dx, accumulate, i, c)
    MAP(n, STEP);
#undef STEP
}

/* (x - mean)^2 added to the sum; masked lanes hold 0 - mean, so they are read back as 0. */
LORA_INLINE vec centered_square(const float *x, vec mean, int64_t i, int64_t count, vec sum) {
    vec d = v_sub(v_load(x + i, count), mean);
    if (count == W) return v_fma(d, d, sum);
    float tail[W];
    v_store(tail, d, W);
    d = v_load(tail, count);
    return v_fma(d, d, sum);
}

static float layernorm_forward(int64_t n, const float *x, const float *weight, const float *bias, float eps, float *y, float *mean) {
    float sum, square;
#define STEP(i, c, s) v_add(s, v_load(x + (i), c))
    REDUCE(n, sum, STEP);
#undef STEP
    *mean = sum / (float)n;
    vec m = v_set(*mean);
#define STEP(i, c, s) centered_square(x, m, i, c, s)
    REDUCE(n, square, STEP);
#undef STEP
    float rstd = 1.0f / sqrtf(square / (float)n + eps);
    vec r = v_set(rstd);
#define STEP(i, c) v_store(y + (i), v_fma(v_mul(v_sub(v_load(x + (i), c), m), r), v_load(weight + (i), c), v_load(bias + (i), c)), c)
    MAP(n, STEP);
#undef STEP
    return rstd;
}

LORA_INLINE void layernorm_step(const float *dy, const float *x, const float *weight, vec m, vec r, vec sum, vec dot, float *dx,
                                bool accumulate, int64_t i, int64_t count) {
    vec z = v_mul(v_sub(v_load(x + i, count), m), r);
    vec g = v_fnma(z, dot, v_sub(v_mul(v_load(dy + i, count), v_load(weight + i, count)), sum));
    v_store(dx + i, accumulate ? v_fma(r, g, v_load(dx + i, count)) : v_mul(r, g), count);
}

static void layernorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float mean, float rstd, float *dx,
                               bool accumulate, float *dweight, float *dbias) {
    vec m = v_set(mean), r = v_set(rstd);
    if (dweight) {
#define STEP(i, c) v_store(dweight + (i), v_fma(v_load(dy + (i), c), v_mul(v_sub(v_load(x + (i), c), m), r), v_load(dweight + (i), c)), c)
        MAP(n, STEP);
#undef STEP
    }
    if (dbias) {
#define STEP(i, c) v_store(dbias + (i), v_add(v_load(dbias + (i), c), v_load(dy + (i), c)), c)
        MAP(n, STEP);
#undef STEP
    }
    if (!dx) return;
    float sum, dot;
#define STEP(i, c, s) v_fma(v_load(dy + (i), c), v_load(weight + (i), c), s)
    REDUCE(n, sum, STEP);
#undef STEP
#define STEP(i, c, s) v_fma(v_mul(v_load(dy + (i), c), v_load(weight + (i), c)), v_mul(v_sub(v_load(x + (i), c), m), r), s)
    REDUCE(n, dot, STEP);
#undef STEP
    vec vsum = v_set(sum / (float)n), vdot = v_set(dot / (float)n);
#define STEP(i, c) layernorm_step(dy, x, weight, m, r, vsum, vdot, dx, accumulate, i, c)
    MAP(n, STEP);
#undef STEP
}

LORA_INLINE void rope_step(float *x, int64_t half, const float *cosine, const float *sine, vec sign, int64_t i, int64_t count) {
    vec a = v_load(x + i, count), b = v_load(x + half + i, count);
    vec c = v_load(cosine + i, count), s = v_mul(sign, v_load(sine + i, count));
    v_store(x + i, v_fnma(b, s, v_mul(a, c)), count);
    v_store(x + half + i, v_fma(a, s, v_mul(b, c)), count);
}

static void rope(int64_t half, float *x, const float *cosine, const float *sine, float sign) {
    vec s = v_set(sign);
#define STEP(i, c) rope_step(x, half, cosine, sine, s, i, c)
    MAP(half, STEP);
#undef STEP
}

LORA_INLINE void swiglu_step(const float *gate, const float *up, float *h, int64_t i, int64_t count) {
    vec g = v_load(gate + i, count);
    vec silu = v_div(g, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), g))));
    v_store(h + i, up ? v_mul(v_load(up + i, count), silu) : silu, count);
}

static void swiglu_forward(int64_t n, const float *gate, const float *up, float *h) {
#define STEP(i, c) swiglu_step(gate, up, h, i, c)
    MAP(n, STEP);
#undef STEP
}

LORA_INLINE void swiglu_backward_step(const float *dh, const float *gate, const float *up, float *dgate, float *dup, int64_t i,
                                      int64_t count) {
    const vec one = v_set(1.0f);
    vec d = v_load(dh + i, count), g = v_load(gate + i, count), du = up ? v_mul(d, v_load(up + i, count)) : d;
    vec s = v_div(one, v_add(one, v_exp(v_sub(v_set(0.0f), g))));
    vec slope = v_mul(s, v_fma(g, v_sub(one, s), one));
    v_store(dgate + i, v_mul(du, slope), count);
    if (dup) v_store(dup + i, v_mul(d, v_mul(g, s)), count);
}

static void swiglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
#define STEP(i, c) swiglu_backward_step(dh, gate, up, dgate, dup, i, c)
    MAP(n, STEP);
#undef STEP
}

/* exp(-2 k (x + 0.044715 x^3)): 1 + it is the denominator of the tanh form of GELU. */
LORA_INLINE vec gelu_exp(vec x) {
    vec cubic = v_fma(v_mul(x, x), v_set(-2.0f * LORA_GELU_K * 0.044715f), v_set(-2.0f * LORA_GELU_K));
    return v_exp(v_mul(x, cubic));
}

LORA_INLINE void geglu_step(const float *gate, const float *up, float *h, int64_t i, int64_t count) {
    vec g = v_load(gate + i, count);
    vec gelu = v_div(g, v_add(v_set(1.0f), gelu_exp(g)));
    v_store(h + i, up ? v_mul(v_load(up + i, count), gelu) : gelu, count);
}

static void geglu_forward(int64_t n, const float *gate, const float *up, float *h) {
#define STEP(i, c) geglu_step(gate, up, h, i, c)
    MAP(n, STEP);
#undef STEP
}

/* s' = s (1 - s) 2 k (1 + 3 * 0.044715 x^2) */
LORA_INLINE void geglu_backward_step(const float *dh, const float *gate, const float *up, float *dgate, float *dup, int64_t i,
                                     int64_t count) {
    const vec one = v_set(1.0f);
    vec d = v_load(dh + i, count), g = v_load(gate + i, count);
    vec s = v_div(one, v_add(one, gelu_exp(g)));
    vec near = v_small(g, 64.0f, g, v_set(64.0f)); /* beyond, s (1 - s) is 0 and the factor must stay finite */
    vec inner = v_fma(v_mul(near, near), v_set(6.0f * LORA_GELU_K * 0.044715f), v_set(2.0f * LORA_GELU_K));
    vec slope = v_fma(v_mul(v_mul(g, s), v_sub(one, s)), inner, s);
    v_store(dgate + i, v_mul(up ? v_mul(d, v_load(up + i, count)) : d, slope), count);
    if (dup) v_store(dup + i, v_mul(d, v_mul(g, s)), count);
}

static void geglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
#define STEP(i, c) geglu_backward_step(dh, gate, up, dgate, dup, i, c)
    MAP(n, STEP);
#undef STEP
}

LORA_INLINE void reglu_step(const float *gate, const float *up, float *h, int64_t i, int64_t count) {
    vec kept = v_max(v_set(0.0f), v_load(gate + i, count)); /* in this order a NaN is kept */
    v_store(h + i, up ? v_mul(v_load(up + i, count), kept) : kept, count);
}

static void reglu_forward(int64_t n, const float *gate, const float *up, float *h) {
#define STEP(i, c) reglu_step(gate, up, h, i, c)
    MAP(n, STEP);
#undef STEP
}

LORA_INLINE void reglu_backward_step(const float *dh, const float *gate, const float *up, float *dgate, float *dup, int64_t i,
                                     int64_t count) {
    vec d = v_load(dh + i, count), g = v_load(gate + i, count), slope = up ? v_mul(d, v_load(up + i, count)) : d;
    v_store(dgate + i, v_positive(g, slope), count);
    if (dup) v_store(dup + i, v_mul(d, v_max(v_set(0.0f), g)), count);
}

static void reglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
#define STEP(i, c) reglu_backward_step(dh, gate, up, dgate, dup, i, c)
    MAP(n, STEP);
#undef STEP
}

/* tanh: an odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel (Cephes tanhf). */
LORA_INLINE vec v_tanh(vec x) {
    const vec one = v_set(1.0f);
    vec z = v_mul(x, x), p = v_set(LORA_TANH_C4);
    p = v_fma(p, z, v_set(LORA_TANH_C3));
    p = v_fma(p, z, v_set(LORA_TANH_C2));
    p = v_fma(p, z, v_set(LORA_TANH_C1));
    p = v_fma(p, z, v_set(LORA_TANH_C0));
    vec small = v_fma(v_mul(p, z), x, x);
    vec large = v_sub(one, v_div(v_set(2.0f), v_add(v_exp(v_add(x, x)), one)));
    return v_small(x, LORA_TANH_SMALL, small, large);
}

static void softcap_forward(int64_t n, float cap, float *x) {
    vec c = v_set(cap), inverse = v_set(1.0f / cap);
#define STEP(i, k) v_store(x + (i), v_mul(c, v_tanh(v_mul(v_load(x + (i), k), inverse))), k)
    MAP(n, STEP);
#undef STEP
}

static void softcap_backward(int64_t n, float cap, const float *y, float *d) {
    vec inverse = v_set(1.0f / cap);
#define STEP(i, k)                                                                                                                         \
    do {                                                                                                                                   \
        vec t_ = v_mul(v_load(y + (i), k), inverse), d_ = v_load(d + (i), k);                                                              \
        v_store(d + (i), v_mul(d_, v_fnma(t_, t_, v_set(1.0f))), k);                                                                       \
    } while (0)
    MAP(n, STEP);
#undef STEP
}

static float row_max(int64_t n, const float *x) {
    if (n < W) {
        float top = -INFINITY;
        for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
        return top;
    }
    vec t0 = v_load(x, W), t1 = t0, t2 = t0, t3 = t0;
    int64_t i = 0;
    for (; i + SUMS * W <= n; i += SUMS * W) {
        t0 = v_max(t0, v_load(x + i, W));
        t1 = v_max(t1, v_load(x + i + W, W));
        t2 = v_max(t2, v_load(x + i + 2 * W, W));
        t3 = v_max(t3, v_load(x + i + 3 * W, W));
    }
    for (; i + W <= n; i += W) t0 = v_max(t0, v_load(x + i, W));
    t1 = v_max(t1, v_load(x + n - W, W)); /* the last W again: a maximum does not mind */
    return v_top(v_max(v_max(t0, t1), v_max(t2, t3)));
}

/* A masked lane would add exp(-shift), so the tail is read back from a buffer that holds 0 there. */
LORA_INLINE vec exp_step(float *x, vec shift, int64_t i, int64_t count, vec sum) {
    vec e = v_exp(v_sub(v_load(x + i, count), shift));
    v_store(x + i, e, count);
    if (count == W) return v_add(sum, e);
    float tail[W];
    v_store(tail, e, W);
    return v_add(sum, v_load(tail, count));
}

static double exp_sum(int64_t n, float shift, float *x) {
    vec s = v_set(shift);
    double total = 0.0; /* float32 inside a block, float64 between blocks: the error does not grow with n */
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        int64_t count = n - begin < BLOCK ? n - begin : BLOCK;
        float *block = x + begin, sum;
#define STEP(i, c, t) exp_step(block, s, i, c, t)
        REDUCE(count, sum, STEP);
#undef STEP
        total += sum;
    }
    return total;
}

LORA_INLINE void adamw_step(float *p, const float *g, float *m, float *v, const lora_adamw_constants *c, int64_t i, int64_t count) {
    vec grad = v_mul(v_load(g + i, count), v_set(c->grad_scale));
    vec m1 = v_add(v_mul(v_load(m + i, count), v_set(c->beta1)), v_mul(grad, v_set(c->one_minus_beta1)));
    vec v1 = v_add(v_mul(v_load(v + i, count), v_set(c->beta2)), v_mul(v_mul(grad, grad), v_set(c->one_minus_beta2)));
    vec denominator = v_add(v_div(v_sqrt(v1), v_set(c->sqrt_bias2)), v_set(c->eps));
    vec step = v_div(v_mul(v_set(c->step_size), m1), denominator);
    v_store(p + i, v_sub(v_mul(v_load(p + i, count), v_set(c->decay)), step), count);
    v_store(m + i, m1, count);
    v_store(v + i, v1, count);
}

static void adamw(int64_t n, float *p, const float *g, float *m, float *v, const lora_adamw_constants *constants) {
    lora_adamw_constants c = *constants; /* a copy that no store can alias stays in registers */
#define STEP(i, count) adamw_step(p, g, m, v, &c, i, count)
    MAP(n, STEP);
#undef STEP
}

static double sum_of_squares(int64_t n, const float *g) {
    squares_state state = squares_zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) squares_add(&state, g + i);
    if (i < n) {
        float tail[16] = {0};
        for (int64_t l = 0; i + l < n; l++) tail[l] = g[i + l];
        squares_add(&state, tail);
    }
    return squares_total(&state);
}

static void axpy(int64_t n, float a, const float *x, float *y) {
    vec va = v_set(a);
#define STEP(i, c) v_store(y + (i), v_fma(va, v_load(x + (i), c), v_load(y + (i), c)), c)
    MAP(n, STEP);
#undef STEP
}

static void scale_row(int64_t n, float a, const float *x, float *y) {
    vec va = v_set(a);
#define STEP(i, c) v_store(y + (i), v_mul(va, v_load(x + (i), c)), c)
    MAP(n, STEP);
#undef STEP
}

static void multiply(int64_t n, const float *a, const float *x, float *y) {
#define STEP(i, c) v_store(y + (i), v_mul(v_load(a + (i), c), v_load(x + (i), c)), c)
    MAP(n, STEP);
#undef STEP
}

static void multiply_add(int64_t n, const float *a, const float *x, float *y) {
#define STEP(i, c) v_store(y + (i), v_fma(v_load(a + (i), c), v_load(x + (i), c), v_load(y + (i), c)), c)
    MAP(n, STEP);
#undef STEP
}

static void exp_row(int64_t n, const float *x, float *y) {
#define STEP(i, c) v_store(y + (i), v_exp(v_load(x + (i), c)), c)
    MAP(n, STEP);
#undef STEP
}

void ROWWISE_FILL(lora_rowwise_kernels *k) { LORA_ROWWISE_SLOTS(LORA_ROWWISE_ASSIGN) }

#undef REDUCE
#undef MAP
