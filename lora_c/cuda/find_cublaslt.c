#define _GNU_SOURCE /* dl_iterate_phdr, RTLD_NOLOAD */
#include "lora_c/cuda/find_cublaslt.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SONAME "libcublasLt.so.13"
enum { PATH_BYTES = 1024, MOST_FOLDERS = 8 };

/* --- places --- */

static void *open_in(const char *folder, const char *below) {
    char path[PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/%s/" SONAME, folder, below);
    return n > 0 && n < PATH_BYTES ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

typedef struct folders {
    char paths[MOST_FOLDERS][PATH_BYTES];
    int n;
} folders;

/* Adds the site-packages or dist-packages that a loaded library lies below. */
static int add_packages(struct dl_phdr_info *library, size_t size, void *arg) {
    (void)size;
    static const char packages[] = "-packages/";
    folders *f = arg;
    const char *end = NULL;
    for (const char *p = library->dlpi_name; (p = strstr(p, packages)); p++) end = p;
    if (!end) return 0;
    size_t length = (size_t)(end - library->dlpi_name) + sizeof packages - 2;
    for (int i = 0; i < f->n; i++)
        if (strlen(f->paths[i]) == length && memcmp(f->paths[i], library->dlpi_name, length) == 0) return 0;
    if (length < PATH_BYTES && f->n < MOST_FOLDERS) memcpy(f->paths[f->n++], library->dlpi_name, length);
    return 0;
}

/* nvidia-cublas lies beside the packages of this process: NumPy, and the one that this file is in, unless that is used from its
 * sources. */
static void *open_beside_packages(void) {
    folders f = {0};
    (void)dl_iterate_phdr(add_packages, &f);
    void *found = NULL;
    for (int i = 0; i < f.n && !found; i++) found = open_in(f.paths[i], "nvidia/cu13/lib");
    return found;
}

static void *open_in_toolkit(void) {
    const char *const homes[] = {getenv("CUDA_HOME"), getenv("CUDA_PATH"), "/usr/local/cuda"};
    void *found = NULL;
    for (int i = 0; i < 3 && !found; i++) {
        if (!homes[i] || !*homes[i]) continue;
        found = open_in(homes[i], "lib64");
        if (!found) found = open_in(homes[i], "lib"); /* conda's */
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
