/* Backends from shared libraries: what can be used, and in words why the rest cannot. */
#include "lora_c/backend/load.h"

#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 1024, MOST_DEVICES = 32 };

struct lora_backend_library {
    char path[PATH_BYTES];
    void *handle;
    const lora_backend *backend; /* NULL: it cannot be used */
    char reason[LORA_ERROR_BYTES];
    struct lora_backend_library *next;
};

/* --- libraries --- */

static const lora_backend *open_library(lora_backend_library *library) {
    const char *wrong = lora_library_fault(library->path);
    if (wrong) {
        snprintf(library->reason, sizeof library->reason, "backend: expected a library that loads, got %s: %.120s; check LORA_C_BACKENDS",
                 wrong, library->path);
        return NULL;
    }
    char why[LORA_ERROR_BYTES];
    library->handle = lora_library_open(library->path, why, sizeof why);
    if (!library->handle) {
        snprintf(library->reason, sizeof library->reason, "backend: expected a library that loads, got %.180s; check LORA_C_BACKENDS", why);
        return NULL;
    }
    void *symbol = lora_library_symbol(library->handle, "lora_backend_entry");
    lora_backend_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry); /* C has no conversion from an object pointer to a function pointer */
    const lora_backend *backend = symbol ? entry(LORA_BACKEND_ABI) : NULL;
    if (backend && backend->abi == LORA_BACKEND_ABI) return backend;
    if (!symbol)
        snprintf(library->reason, sizeof library->reason,
                 "backend: expected the symbol lora_backend_entry in %.120s, got none; it is not a backend", library->path);
    else
        snprintf(library->reason, sizeof library->reason,
                 "backend: expected interface %d, got another in %.120s; install it with this version of lora-c", LORA_BACKEND_ABI,
                 library->path);
    return NULL;
}

/* The library of a path, loaded once for the life of the engine. NULL: no memory. */
static lora_backend_library *library_of(lora_engine *engine, const char *path, size_t length) {
    size_t kept = length < PATH_BYTES ? length : PATH_BYTES - 1;
    for (lora_backend_library *l = engine->libraries; l; l = l->next)
        if (strlen(l->path) == kept && memcmp(l->path, path, kept) == 0) return l;
    lora_backend_library *library = lora_mem_calloc(&engine->mem, LORA_MEM_SCRATCH, sizeof *library);
    if (!library) return NULL;
    memcpy(library->path, path, kept);
    if (kept == length)
        library->backend = open_library(library);
    else
        snprintf(library->reason, sizeof library->reason, "backend: expected a path of at most %d bytes, got %zu; check LORA_C_BACKENDS",
                 PATH_BYTES - 1, length);
    library->next = engine->libraries;
    engine->libraries = library;
    return library;
}

void lora_unload_backends(lora_engine *engine) {
    while (engine->libraries) {
        lora_backend_library *library = engine->libraries;
        engine->libraries = library->next;
        if (library->handle) lora_library_close(library->handle);
        lora_mem_free(&engine->mem, library);
    }
}

/* --- devices --- */

int64_t lora_list_library(const lora_backend_library *library, int64_t most, lora_device *out) {
    if (library->backend) {
        int64_t n = library->backend->devices(most, out);
        return n > 0 ? n : 0;
    }
    if (most < 1) return 1;
    *out = (lora_device){.description = "a library that is no backend"};
    snprintf(out->name, sizeof out->name, "%.31s", lora_file_name(library->path));
    snprintf(out->reason, sizeof out->reason, "%s", library->reason);
    return 1;
}

/* Bytes of the first of paths. */
static size_t first_of(const char *paths) {
    const char parts[] = {lora_path_separator(), '\0'};
    return strcspn(paths, parts);
}

/* Whether the path of this length at p stands in paths before it. */
static bool stands_before(const char *paths, const char *p, size_t length) {
    for (const char *q = paths; q < p; q += first_of(q) + 1)
        if (first_of(q) == length && memcmp(q, p, length) == 0) return true;
    return false;
}

bool lora_visit_libraries(lora_engine *engine, const char *paths, lora_visit_library_fn *visit, void *arg) {
    for (const char *p = paths ? paths : ""; *p;) {
        size_t length = first_of(p);
        lora_backend_library *library = length > 0 && !stands_before(paths, p, length) ? library_of(engine, p, length) : NULL;
        if (library && visit(library, arg)) return true;
        p += length + (p[length] != '\0');
    }
    return false;
}

typedef struct device_search {
    const char *name;
    const lora_backend *backend;
    int64_t index;
    char known[LORA_ERROR_BYTES / 4]; /* "cpu, fake" */
    char reason[LORA_ERROR_BYTES];    /* why the device cannot be used */
    const char *unusable;             /* why the first library that is none cannot be */
    bool sees_gpus;                   /* one of those known is an NVIDIA GPU */
} device_search;

/* "cuda", "cuda:1" */
static bool is_gpu(const char *name) { return strncmp(name, "cuda", 4) == 0 && (name[4] == '\0' || name[4] == ':'); }

/* Whether a device is the one of this name, or stands for all of a kind ("cuda" for "cuda:1") that cannot be used. */
static bool is_meant(const lora_device *device, const char *name) {
    size_t length = strlen(device->name);
    return strcmp(device->name, name) == 0 || (device->reason[0] && strncmp(device->name, name, length) == 0 && name[length] == ':');
}

static bool find_device(const lora_backend_library *library, void *arg) {
    device_search *search = arg;
    lora_device found[MOST_DEVICES];
    int64_t n = lora_list_library(library, MOST_DEVICES, found);
    for (int64_t i = 0; i < n && i < MOST_DEVICES; i++) {
        size_t used = strlen(search->known);
        if (library->backend)
            snprintf(search->known + used, sizeof search->known - used, ", %s", found[i].name);
        else if (!search->unusable)
            search->unusable = library->reason;
        search->sees_gpus |= library->backend && is_gpu(found[i].name);
        if (!is_meant(&found[i], search->name)) continue;
        search->backend = library->backend;
        search->index = i;
        snprintf(search->reason, sizeof search->reason, "%s", found[i].reason);
        return true;
    }
    return false;
}

lora_status lora_device_open(lora_ctx *ctx, const char *given, const char *paths, lora_device_use **out, lora_error *err) {
    char name[LORA_DEVICE_NAME_BYTES];
    lora_device_name(given, name);
    *out = &ctx->engine->cpu;
    if (strcmp(name, "cpu") == 0) return LORA_OK;
    device_search search = {.name = name, .known = "cpu"};
    if (lora_meta_index(name, &search.index)) search.backend = &lora_meta_backend;
    bool found = search.backend || lora_visit_libraries(ctx->engine, paths, find_device, &search);
    LORA_CHECK(found || search.sees_gpus || search.unusable || !is_gpu(name), err, LORA_EDEVICE,
               "cuda: expected the plug-in for NVIDIA GPUs, got an installation without it; install again with LORA_C_CUDA=1 in the "
               "environment and CUDA 13's nvcc at hand");
    LORA_CHECK(found, err, LORA_EINVAL, "device: expected one of %s, got %.40s; %s", search.known, given,
               search.unusable ? search.unusable : "`lora-c devices` lists them");
    LORA_CHECK(search.backend && !search.reason[0], err, LORA_EDEVICE, "%s", search.reason);
    lora_device_use *use = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *use);
    LORA_CHECK(use, err, LORA_ENOMEM, "device: expected %zu bytes, got none", sizeof *use);
    use->backend = search.backend;
    use->process = lora_process_id();
    snprintf(use->name, sizeof use->name, "%.31s", name);
    lora_status status = search.backend->create(ctx, search.index, &use->state, err);
    if (status == LORA_OK)
        *out = use;
    else
        lora_host_free(ctx, use);
    return status;
}

void lora_device_close(lora_engine *engine, lora_device_use *use) {
    if (use == &engine->cpu) return;
    if (lora_device_is_own(use)) use->backend->destroy(use->state);
    lora_mem_free(&engine->mem, use);
}
