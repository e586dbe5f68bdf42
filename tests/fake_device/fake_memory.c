#define _GNU_SOURCE
#include "tests/fake_device/fake.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64 };

/* Addresses; pages come when they are written. An emulator keeps some 30 bytes for each page that was ever mapped (qemu-user 7.2),
 * and maps every device's elsewhere. */
static size_t bytes_reserved(void) { return getenv("LORA_C_CHECK_EMULATED") ? (size_t)64 << 20 : (size_t)4 << 30; }

lora_status fake_open_memory(fake_device *f, lora_error *err) {
    pthread_mutex_init(&f->lock, NULL);
    f->reserved = bytes_reserved();
    f->fd = memfd_create("lora_fake_device", MFD_CLOEXEC);
    LORA_CHECK(f->fd >= 0 && ftruncate(f->fd, (off_t)f->reserved) == 0, err, LORA_EDEVICE,
               "fake: expected a memory file of %zu bytes, got none", f->reserved);
    void *seen = mmap(NULL, f->reserved, PROT_NONE, MAP_SHARED | MAP_NORESERVE, f->fd, 0);
    void *real = mmap(NULL, f->reserved, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, f->fd, 0);
    f->seen = seen == MAP_FAILED ? NULL : seen;
    f->real = real == MAP_FAILED ? NULL : real;
    LORA_CHECK(f->seen && f->real, err, LORA_EDEVICE, "fake: expected two views of %zu bytes, got none", f->reserved);
    return LORA_OK;
}

void fake_close_memory(fake_device *f) {
    if (f->seen) munmap(f->seen, f->reserved);
    if (f->real) munmap(f->real, f->reserved);
    if (f->fd >= 0) close(f->fd);
    for (int64_t i = 0; i < f->n_stages; i++) free(f->stages[i].data);
    free(f->stages);
    free(f->blocks);
    pthread_mutex_destroy(&f->lock);
}

void *fake_at(const fake_device *f, const void *seen, const void **bad) {
    uintptr_t at = (uintptr_t)seen, begin = (uintptr_t)f->seen;
    if (!seen) return NULL;
    if (at >= begin && at < begin + f->reserved) return f->real + (at - begin);
    *bad = seen;
    return NULL;
}

/* --- blocks --- */

static fake_block *insert_block(fake_device *f, int64_t at, fake_block block) {
    if (f->n_blocks == f->room_for_blocks) {
        int64_t room = 2 * f->room_for_blocks + 64;
        fake_block *blocks = realloc(f->blocks, (size_t)room * sizeof *blocks);
        if (!blocks) return NULL;
        f->blocks = blocks;
        f->room_for_blocks = room;
    }
    memmove(f->blocks + at + 1, f->blocks + at, (size_t)(f->n_blocks - at) * sizeof *f->blocks);
    f->blocks[at] = block;
    f->n_blocks++;
    return f->blocks + at;
}

static void account(fake_device *f, lora_mem_tag tag, size_t bytes, bool taken) {
    const lora_mem_tag both[] = {tag, LORA_MEM_TAGS};
    for (int i = 0; i < 2; i++) {
        lora_mem_usage *u = &f->usage[both[i]];
        u->live_bytes = taken ? u->live_bytes + bytes : u->live_bytes - bytes;
        if (u->live_bytes > u->peak_bytes) u->peak_bytes = u->live_bytes;
    }
}

/* Tests count the allocations of the host's allocator and make one of them fail: those of this memory count with them. */
static bool refused_by_host(fake_device *f) {
    void *p = lora_host_alloc(f->cpu, LORA_MEM_SCRATCH, 1);
    lora_host_free(f->cpu, p);
    return !p;
}

/* First gap that is large enough, with room behind for reads past the end. */
static void *fake_alloc(void *state, lora_mem_tag tag, size_t bytes) {
    fake_device *f = state;
    size_t padded = (bytes + 2 * ALIGN - 1) & ~(size_t)(ALIGN - 1), begin = 0;
    int64_t at = 0;
    if (bytes > f->reserved / 2 || refused_by_host(f)) return NULL;
    pthread_mutex_lock(&f->lock);
    for (; at < f->n_blocks && f->blocks[at].begin - begin < padded; at++)
        begin = (f->blocks[at].begin + f->blocks[at].bytes + 2 * ALIGN - 1) & ~(size_t)(ALIGN - 1);
    fake_block *block =
        begin + padded <= f->reserved ? insert_block(f, at, (fake_block){.begin = begin, .bytes = bytes, .tag = tag, .used = true}) : NULL;
    if (block) account(f, tag, bytes, true);
    pthread_mutex_unlock(&f->lock);
    return block ? f->seen + begin : NULL;
}

static int64_t find_block(const fake_device *f, const void *p) {
    size_t begin = (size_t)((const unsigned char *)p - f->seen);
    for (int64_t i = 0; i < f->n_blocks; i++)
        if (f->blocks[i].begin == begin) return i;
    return -1;
}

typedef struct free_args {
    void *p;
} free_args;

static lora_status run_free(fake_device *f, void *args, lora_error *err) {
    pthread_mutex_lock(&f->lock);
    int64_t at = find_block(f, ((free_args *)args)->p);
    if (at >= 0) {
        memset(f->real + f->blocks[at].begin, FAKE_POISON, f->blocks[at].bytes);
        memmove(f->blocks + at, f->blocks + at + 1, (size_t)(f->n_blocks - at - 1) * sizeof *f->blocks);
        f->n_blocks--;
    }
    pthread_mutex_unlock(&f->lock);
    return at >= 0 ? LORA_OK : lora_fail(err, LORA_EINVAL, "free: expected memory of this device, got another address");
}

/* What is queued may still use p. */
static void enqueue_free(fake_device *f, fake_run_fn *run, void *p) {
    (void)!fake_enqueue(f, (fake_job){.run = run, .always = true}, &(free_args){.p = p}, sizeof(free_args), NULL);
}

static void fake_free(void *state, void *p) {
    fake_device *f = state;
    pthread_mutex_lock(&f->lock);
    int64_t at = find_block(f, p);
    if (at >= 0 && f->blocks[at].used) account(f, f->blocks[at].tag, f->blocks[at].bytes, false);
    if (at >= 0) f->blocks[at].used = false;
    pthread_mutex_unlock(&f->lock);
    enqueue_free(f, run_free, p);
}

static lora_mem_usage fake_usage(const void *state, lora_mem_tag tag) {
    fake_device *f = (fake_device *)state;
    pthread_mutex_lock(&f->lock);
    lora_mem_usage usage = f->usage[tag];
    pthread_mutex_unlock(&f->lock);
    return usage;
}

static void fake_reset_peak(void *state) {
    fake_device *f = state;
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i <= LORA_MEM_TAGS; i++) f->usage[i].peak_bytes = f->usage[i].live_bytes;
    pthread_mutex_unlock(&f->lock);
}

static lora_status fake_memory_info(void *state, lora_memory_info *out, lora_error *err) {
    (void)err;
    const fake_device *f = state;
    *out = (lora_memory_info){.free_bytes = f->reserved - fake_usage(state, LORA_MEM_TAGS).live_bytes, .total_bytes = f->reserved};
    return LORA_OK;
}

/* --- staging memory --- */

static void *fake_stage_alloc(void *state, size_t bytes) {
    fake_device *f = state;
    unsigned char *data = refused_by_host(f) ? NULL : malloc(bytes + 1);
    if (!data) return NULL;
    memset(data, FAKE_POISON, bytes + 1);
    pthread_mutex_lock(&f->lock);
    fake_stage *stages = realloc(f->stages, (size_t)(f->n_stages + 1) * sizeof *stages);
    if (stages) {
        f->stages = stages;
        stages[f->n_stages++] = (fake_stage){.data = data, .bytes = bytes};
    }
    pthread_mutex_unlock(&f->lock);
    if (stages) return data;
    free(data);
    return NULL;
}

static lora_status run_stage_free(fake_device *f, void *args, lora_error *err) {
    unsigned char *data = ((free_args *)args)->p;
    pthread_mutex_lock(&f->lock);
    int64_t at = 0;
    while (at < f->n_stages && f->stages[at].data != data) at++;
    bool found = at < f->n_stages;
    if (found) f->stages[at] = f->stages[--f->n_stages];
    pthread_mutex_unlock(&f->lock);
    if (found) free(data);
    return found ? LORA_OK : lora_fail(err, LORA_EINVAL, "stage_free: expected staging memory of this device, got another address");
}

static void fake_stage_free(void *state, void *p) { enqueue_free(state, run_stage_free, p); }

/* An upload has read from p. */
static void mark_stage(fake_device *f, const void *p) {
    const unsigned char *at = p;
    pthread_mutex_lock(&f->lock);
    for (int64_t i = 0; i < f->n_stages; i++)
        if (at >= f->stages[i].data && at < f->stages[i].data + f->stages[i].bytes) f->stages[i].read = true;
    pthread_mutex_unlock(&f->lock);
}

/* --- transfers --- */

typedef struct transfer {
    void *to;
    const void *from;
    size_t bytes;
} transfer;

static lora_status refuse(const char *what, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected an address of the device, got one of the host", what);
}

static lora_status run_upload(fake_device *f, void *args, lora_error *err) {
    const transfer *t = args;
    const void *bad = NULL;
    void *to = fake_at(f, t->to, &bad);
    if (bad || !to) return refuse("upload", err);
    memcpy(to, t->from, t->bytes);
    mark_stage(f, t->from);
    return LORA_OK;
}

static lora_status fake_upload(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    return fake_enqueue(state, (fake_job){.run = run_upload}, &(transfer){.to = to, .from = from, .bytes = bytes}, sizeof(transfer), err);
}

static lora_status run_download(fake_device *f, void *args, lora_error *err) {
    const transfer *t = args;
    const void *bad = NULL, *from = fake_at(f, t->from, &bad);
    if (bad || !from) return refuse("download", err);
    memcpy(t->to, from, t->bytes);
    return LORA_OK;
}

static lora_status fake_download(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    memset(to, FAKE_POISON, bytes);
    return fake_enqueue(state, (fake_job){.run = run_download}, &(transfer){.to = to, .from = from, .bytes = bytes}, sizeof(transfer), err);
}

static lora_status run_clear(fake_device *f, void *args, lora_error *err) {
    const transfer *t = args;
    const void *bad = NULL;
    void *to = fake_at(f, t->to, &bad);
    if (bad || !to) return refuse("clear", err);
    memset(to, 0, t->bytes);
    return LORA_OK;
}

static lora_status fake_clear(void *state, void *p, size_t bytes, lora_error *err) {
    return fake_enqueue(state, (fake_job){.run = run_clear, .always = true}, &(transfer){.to = p, .bytes = bytes}, sizeof(transfer), err);
}

static lora_status fake_sync(void *state, lora_error *err) {
    fake_device *f = state;
    lora_status status = fake_run_queue(f, err);
    pthread_mutex_lock(&f->lock);
    for (int64_t i = 0; i < f->n_stages; i++)
        if (f->stages[i].read) {
            memset(f->stages[i].data, FAKE_POISON, f->stages[i].bytes);
            f->stages[i].read = false;
        }
    pthread_mutex_unlock(&f->lock);
    return status;
}

static void *fake_stream(const void *state) {
    (void)state;
    return NULL;
}

static lora_status fake_stream_follows(void *state, void *stream, void *before, lora_error *err) {
    (void)stream, (void)before;
    return fake_sync(state, err);
}

/* --- paged memory: this device has all of it --- */

static lora_status fake_paged_alloc(void *state, const char *folder, size_t bytes, void **out, lora_error *err) {
    LORA_CHECK(folder, err, LORA_EINVAL, "folder: expected one, got NULL");
    void *p = fake_alloc(state, LORA_MEM_OPTIM, bytes);
    LORA_CHECK(p, err, LORA_ENOMEM, "folder: expected %zu bytes, got none", bytes);
    lora_status status = fake_clear(state, p, bytes, err);
    if (status == LORA_OK)
        *out = p;
    else
        fake_free(state, p);
    return status;
}

static void fake_paged_free(void *state, void *p, size_t bytes) {
    (void)bytes;
    fake_free(state, p);
}

static void fake_paged_advise(void *state, void *p, size_t bytes, lora_page_use use) { (void)state, (void)p, (void)bytes, (void)use; }

const lora_backend_memory fake_memory = {
    .alloc = fake_alloc,
    .free = fake_free,
    .stage_alloc = fake_stage_alloc,
    .stage_free = fake_stage_free,
    .upload = fake_upload,
    .download = fake_download,
    .clear = fake_clear,
    .sync = fake_sync,
    .paged_alloc = fake_paged_alloc,
    .paged_free = fake_paged_free,
    .paged_advise = fake_paged_advise,
    .usage = fake_usage,
    .reset_peak = fake_reset_peak,
    .memory_info = fake_memory_info,
    .stream = fake_stream,
    .stream_follows = fake_stream_follows,
};
