/* Which devices there are, and one clear message for each that cannot be used. */
#include <stdio.h>

#include "tests/c/check_ops.h"
#include "tests/c/devices.h"

enum { MOST = 8, PATHS_BYTES = 8192 };

static lora_status open_device(lora_ctx *ctx, const char *name, const char *paths, lora_error *err) {
    lora_ctx *out = ctx;
    lora_status status = lora_ctx_create_on(ctx, name, paths, &out, err);
    CHECK((status == LORA_OK) == (out != NULL), "a context where there is an error, or none where there is not");
    lora_ctx_destroy(out);
    return status;
}

static void check_list(lora_ctx *ctx, const char *fake) {
    lora_device found[MOST] = {0};
    CHECK(lora_devices(ctx, NULL, MOST, found) == 1 && strcmp(found[0].name, "cpu") == 0 && !found[0].reason[0], "the CPU alone");
    CHECK(strstr(found[0].description, "2 threads") != NULL, "%s", found[0].description);
    CHECK(lora_devices(ctx, fake, MOST, found) == 3, "the CPU and two of the fake backend");
    CHECK(strcmp(found[1].name, "fake") == 0 && !found[1].reason[0] && found[1].description[0], "%s: %s", found[1].name, found[1].reason);
    CHECK(strcmp(found[2].name, "fake:broken") == 0 && found[2].reason[0], "%s: %s", found[2].name, found[2].reason);
    lora_device kept = found[2];
    for (int most = 0; most < 3; most++)
        CHECK(lora_devices(ctx, fake, most, most ? found : NULL) == 3, "three, whatever there is room for");
    CHECK(memcmp(&kept, &found[2], sizeof kept) == 0, "no more is written than there is room for");
}

/* ':' at the ends and twice are nothing; so is no path at all. */
static void check_separators(lora_ctx *ctx, const char *fake) {
    char paths[PATHS_BYTES];
    lora_device found[MOST];
    snprintf(paths, sizeof paths, "::%s::", fake);
    CHECK(lora_devices(ctx, paths, MOST, found) == 3, "empty paths around one");
    OK(open_device(ctx, "fake", paths, ERR));
    CHECK(lora_devices(ctx, "", MOST, found) == 1 && lora_devices(ctx, ":", MOST, found) == 1, "empty paths alone");
    REFUSED(LORA_EINVAL, "device: expected one of cpu, got fake; `lora-c devices` lists them", open_device(ctx, "fake", ":", ERR));
}

static void check_names(lora_ctx *ctx, const char *fake) {
    OK(open_device(ctx, "cpu", NULL, ERR));
    OK(open_device(ctx, "cpu", "/nowhere/lib.so", ERR)); /* needs none of them */
    REFUSED(LORA_EINVAL, "device: expected one of cpu, fake, fake:broken, got tpu; `lora-c devices` lists them",
            open_device(ctx, "tpu", fake, ERR));
    REFUSED(LORA_EINVAL, "device: expected one of cpu, fake, fake:broken, got ;", open_device(ctx, "", fake, ERR));
    REFUSED(LORA_EINVAL, "device: expected one of cpu, got tpu; `lora-c devices` lists them", open_device(ctx, "tpu", NULL, ERR));
    REFUSED(LORA_EDEVICE, "cuda: expected the plug-in for NVIDIA GPUs, got an installation without it",
            open_device(ctx, "cuda:1", fake, ERR));
    REFUSED(LORA_EDEVICE, "fake:broken: expected a device that works, got none; use fake", open_device(ctx, "fake:broken", fake, ERR));
}

/* A library that is none is a device by its file's name, with the reason; for other names the reason is in the message. */
static void check_library(lora_ctx *ctx, const char *path, const char *name, const char *text) {
    lora_device found[MOST];
    CHECK(lora_devices(ctx, path, MOST, found) == 2, "%s: one more than the CPU", path);
    CHECK(strcmp(found[1].name, name) == 0 && strstr(found[1].reason, text), "%s: %s", found[1].name, found[1].reason);
    REFUSED(LORA_EDEVICE, text, open_device(ctx, name, path, ERR));
    REFUSED(LORA_EINVAL, "device: expected one of cpu, got fake; backend: expected ", open_device(ctx, "fake", path, ERR));
    char paths[PATHS_BYTES];
    snprintf(paths, sizeof paths, "%s:%s", path, library_beside("liblora_c_fake.so"));
    OK(open_device(ctx, "fake", paths, ERR)); /* in the way of nobody */
}

static void check_libraries(lora_ctx *ctx) {
    check_library(ctx, "/nowhere/libmissing.so", "libmissing.so", "No such file or directory; check LORA_C_BACKENDS");
    check_library(ctx, "libm.so.6", "libm.so.6",
                  "backend: expected the symbol lora_backend_entry in libm.so.6, got none; it is not a backend");
    check_library(ctx, "/proc/self", "self", "backend: expected a library that loads, got a folder: /proc/self; check LORA_C_BACKENDS");
    check_library(ctx, "/proc/self/exe", "exe", "backend: expected a library that loads, got /proc/self/exe: ");
    check_library(ctx, library_beside("liblora_c_other_abi.so"), "liblora_c_other_abi.so",
                  "backend: expected interface 6, got another in ");
    char long_path[2000];
    memset(long_path, 'x', sizeof long_path - 1);
    long_path[0] = '/';
    long_path[sizeof long_path - 1] = 0;
    check_library(ctx, long_path, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                  "backend: expected a path of at most 1023 bytes, got 1999; check LORA_C_BACKENDS");
}

/* A library is loaded once, by whoever asks. */
static void check_twice(lora_ctx *ctx, const char *fake) {
    lora_ctx *a, *b, *c, *other = check_ctx(LORA_ISA_AUTO, 1);
    OK(lora_ctx_create_on(ctx, "fake", fake, &a, ERR));
    size_t live = lora_ctx_memory_total(ctx).live_bytes;
    OK(lora_ctx_create_on(ctx, "fake", fake, &b, ERR));
    OK(lora_ctx_create_on(other, "fake", fake, &c, ERR));
    CHECK(a->view.backend == b->view.backend && a->view.backend == c->view.backend, "one library");
    CHECK(a->view.state != b->view.state, "two devices of one kind, each with memory of its own");
    CHECK(strcmp(lora_ctx_device(a), "fake") == 0 && strcmp(lora_ctx_device(ctx), "cpu") == 0, "%s and %s", lora_ctx_device(a),
          lora_ctx_device(ctx));
    lora_ctx_destroy(b);
    CHECK(lora_ctx_memory_total(ctx).live_bytes == live, "nothing is left of the second");
    lora_ctx_destroy(c);
    lora_ctx_destroy(other);
    lora_ctx_destroy(a);
}

/* A view is on the device of what it is a view of; contexts of one engine, on whatever device, have its threads and kernels. */
static void check_views(lora_ctx *ctx, const char *fake) {
    lora_ctx *on, *view;
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, ERR));
    OK(lora_ctx_create_on(ctx, "fake", fake, &on, ERR));
    OK(lora_ctx_create_view(on, &view, ERR));
    CHECK(strcmp(lora_ctx_device(view), "fake") == 0 && view->view.state == on->view.state, "a view of a context on a device");
    CHECK(lora_ctx_precision(view) == LORA_PRECISION_FAST && lora_ctx_threads(view) == 2, "what a view has of the context");
    REFUSED(LORA_EUNSUPPORTED, "precision: expected exact or fast on device fake, got int8",
            lora_ctx_set_precision(view, LORA_PRECISION_INT8, ERR));
    CHECK(lora_ctx_precision(view) == LORA_PRECISION_FAST, "a precision that is refused changes nothing");
    float *p = lora_ctx_alloc(view, LORA_MEM_PARAM, 64);
    CHECK(p && lora_ctx_memory(on, LORA_MEM_PARAM).live_bytes == 64 && lora_ctx_memory(ctx, LORA_MEM_PARAM).live_bytes == 0,
          "memory is the device's");
    lora_ctx_free(on, p);
    lora_ctx_destroy(view);
    lora_ctx_destroy(on);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, ERR));
    REFUSED(LORA_EUNSUPPORTED, "on device fake, got int8", lora_ctx_create_on(ctx, "fake", fake, &on, ERR));
    REFUSED(LORA_EINVAL, "precision: expected exact, fast or int8, got 3", lora_ctx_set_precision(ctx, (lora_precision)3, ERR));
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_EXACT, ERR));
}

/* Every allocation fails once: an error or a context, and nothing is left over. */
static void check_failed_allocations(const char *fake) {
    lora_status status = LORA_ENOMEM;
    int n = 0;
    for (; status != LORA_OK && n < 100; n++) {
        lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 1);
        lora_error err = {0};
        ctx->engine->mem.fail_after = n;
        status = open_device(ctx, "fake", fake, &err);
        ctx->engine->mem.fail_after = -1;
        CHECK(status == LORA_OK || err.message[0], "allocation %d: status %d without a message", n, (int)status);
        OK(open_device(ctx, "fake", fake, ERR));
        lora_ctx_destroy(ctx);
    }
    CHECK(status == LORA_OK && n > 3, "%d allocations were made to fail", n);
}

void check_devices(void) {
    if (!*backend_paths()) return; /* there is no fake device */
    const char *fake = library_beside("liblora_c_fake.so");
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 2);
    check_list(ctx, fake);
    check_separators(ctx, fake);
    check_names(ctx, fake);
    check_libraries(ctx);
    check_twice(ctx, fake);
    check_views(ctx, fake);
    lora_ctx_destroy(ctx);
    check_failed_allocations(fake);
}
