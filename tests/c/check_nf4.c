/* NF4 and the other 4-bit types: every rung of this CPU against the oracle bit for bit, the tables against their derivations, and the
 * driver. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/c/bytes.h"
#include "tests/c/check_ops.h"
#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/half.h"
#include "lora_c/format/codebook.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/nf4.h"

/* The values of a type by their definitions. */
static float value_of(lora_4bit_type type, int code) {
    static const double twelfths[8] = {0, 0.0625, 8, 12, 4, 6, 2, 3}; /* FP4 of bitsandbytes by the meaning of its bits */
    static const double sixths[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    double sign = code < 8 ? 1 : -1;
    if (type == LORA_4BIT_FP4) return (float)(twelfths[code % 8] / 12) * (float)sign;
    if (type == LORA_4BIT_FP4_E2M1) return (float)(sign * sixths[code % 8] / 6);
    if (type == LORA_4BIT_INT4) return (float)((code == 15 ? 7 : code - 7) / 7.0);
    return lora_nf4_lut()[code];
}

/* The thresholds are the midpoints of the values in the order of the intervals; what is never made comes last. */
static void check_thresholds(lora_4bit_type type) {
    const lora_codebook *b = lora_codebook_of(type);
    bool seen[16] = {false};
    for (int i = 0; i < 16; i++) {
        CHECK(b->value[i] == value_of(type, i), "%s value %d: %.9g", b->name, i, (double)b->value[i]);
        seen[b->code[i]] = true;
    }
    for (int i = 0; i < 15; i++) {
        float low = b->value[b->code[i]], high = b->value[b->code[i + 1]];
        float middle = b->code[i] == b->code[i + 1] ? INFINITY : (float)(((double)low + (double)high) / 2);
        CHECK(low <= high && b->threshold[i] == middle, "%s threshold %d: %.9g is not %.9g", b->name, i, (double)b->threshold[i],
              (double)middle);
    }
    for (int i = 0; i < 16; i++) /* a code that is never made repeats a value */
        for (int j = 0; j < 16 && !seen[i]; j++) seen[i] = seen[j] && b->value[j] == b->value[i];
    for (int i = 0; i < 16; i++) CHECK(seen[i], "%s code %d has no interval", b->name, i);
    CHECK(b->value[b->code[0]] == -1 && b->value[b->zero] == 0 && b->value[b->code[15]] == 1, "%s: ends and zero", b->name);
}

/* Every q of a cell gives the number of rounded thresholds below it. */
static void check_cells(const lora_codebook *b) {
    for (int cell = -16; cell < 16; cell++)
        for (int q = cell * 2048; q < cell * 2048 + 2048; q++) {
            int below = 0, equal = 0;
            for (int i = 0; i < 15 && b->threshold[i] < 1; i++) {
                int rounded = (int)lrintf(b->threshold[i] * 32768.0f);
                below += q > rounded, equal += q == rounded;
            }
            int threshold = b->cell_threshold[cell & 31];
            CHECK(equal == (q == threshold), "%s cell %d, q %d: equal", b->name, cell, q);
            CHECK(equal || below == b->cell_base[cell & 31] + (q > threshold), "%s cell %d, q %d: code", b->name, cell, q);
        }
}

static void check_tables(void) {
    for (lora_4bit_type type = 0; type < LORA_4BIT_END; type++) {
        const lora_codebook *b = lora_codebook_of(type);
        check_thresholds(type);
        if (b->has_cells) check_cells(b);
        CHECK(lora_4bit_lut(type) == b->value && lora_4bit_name(type) == b->name, "%s: public names", b->name);
    }
    for (int i = 0; i < 15; i++) CHECK(lora_nf4_lut()[i] < lora_nf4_lut()[i + 1], "NF4 is not sorted at %d", i);
    CHECK(lora_fp4_lut() == lora_4bit_lut(LORA_4BIT_FP4), "FP4");
}

/* The values as float32 steps: n + 1 points from 0.1 to 1, midpoints, times the power of ten. */
static float map_point(int n, int j) {
    volatile float step = (1.0f - 0.1f) / (float)n, product = j < (n + 1) / 2 ? (float)j * step : (float)(n - j) * step;
    return j < (n + 1) / 2 ? 0.1f + product : 1.0f - product;
}

static void check_dynamic_map(void) {
    static const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    const float *map = lora_dynamic_map_signed();
    int next = 128;
    CHECK(map[127] == 0 && map[255] == 1, "zero and one of the dynamic map");
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 1 << i; j++, next++) {
            float v = (map_point(1 << i, j) + map_point(1 << i, j + 1)) / 2 * powers[i];
            CHECK(map[next] == v && map[254 - next] == -v, "map[%d]: %.9g, expected %.9g", next, (double)map[next], (double)v);
        }
    CHECK(next == 255, "map has %d positive values below 1", next - 128);
}

/* Kinds: 0 normal-like, 1 exact thresholds and values, 2 many zeros, 3 one huge, 4 subnormal, 5 a zero block. */
static void fill_block(const lora_codebook *book, float *x, int64_t n, int kind) {
    const float *thresholds = book->threshold;
    uint32_t n_thresholds = thresholds[14] < 1 ? 15 : 14;
    for (int64_t i = 0; i < n; i++) {
        float v = uniform(-1, 1) + uniform(-1, 1);
        uint32_t r = random_word();
        if (kind == 1) v = r & 1 ? thresholds[r / 2 % n_thresholds] : nextafterf(thresholds[r / 4 % n_thresholds], r & 2 ? 2.0f : -2.0f);
        if (kind == 2 && r & 1) v = 0;
        if (kind == 4) v *= 0x1p-140f;
        if (kind == 5) v = 0;
        memcpy(x + i, &v, 4);
    }
    if (kind == 1) x[random_word() % n] = 1;
    if (kind == 3) x[random_word() % n] = 3e38f;
}

static const lora_dtype dtypes[] = {LORA_F32, LORA_BF16, LORA_F16};

/* x rounded to dtype: the source in src, its values back in x. Float16 values stay within its range. */
static void round_to(lora_dtype dtype, int64_t n, float *x, void *src) {
    uint16_t *h = src;
    for (int64_t i = 0; i < n; i++) {
        if (dtype == LORA_F32) memcpy((float *)src + i, x + i, 4);
        if (dtype == LORA_BF16) h[i] = lora_f32_to_bf16(x[i]), x[i] = lora_bf16_to_f32(h[i]);
        if (dtype == LORA_F16) h[i] = lora_f32_to_f16(fabsf(x[i]) > 65000 ? copysignf(65000, x[i]) : x[i]), x[i] = lora_f16_to_f32(h[i]);
    }
}

/* One call against the oracle on the same values in float32. */
static void check_quantize_case(const lora_codebook *book, const lora_nf4_kernels *k, const lora_nf4_kernels *ref, lora_isa isa,
                                lora_dtype dtype, int64_t block_size, int64_t n_blocks) {
    char name[32];
    const char *from = lora_dtype_name(dtype);
    snprintf(name, sizeof name, "%s %s", lora_isa_name(isa), book->name);
    int64_t n = n_blocks * block_size, width = (int64_t)lora_dtype_bytes(dtype), offset = width * (n_blocks % 3);
    bytes x = bytes_make(4 * n, 0), src = bytes_make(width * n, offset);
    bytes codes = bytes_make(n / 2, n_blocks % 5), want = bytes_make(n / 2, 0);
    bytes absmax = bytes_make(4 * n_blocks, 4 * (n_blocks % 3)), want_absmax = bytes_make(4 * n_blocks, 0);
    float *xs = (float *)(void *)x.p;
    for (int64_t b = 0; b < n_blocks; b++) fill_block(book, xs + b * block_size, block_size, (int)(b % 6));
    round_to(dtype, n, xs, src.p);
    int64_t got = k->quantize(book, src.p, dtype, n_blocks, block_size, codes.p, (float *)(void *)absmax.p);
    ref->quantize(book, xs, LORA_F32, n_blocks, block_size, want.p, (float *)(void *)want_absmax.p);
    CHECK(got == n_blocks, "%s quantize %s: returned %lld of %lld", name, from, (long long)got, (long long)n_blocks);
    CHECK(!memcmp(codes.p, want.p, (size_t)n / 2), "%s codes of %s, block size %lld", name, from, (long long)block_size);
    CHECK(!memcmp(absmax.p, want_absmax.p, (size_t)n_blocks * 4), "%s absmax of %s, block size %lld", name, from, (long long)block_size);
    CHECK(bytes_guarded(codes) && bytes_guarded(absmax), "%s quantize %s wrote outside", name, from);
    static const float bad[3] = {NAN, INFINITY, -INFINITY};
    for (int j = 0; j < 3 && n_blocks > 0; j++) {
        int64_t where = random_word() % n;
        float value = bad[j];
        uint16_t half = dtype == LORA_BF16 ? lora_f32_to_bf16(value) : lora_f32_to_f16(value);
        memcpy(src.p + width * where, dtype == LORA_F32 ? (void *)&value : (void *)&half, (size_t)width);
        got = k->quantize(book, src.p, dtype, n_blocks, block_size, codes.p, (float *)(void *)absmax.p);
        CHECK(got == where / block_size, "%s: non-finite block %lld of %s, got %lld", name, (long long)(where / block_size), from,
              (long long)got);
        memset(src.p + width * where, 0, (size_t)width);
    }
    free(x.all), free(src.all), free(codes.all), free(want.all), free(absmax.all), free(want_absmax.all);
}

static void check_quantize(const lora_codebook *book, const lora_nf4_kernels *k, const lora_nf4_kernels *ref, lora_isa isa) {
    static const int64_t block_sizes[] = {32, 64, 128, 256, 1024, 4096};
    for (int d = 0; d < 3; d++)
        for (int s = 0; s < 6; s++)
            for (int64_t n_blocks = 0; n_blocks <= 70; n_blocks = n_blocks < 3 ? n_blocks + 1 : n_blocks * 3)
                check_quantize_case(book, k, ref, isa, dtypes[d], block_sizes[s], n_blocks);
}

/* Every 16-bit value as the largest of its block, and as one that is coded. */
static void check_all_halves(const lora_codebook *book, const lora_nf4_kernels *k, const lora_nf4_kernels *ref, lora_isa isa) {
    enum { BLOCK = 32 };
    for (int d = 1; d < 3; d++)
        for (uint32_t bits = 0; bits < 65536; bits += BLOCK) {
            uint16_t src[BLOCK];
            float x[BLOCK], absmax = -1, want_absmax = -2;
            uint8_t codes[BLOCK / 2] = {1}, want[BLOCK / 2] = {2};
            for (int i = 0; i < BLOCK; i++) {
                src[i] = (uint16_t)(bits + (uint32_t)i);
                x[i] = d == 1 ? lora_bf16_to_f32(src[i]) : lora_f16_to_f32(src[i]);
            }
            int64_t got = k->quantize(book, src, dtypes[d], 1, BLOCK, codes, &absmax);
            CHECK(got == ref->quantize(book, x, LORA_F32, 1, BLOCK, want, &want_absmax), "%s %s %u", lora_isa_name(isa),
                  lora_dtype_name(dtypes[d]), bits);
            if (got)
                CHECK(absmax == want_absmax && !memcmp(codes, want, sizeof codes), "%s %s %u", lora_isa_name(isa),
                      lora_dtype_name(dtypes[d]), bits);
        }
}

/* Nearest value by brute force: the code's value is as near as any other, in float64, and of two equally near ones the lower. */
static void check_nearest(const lora_codebook *book, const lora_nf4_kernels *k, lora_isa isa) {
    const float *lut = book->value;
    float x[64], absmax;
    uint8_t codes[32];
    for (int round = 0; round < 500; round++) {
        fill_block(book, x, 64, round % 3);
        x[0] = round % 2 ? 1.0f : 2.0f; /* so that the reciprocal is exact and x * inverse is what the definition says */
        for (int i = 1; i < 64; i++) x[i] = fminf(fmaxf(x[i], -x[0]), x[0]);
        x[1] = 0;
        k->quantize(book, x, LORA_F32, 1, 64, codes, &absmax);
        for (int i = 0; i < 64; i++) {
            double y = (double)x[i] / absmax, best = 9;
            for (int c = 0; c < 16; c++) best = fmin(best, fabs(y - lut[c]));
            double mine = fabs(y - lut[lora_nf4_code(codes, i)]); /* a float32 midpoint may be 2^-26 off the true one */
            CHECK(mine <= best + 0x1p-24, "%s %s: %.9g is coded at distance %.9g, nearest %.9g", lora_isa_name(isa), book->name, y, mine,
                  best);
            if (x[i] == 0) CHECK(lora_nf4_code(codes, i) == book->zero, "%s %s: zero", lora_isa_name(isa), book->name);
            for (int t = 0; t < 15; t++)
                if (y == book->threshold[t])
                    CHECK(lora_nf4_code(codes, i) == book->code[t], "%s %s: tie %d", lora_isa_name(isa), book->name, t);
        }
    }
    for (int c = 0; c < 16; c++) { /* every value survives a round trip */
        for (int i = 0; i < 64; i++) x[i] = lut[(c + i) % 16] * 0.37f;
        k->quantize(book, x, LORA_F32, 1, 64, codes, &absmax);
        for (int i = 0; i < 64; i++)
            CHECK(lut[lora_nf4_code(codes, i)] == lut[(c + i) % 16], "%s %s: code %d", lora_isa_name(isa), book->name, (c + i) % 16);
    }
}

static void check_dequantize(const lora_nf4_kernels *k, const lora_nf4_kernels *ref, lora_isa isa) {
    enum { N = 9001, BLOCK = 64, BLOCKS = (N + BLOCK - 1) / BLOCK };
    static uint8_t codes[N / 2 + 1 + 64], absmax_codes[BLOCKS + 64];
    float absmax[BLOCKS], nested_absmax[9], lut[16];
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)random_word();
    for (int i = 0; i < BLOCKS; i++) absmax[i] = uniform(0, 2), absmax_codes[i] = (uint8_t)random_word();
    for (int i = 0; i < 9; i++) nested_absmax[i] = uniform(0, 1);
    for (int i = 0; i < 16; i++) lut[i] = uniform(-1, 1);
    lora_nf4 plain = {.rows = 1, .cols = N, .block_size = BLOCK, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    lora_nf4 nested = {.rows = 1,
                       .cols = N,
                       .block_size = BLOCK,
                       .lut = lut,
                       .codes = codes,
                       .absmax_codes = absmax_codes,
                       .nested_absmax = nested_absmax,
                       .nested_map = lora_dynamic_map_signed(),
                       .nested_block_size = 16,
                       .nested_offset = 0.37f};
    const lora_nf4 *views[2] = {&plain, &nested};
    for (int v = 0; v < 2; v++)
        for (int s = 0; s < N_LENGTHS; s++)
            for (int64_t begin = 0; begin < 200; begin += 1 + random_word() % 9) {
                bytes got = bytes_make(4 * LENGTHS[s], 4 * (begin % 4)), want = bytes_make(4 * LENGTHS[s], 0);
                k->dequantize(views[v], begin, LENGTHS[s], (float *)(void *)got.p);
                ref->dequantize(views[v], begin, LENGTHS[s], (float *)(void *)want.p);
                CHECK(!memcmp(got.p, want.p, (size_t)got.n) && bytes_guarded(got), "%s dequantize [%lld, +%lld)", lora_isa_name(isa),
                      (long long)begin, (long long)LENGTHS[s]);
                free(got.all), free(want.all);
                int64_t first = begin % 100, n = LENGTHS[s] < BLOCKS - first ? LENGTHS[s] : BLOCKS - first;
                got = bytes_make(4 * n, 4 * (begin % 3)), want = bytes_make(4 * n, 0);
                k->decode_absmax(views[v], first, n, (float *)(void *)got.p);
                ref->decode_absmax(views[v], first, n, (float *)(void *)want.p);
                CHECK(!memcmp(got.p, want.p, (size_t)got.n) && bytes_guarded(got), "%s decode_absmax", lora_isa_name(isa));
                free(got.all), free(want.all);
            }
}

/* Threads, ragged tails, errors, and double quantization by brute force. */
static void check_driver(void) {
    enum { ROWS = 300, COLS = 1013, N = ROWS * COLS, BLOCKS = (N + 63) / 64, NESTED = (BLOCKS + 255) / 256 };
    static float x[N], absmax[2][BLOCKS], nested_absmax[NESTED], y[N];
    static uint8_t codes[2][N / 2 + 1 + 64], nested[BLOCKS];
    const float *map = lora_dynamic_map_signed();
    for (int i = 0; i < N; i++) x[i] = uniform(-1, 1) * uniform(0, 1);
    for (int threads = 1; threads <= 3; threads += 2) {
        int t = threads > 1;
        lora_error err;
        lora_ctx *ctx = NULL;
        CHECK(lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = LORA_ISA_AUTO}, &ctx, &err) == LORA_OK, "context");
        CHECK(lora_nf4_quantize(ctx, x, LORA_F32, ROWS, COLS, 64, codes[t], absmax[t], &err) == LORA_OK, "quantize");
        float offset = 0;
        CHECK(lora_nf4_double_quantize(ctx, absmax[t], BLOCKS, nested, nested_absmax, &offset, &err) == LORA_OK, "double");
        for (int i = 0; i < BLOCKS; i++) {
            float top = nested_absmax[i / 256];
            double v = (double)((absmax[t][i] - offset) / top), best = 9;
            int code = 0;
            for (int c = 0; c < 256; c++) {
                double d = fabs(v - map[c]);
                if (d < best || (d == best && c % 2 == 0)) best = d, code = c;
            }
            CHECK(code == nested[i], "nested code %d: got %d, nearest %d", i, nested[i], code);
        }
        lora_nf4 w = {.rows = ROWS, .cols = COLS, .block_size = 64, .lut = lora_nf4_lut(), .codes = codes[t], .absmax = absmax[t]};
        CHECK(lora_nf4_dequantize(ctx, &w, 0, N, y, LORA_F32, &err) == LORA_OK, "dequantize");
        double worst = 0;
        for (int i = 0; i < N; i++) worst = worse(worst, fabs((double)x[i] - y[i]) / absmax[t][i / 64]);
        CHECK(worst <= 0.1520, "largest error %.4f of absmax, half the widest gap is 0.1519", worst);
        CHECK((codes[t][N / 2 - 1 + N % 2] & 15) == 7 || N % 2 == 0, "missing nibble");
        CHECK(lora_nf4_dequantize(ctx, &w, N, 1, y, LORA_F32, &err) == LORA_ESHAPE, "range past the end");
        CHECK(lora_nf4_quantize(ctx, x, LORA_F32, ROWS, COLS, 48, codes[t], absmax[t], &err) == LORA_EINVAL, "block size");
        CHECK(lora_nf4_quantize(ctx, x, LORA_F32, 0, COLS, 64, codes[t], absmax[t], &err) == LORA_ESHAPE, "no rows");
        float kept = x[200001], last = x[N - 1];
        x[200001] = NAN, x[N - 1] = INFINITY;
        static uint8_t other[N / 2 + 65];
        static float scales[BLOCKS];
        CHECK(lora_nf4_quantize(ctx, x, LORA_F32, ROWS, COLS, 64, other, scales, &err) == LORA_EINVAL, "NaN");
        CHECK(strstr(err.message, "index 200001 ") != NULL, "message: %s", err.message);
        x[200001] = kept;
        CHECK(lora_nf4_quantize(ctx, x, LORA_F32, ROWS, COLS, 64, other, scales, &err) == LORA_EINVAL, "Inf in the tail");
        CHECK(strstr(err.message, "got inf at index 303899 ") != NULL, "message: %s", err.message);
        x[N - 1] = last;
        float same[300], top[2];
        for (int i = 0; i < 300; i++) same[i] = 0.25f;
        CHECK(lora_nf4_double_quantize(ctx, same, 300, nested, top, &offset, &err) == LORA_OK, "equal scales");
        for (int i = 0; i < 300; i++) CHECK(nested[i] == 127, "zero must stay zero");
        lora_ctx_destroy(ctx);
    }
    CHECK(!memcmp(codes[0], codes[1], N / 2) && !memcmp(absmax[0], absmax[1], sizeof absmax[0]), "threads change bits");
}

void check_nf4(void) {
    lora_nf4_kernels ref, k;
    lora_nf4_kernels_init(&ref, LORA_ISA_REF);
    check_tables();
    check_dynamic_map();
    for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa++) {
        lora_nf4_kernels_init(&k, isa);
        for (lora_4bit_type type = 0; type < LORA_4BIT_END; type++) {
            const lora_codebook *book = lora_codebook_of(type);
            check_quantize(book, &k, &ref, isa);
            check_all_halves(book, &k, &ref, isa);
            check_nearest(book, &k, isa);
        }
        check_dequantize(&k, &ref, isa);
    }
    check_driver();
}
