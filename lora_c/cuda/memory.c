/* Memory of the GPU: in the order of its stream, so that what is freed before a sync may still be in use by what was asked for before. */
#include "lora_c/cuda/memory.h"

#include <pthread.h>
#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/util.h"
#include "lora_c/cuda/graphs.h"
#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"

enum { FIRST_SLOTS = 1024, LIST_ROOM = LORA_GPU_LIST };

/* One piece of memory; p NULL: the slot is free. */
typedef struct piece {
    void *p;
    size_t bytes;
    lora_mem_tag tag;
} piece;

struct lora_cuda_memory {
    pthread_mutex_t lock; /* of all that follows */
    lora_mem host;        /* memory of the host that this file takes */
    piece *pieces;        /* open addressing by address */
    size_t slots, used;
    lora_mem_usage usage[LORA_MEM_TAGS + 1];
    void **ended; /* staging memory to free after the next sync */
    size_t n_ended, room_for_ended;
    unsigned char *lists; /* pinned: lists on their way to the device */
    size_t lists_at, lists_room;
};

/* --- accounts --- */

static size_t slot_of(const lora_cuda_memory *m, const void *p) {
    size_t i = (size_t)((uintptr_t)p >> 8) * 0x9E3779B97F4A7C15u >> 20 & (m->slots - 1);
    while (m->pieces[i].p && m->pieces[i].p != p) i = (i + 1) & (m->slots - 1);
    return i;
}

static void account(lora_cuda_memory *m, lora_mem_tag tag, size_t bytes, bool taken) {
    const int both[] = {(int)tag, LORA_MEM_TAGS};
    for (int i = 0; i < 2; i++) {
        lora_mem_usage *u = &m->usage[both[i]];
        u->live_bytes = taken ? u->live_bytes + bytes : u->live_bytes - bytes;
        if (u->live_bytes > u->peak_bytes) u->peak_bytes = u->live_bytes;
    }
}

/* Room for one piece more. */
static bool grow(lora_cuda_memory *m) {
    if (2 * (m->used + 1) <= m->slots) return true;
    size_t old_slots = m->slots, slots = old_slots ? 2 * old_slots : FIRST_SLOTS;
    piece *old = m->pieces, *pieces = lora_mem_calloc(&m->host, LORA_MEM_SCRATCH, slots * sizeof *pieces);
    if (!pieces) return false;
    m->pieces = pieces;
    m->slots = slots;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].p) pieces[slot_of(m, old[i].p)] = old[i];
    lora_mem_free(&m->host, old);
    return true;
}

/* Takes a piece out, and brings those behind it nearer to where they belong. */
static piece take_out(lora_cuda_memory *m, const void *p) {
    size_t i = slot_of(m, p);
    piece found = m->pieces[i];
    if (!found.p) return found;
    m->pieces[i].p = NULL;
    m->used--;
    for (size_t k = (i + 1) & (m->slots - 1); m->pieces[k].p; k = (k + 1) & (m->slots - 1)) {
        piece moved = m->pieces[k];
        m->pieces[k].p = NULL;
        m->pieces[slot_of(m, moved.p)] = moved;
    }
    return found;
}

/* --- memory of the device --- */

static void *alloc(void *state, lora_mem_tag tag, size_t bytes) {
    lora_cuda *c = state;
    lora_cuda_memory *m = c->memory;
    void *p = NULL;
    if (bytes > SIZE_MAX - LORA_CUDA_READABLE || c->api->set_device(c->device) != 0) return NULL;
    if (c->api->alloc(&p, bytes + LORA_CUDA_READABLE, c->pool, c->stream) != 0) return NULL;
    pthread_mutex_lock(&m->lock);
    bool kept = grow(m);
    if (kept) {
        m->pieces[slot_of(m, p)] = (piece){.p = p, .bytes = bytes, .tag = tag};
        m->used++;
        account(m, tag, bytes, true);
    }
    pthread_mutex_unlock(&m->lock);
    if (kept) return p;
    (void)c->api->free(p, lora_cuda_stream(c));
    return NULL;
}

static void release(void *state, void *p) {
    lora_cuda *c = state;
    pthread_mutex_lock(&c->memory->lock);
    piece found = take_out(c->memory, p);
    if (found.p) account(c->memory, found.tag, found.bytes, false);
    pthread_mutex_unlock(&c->memory->lock);
    (void)c->api->set_device(c->device);
    (void)c->api->free(p, lora_cuda_stream(c));
}

/* --- memory of the host --- */

static void *stage_alloc(void *state, size_t bytes) {
    lora_cuda *c = state;
    void *p = NULL;
    return c->api->set_device(c->device) == 0 && c->api->host_alloc(&p, bytes ? bytes : 1) == 0 ? p : NULL;
}

/* An upload may still read it. */
static void stage_free(void *state, void *p) {
    lora_cuda *c = state;
    lora_cuda_memory *m = c->memory;
    pthread_mutex_lock(&m->lock);
    if (m->n_ended == m->room_for_ended) {
        size_t room = 2 * m->room_for_ended + 16;
        void **ended = lora_mem_alloc(&m->host, LORA_MEM_SCRATCH, room * sizeof *ended);
        if (ended) {
            if (m->n_ended) memcpy(ended, m->ended, m->n_ended * sizeof *ended);
            lora_mem_free(&m->host, m->ended);
            m->ended = ended;
            m->room_for_ended = room;
        }
    }
    bool kept = m->n_ended < m->room_for_ended;
    if (kept) m->ended[m->n_ended++] = p;
    pthread_mutex_unlock(&m->lock);
    if (kept) return;
    (void)c->api->stream_wait(lora_cuda_stream(c));
    (void)c->api->host_free(p);
}

static lora_status paged_alloc(void *state, const char *folder, size_t bytes, void **out, lora_error *err) {
    lora_cuda *c = state;
    (void)folder; /* pinned memory of the host, which kernels read and write where it is */
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    LORA_CHECK(c->api->host_alloc(out, bytes ? bytes : 1) == 0, err, LORA_ENOMEM,
               "host memory: expected %zu bytes that can be pinned, got none; use less or a machine with more", bytes);
    memset(*out, 0, bytes);
    return LORA_OK;
}

static void paged_free(void *state, void *p, size_t bytes) {
    (void)bytes;
    stage_free(state, p);
}

static void paged_advise(void *state, void *p, size_t bytes, lora_page_use use) { (void)state, (void)p, (void)bytes, (void)use; }

/* --- transfers --- */

static lora_status copy(lora_cuda *c, void *to, const void *from, size_t bytes, lora_error *err) {
    if (bytes == 0) return LORA_OK;
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    return lora_cuda_check(c, c->api->copy(to, from, bytes, lora_cuda_stream(c)), "cudaMemcpyAsync", err);
}

static lora_status upload(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    return copy(state, to, from, bytes, err);
}
static lora_status download(void *state, void *to, const void *from, size_t bytes, lora_error *err) {
    return copy(state, to, from, bytes, err);
}

static lora_status clear(void *state, void *p, size_t bytes, lora_error *err) {
    lora_cuda *c = state;
    if (bytes == 0) return LORA_OK;
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    return lora_cuda_check(c, c->api->fill(p, 0, bytes, lora_cuda_stream(c)), "cudaMemsetAsync", err);
}

static lora_status sync(void *state, lora_error *err) {
    lora_cuda *c = state;
    lora_cuda_memory *m = c->memory;
    pthread_mutex_lock(&m->lock);
    size_t before = m->n_ended; /* what is freed while this waits may be in use by what was asked for meanwhile */
    pthread_mutex_unlock(&m->lock);
    (void)c->api->set_device(c->device);
    lora_status status = lora_cuda_wait(c, err);
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < before; i++) (void)c->api->host_free(m->ended[i]);
    if (before > 0) memmove(m->ended, m->ended + before, (m->n_ended - before) * sizeof *m->ended);
    m->n_ended -= before;
    m->lists_at = 0;
    pthread_mutex_unlock(&m->lock);
    return status;
}

static lora_mem_usage usage(const void *state, lora_mem_tag tag) {
    const lora_cuda *c = state;
    pthread_mutex_lock(&c->memory->lock);
    lora_mem_usage found = c->memory->usage[tag];
    pthread_mutex_unlock(&c->memory->lock);
    return found;
}

static void reset_peak(void *state) {
    lora_cuda *c = state;
    pthread_mutex_lock(&c->memory->lock);
    for (int i = 0; i <= LORA_MEM_TAGS; i++) c->memory->usage[i].peak_bytes = c->memory->usage[i].live_bytes;
    pthread_mutex_unlock(&c->memory->lock);
}

static lora_status memory_info(void *state, lora_memory_info *out, lora_error *err) {
    lora_cuda *c = state;
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    LORA_TRY(lora_cuda_wait(c, err)); /* until here what was freed is in use */
    LORA_TRY(lora_cuda_check(c, c->api->memory_info(&out->free_bytes, &out->total_bytes), "cudaMemGetInfo", err));
    size_t unused; /* taken from the system, and free for us all the same */
    LORA_TRY(lora_cuda_check(c, c->api->pool_unused(c->pool, &unused), "cudaMemPoolGetAttribute", err));
    out->free_bytes += unused;
    return LORA_OK;
}

/* --- streams of others --- */

static void *stream(const void *state) { return lora_cuda_stream((lora_cuda *)state); }

static lora_status follow(lora_cuda *c, void *then, void *before, void *event, lora_error *err) {
    LORA_TRY(lora_cuda_check(c, c->api->event_record(event, before), "cudaEventRecord", err));
    return lora_cuda_check(c, c->api->event_wait(event, then), "cudaStreamWaitEvent", err);
}

static lora_status stream_follows(void *state, void *then, void *before, lora_error *err) {
    lora_cuda *c = state;
    void *event;
    (void)lora_cuda_stream(c); /* either may be ours */
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err));
    LORA_TRY(lora_cuda_check(c, c->api->event_create(&event), "cudaEventCreateWithFlags", err));
    lora_status status = follow(c, then, before, event, err);
    (void)c->api->event_destroy(event); /* when it has happened */
    return status;
}

const lora_backend_memory lora_cuda_memory_table = {
    .alloc = alloc,
    .free = release,
    .stage_alloc = stage_alloc,
    .stage_free = stage_free,
    .upload = upload,
    .download = download,
    .clear = clear,
    .sync = sync,
    .paged_alloc = paged_alloc,
    .paged_free = paged_free,
    .paged_advise = paged_advise,
    .usage = usage,
    .reset_peak = reset_peak,
    .memory_info = memory_info,
    .stream = stream,
    .stream_follows = stream_follows,
};

/* --- what operations work in --- */

lora_status lora_cuda_scratch(lora_cuda *c, int slot, size_t bytes, void **out, lora_error *err) {
    if (c->scratch[slot].bytes < bytes || !c->scratch[slot].data) {
        if (c->scratch[slot].data) release(c, c->scratch[slot].data);
        c->scratch[slot].bytes = 0;
        c->scratch[slot].data = alloc(c, LORA_MEM_SCRATCH, bytes);
        LORA_CHECK(c->scratch[slot].data, err, LORA_ENOMEM, "scratch: expected %zu bytes on the device, got none", bytes);
        c->scratch[slot].bytes = bytes;
    }
    *out = c->scratch[slot].data;
    return LORA_OK;
}

lora_status lora_cuda_upload_list(lora_cuda *c, const void *list, size_t bytes, void **out, lora_error *err) {
    lora_cuda_memory *m = c->memory;
    size_t room = (bytes + 255) / 256 * 256;
    if (m->lists_at + room > m->lists_room) { /* both the pinned copies and the device's are in use until here */
        LORA_TRY(sync(c, err));
        if (room > m->lists_room) {
            size_t all = room > LIST_ROOM ? room : LIST_ROOM;
            if (m->lists) (void)c->api->host_free(m->lists);
            m->lists = NULL;
            m->lists_room = 0;
            LORA_CHECK(c->api->host_alloc((void **)&m->lists, all) == 0, err, LORA_ENOMEM,
                       "list: expected %zu bytes of pinned memory, got none", all);
            m->lists_room = all;
        }
    }
    void *device = NULL;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LISTS, m->lists_room, &device, err));
    memcpy(m->lists + m->lists_at, list, bytes);
    *out = (unsigned char *)device + m->lists_at;
    LORA_TRY(copy(c, *out, m->lists + m->lists_at, bytes, err));
    m->lists_at += room;
    return LORA_OK;
}

/* --- begin and end --- */

lora_status lora_cuda_memory_create(lora_cuda *c, lora_mem *host, lora_error *err) {
    c->memory = lora_mem_calloc(host, LORA_MEM_SCRATCH, sizeof *c->memory);
    LORA_CHECK(c->memory, err, LORA_ENOMEM, "device: expected %zu bytes, got none", sizeof *c->memory);
    pthread_mutex_init(&c->memory->lock, NULL);
    lora_mem_init(&c->memory->host);
    return lora_cuda_check(c, c->api->pool_create(c->device, &c->pool), "cudaMemPoolCreate", err);
}

void lora_cuda_memory_destroy(lora_cuda *c, lora_mem *host) {
    lora_cuda_memory *m = c->memory;
    if (!m) return;
    for (int i = 0; i < LORA_CUDA_SCRATCH_SLOTS; i++)
        if (c->scratch[i].data) release(c, c->scratch[i].data);
    lora_status last = sync(c, NULL);
    (void)last; /* nobody asks any more */
    if (m->lists) (void)c->api->host_free(m->lists);
    if (c->pool) (void)c->api->pool_destroy(c->pool); /* when its last piece is freed */
    lora_mem_free(&m->host, m->ended);
    lora_mem_free(&m->host, m->pieces);
    pthread_mutex_destroy(&m->lock);
    lora_mem_free(host, m);
    c->memory = NULL;
}
