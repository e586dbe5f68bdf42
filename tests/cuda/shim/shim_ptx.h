/* What stands for lora_c/cuda/ptx.cuh without a GPU: layouts of fragments as in the sections of the PTX ISA named there. Asynchronous
 * copies are made as late as they may be, by the wait. */
#ifndef SHIM_PTX_H
#define SHIM_PTX_H

#include <cuda_runtime.h>

#include <vector>

#include "lora_c/base/half.h"

struct shim_fragments {
    uint32_t a[4], b[2];
};

static inline double shim_half_of(uint32_t pair, int which) { return (double)lora_bf16_to_f32((uint16_t)(pair >> (16 * which))); }

/* Element (row, k) of a lies in lane 4 (row % 8) + k % 8 / 2, register row / 8 + 2 (k / 8); (k, n) of b in lane 4 n + k % 8 / 2, register
 * k / 8; (row, n) of d in lane 4 (row % 8) + n / 2, register 2 (row / 8) + n % 2. */
static inline void lora_ptx_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    shim_fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    shim_give(0xffffffffu, mine);
    int group = shim_now->self->lane / 4, in_group = shim_now->self->lane % 4;
    double sums[4] = {(double)d[0], (double)d[1], (double)d[2], (double)d[3]};
    for (int t = 0; t < 4; t++) {
        shim_fragments rows = shim_take<shim_fragments>(4 * group + t);
        for (int column = 0; column < 2; column++) {
            shim_fragments columns = shim_take<shim_fragments>(4 * (2 * in_group + column) + t);
            for (int i = 0; i < 8; i++) { /* lower and upper rows, halves of k, both of a pair */
                int upper = i & 1, k_half = i >> 1 & 1, which = i >> 2;
                sums[2 * upper + column] += shim_half_of(rows.a[upper + 2 * k_half], which) * shim_half_of(columns.b[k_half], which);
            }
        }
    }
    for (int i = 0; i < 4; i++) d[i] = (float)sums[i];
}

static inline void shim_load_matrices(uint32_t (&m)[4], const uint16_t *row, bool transposed) {
    if ((uintptr_t)row % 16) shim_die("ldmatrix from %p, which is not aligned", (const void *)row);
    const unsigned char *shared = (const unsigned char *)shim_shared();
    if ((const unsigned char *)row < shared || (const unsigned char *)row >= shared + 228 * 1024)
        shim_die("ldmatrix outside shared memory");
    shim_give(0xffffffffu, row);
    int line = shim_now->self->lane / 4, pair = 2 * (shim_now->self->lane % 4);
    for (int i = 0; i < 4; i++) {
        uint16_t first = transposed ? shim_take<const uint16_t *>(8 * i + pair)[line] : shim_take<const uint16_t *>(8 * i + line)[pair];
        uint16_t second =
            transposed ? shim_take<const uint16_t *>(8 * i + pair + 1)[line] : shim_take<const uint16_t *>(8 * i + line)[pair + 1];
        m[i] = (uint32_t)second << 16 | first;
    }
}
static inline void lora_ptx_load_matrices(uint32_t (&m)[4], const uint16_t *row) { shim_load_matrices(m, row, false); }
static inline void lora_ptx_load_matrices_transposed(uint32_t (&m)[4], const uint16_t *row) { shim_load_matrices(m, row, true); }

static inline uint32_t lora_ptx_bf16x2(float low, float high) { return (uint32_t)lora_f32_to_bf16(high) << 16 | lora_f32_to_bf16(low); }

static inline float lora_ptx_exp2(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}

struct shim_copy {
    void *to;
    const void *from; /* NULL: zeros */
};
/* Of a thread, in their order, and where groups end. */
struct shim_copies {
    std::vector<shim_copy> copies;
    std::vector<size_t> ends;
    size_t first, done; /* group; copy */
};
static inline void shim_forget_copies(shim_copies *all, int n) {
    for (int i = 0; i < n; i++) {
        all[i].copies.clear();
        all[i].ends.clear();
        all[i].first = all[i].done = 0;
    }
}
static inline shim_copies *shim_my_copies() { return &shim_now->copies[shim_now->self->index.x]; }

static inline void lora_ptx_copy16(void *to, const void *from, bool valid) {
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) shim_die("cp.async to %p from %p, not aligned", to, from);
    memset(to, 0xff, 16); /* it may be written from now on */
    shim_my_copies()->copies.push_back({to, valid ? from : nullptr});
}
static inline void lora_ptx_copy_commit() {
    shim_copies *c = shim_my_copies();
    c->ends.push_back(c->copies.size());
}
template <int PENDING> static inline void lora_ptx_copy_wait() {
    shim_copies *c = shim_my_copies();
    for (; c->ends.size() - c->first > (size_t)PENDING; c->first++) {
        for (; c->done < c->ends[c->first]; c->done++) {
            const shim_copy &copy = c->copies[c->done];
            if (copy.from)
                memcpy(copy.to, copy.from, 16);
            else
                memset(copy.to, 0, 16);
        }
    }
}

#endif
