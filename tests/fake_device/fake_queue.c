#include "tests/fake_device/fake.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/context.h"

static bool append(fake_device *f, fake_job job) {
    if (f->n_jobs == f->room_for_jobs) {
        int64_t room = 2 * f->room_for_jobs + 64;
        fake_job *jobs = realloc(f->jobs, (size_t)room * sizeof *jobs);
        if (!jobs) return false;
        f->jobs = jobs;
        f->room_for_jobs = room;
    }
    f->jobs[f->n_jobs++] = job;
    return true;
}

lora_status fake_enqueue(fake_device *f, fake_job job, const void *args, size_t bytes, lora_error *err) {
    job.args = malloc(bytes);
    LORA_CHECK(job.args, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    memcpy(job.args, args, bytes);
    pthread_mutex_lock(&f->lock);
    bool appended = append(f, job);
    pthread_mutex_unlock(&f->lock);
    if (appended) return LORA_OK;
    free(job.args);
    return lora_fail(err, LORA_ENOMEM, "queue: expected memory for one more job, got none");
}

/* The queue, which is empty afterwards: jobs may be added while these run. */
static fake_job *take_jobs(fake_device *f, int64_t *n) {
    pthread_mutex_lock(&f->lock);
    fake_job *jobs = f->jobs;
    *n = f->n_jobs;
    f->jobs = NULL;
    f->n_jobs = f->room_for_jobs = 0;
    pthread_mutex_unlock(&f->lock);
    return jobs;
}

static lora_status run_job(fake_device *f, const fake_job *job, lora_error *err) {
    LORA_TRY(lora_ctx_set_precision(f->cpu, job->precision, err));
    return job->run(f, job->args, err);
}

lora_status fake_run_queue(fake_device *f, lora_error *err) {
    lora_status status = LORA_OK;
    int64_t n;
    fake_job *jobs = take_jobs(f, &n);
    for (int64_t i = 0; i < n; i++) {
        if (status == LORA_OK)
            status = run_job(f, &jobs[i], err);
        else if (jobs[i].always)
            (void)!run_job(f, &jobs[i], NULL);
        free(jobs[i].args);
    }
    free(jobs);
    return status;
}

/* --- the device --- */

static int64_t fake_devices(int64_t most, lora_device *out) {
    if (most > 0) *out = (lora_device){.name = "fake", .description = "the CPU's mathematics in memory of its own, for tests"};
    if (most > 1)
        out[1] = (lora_device){.name = "fake:broken",
                               .description = "one that cannot be used, for tests",
                               .reason = "fake:broken: expected a device that works, got none; use fake"};
    return 2;
}

static void fake_destroy(void *state) {
    fake_device *f = state;
    (void)!fake_run_queue(f, NULL);
    lora_ctx_destroy(f->cpu);
    fake_close_memory(f);
    free(f->jobs); /* empty */
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
    table = (lora_backend){.abi = LORA_BACKEND_ABI,
                           .name = "fake",
                           .devices = fake_devices,
                           .create = fake_create,
                           .destroy = fake_destroy,
                           .memory = fake_memory,
                           .ops = fake_ops};
    return abi == LORA_BACKEND_ABI ? &table : NULL;
}
