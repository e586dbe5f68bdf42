/* Mistakes that a device must not forgive, made on purpose in processes of their own: each ends as the fake device promises. */
#include <signal.h>
#include <stdio.h>

#include "tests/c/check_ops.h"
#include "tests/c/children.h"
#include "tests/c/devices.h"

enum { N = 64 };
enum { RIGHT = 10, WRONG, FAILED }; /* exit codes: the bits that a correct program gets, others, an error */

typedef struct device_arrays {
    lora_ctx *ctx;
    float in[N], out[N];
    float *there; /* (N) on the device, holds in */
} device_arrays;

typedef int mistake(device_arrays *a);

static void need(lora_status status) {
    if (status != LORA_OK) end_process(FAILED);
}

static int bits_of(const float *got, const float *want) { return memcmp(got, want, N * sizeof *got) == 0 ? RIGHT : WRONG; }

static void fetch(device_arrays *a, const float *from) {
    need(lora_download(a->ctx, a->out, from, sizeof a->out, NULL));
    need(lora_sync(a->ctx, NULL));
}

/* In a child: makes the mistake with an array on a device of its own. */
static int make(void *argument) {
    static device_arrays a;
    a.ctx = device_ctx_on("fake", library_beside("liblora_c_fake.so"), LORA_ISA_AUTO, 1);
    check_normal(a.in, N, 1, 1);
    a.there = lora_ctx_alloc(a.ctx, LORA_MEM_PARAM, sizeof a.in);
    need(lora_upload(a.ctx, a.there, a.in, sizeof a.in, NULL));
    need(lora_sync(a.ctx, NULL));
    return (*(mistake *const *)argument)(&a);
}

/* --- none, and those that end a process --- */

static int no_mistake(device_arrays *a) {
    fetch(a, a->there);
    return bits_of(a->out, a->in);
}

static int reads_memory_of_the_device(device_arrays *a) { return *(volatile float *)a->there == a->in[0] ? RIGHT : WRONG; }

static int writes_memory_of_the_device(device_arrays *a) {
    *(volatile float *)a->there = 1;
    return RIGHT;
}

/* --- those that give wrong bits --- */

static int reads_before_the_sync(device_arrays *a) {
    need(lora_download(a->ctx, a->out, a->there, sizeof a->out, NULL));
    return bits_of(a->out, a->in);
}

static int changes_a_source_before_the_sync(device_arrays *a) {
    float source[N], want[N];
    check_normal(source, N, 2, 1);
    memcpy(want, source, sizeof want);
    need(lora_upload(a->ctx, a->there, source, sizeof source, NULL));
    source[3] = 0;
    fetch(a, a->there);
    return bits_of(a->out, want);
}

static int relies_on_a_stage_after_the_sync(device_arrays *a) {
    float *stage = lora_stage_alloc(a->ctx, sizeof a->in);
    memcpy(stage, a->in, sizeof a->in);
    for (int i = 0; i < 2; i++) { /* filled once, sent twice */
        need(lora_upload(a->ctx, a->there, stage, sizeof a->in, NULL));
        need(lora_sync(a->ctx, NULL));
    }
    fetch(a, a->there);
    return bits_of(a->out, a->in);
}

static int uses_memory_after_its_end(device_arrays *a) {
    lora_ctx_free(a->ctx, a->there);
    fetch(a, a->there);
    return bits_of(a->out, a->in);
}

static int uses_memory_before_it_is_written(device_arrays *a) {
    float *one = lora_ctx_alloc_uncleared(a->ctx, LORA_MEM_PARAM, sizeof a->in);
    need(lora_upload(a->ctx, one, a->in, sizeof a->in, NULL));
    lora_ctx_free(a->ctx, one);
    need(lora_sync(a->ctx, NULL));
    float *two = lora_ctx_alloc_uncleared(a->ctx, LORA_MEM_PARAM, sizeof a->in); /* the same place */
    fetch(a, two);
    return one == two ? bits_of(a->out, a->in) : FAILED;
}

static void check_ends(void) {
    static const struct {
        const char *what;
        mistake *make;
        int end;
    } mistakes[] = {
        {"no mistake", no_mistake, RIGHT},
        {"the host reads memory of the device", reads_memory_of_the_device, -SIGSEGV},
        {"the host writes memory of the device", writes_memory_of_the_device, -SIGSEGV},
        {"a download is read before the sync", reads_before_the_sync, WRONG},
        {"the source of an upload is changed before the sync", changes_a_source_before_the_sync, WRONG},
        {"a stage is sent again after the sync", relies_on_a_stage_after_the_sync, WRONG},
        {"memory is used after its end", uses_memory_after_its_end, WRONG},
        {"memory is used before it is written", uses_memory_before_it_is_written, WRONG},
    };
    for (size_t i = 0; has_children() && i < sizeof mistakes / sizeof *mistakes; i++) {
        int end = end_of_child(make, (void *)&mistakes[i].make);
        CHECK(end == mistakes[i].end, "%s: ended with %d, expected %d", mistakes[i].what, end, mistakes[i].end);
    }
}

/* --- those that are refused --- */

static lora_mat row_of(const float *p) { return lora_mat_f32(p, 1, N, N); }

static void check_refused(void) {
    lora_ctx *ctx = device_ctx_on("fake", library_beside("liblora_c_fake.so"), LORA_ISA_AUTO, 1);
    float host[N] = {0}, out[N];
    float *there = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof host), *other = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof host);
    OK(lora_scale_rows(ctx, 2, row_of(host), row_of(there), false, ERR)); /* later: */
    REFUSED(LORA_EINVAL, "scale_rows: expected addresses of the device, got one of the host", lora_sync(ctx, ERR));
    OK(lora_sync(ctx, ERR)); /* once */
    OK(lora_upload(ctx, host, out, sizeof host, ERR));
    REFUSED(LORA_EINVAL, "upload: expected an address of the device, got one of the host", lora_sync(ctx, ERR));
    OK(lora_download(ctx, out, host, sizeof host, ERR));
    REFUSED(LORA_EINVAL, "download: expected an address of the device, got one of the host", lora_sync(ctx, ERR));
    OK(lora_clear(ctx, host, sizeof host, ERR));
    REFUSED(LORA_EINVAL, "clear: expected an address of the device, got one of the host", lora_sync(ctx, ERR));
    lora_weight w = lora_weight_f32(host, 1, N, N);
    lora_linear_layer layer = {.w = &w, .y = lora_mat_f32(other, 1, 1, 1)};
    OK(lora_linear_forward(ctx, row_of(there), 1, &layer, ERR));
    REFUSED(LORA_EINVAL, "linear_forward: expected addresses of the device, got one of the host", lora_sync(ctx, ERR));
    lora_adapter of_host = {.rank = 1, .A = host, .B = other, .scale = 1};
    lora_weight there_too = lora_weight_f32(there, 1, N, N);
    layer = (lora_linear_layer){
        .w = &there_too, .y = lora_mat_f32(other, 1, 1, 1), .groups = &(lora_adapter_rows){&of_host, 0, 1}, .n_groups = 1};
    OK(lora_linear_forward(ctx, row_of(there), 1, &layer, ERR));
    REFUSED(LORA_EINVAL, "linear_forward: expected addresses of the device, got one of the host", lora_sync(ctx, ERR));
    /* what follows a failure does not happen, but for clearing and giving back */
    for (int i = 0; i < N; i++) host[i] = 1;
    OK(lora_upload(ctx, there, host, sizeof host, ERR));
    OK(lora_upload(ctx, other, host, sizeof host, ERR));
    OK(lora_sync(ctx, ERR));
    OK(lora_softcap_rows(ctx, 1, row_of(host), ERR));
    OK(lora_scale_rows(ctx, 2, row_of(there), row_of(there), false, ERR));
    OK(lora_clear(ctx, other, sizeof host, ERR));
    REFUSED(LORA_EINVAL, "softcap_rows: expected addresses of the device", lora_sync(ctx, ERR));
    OK(lora_download(ctx, out, there, sizeof out, ERR));
    OK(lora_download(ctx, host, other, sizeof host, ERR));
    OK(lora_sync(ctx, ERR));
    CHECK(out[0] == 1 && host[0] == 0, "after a failure: %g and %g", (double)out[0], (double)host[0]);
    lora_ctx_free(ctx, there);
    lora_ctx_free(ctx, other);
    device_ctx_free(ctx);
}

void check_device_mistakes(void) {
    if (!*backend_paths()) return; /* there is no fake device */
    check_ends();
    check_refused();
}
