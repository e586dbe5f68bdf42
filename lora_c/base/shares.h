/* Numbered tasks in contiguous shares, one for each worker. A worker goes through its own from the first task on and then takes
 * from the end of the others', so that what it reads lies in a row for as long as possible. */
#ifndef LORA_BASE_SHARES_H
#define LORA_BASE_SHARES_H

#include <stdatomic.h>

#include "lora_c/base/util.h"

typedef struct lora_share {
    _Alignas(LORA_ALIGN) _Atomic uint64_t left; /* begin << 32 | end */
} lora_share;

/** Share i of n of the tasks begin .. begin + n_tasks - 1, all below 2^31. */
LORA_INLINE void lora_share_set(lora_share *s, int64_t i, int64_t n, int64_t begin, int64_t n_tasks) {
    uint64_t from = (uint64_t)(begin + n_tasks * i / n), to = (uint64_t)(begin + n_tasks * (i + 1) / n);
    atomic_store_explicit(&s->left, from << 32 | to, memory_order_relaxed);
}

/** A task that nobody else gets, or -1. */
LORA_INLINE int64_t lora_share_take(lora_share *s, bool last) {
    uint64_t left = atomic_load_explicit(&s->left, memory_order_relaxed);
    for (;;) {
        uint32_t begin = (uint32_t)(left >> 32), end = (uint32_t)left;
        if (begin >= end) return -1;
        uint64_t rest = last ? left - 1 : left + (UINT64_C(1) << 32);
        if (atomic_compare_exchange_weak_explicit(&s->left, &left, rest, memory_order_relaxed, memory_order_relaxed))
            return last ? (int64_t)end - 1 : (int64_t)begin;
    }
}

#endif
