/* The driver that fails: counts the calls of the table, lets the chosen one fail, and knows what has been taken and not given back. */
#ifndef SHIM_FAULTS_H
#define SHIM_FAULTS_H

#include "lora_c/cuda/api.h"

/** The table with a count in front of every call that can fail. */
const lora_cuda_api *shim_with_faults(const lora_cuda_api *table);

extern "C" {
/** Lets call n from now on fail (1: the next one), once; 0: none. Returns how many calls there were since the last time. */
__attribute__((visibility("default"))) int64_t shim_fail_at(int64_t n);
/** Streams, events, graphs and pieces of memory that exist. */
__attribute__((visibility("default"))) int64_t shim_live(void);
/** Graphs that were started. */
__attribute__((visibility("default"))) int64_t shim_graph_launches(void);
}

/* Called where something begins or ends to exist. */
void shim_count_live(int by);
void shim_count_graph();
/** Whether this call is the one that fails. */
bool shim_fails(void);
enum { SHIM_FAULT = 719 }; /* cudaErrorLaunchFailure */

#endif
