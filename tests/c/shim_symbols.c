#include "lora_c/base/os.h"
#include "tests/c/check.h"
#include "tests/c/devices.h"
#include <stdio.h>
#include <string.h>

#include "tests/c/shim_symbols.h"

enum { PATH_BYTES = 1024 };

static void *open_shim(void) {
    const char *at = strstr(backend_paths(), "liblora_c_shim.so");
    if (!at) return NULL;
    const char *begin = at;
    while (begin > backend_paths() && begin[-1] != lora_path_separator()) begin--;
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%.*s", (int)(at - begin + (int)strlen("liblora_c_shim.so")), begin);
    char why[PATH_BYTES];
    return lora_library_open(path, why, sizeof why); /* stays */
}

static bool find(void *handle, const char *name, void *function) {
    void *symbol = lora_library_symbol(handle, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

bool find_shim_symbols(shim_symbols *out) {
    void *handle = open_shim();
    return handle && find(handle, "shim_fail_at", &out->fail_at) && find(handle, "shim_live", &out->live) &&
           find(handle, "shim_graph_launches", &out->graph_launches) && find(handle, "shim_run_ends", &out->run_ends);
}
