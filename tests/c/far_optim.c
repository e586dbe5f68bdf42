/* Steps of optimizers over an array of more than 2^31 elements and one behind it. */
#include "tests/c/devices.h"
#include "tests/c/far_ends.h"

enum {
    END = 16384, /* elements at either end of the first array */
    COLS = 128,  /* of the second one, whose state lies behind that of the first */
    SECOND = 64 * COLS,
    BLOCK = LORA_ADAMW8BIT_BLOCK,
};
#define FIRST_FAR (((int64_t)1 << 31) + END)

static int64_t first_of(bool far) { return far ? FIRST_FAR : 2 * END; }

/* A long array and a short one behind it, with as many numbers of state for each element. */
typedef struct arrays {
    lora_param params[2];
    end_array *data, *grad;
} arrays;

static end_array *floats(end_run *r, bool far) { return end_array_of(r, END_FLOATS, first_of(far) + SECOND, END, END + SECOND, far); }
static arrays arrays_of(end_run *r, bool far) {
    int64_t n = first_of(far);
    arrays a = {.data = floats(r, far), .grad = floats(r, far)};
    float *data = a.data->data, *grad = a.grad->data;
    a.params[0] = (lora_param){.data = data, .grad = grad, .n = n, .decay = true, .lr_ratio = 1};
    a.params[1] = (lora_param){.data = data + n, .grad = grad + n, .n = SECOND, .cols = COLS, .lr_ratio = 0.5};
    return a;
}

static const lora_adamw_hyper ADAMW = {
    .lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .step = 3, .grad_scale = 0.5};

static lora_status adamw(end_run *r, bool far, lora_error *err) {
    arrays a = arrays_of(r, far);
    end_array *m = floats(r, far), *v = floats(r, far);
    LORA_TRY(lora_adamw_step(r->ctx, 2, a.params, m->data, v->data, &ADAMW, err));
    end_keep(r, a.data);
    end_keep(r, m);
    end_keep(r, v);
    return LORA_OK;
}
static lora_status adamw8bit(end_run *r, bool far, lora_error *err) {
    arrays a = arrays_of(r, far);
    int64_t n = first_of(far) + SECOND, tail = END + SECOND;
    end_array *m = end_array_of(r, END_BYTES, n, END, tail, far), *v = end_array_of(r, END_BYTES, n, END, tail, far);
    end_array *of_m = end_array_of(r, END_FLOATS, n / BLOCK, END / BLOCK, tail / BLOCK, far);
    end_array *of_v = end_array_of(r, END_FLOATS, n / BLOCK, END / BLOCK, tail / BLOCK, far);
    lora_adamw8bit_state state = {m->data, v->data, of_m->data, of_v->data};
    LORA_TRY(lora_adamw8bit_step(r->ctx, 2, a.params, &state, &ADAMW, err));
    end_keep(r, a.data);
    end_keep(r, m);
    end_keep(r, v);
    end_keep(r, of_m);
    end_keep(r, of_v);
    return LORA_OK;
}
static lora_status sgd(end_run *r, bool far, lora_error *err) {
    arrays a = arrays_of(r, far);
    end_array *m = floats(r, far);
    lora_sgd_hyper hyper = {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true, .step = 2, .grad_scale = 1};
    LORA_TRY(lora_sgd_step(r->ctx, 2, a.params, m->data, &hyper, err));
    end_keep(r, a.data);
    end_keep(r, m);
    return LORA_OK;
}
static lora_status lion(end_run *r, bool far, lora_error *err) {
    arrays a = arrays_of(r, far);
    end_array *m = floats(r, far);
    lora_lion_hyper hyper = {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_scale = 1};
    LORA_TRY(lora_lion_step(r->ctx, 2, a.params, m->data, &hyper, err));
    end_keep(r, a.data);
    end_keep(r, m);
    return LORA_OK;
}

/* Sums over the first array are not there; the second one, whose factors lie behind those of the first, needs none of it. */
static lora_status adafactor(end_run *r, bool far, lora_error *err) {
    arrays a = arrays_of(r, far);
    int64_t n = first_of(far);
    end_array *row = end_array_of(r, END_FLOATS, SECOND / COLS, 0, SECOND / COLS, far);
    end_array *col = end_array_of(r, END_FLOATS, n + COLS, 0, COLS, far), *m = floats(r, far);
    lora_adafactor_state state = {row->data, col->data, m->data};
    lora_adafactor_hyper hyper = {.lr = 0.01,
                                  .eps1 = 1e-30,
                                  .eps2 = 1e-3,
                                  .clip_threshold = 1,
                                  .decay_rate = -0.8,
                                  .beta1 = 0.9,
                                  .scale_parameter = true,
                                  .step = 3,
                                  .grad_scale = 1};
    LORA_TRY(lora_adafactor_step(r->ctx, 2, a.params, &state, &hyper, err));
    end_array second[] = {*a.data, *m};
    for (int i = 0; i < 2; i++) {
        second[i].head = 0;
        second[i].tail = SECOND;
        end_keep(r, &second[i]);
    }
    end_keep(r, row);
    end_keep(r, col);
    return LORA_OK;
}

static const end_case CASES[] = {
    {"adamw", LORA_PRECISION_EXACT, adamw}, {"adamw in 8 bits", LORA_PRECISION_EXACT, adamw8bit}, {"sgd", LORA_PRECISION_EXACT, sgd},
    {"lion", LORA_PRECISION_EXACT, lion},   {"adafactor", LORA_PRECISION_EXACT, adafactor},
};

/* Of all elements, most of which are 0. */
static void check_sum_of_squares(void) {
    static float ends[2 * END];
    int64_t n = FIRST_FAR;
    double want = 0, got = 0;
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 1);
    float *grad = lora_ctx_alloc_uncleared(ctx, LORA_MEM_SCRATCH, (size_t)n * sizeof *grad);
    double *sum = lora_ctx_alloc(ctx, LORA_MEM_SCRATCH, sizeof *sum);
    restart_random();
    for (int i = 0; i < 2 * END; i++) {
        ends[i] = uniform(-1, 1);
        want += (double)ends[i] * (double)ends[i];
    }
    OK(lora_upload(ctx, grad, ends, sizeof ends / 2, ERR));
    OK(lora_upload(ctx, grad + n - END, ends + END, sizeof ends / 2, ERR));
    OK(lora_sum_of_squares(ctx, 1, &(lora_param){.data = (float[1]){0}, .grad = grad, .n = n}, sum, ERR));
    OK(lora_download(ctx, &got, sum, sizeof got, ERR));
    OK(lora_sync(ctx, ERR));
    close_to("sum of squares", got, want, 1e-12 * want);
    lora_ctx_free(ctx, grad);
    lora_ctx_free(ctx, sum);
    device_ctx_free(ctx);
}

void check_far_optim(void) {
    end_check(CASES, sizeof CASES / sizeof *CASES);
    check_sum_of_squares();
}
