/* Quantizing and decoding on every device: the bytes of the functions that work in memory of the host, which check_nf4.c compares with the
 * oracle. Every array of the device lies between bytes that must stay. */
#include "lora_c/base/half.h"
#include "lora_c/format/codebook.h"
#include "tests/c/check_backend.h"

enum { GUARD = 32, AROUND = 0x77, MOST = 1 << 15 };

static const int64_t SHAPES[][2] = {{1, 1}, {1, 31}, {3, 7}, {5, 64}, {7, 129}, {1, 4096}, {3, 4099}, {33, 257}};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };
static const lora_dtype DTYPES[] = {LORA_F32, LORA_BF16, LORA_F16};

/* --- arrays --- */

/* An array of the device that begins `shift` bytes behind an aligned address. */
typedef struct output {
    uint8_t *all, *p;
    int64_t bytes, shift;
} output;

static output make_output(op_run *r, int64_t bytes, int64_t shift) {
    static uint8_t around[8 * MOST + 2 * GUARD];
    memset(around, AROUND, (size_t)bytes + 2 * GUARD);
    output o = {.all = op_send(r, around, (size_t)(bytes + shift + GUARD)), .bytes = bytes, .shift = shift};
    o.p = o.all + shift;
    return o;
}

static bool holds(op_run *r, output o, const void *want) {
    int64_t all = o.bytes + o.shift + GUARD;
    uint8_t *got = malloc((size_t)all);
    OK(lora_download(r->ctx, got, o.all, (size_t)all, ERR));
    OK(lora_sync(r->ctx, ERR));
    bool same = memcmp(got + o.shift, want, (size_t)o.bytes) == 0;
    for (int64_t i = 0; i < all; i++) same = same && ((i >= o.shift && i < o.shift + o.bytes) || got[i] == AROUND);
    free(got);
    return same;
}

static void end_run(op_run *r) {
    for (int i = 0; i < r->n_arrays; i++) lora_ctx_free(r->ctx, r->arrays[i]);
    r->n_arrays = 0;
}

/* --- inputs --- */

/* Values as weights have them, with blocks of zeros, of the smallest and the largest numbers, and of thresholds, exactly. */
static void fill(float *x, int64_t n, const lora_codebook *book, uint64_t seed) {
    check_normal(x, n, seed, 0.05f);
    for (int64_t i = 0; i < n; i++) {
        int64_t part = i / 96 % 8;
        if (part == 1) x[i] = i % 2 ? 0.0f : -0.0f;
        if (part == 3) x[i] = i % 32 == 5 ? 1.0f : i % 15 < 14 ? book->threshold[i % 15] : -1.0f;
        if (part == 4) x[i] *= 1e-38f;
        if (part == 6) x[i] *= 1e5f;
    }
}

/* In a type of 16 bits, where some of them are subnormal or 0. */
static void narrow(const float *x, int64_t n, lora_dtype dtype, void *out) {
    if (dtype == LORA_F32) memcpy(out, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n && dtype != LORA_F32; i++) {
        float fits = dtype == LORA_F16 ? fminf(fmaxf(x[i], -6e4f), 6e4f) : x[i];
        ((uint16_t *)out)[i] = dtype == LORA_BF16 ? lora_f32_to_bf16(x[i]) : lora_f32_to_f16(fits);
    }
}

/* --- quantize_4bit --- */

typedef struct quantize_case {
    lora_4bit_type type;
    lora_dtype dtype;
    int64_t rows, cols, block_size, shift; /* elements that src begins behind an aligned address */
} quantize_case;

static void check_quantized(op_run *r, lora_ctx *cpu, const quantize_case *c) {
    static float x[MOST], absmax[MOST];
    static uint8_t src[4 * MOST], codes[MOST];
    int64_t n = c->rows * c->cols, blocks = lora_nf4_blocks(c->rows, c->cols, c->block_size), size = (int64_t)lora_dtype_bytes(c->dtype);
    fill(x, n, lora_codebook_of(c->type), (uint64_t)(n + c->block_size));
    narrow(x, n, c->dtype, src + c->shift * size);
    const void *values = src + c->shift * size;
    OK(lora_4bit_quantize(cpu, c->type, values, c->dtype, c->rows, c->cols, c->block_size, codes, absmax, ERR));
    uint8_t *there = op_send(r, src, (size_t)((n + c->shift) * size));
    lora_mat m = {.data = there + c->shift * size, .rows = c->rows, .cols = c->cols, .ld = c->cols, .dtype = c->dtype};
    output out = make_output(r, lora_nf4_code_bytes(c->rows, c->cols), c->shift);
    output scales = make_output(r, blocks * (int64_t)sizeof *absmax, c->shift * (int64_t)sizeof *absmax);
    output bad = make_output(r, sizeof(int64_t), 0);
    OK(lora_quantize_4bit(r->ctx, c->type, m, c->block_size, out.p, (float *)(void *)scales.p, (int64_t *)(void *)bad.p, ERR));
    CHECK(holds(r, out, codes), "%s: codes of %s, type %d, (%d, %d), blocks of %d", lora_ctx_device(r->ctx), lora_dtype_name(c->dtype),
          (int)c->type, (int)c->rows, (int)c->cols, (int)c->block_size);
    CHECK(holds(r, scales, absmax), "%s: absmax of %s, type %d, (%d, %d), blocks of %d", lora_ctx_device(r->ctx), lora_dtype_name(c->dtype),
          (int)c->type, (int)c->rows, (int)c->cols, (int)c->block_size);
    CHECK(holds(r, bad, &(int64_t){-1}), "%s: all are finite", lora_ctx_device(r->ctx));
    end_run(r);
}

static void quantize_4bit(op_run *r, lora_ctx *cpu) {
    quantize_case c;
    for (int type = 0; type < LORA_4BIT_END; type++)
        for (int d = 0; d < 3; d++)
            for (int s = 0; s < N_SHAPES; s++)
                for (c.block_size = 32; c.block_size <= 4096; c.block_size *= 2) {
                    c.type = (lora_4bit_type)type, c.dtype = DTYPES[d], c.rows = SHAPES[s][0], c.cols = SHAPES[s][1];
                    c.shift = (s + d) % 2;
                    check_quantized(r, cpu, &c);
                }
}

/* The first of several values that are not finite, in every place of a lane's and in a ragged end. */
static void check_not_finite(op_run *r, int64_t n, lora_dtype dtype, int64_t first, int64_t second, float value) {
    float x[512];
    uint8_t src[sizeof x];
    check_normal(x, n, 3, 1);
    x[second] = NAN;
    x[first] = value;
    narrow(x, n, dtype, src);
    if (dtype == LORA_F16) ((uint16_t *)(void *)src)[first] = lora_f32_to_f16(value);
    lora_mat m = {.data = op_send(r, src, sizeof src), .rows = 1, .cols = n, .ld = n, .dtype = dtype};
    output codes = make_output(r, (n + 1) / 2, 0), absmax = make_output(r, (n + 63) / 64 * 4, 0), bad = make_output(r, 8, 0);
    OK(lora_quantize_4bit(r->ctx, LORA_4BIT_NF4, m, 64, codes.p, (float *)(void *)absmax.p, (int64_t *)(void *)bad.p, ERR));
    CHECK(holds(r, bad, &first), "%s: %g is the first that is not finite, at %d of %d", lora_ctx_device(r->ctx), (double)value, (int)first,
          (int)n);
    end_run(r);
}

static void not_finite(op_run *r, lora_ctx *cpu) {
    (void)cpu;
    static const int64_t at[] = {0, 1, 7, 8, 63, 64, 130, 255, 256, 300};
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 10; i++)
        for (int v = 0; v < 3; v++) check_not_finite(r, 301, DTYPES[(i + v) % 3], at[i], i % 2 ? at[i] : 300, values[v]);
}

/* --- double_quantize --- */

static void check_double(op_run *r, lora_ctx *cpu, int64_t n, int kind) {
    static float absmax[MOST], nested[MOST];
    static uint8_t codes[MOST];
    float offset;
    int64_t n_nested = (n + LORA_NF4_NESTED_BLOCK - 1) / LORA_NF4_NESTED_BLOCK;
    check_normal(absmax, n, (uint64_t)n, 1);
    for (int64_t i = 0; i < n; i++)
        absmax[i] = kind == 0 || kind == 3 ? fabsf(absmax[i]) : kind == 1 ? 0.3f : fabsf(absmax[i]) * (i % 7 ? 1e-6f : 1e6f);
    if (kind == 3 && n > 40) { /* a sum in another order loses other addends */
        absmax[0] = 1e30f, absmax[1] = -1e30f;
        absmax[10] = 1e30f, absmax[n / 2 / 8 * 8 + 2] = -1e30f;
    }
    OK(lora_nf4_double_quantize(cpu, absmax, n, codes, nested, &offset, ERR));
    const float *there = op_send(r, absmax, (size_t)n * sizeof *absmax);
    output c = make_output(r, n, 1), s = make_output(r, n_nested * (int64_t)sizeof *nested, 4), o = make_output(r, sizeof offset, 4);
    OK(lora_double_quantize(r->ctx, there, n, c.p, (float *)(void *)s.p, (float *)(void *)o.p, ERR));
    CHECK(holds(r, o, &offset), "%s: offset of %d scales", lora_ctx_device(r->ctx), (int)n);
    CHECK(holds(r, s, nested), "%s: scales of %d scales", lora_ctx_device(r->ctx), (int)n);
    CHECK(holds(r, c, codes), "%s: codes of %d scales", lora_ctx_device(r->ctx), (int)n);
    end_run(r);
}

/* Scales on and beside every boundary between codes: the mean is 0, because each has a partner. */
static void check_boundaries(op_run *r, lora_ctx *cpu) {
    static float absmax[4 * 256 * 2], nested[8];
    static uint8_t codes[4 * 256 * 2];
    const float *map = lora_dynamic_map_signed();
    float offset;
    int64_t n = 0;
    for (int i = 1; i < 256; i++) {
        float middle = (float)(((double)map[i - 1] + (double)map[i]) / 2);
        const float near[] = {middle, nextafterf(middle, 2), nextafterf(middle, -2), map[i]};
        for (int k = 0; k < 4; k++) absmax[n] = near[k], absmax[n + 8] = -near[k], n += n % 8 == 7 ? 9 : 1;
    }
    n = (n + 15) / 16 * 16;
    for (int64_t b = 0; b < n; b += LORA_NF4_NESTED_BLOCK) absmax[b] = 1, absmax[b + 8] = -1;
    OK(lora_nf4_double_quantize(cpu, absmax, n, codes, nested, &offset, ERR));
    CHECK(offset == 0, "pairs cancel, got %g", (double)offset);
    const float *there = op_send(r, absmax, (size_t)n * sizeof *absmax);
    output c = make_output(r, n, 0), s = make_output(r, (n + 255) / 256 * 4, 0), o = make_output(r, 4, 0);
    OK(lora_double_quantize(r->ctx, there, n, c.p, (float *)(void *)s.p, (float *)(void *)o.p, ERR));
    CHECK(holds(r, c, codes) && holds(r, s, nested), "%s: codes beside boundaries", lora_ctx_device(r->ctx));
    end_run(r);
}

static void double_quantize(op_run *r, lora_ctx *cpu) {
    static const int64_t sizes[] = {1, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 4096, 6001, 20011};
    for (int i = 0; i < 13; i++)
        for (int kind = 0; kind < 4; kind++) check_double(r, cpu, sizes[i], kind);
    check_boundaries(r, cpu);
    for (int i = 0; i < 2; i++) {
        float absmax[300], offset;
        check_normal(absmax, 300, 5, 1);
        absmax[i ? 299 : 40] = i ? NAN : INFINITY;
        const float *there = op_send(r, absmax, sizeof absmax);
        output c = make_output(r, 300, 0), s = make_output(r, 8, 0), o = make_output(r, 4, 0);
        OK(lora_double_quantize(r->ctx, there, 300, c.p, (float *)(void *)s.p, (float *)(void *)o.p, ERR));
        OK(lora_download(r->ctx, &offset, o.p, sizeof offset, ERR));
        OK(lora_sync(r->ctx, ERR));
        CHECK(!isfinite(offset), "%s: the offset tells of a scale that is not finite, got %g", lora_ctx_device(r->ctx), (double)offset);
        end_run(r);
    }
}

/* --- dequantize --- */

static void check_decoded(op_run *r, lora_ctx *cpu, const lora_nf4 *host, lora_dtype dtype, int64_t begin, int64_t count) {
    static uint8_t want[4 * MOST];
    lora_weight w = lora_weight_nf4(host), there = op_weight(r, &w);
    int64_t size = (int64_t)lora_dtype_bytes(dtype);
    OK(lora_nf4_dequantize(cpu, host, begin, count, want, dtype, ERR));
    output out = make_output(r, count * size, begin % 3 * size);
    OK(lora_dequantize(r->ctx, &there.nf4, begin, count, out.p, dtype, ERR));
    CHECK(holds(r, out, want), "%s: elements %d + %d of (%d, %d) in %s", lora_ctx_device(r->ctx), (int)begin, (int)count, (int)host->rows,
          (int)host->cols, lora_dtype_name(dtype));
    end_run(r);
}

static void dequantize(op_run *r, lora_ctx *cpu) {
    static float x[MOST], absmax[MOST], nested[MOST];
    static uint8_t codes[MOST], absmax_codes[MOST];
    for (int s = 0; s < N_SHAPES; s++)
        for (int type = 0; type < LORA_4BIT_END; type++) {
            lora_4bit_type t = (lora_4bit_type)type;
            int64_t rows = SHAPES[s][0], cols = SHAPES[s][1], n = rows * cols, block = 32 << (type + s) % 4;
            lora_nf4 q = {.rows = rows, .cols = cols, .block_size = block, .lut = lora_4bit_lut(t), .codes = codes, .absmax = absmax};
            fill(x, n, lora_codebook_of(t), (uint64_t)n);
            OK(lora_4bit_quantize(cpu, t, x, LORA_F32, rows, cols, block, codes, absmax, ERR));
            if ((s + type) % 2) {
                OK(lora_nf4_double_quantize(cpu, absmax, lora_nf4_blocks(rows, cols, block), absmax_codes, nested, &q.nested_offset, ERR));
                q.absmax = NULL, q.absmax_codes = absmax_codes, q.nested_absmax = nested, q.nested_map = lora_dynamic_map_signed();
                q.nested_block_size = LORA_NF4_NESTED_BLOCK;
            }
            const int64_t ranges[][2] = {{0, n}, {n / 3, n - n / 3}, {n / 2, n > 2}, {n / 5 / 8 * 8, n / 2}, {n, 0}};
            for (int i = 0; i < 5; i++)
                for (int d = 0; d < 3; d++) check_decoded(r, cpu, &q, DTYPES[d], ranges[i][0], ranges[i][1]);
        }
}

/* --- what is refused --- */

static void check_refused(lora_ctx *ctx) {
    float x[64], absmax[4], offset;
    uint8_t codes[32];
    int64_t bad;
    lora_mat m = {.data = x, .rows = 2, .cols = 32, .ld = 32, .dtype = LORA_F32}, apart = m;
    apart.ld = 33;
    lora_nf4 w = {.rows = 2, .cols = 32, .block_size = 32, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    REFUSED(LORA_EINVAL, "type: expected", lora_quantize_4bit(ctx, LORA_4BIT_END, m, 32, codes, absmax, &bad, ERR));
    REFUSED(LORA_EINVAL, "block_size: expected", lora_quantize_4bit(ctx, LORA_4BIT_NF4, m, 48, codes, absmax, &bad, ERR));
    REFUSED(LORA_ESHAPE, "src: expected rows behind", lora_quantize_4bit(ctx, LORA_4BIT_NF4, apart, 32, codes, absmax, &bad, ERR));
    REFUSED(LORA_EINVAL, "first_bad: expected an array", lora_quantize_4bit(ctx, LORA_4BIT_NF4, m, 32, codes, absmax, NULL, ERR));
    REFUSED(LORA_EINVAL, "absmax: expected memory apart from src", lora_quantize_4bit(ctx, LORA_4BIT_NF4, m, 32, codes, x + 63, &bad, ERR));
    m.rows = 0;
    REFUSED(LORA_ESHAPE, "src: expected a non-empty", lora_quantize_4bit(ctx, LORA_4BIT_NF4, m, 32, codes, absmax, &bad, ERR));
    REFUSED(LORA_ESHAPE, "absmax: expected at least", lora_double_quantize(ctx, absmax, 0, codes, x, &offset, ERR));
    REFUSED(LORA_EINVAL, "nested_absmax: expected memory", lora_double_quantize(ctx, absmax, 4, codes, absmax + 3, &offset, ERR));
    REFUSED(LORA_ESHAPE, "begin, count: expected", lora_dequantize(ctx, &w, 1, 64, x, LORA_F32, ERR));
    REFUSED(LORA_EINVAL, "dst: expected an array", lora_dequantize(ctx, &w, 0, 64, NULL, LORA_F32, ERR));
    w.absmax = NULL;
    REFUSED(LORA_EINVAL, "absmax: expected it, or", lora_dequantize(ctx, &w, 0, 64, x, LORA_F32, ERR));
}

typedef struct quantize_check {
    const char *name;
    void (*run)(op_run *r, lora_ctx *cpu);
} quantize_check;

static const quantize_check ENTRIES[] = {
    {"quantize_4bit", quantize_4bit}, {"double_quantize", double_quantize}, {"dequantize", dequantize}};
_Static_assert(sizeof ENTRIES / sizeof *ENTRIES == BACKEND_QUANTIZE_ENTRIES, "every entry has a case");

void check_backend_quantize(void) {
    static op_run r;
    const checked_device *devices;
    int n = checked_devices(&devices);
    lora_ctx *cpu = check_ctx(LORA_ISA_AUTO, 2);
    for (int d = 0; d < n; d++) {
        r = (op_run){.ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 2)};
        for (int i = 0; i < BACKEND_QUANTIZE_ENTRIES; i++) ENTRIES[i].run(&r, cpu);
        not_finite(&r, cpu);
        check_refused(r.ctx);
        device_ctx_free(r.ctx);
    }
    lora_ctx_destroy(cpu);
}
