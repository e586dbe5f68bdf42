#include "lora_c/bindings/py_backend_paths.h"

#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/process.h"

static const char PLUG_IN[] = "liblora_c_cuda.so";

char *lora_py_backend_paths(void) {
    enum { LONGEST = 4096 };
    char beside[LONGEST];
    const char *said = getenv("LORA_C_BACKENDS");
    if (!said) said = "";
    bool is_there = lora_file_beside(PLUG_IN, PLUG_IN, beside, sizeof beside);
    size_t length = strlen(said), more = is_there ? strlen(beside) + 1 : 0;
    char *paths = PyMem_Malloc(length + more + 1);
    if (!paths) return (char *)PyErr_NoMemory();
    memcpy(paths, said, length + 1);
    if (!is_there) return paths;
    paths[length] = lora_path_separator();
    memcpy(paths + length + 1, beside, more); /* with its end */
    return paths;
}
