/* Which files may bring devices. */
#ifndef LORA_PY_BACKEND_PATHS_H
#define LORA_PY_BACKEND_PATHS_H

/** Those of the environment variable LORA_C_BACKENDS, then the plug-in for NVIDIA GPUs where it lies beside this module; separated as
 *  lora_path_separator says. For PyMem_Free. NULL with an exception. */
char *lora_py_backend_paths(void);

#endif
