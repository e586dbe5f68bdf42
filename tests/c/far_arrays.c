/* Quantizing, tables, and what is done to every element, over arrays of more than 2^31 elements. */
#include <math.h>
#include <string.h>

#include "lora_c/base/philox.h"
#include "tests/c/far_ends.h"

enum { END = 16384 /* elements at either end */, COLS = 128 };

static int64_t length(bool far) { return far ? ((int64_t)1 << 31) + END : 2 * END; }

/* --- quantizing --- */

static lora_status quantize(end_run *r, bool far, lora_dtype dtype, lora_error *err) {
    enum { SCALED = LORA_NF4_BLOCK };
    int64_t n = length(far);
    end_array *src = end_array_of(r, dtype == LORA_F32 ? END_FLOATS : END_HALVES, n, END, END, far);
    end_array *codes = end_array_of(r, END_BYTES, n / 2, END / 2, END / 2, far);
    end_array *absmax = end_array_of(r, END_FLOATS, n / SCALED, END / SCALED, END / SCALED, far);
    end_array *bad = end_array_of(r, END_BYTES, sizeof(int64_t), 0, sizeof(int64_t), false);
    lora_mat m = {.data = src->data, .rows = n / COLS, .cols = COLS, .ld = COLS, .dtype = dtype};
    LORA_TRY(lora_quantize_4bit(r->ctx, LORA_4BIT_NF4, m, SCALED, codes->data, absmax->data, bad->data, err));
    end_keep(r, codes);
    end_keep(r, absmax);
    end_keep(r, bad);
    const uint32_t infinite = 0x7f800000u; /* in the last bytes: of either type */
    int64_t index = 0;
    size_t item = lora_dtype_bytes(dtype), whole = sizeof infinite - item;
    LORA_TRY(lora_upload(r->ctx, (char *)src->data + (size_t)n * item - item, (const char *)&infinite + whole, item, err));
    LORA_TRY(lora_quantize_4bit(r->ctx, LORA_4BIT_NF4, m, SCALED, codes->data, absmax->data, bad->data, err));
    LORA_TRY(lora_download(r->ctx, &index, bad->data, sizeof index, err));
    LORA_TRY(lora_sync(r->ctx, err));
    CHECK(index == n - 1, "quantize: expected element %lld to be found infinite, got %lld", (long long)(n - 1), (long long)index);
    return LORA_OK;
}
static lora_status quantize_f32(end_run *r, bool far, lora_error *err) { return quantize(r, far, LORA_F32, err); }
static lora_status quantize_bf16(end_run *r, bool far, lora_error *err) { return quantize(r, far, LORA_BF16, err); }

/* --- tables, and what is done to every element of rows behind each other --- */

static lora_status rope_table(end_run *r, bool far, lora_error *err) {
    enum { HALF = 32, KEPT = END / HALF };
    static double frequencies[HALF];
    static int32_t positions[KEPT];
    int64_t rows = length(far) / HALF;
    end_array *cos = end_array_of(r, END_FLOATS, rows * HALF, END, END, far),
              *sin = end_array_of(r, END_FLOATS, rows * HALF, END, END, far);
    end_array *of_row = end_array_of(r, END_FLOATS, rows, 0, 0, far);
    for (int i = 0; i < HALF; i++) frequencies[i] = 1.0 / (1 + i);
    for (int i = 0; i < KEPT; i++) positions[i] = 3 * i + 1;
    LORA_TRY(lora_upload(r->ctx, of_row->data, positions, sizeof positions, err));
    LORA_TRY(lora_upload(r->ctx, (int32_t *)of_row->data + rows - KEPT, positions, sizeof positions, err));
    LORA_TRY(lora_rope_table(r->ctx, rows, of_row->data, HALF, frequencies, 1.5, cos->data, sin->data, err));
    end_keep(r, cos);
    end_keep(r, sin);
    return LORA_OK;
}

static lora_status elements(end_run *r, bool far, lora_error *err) {
    int64_t n = length(far);
    end_array *x = end_array_of(r, END_FLOATS, n, END, END, far), *y = end_array_of(r, END_FLOATS, n, END, END, far);
    end_array *half = end_array_of(r, END_HALVES, n, END, END, far);
    lora_mat to = {.data = half->data, .rows = n / COLS, .cols = COLS, .ld = COLS, .dtype = LORA_BF16};
    LORA_TRY(
        lora_scale_rows(r->ctx, 3, lora_mat_f32(x->data, n / COLS, COLS, COLS), lora_mat_f32(y->data, n / COLS, COLS, COLS), true, err));
    LORA_TRY(lora_convert_rows(r->ctx, lora_mat_f32(y->data, n / COLS, COLS, COLS), to, err));
    end_keep(r, y);
    end_keep(r, half);
    return LORA_OK;
}

/* Noise is drawn by the number of an element, here beyond 2^32: against the definition. */
static lora_status noise(end_run *r, bool far, lora_error *err) {
    enum { ROWS = 32, N = ROWS * COLS };
    static float before[N], after[N];
    const int64_t rows = ROWS + (far ? (int64_t)1 << 26 : 0), first = (rows - ROWS) * COLS;
    const int32_t starts[] = {0, (int32_t)rows};
    int32_t *on_device = far_send(r->ctx, starts, sizeof starts);
    end_array *x = end_array_of(r, END_FLOATS, rows * COLS, 0, N, far);
    const lora_noise how = {.alpha = 1000, .seed = 3, .stream = 5};
    const float scale = (float)(how.alpha / sqrt((double)(rows * COLS)));
    OK(lora_download(r->ctx, before, (float *)x->data + first, sizeof before, ERR));
    LORA_TRY(lora_add_noise(r->ctx, &how, &(lora_segments){1, starts, on_device}, lora_mat_f32(x->data, rows, COLS, COLS), err));
    OK(lora_download(r->ctx, after, (float *)x->data + first, sizeof after, ERR));
    OK(lora_sync(r->ctx, ERR));
    lora_ctx_free(r->ctx, on_device);
    int wrong = 0;
    for (int i = 0; i < N; i++) {
        float drawn = scale * (2.0f * lora_philox_uniform(how.seed, how.stream, (uint64_t)(first + i)) - 1.0f);
        wrong += after[i] != before[i] + drawn;
    }
    CHECK(wrong == 0, "noise: %d of %d elements from %lld on are others", wrong, (int)N, (long long)first);
    memcpy(r->results, &wrong, sizeof wrong); /* the elements are others elsewhere */
    r->bytes = sizeof wrong;
    return LORA_OK;
}

static const end_case CASES[] = {
    {"quantize float32", LORA_PRECISION_EXACT, quantize_f32},
    {"quantize bfloat16", LORA_PRECISION_EXACT, quantize_bf16},
    {"rope table", LORA_PRECISION_EXACT, rope_table},
    {"elements", LORA_PRECISION_EXACT, elements},
    {"noise", LORA_PRECISION_EXACT, noise},
};

void check_far_arrays(void) { end_check(CASES, sizeof CASES / sizeof *CASES); }
