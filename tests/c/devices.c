#include "tests/c/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/process.h"
#include "tests/c/device_mirror.h"

enum { MOST_DEVICES = 8, MOST_CONTEXTS = 16, PATH_BYTES = 1024, MOST_LIBRARIES = 4 };

/* --- what there is --- */

const char *library_beside(const char *file) {
    static char paths[MOST_LIBRARIES][PATH_BYTES];
    static int n;
    char *path = paths[n++ % MOST_LIBRARIES];
    (void)lora_file_beside(paths, file, path, PATH_BYTES); /* who opens it says that it is not there */
    return path;
}

const char *backend_paths(void) {
    static const char *fake;
    const char *chosen = getenv("LORA_C_BACKENDS");
    if (!chosen && !fake) fake = library_beside("liblora_c_fake.so");
    if (chosen && strcmp(chosen, "none") == 0) return ""; /* where the fake device is not built: it needs Linux' memory files */
    return chosen ? chosen : fake;
}

/* float32 sums in another order, and operands of 8 bits: both by the largest of some hundred results */
static const double OF_OTHERS[2] = {2e-5, 2e-2};

static int find_devices(checked_device *out) {
    lora_device found[MOST_DEVICES];
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 1);
    int64_t n = lora_devices(ctx, backend_paths(), MOST_DEVICES, found);
    int used = 0;
    for (int64_t i = 0; i < n && i < MOST_DEVICES; i++) {
        if (found[i].reason[0]) continue;
        checked_device *d = &out[used++];
        bool same = i == 0 || strcmp(found[i].name, "fake") == 0;
        *d = (checked_device){.tolerance = {same ? 0 : OF_OTHERS[0], same ? 0 : OF_OTHERS[1]}};
        memcpy(d->name, found[i].name, sizeof d->name);
    }
    CHECK(used > 1 || !*backend_paths(), "no device but the CPU in %s", backend_paths());
    lora_ctx_destroy(ctx);
    return used;
}

int checked_devices(const checked_device **out) {
    static checked_device devices[MOST_DEVICES];
    static int n;
    if (n == 0) n = find_devices(devices);
    *out = devices;
    return n;
}

/* --- the one in use --- */

static int in_use; /* index */

const checked_device *device_in_use(void) {
    const checked_device *devices;
    (void)checked_devices(&devices);
    return &devices[in_use];
}

static bool has_own_mathematics(void) { return device_in_use()->tolerance[0] > 0; }

lora_isa device_first_isa(void) { return has_own_mathematics() ? lora_cpu_best_isa() : LORA_ISA_REF; }

static struct {
    uint64_t *hashes; /* of the CPU's results, in their order */
    int64_t n, room, at;
} recorded;

void same_on_every_device(const char *what, const void *results, size_t bytes) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)results)[i]) * 1099511628211u; /* FNV-1a */
    if (in_use == 0) {
        if (recorded.n == recorded.room) {
            recorded.room = 2 * recorded.room + 1024;
            recorded.hashes = realloc(recorded.hashes, (size_t)recorded.room * sizeof *recorded.hashes);
        }
        recorded.hashes[recorded.n++] = hash;
        return;
    }
    bool expected = recorded.at < recorded.n && recorded.hashes[recorded.at] == hash;
    recorded.at++;
    CHECK(expected || has_own_mathematics(), "%s: other bits than on the CPU", what);
}

void on_every_device(void (*checks)(void)) {
    const checked_device *devices;
    int n = checked_devices(&devices);
    for (in_use = 0; in_use < n; in_use++) {
        recorded.at = 0;
        if (in_use == 0) recorded.n = 0;
        checks();
        CHECK(in_use == 0 || has_own_mathematics() || recorded.at == recorded.n, "%s gave %lld results, the CPU %lld", devices[in_use].name,
              (long long)recorded.at, (long long)recorded.n);
    }
    in_use = 0;
    free(recorded.hashes);
    recorded.hashes = NULL;
    recorded.n = recorded.room = 0;
}

/* --- contexts --- */

static struct {
    lora_ctx *ctx, *engine;
} contexts[MOST_CONTEXTS]; /* those on other devices than the CPU */

lora_ctx *device_ctx_on(const char *device, const char *paths, lora_isa isa, int threads) {
    lora_ctx *engine = check_ctx(isa, threads), *ctx;
    if (strcmp(device, "cpu") == 0) return engine;
    lora_error err = {0};
    int free_one = 0;
    while (free_one < MOST_CONTEXTS && contexts[free_one].ctx) free_one++;
    if (free_one == MOST_CONTEXTS || lora_ctx_create_on(engine, device, paths, &ctx, &err) != LORA_OK) {
        printf("context on %s: %s\n", device, free_one == MOST_CONTEXTS ? "too many" : err.message);
        exit(1);
    }
    contexts[free_one].ctx = ctx;
    contexts[free_one].engine = engine;
    return ctx;
}

bool device_allocations_fail(const lora_ctx *ctx) {
    return strcmp(lora_ctx_device(ctx), "cpu") == 0 || strcmp(lora_ctx_device(ctx), "fake") == 0;
}

lora_ctx *device_ctx(lora_isa isa, int threads) { return device_ctx_on(device_in_use()->name, backend_paths(), isa, threads); }

void device_ctx_free(lora_ctx *ctx) {
    mirror_forget(ctx);
    lora_ctx_destroy(ctx);
    for (int i = 0; i < MOST_CONTEXTS; i++) {
        if (contexts[i].ctx != ctx) continue;
        lora_ctx_destroy(contexts[i].engine);
        contexts[i].ctx = contexts[i].engine = NULL;
        return;
    }
}
