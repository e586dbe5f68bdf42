/* The table of calls without a GPU: streams are lists of what is to be done, done when somebody waits, now and then before; memory is the
 * host's, filled with 0xFF, between zones that must keep their bytes. */
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "lora_c/cuda/api.h"
#include "lora_c/cuda/find_cublaslt.h"
#include "tests/cuda/shim/faults.h"
#include "tests/cuda/shim/grids.h"
#include "tests/cuda/shim/host_cublaslt.h"
#include "tests/cuda/shim/limits.h"
#include "tests/cuda/shim/random.h"

namespace {

constexpr size_t ZONE = 256;
constexpr unsigned char GUARD = 0x5A, UNWRITTEN = 0xFF;
constexpr int NO_MEMORY = 2;

struct stream {
    std::vector<std::function<void()>> work;
    size_t done = 0;
    int device = 0;
};
struct event {
    stream *of = nullptr;
    size_t position = 0;
};

std::recursive_mutex lock; /* work of one stream may wait for another's */

void run_until(stream *s, size_t position) {
    while (s->done < position && s->done < s->work.size()) {
        auto work = std::move(s->work[s->done]);
        s->done++;
        work();
    }
}

/* Most work is done as late as may be, which shows what the host changes too early; some of it at once, which shows what it reads. */
constexpr uint32_t LATE = 16;

void add(void *p, std::function<void()> work) {
    static shim_random random = shim_seeded();
    std::lock_guard<std::recursive_mutex> held(lock);
    stream *s = static_cast<stream *>(p);
    s->work.push_back(std::move(work));
    if (random.draw(LATE) == 0) run_until(s, s->done + random.draw((uint32_t)(s->work.size() - s->done)) + 1);
}

int driver_version(int *version) {
    const char *said = getenv("SHIM_DRIVER");
    *version = said ? atoi(said) : 13000;
    return 0;
}
int device_count(int *n) {
    const char *said = getenv("SHIM_DEVICES");
    *n = said ? atoi(said) : 1;
    return 0;
}
int describe(int, lora_cuda_properties *out) {
    *out = {};
    snprintf(out->name, sizeof out->name, "threads of the host");
    out->major = shim_compute_major();
    out->minor = shim_compute_minor();
    out->multiprocessors = 4;
    out->memory_bytes = (size_t)8 << 30;
    out->shared_bytes = shim_most_shared();
    return 0;
}
thread_local int current_device;

int set_device(int device) {
    current_device = device;
    return 0;
}

/* What a GPU refuses: work that belongs to the thread's device on a stream of another. */
void need_device(void *s, const char *what) {
    if (static_cast<stream *>(s)->device == current_device) return;
    fprintf(stderr, "shim: %s on a stream of device %d while device %d is current\n", what, static_cast<stream *>(s)->device,
            current_device);
    abort();
}
constexpr size_t ALL_MEMORY = (size_t)8 << 30;

/* What a pool has of the device's memory, and what of it is in use. It lives until it is destroyed and its last piece is freed. */
struct pool {
    size_t reserved = 0, used = 0;
    bool destroyed = false;
};
std::mutex pools; /* of what follows and of every pool */
size_t of_pools;  /* reserved by all */

void end_if_unused(pool *p) {
    if (!p->destroyed || p->used > 0) return;
    of_pools -= p->reserved;
    delete p;
    shim_count_live(-1);
}
void take(pool *p, size_t bytes) {
    std::lock_guard<std::mutex> held(pools);
    p->used += bytes;
    if (p->used <= p->reserved) return;
    of_pools += p->used - p->reserved;
    p->reserved = p->used;
}
void give_back(pool *p, size_t bytes) {
    std::lock_guard<std::mutex> held(pools);
    p->used -= bytes;
    end_if_unused(p);
}

int memory_info(size_t *free_bytes, size_t *total_bytes) {
    std::lock_guard<std::mutex> held(pools);
    *total_bytes = ALL_MEMORY;
    *free_bytes = of_pools < ALL_MEMORY ? ALL_MEMORY - of_pools : 0; /* what is sparse may be more */
    return 0;
}
int pool_create(int, void **made) {
    *made = new pool;
    shim_count_live(1);
    return 0;
}
int pool_destroy(void *p) {
    std::lock_guard<std::mutex> held(pools);
    static_cast<pool *>(p)->destroyed = true;
    end_if_unused(static_cast<pool *>(p));
    return 0;
}
int pool_unused(void *p, size_t *bytes) {
    std::lock_guard<std::mutex> held(pools);
    *bytes = static_cast<pool *>(p)->reserved - static_cast<pool *>(p)->used;
    return 0;
}

int stream_create(void **s) {
    stream *made = new stream;
    made->device = current_device;
    *s = made;
    shim_count_live(1);
    return 0;
}
int stream_wait(void *p) {
    std::lock_guard<std::recursive_mutex> held(lock);
    stream *s = static_cast<stream *>(p);
    run_until(s, s->work.size());
    s->work.clear();
    s->done = 0;
    return 0;
}
int stream_destroy(void *s) {
    stream_wait(s);
    delete static_cast<stream *>(s);
    shim_count_live(-1);
    return 0;
}
int event_create(void **e) {
    *e = new event;
    shim_count_live(1);
    return 0;
}
int event_destroy(void *e) {
    delete static_cast<event *>(e);
    shim_count_live(-1);
    return 0;
}

/* The numbers of streams that nobody makes: the legacy default stream of the current device, and that of the calling thread. */
constexpr uintptr_t LEGACY = 1, PER_THREAD = 2;

/* What a handle means. Default streams live as long as the process. */
stream *stream_of(void *handle) {
    static std::map<std::pair<int, std::thread::id>, stream *> made;
    uintptr_t number = reinterpret_cast<uintptr_t>(handle);
    if (number != LEGACY && number != PER_THREAD) return static_cast<stream *>(handle);
    std::lock_guard<std::recursive_mutex> held(lock);
    stream *&found = made[{current_device, number == LEGACY ? std::thread::id() : std::this_thread::get_id()}];
    if (!found) {
        found = new stream;
        found->device = current_device;
    }
    return found;
}

int event_record(void *e, void *handle) {
    std::lock_guard<std::recursive_mutex> held(lock);
    stream *s = stream_of(handle);
    *static_cast<event *>(e) = {s, s->work.size()};
    return 0;
}
int event_wait(void *e, void *handle) {
    event at = *static_cast<event *>(e);
    add(stream_of(handle), [at] {
        if (at.of) run_until(at.of, at.position);
    });
    return 0;
}

struct block {
    size_t bytes;
    pool *from;
};

/* Under AddressSanitizer the zones may not even be read. */
#ifdef __SANITIZE_ADDRESS__
void forbid(void *p, size_t bytes) { ASAN_POISON_MEMORY_REGION(p, bytes); }
void allow(void *p, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(p, bytes); }
#else
void forbid(void *, size_t) {}
void allow(void *, size_t) {}
#endif

std::map<const unsigned char *, size_t> blocks; /* bytes by where they begin; with lock */

/* Under AddressSanitizer kernels show that they do without what lies behind arrays, but for sparse blocks. */
size_t tail_of(size_t bytes) { return bytes < LORA_CUDA_READABLE ? 0 : LORA_CUDA_READABLE; }

size_t whole_bytes(size_t bytes) { return (bytes + 2 * ZONE + 255) / 256 * 256; }

/* From here on a block takes up what is touched of it, and what is not is 0: rows may lie as far apart as on a GPU. */
constexpr size_t SPARSE = (size_t)4 << 30;

unsigned char *take_block(size_t all) {
    if (all < SPARSE) return static_cast<unsigned char *>(aligned_alloc(256, all));
    void *p = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<unsigned char *>(p);
}
void give_block_back(unsigned char *begin, size_t all) {
    if (all < SPARSE)
        free(begin);
    else
        munmap(begin, all);
}
void make_unwritten(unsigned char *p, size_t bytes) {
    if (whole_bytes(bytes) < SPARSE) memset(p, UNWRITTEN, bytes);
}

int alloc(void **p, size_t bytes, void *from, void *s) {
    need_device(s, "an allocation");
    size_t all = whole_bytes(bytes);
    unsigned char *begin = take_block(all);
    if (!begin) return NO_MEMORY;
    memset(begin, GUARD, ZONE);
    *reinterpret_cast<block *>(begin) = {bytes, static_cast<pool *>(from)};
    take(static_cast<pool *>(from), bytes);
    make_unwritten(begin + ZONE, bytes);
    memset(begin + ZONE + bytes, GUARD, all - ZONE - bytes);
    *p = begin + ZONE;
    {
        std::lock_guard<std::recursive_mutex> held(lock);
        blocks[begin + ZONE] = bytes;
    }
    forbid(begin, ZONE);
    size_t used = bytes - tail_of(bytes);
    forbid(begin + ZONE + used, all - ZONE - used);
    shim_count_live(1);
    return 0;
}

void end_block(unsigned char *p) {
    unsigned char *begin = p - ZONE;
    allow(begin, ZONE);
    const block of = *reinterpret_cast<block *>(begin);
    size_t bytes = of.bytes, all = whole_bytes(bytes);
    size_t used = bytes - tail_of(bytes);
    allow(begin + ZONE + used, all - ZONE - used);
    bool whole = true;
    for (size_t i = sizeof(block); i < ZONE; i++) whole = whole && begin[i] == GUARD;
    for (size_t i = ZONE + bytes; i < all; i++) whole = whole && begin[i] == GUARD;
    for (size_t i = used; i < bytes && all < SPARSE; i++) whole = whole && p[i] == UNWRITTEN;
    if (!whole) {
        fprintf(stderr, "shim: something was written outside a block of %zu bytes\n", used);
        abort();
    }
    blocks.erase(p);
    make_unwritten(p, bytes);
    give_block_back(begin, all);
    give_back(of.from, bytes);
    shim_count_live(-1);
}

int release(void *p, void *s) {
    add(s, [p] { end_block(static_cast<unsigned char *>(p)); });
    return 0;
}

int host_alloc(void **p, size_t bytes) {
    *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*p) shim_count_live(1);
    return *p ? 0 : NO_MEMORY;
}
int host_free(void *p) {
    if (p) shim_count_live(-1);
    free(p);
    return 0;
}
int copy(void *to, const void *from, size_t bytes, void *s) {
    add(s, [=] { memmove(to, from, bytes); });
    return 0;
}
int fill(void *p, int byte, size_t bytes, void *s) {
    add(s, [=] { memset(p, byte, bytes); });
    return 0;
}
int launch(const lora_cuda_launch *l, void *s) {
    need_device(s, l->name);
    std::vector<unsigned char> args((const unsigned char *)l->args, (const unsigned char *)l->args + l->args_bytes);
    add(s, [l = *l, args]() mutable {
        alignas(64) unsigned char kept[4096];
        memcpy(kept, args.data(), args.size());
        l.args = kept;
        shim_run(&l);
    });
    return 0;
}

struct graph {
    std::vector<lora_cuda_launch> launches;
    std::vector<std::vector<unsigned char>> args;
};

int graph_create(const lora_cuda_launch *launches, size_t n, void **out) {
    graph *g = new graph;
    for (size_t i = 0; i < n; i++) {
        const unsigned char *args = static_cast<const unsigned char *>(launches[i].args);
        g->launches.push_back(launches[i]);
        g->args.emplace_back(args, args + launches[i].args_bytes);
    }
    *out = g;
    shim_count_live(1);
    return 0;
}
int graph_update(void *p, size_t index, const lora_cuda_launch *l) {
    graph *g = static_cast<graph *>(p);
    if (index >= g->launches.size() || g->launches[index].kernel != l->kernel) {
        fprintf(stderr, "shim: node %zu of a graph is not %s\n", index, l->name);
        abort();
    }
    const unsigned char *args = static_cast<const unsigned char *>(l->args);
    g->launches[index] = *l;
    g->args[index].assign(args, args + l->args_bytes);
    return 0;
}
int graph_launch(void *p, void *s) {
    graph *g = static_cast<graph *>(p);
    for (size_t i = 0; i < g->launches.size(); i++) {
        lora_cuda_launch l = g->launches[i];
        l.args = g->args[i].data();
        launch(&l, s);
    }
    shim_count_graph();
    return 0;
}
int graph_destroy(void *g) {
    delete static_cast<graph *>(g);
    shim_count_live(-1);
    return 0;
}

/* SHIM_CUBLASLT=search: what the plug-in finds on this machine. */
const lora_cublaslt *cublaslt(char *why, size_t why_bytes) {
    const char *said = getenv("SHIM_CUBLASLT");
    return said && !strcmp(said, "search") ? lora_cuda_find_cublaslt(why, why_bytes) : shim_cublaslt(why, why_bytes);
}

const char *error_text(int code) {
    return code == NO_MEMORY ? "out of memory" : code == SHIM_FAULT ? "unspecified launch failure" : "an error of the shim";
}

} // namespace

bool shim_on_device(const void *p) {
    std::lock_guard<std::recursive_mutex> held(lock);
    auto at = static_cast<const unsigned char *>(p);
    auto after = blocks.upper_bound(at);
    return after != blocks.begin() && at < std::prev(after)->first + std::prev(after)->second;
}

void shim_add_work(void *s, std::function<void()> work) {
    need_device(s, "a product");
    add(s, std::move(work));
}

const lora_cuda_api *lora_cuda_api_table(void) {
    static const lora_cuda_api table = [] {
        lora_cuda_api t = {};
        t.name = getenv("SHIM_NAME") ? getenv("SHIM_NAME") : "shim"; /* "cuda": for what goes by the name */
        t.driver_version = driver_version;
        t.device_count = device_count;
        t.describe = describe;
        t.set_device = set_device;
        t.memory_info = memory_info;
        t.pool_create = pool_create;
        t.pool_destroy = pool_destroy;
        t.pool_unused = pool_unused;
        t.stream_create = stream_create;
        t.stream_destroy = stream_destroy;
        t.stream_wait = stream_wait;
        t.event_create = event_create;
        t.event_destroy = event_destroy;
        t.event_record = event_record;
        t.event_wait = event_wait;
        t.alloc = alloc;
        t.free = release;
        t.host_alloc = host_alloc;
        t.host_free = host_free;
        t.copy = copy;
        t.fill = fill;
        t.launch = launch;
        t.graph_create = graph_create;
        t.graph_update = graph_update;
        t.graph_launch = graph_launch;
        t.graph_destroy = graph_destroy;
        t.error_text = error_text;
        t.cublaslt = cublaslt;
        return t;
    }();
    return shim_with_faults(&table);
}
