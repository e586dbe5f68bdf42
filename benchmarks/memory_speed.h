/* Memory with content, and the speed at which threads read memory that no cache holds. */
#ifndef LORA_BENCHMARKS_MEMORY_SPEED_H
#define LORA_BENCHMARKS_MEMORY_SPEED_H

#include <string.h>
#include <sys/mman.h>

#include "benchmarks/bench.h"
#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/parallel.h"

enum { READ_CHUNK = 1 << 16 };

/* In huge pages where they are to be had, as lora_c/base/alloc.c keeps frozen weights. */
static inline void *memory(size_t bytes) {
    const size_t huge = 1 << 21, alignment = bytes >= huge ? huge : 64, padded = (bytes + 64 + alignment - 1) & ~(alignment - 1);
    void *p = aligned_alloc(alignment, padded);
    if (!p) exit(1);
#if defined(MADV_HUGEPAGE)
    if (bytes >= huge) (void)madvise(p, padded, MADV_HUGEPAGE);
#endif
    return p;
}

static inline void random_bytes(void *out, size_t bytes, uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t word = state ^ state >> 29;
        memcpy((char *)out + i, &word, 8);
    }
}

typedef struct read_job {
    const uint64_t *data;
    bool has_avx2;
    _Atomic uint64_t sink;
} read_job;

typedef uint64_t wide __attribute__((vector_size(32)));

/* Wide enough loads that the core does not limit the memory; baseline code reads half as fast on some CPUs. */
#if defined(__x86_64__)
__attribute__((target("avx2"))) static inline uint64_t read_wide(const wide *p) {
    wide sum[4] = {{0}};
    for (int i = 0; i < READ_CHUNK / 32; i += 4) {
        __builtin_prefetch((const char *)(p + i) + 8192, 0, 3);
        __builtin_prefetch((const char *)(p + i) + 8192 + 64, 0, 3);
        for (int j = 0; j < 4; j++) sum[j] += p[i + j];
    }
    sum[0] += sum[1] + sum[2] + sum[3];
    return sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3];
}
#endif

static inline uint64_t read_baseline(const uint64_t *p) {
    uint64_t sum[8] = {0};
    for (int i = 0; i < READ_CHUNK / 8; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += p[i + j];
    for (int j = 1; j < 8; j++) sum[0] += sum[j];
    return sum[0];
}

static inline void read_task(void *arg, int64_t task, int worker) {
    (void)worker;
    read_job *job = arg;
    const char *p = (const char *)job->data + task * READ_CHUNK;
#if defined(__x86_64__)
    if (job->has_avx2) {
        job->sink += read_wide((const wide *)(const void *)p);
        return;
    }
#endif
    job->sink += read_baseline((const uint64_t *)(const void *)p);
}

/* bytes/s of reading memory that no cache holds */
static inline double read_bandwidth(lora_pool *pool) {
    static uint64_t *data;
    const int64_t bytes = INT64_C(512) << 20;
    if (!data) random_bytes(data = memory((size_t)bytes), (size_t)bytes, 1);
    bool has_avx2 = lora_cpu_best_isa() >= LORA_ISA_AVX2; /* once: CPUID is slow in a virtual machine */
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        read_job job = {data, has_avx2, 0};
        double start = now();
        lora_parallel_for(pool, bytes / READ_CHUNK, read_task, &job);
        double time = now() - start;
        if (time < best) best = time;
    }
    return (double)bytes / best;
}

#endif
