#include "tests/fake_device/fake.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/context.h"

lora_status fake_enqueue(fake_device *f, fake_run_fn *run, lora_precision precision, const void *args, size_t bytes, lora_error *err) {
    if (f->n_jobs == f->room_for_jobs) {
        int64_t room = 2 * f->room_for_jobs + 64;
        fake_job *jobs = realloc(f->jobs, (size_t)room * sizeof *jobs);
        LORA_CHECK(jobs, err, LORA_ENOMEM, "queue: expected memory for %lld jobs, got none", (long long)room);
        f->jobs = jobs;
        f->room_for_jobs = room;
    }
    void *copy = malloc(bytes);
    LORA_CHECK(copy, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    f->jobs[f->n_jobs++] = (fake_job){.run = run, .args = memcpy(copy, args, bytes), .precision = precision};
    return LORA_OK;
}

lora_status fake_run_queue(fake_device *f, lora_error *err) {
    lora_status status = LORA_OK;
    for (int64_t i = 0; i < f->n_jobs; i++) {
        fake_job *job = f->jobs + i;
        lora_error own;
        if (lora_ctx_set_precision(f->cpu, job->precision, NULL) == LORA_OK) {
            lora_status now = job->run(f, job->args, &own);
            if (now != LORA_OK && status == LORA_OK) status = lora_fail(err, now, "%s", own.message);
        }
        free(job->args);
    }
    f->n_jobs = 0;
    return status;
}

/* --- the device --- */

static int64_t fake_devices(int64_t most, lora_device *out) {
    if (most > 0) *out = (lora_device){.name = "fake", .description = "the CPU's mathematics in memory of its own, for tests"};
    if (most > 1) out[1] = (lora_device){.name = "fake:broken", .description = "one that cannot be used, for tests",
                                         .reason = "fake:broken: expected a device that works, got none; use fake"};
    return 2;
}

static void fake_destroy(void *state) {
    fake_device *f = state;
    (void)!fake_run_queue(f, NULL);
    lora_ctx_destroy(f->cpu);
    fake_close_memory(f);
    free(f->jobs);
    free(f);
}

static lora_status fake_create(lora_ctx *host, int64_t index, void **state, lora_error *err) {
    fake_device *f = index == 0 ? calloc(1, sizeof *f) : NULL;
    LORA_CHECK(f, err, LORA_ENOMEM, "fake: expected %zu bytes, got none", sizeof *f);
    f->fd = -1;
    lora_status status = fake_open_memory(f, err);
    if (status == LORA_OK) status = lora_ctx_create_view(host, &f->cpu, err);
    if (status == LORA_OK)
        *state = f;
    else {
        fake_close_memory(f);
        free(f);
    }
    return status;
}

static lora_backend table;

__attribute__((visibility("default"))) const lora_backend *lora_backend_entry(uint32_t abi) {
    table = (lora_backend){.abi = LORA_BACKEND_ABI, .name = "fake", .devices = fake_devices, .create = fake_create, .destroy = fake_destroy,
                           .memory = fake_memory, .ops = fake_ops};
    return abi == LORA_BACKEND_ABI ? &table : NULL;
}
