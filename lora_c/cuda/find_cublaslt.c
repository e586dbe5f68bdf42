#define _GNU_SOURCE /* dladdr, RTLD_NOLOAD */
#include "lora_c/cuda/find_cublaslt.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SONAME "libcublasLt.so.13"
enum { PATH_BYTES = 4096, MOST_PARENTS = 4 /* from the plug-in's folder up to site-packages */ };

/* --- places --- */

static void *open_in(const char *folder, const char *below) {
    char path[PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/%s/" SONAME, folder, below);
    return n > 0 && n < PATH_BYTES ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

/* nvidia-cublas lies beside the package that this file is in. */
static void *open_beside_packages(void) {
    static const char here;
    char folder[PATH_BYTES];
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname || !realpath(info.dli_fname, folder)) return NULL;
    void *found = NULL;
    for (int i = 0; i < MOST_PARENTS && !found; i++) {
        char *slash = strrchr(folder, '/');
        if (!slash) break;
        *slash = 0;
        found = open_in(folder, "nvidia/cu13/lib");
    }
    return found;
}

static void *open_in_toolkit(void) {
    static const char *const names[] = {"CUDA_HOME", "CUDA_PATH"};
    void *found = NULL;
    for (int i = 0; i < 2 && !found; i++) {
        const char *folder = getenv(names[i]);
        if (folder && *folder) found = open_in(folder, "lib64");
    }
    return found;
}

static void *open_library(void) {
    void *found = dlopen(SONAME, RTLD_NOW | RTLD_NOLOAD); /* PyTorch's, say: one copy serves both */
    if (!found) found = open_beside_packages();
    if (!found) found = open_in_toolkit();
    return found ? found : dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
}

/* --- functions --- */

/* Returns the name of a function that is missing, or NULL. */
static const char *find_functions(void *library, lora_cublaslt *out) {
    const struct {
        const char *name;
        void *to;
    } functions[] = {
        {"cublasLtCreate", &out->create},
        {"cublasLtDestroy", &out->destroy},
        {"cublasLtGetVersion", &out->version},
        {"cublasLtMatmulDescCreate", &out->desc_create},
        {"cublasLtMatmulDescDestroy", &out->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &out->desc_set},
        {"cublasLtMatrixLayoutCreate", &out->layout_create},
        {"cublasLtMatrixLayoutDestroy", &out->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", &out->preference_create},
        {"cublasLtMatmulPreferenceDestroy", &out->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &out->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &out->heuristic},
        {"cublasLtMatmul", &out->matmul},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *symbol = dlsym(library, functions[i].name);
        if (!symbol) return functions[i].name;
        memcpy(functions[i].to, &symbol, sizeof symbol);
    }
    return NULL;
}

const lora_cublaslt *lora_cuda_find_cublaslt(char *why, size_t why_bytes) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static lora_cublaslt found;
    static bool is_found;
    pthread_mutex_lock(&lock);
    if (!is_found) { /* what was missing may be there the next time */
        void *library = open_library();
        const char *missing = library ? find_functions(library, &found) : NULL;
        is_found = library && !missing;
        if (!library)
            snprintf(why, why_bytes, "expected " SONAME ", got none; pip install \"lora-c[cuda13]\"");
        else if (missing)
            snprintf(why, why_bytes, "expected %s in " SONAME ", got none; pip install --upgrade \"nvidia-cublas<14\"", missing);
    }
    const lora_cublaslt *result = is_found ? &found : NULL;
    pthread_mutex_unlock(&lock);
    return result;
}
