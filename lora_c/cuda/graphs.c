#include "lora_c/cuda/graphs.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/util.h"

/* Fewer launches are no gain; with more the GPU waits for their end. A decoder has passes of a few kinds (one token of one or several
 * sequences, with and without logits), a kind that was not used for the longest time makes room. */
enum { LEAST = 16, MOST = 4096, GRAPHS = 8, ARGS_ALIGN = 16 };

/* Launches in order; arguments lie behind each other. */
typedef struct list {
    lora_cuda_launch *launches; /* args: as an offset into bytes, until the list is used */
    size_t n, room;
    unsigned char *bytes;
    size_t used, room_bytes;
} list;

typedef struct kept {
    list of;
    void *graph; /* NULL: seen once */
    uint64_t used_at;
} kept;

struct lora_cuda_graphs {
    pthread_mutex_t lock; /* of all that follows */
    lora_mem host;
    bool off, direct; /* direct: until the next wait */
    list noted;
    kept graphs[GRAPHS];
    uint64_t clock;
    lora_status status; /* of what went to the stream when nobody could be told, and its error */
    lora_error error;
};

/* --- lists --- */

static bool reserve(lora_mem *host, void **data, size_t *room, size_t wanted, size_t each) {
    if (wanted <= *room) return true;
    size_t grown = wanted > 2 * *room + 64 ? wanted : 2 * *room + 64;
    void *larger = lora_mem_alloc(host, LORA_MEM_SCRATCH, grown * each);
    if (!larger) return false;
    if (*data) memcpy(larger, *data, *room * each);
    lora_mem_free(host, *data);
    *data = larger;
    *room = grown;
    return true;
}

static bool note(lora_mem *host, list *l, const lora_cuda_launch *launch) {
    size_t at = (l->used + ARGS_ALIGN - 1) / ARGS_ALIGN * ARGS_ALIGN;
    if (!reserve(host, (void **)&l->launches, &l->room, l->n + 1, sizeof *l->launches)) return false;
    if (!reserve(host, (void **)&l->bytes, &l->room_bytes, at + launch->args_bytes, 1)) return false;
    memset(l->bytes + l->used, 0, at - l->used);
    memcpy(l->bytes + at, launch->args, launch->args_bytes);
    l->used = at + launch->args_bytes;
    l->launches[l->n] = *launch;
    l->launches[l->n++].args = (const void *)at;
    return true;
}

static void clear(list *l) { l->n = l->used = 0; }

static void drop(lora_mem *host, list *l) {
    lora_mem_free(host, l->launches);
    lora_mem_free(host, l->bytes);
    *l = (list){0};
}

/* The launch with its arguments. */
static lora_cuda_launch launch_of(const list *l, size_t i) {
    lora_cuda_launch launch = l->launches[i];
    launch.args = l->bytes + (uintptr_t)launch.args;
    return launch;
}

/* Whether a graph of the one list can become that of the other. */
static bool is_alike(const list *a, const list *b) {
    if (a->n != b->n || a->used != b->used) return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->launches[i].kernel != b->launches[i].kernel || a->launches[i].args != b->launches[i].args) return false;
    return true;
}

static bool is_same_launch(const lora_cuda_launch *a, const lora_cuda_launch *b) {
    return a->threads == b->threads && a->shared_bytes == b->shared_bytes && memcmp(a->grid, b->grid, sizeof a->grid) == 0 &&
           a->args_bytes == b->args_bytes && memcmp(a->args, b->args, a->args_bytes) == 0;
}

/* --- to the stream --- */

static lora_status start_now(lora_cuda *c, const lora_cuda_launch *launch, lora_error *err) {
    return lora_cuda_check(c, c->api->launch(launch, c->stream), launch->name, err);
}

static lora_status one_by_one(lora_cuda *c, const list *l, lora_error *err) {
    for (size_t i = 0; i < l->n; i++) {
        lora_cuda_launch launch = launch_of(l, i);
        LORA_TRY(start_now(c, &launch, err));
    }
    return LORA_OK;
}

static void forget(lora_cuda *c, kept *k) {
    if (k->graph) (void)c->api->graph_destroy(k->graph);
    drop(&c->graphs->host, &k->of);
    *k = (kept){0};
}

/* What is alike the launches that are noted, with the same arguments where there is that; or NULL. */
static kept *find(lora_cuda_graphs *g) {
    kept *found = NULL;
    for (int i = 0; i < GRAPHS; i++) {
        kept *k = &g->graphs[i];
        if (!k->of.n || !is_alike(&k->of, &g->noted)) continue;
        found = k;
        if (memcmp(k->of.bytes, g->noted.bytes, g->noted.used) == 0) break;
    }
    return found;
}

/* Keeps the noted launches, in the place of those that were not used for the longest time. */
static void keep(lora_cuda *c) {
    lora_cuda_graphs *g = c->graphs;
    kept *k = &g->graphs[0];
    for (int i = 1; i < GRAPHS; i++)
        if (g->graphs[i].used_at < k->used_at) k = &g->graphs[i];
    forget(c, k);
    *k = (kept){.of = g->noted, .used_at = ++g->clock};
    g->noted = (list){0};
}

static lora_status make_graph(lora_cuda *c, kept *k, lora_error *err) {
    list *l = &k->of;
    lora_cuda_launch *launches = lora_mem_alloc(&c->graphs->host, LORA_MEM_SCRATCH, l->n * sizeof *launches);
    LORA_CHECK(launches, err, LORA_ENOMEM, "graph: expected memory for %zu launches, got none", l->n);
    for (size_t i = 0; i < l->n; i++) launches[i] = launch_of(l, i);
    lora_status status = lora_cuda_check(c, c->api->graph_create(launches, l->n, &k->graph), "cudaGraphInstantiate", err);
    lora_mem_free(&c->graphs->host, launches);
    return status;
}

/* The graph of older launches becomes that of k's. */
static lora_status update_graph(lora_cuda *c, kept *k, const list *older, lora_error *err) {
    for (size_t i = 0; i < older->n; i++) {
        lora_cuda_launch before = launch_of(older, i), now = launch_of(&k->of, i);
        if (is_same_launch(&before, &now)) continue;
        LORA_TRY(lora_cuda_check(c, c->api->graph_update(k->graph, i, &now), "cudaGraphExecKernelNodeSetParams", err));
    }
    return LORA_OK;
}

static lora_status start_graph(lora_cuda *c, kept *k, lora_error *err) {
    lora_cuda_graphs *g = c->graphs;
    list older = k->of;
    k->of = g->noted;
    g->noted = older;
    k->used_at = ++g->clock;
    lora_status status = k->graph ? update_graph(c, k, &older, err) : make_graph(c, k, err);
    if (status == LORA_OK) return lora_cuda_check(c, c->api->graph_launch(k->graph, c->stream), "cudaGraphLaunch", err);
    forget(c, k); /* some of it may be updated, some not */
    return status;
}

static lora_status send(lora_cuda *c, lora_error *err) {
    lora_cuda_graphs *g = c->graphs;
    if (g->noted.n < LEAST || g->noted.n > MOST) return one_by_one(c, &g->noted, err);
    kept *k = find(g);
    if (k) return start_graph(c, k, err);
    LORA_TRY(one_by_one(c, &g->noted, err));
    keep(c);
    return LORA_OK;
}

/* With the lock held. */
static void flush(lora_cuda *c) {
    lora_cuda_graphs *g = c->graphs;
    if (!g->noted.n) return;
    lora_status status = lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", &g->error);
    if (status == LORA_OK) status = send(c, &g->error);
    if (g->status == LORA_OK) g->status = status;
    clear(&g->noted);
}

static lora_status told(lora_cuda_graphs *g, lora_error *err) {
    lora_status status = g->status;
    if (status != LORA_OK && err) *err = g->error;
    g->status = LORA_OK;
    return status;
}

lora_status lora_cuda_start(lora_cuda *c, const lora_cuda_launch *launch, lora_error *err) {
    lora_cuda_graphs *g = c->graphs;
    pthread_mutex_lock(&g->lock);
    lora_status status = told(g, err);
    if (status == LORA_OK && !g->off && !g->direct) {
        bool fits = note(&g->host, &g->noted, launch);
        if (!fits || g->noted.n > MOST) {
            flush(c);
            g->direct = true;
            status = told(g, err);
        }
        if (fits) {
            pthread_mutex_unlock(&g->lock);
            return status;
        }
    }
    pthread_mutex_unlock(&g->lock);
    LORA_TRY(status);
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err)); /* the thread may have used another */
    return start_now(c, launch, err);
}

static void *stream_after(lora_cuda *c, bool direct) {
    pthread_mutex_lock(&c->graphs->lock);
    flush(c);
    c->graphs->direct = c->graphs->direct || direct;
    pthread_mutex_unlock(&c->graphs->lock);
    return c->stream;
}

void *lora_cuda_stream(lora_cuda *c) { return stream_after(c, false); }
void *lora_cuda_stream_of_products(lora_cuda *c) { return stream_after(c, true); }

lora_status lora_cuda_wait(lora_cuda *c, lora_error *err) {
    lora_cuda_graphs *g = c->graphs;
    lora_status waited = lora_cuda_check(c, c->api->stream_wait(lora_cuda_stream(c)), "cudaStreamSynchronize", err);
    pthread_mutex_lock(&g->lock);
    g->direct = false;
    lora_status status = told(g, err); /* the first that went wrong */
    pthread_mutex_unlock(&g->lock);
    return status != LORA_OK ? status : waited;
}

/* --- begin and end --- */

lora_status lora_cuda_graphs_create(lora_cuda *c, lora_mem *host, lora_error *err) {
    c->graphs = lora_mem_calloc(host, LORA_MEM_SCRATCH, sizeof *c->graphs);
    LORA_CHECK(c->graphs, err, LORA_ENOMEM, "device: expected %zu bytes, got none", sizeof *c->graphs);
    pthread_mutex_init(&c->graphs->lock, NULL);
    lora_mem_init(&c->graphs->host);
    const char *said = getenv("LORA_C_CUDA_GRAPHS");
    c->graphs->off = said && strcmp(said, "0") == 0;
    return LORA_OK;
}

void lora_cuda_graphs_destroy(lora_cuda *c, lora_mem *host) {
    lora_cuda_graphs *g = c->graphs;
    if (!g) return;
    for (int i = 0; i < GRAPHS; i++) forget(c, &g->graphs[i]);
    drop(&g->host, &g->noted);
    pthread_mutex_destroy(&g->lock);
    lora_mem_free(host, g);
    c->graphs = NULL;
}
