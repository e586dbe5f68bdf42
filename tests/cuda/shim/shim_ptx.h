/* What stands for lora_c/cuda/ptx.cuh without a GPU: layouts of fragments as in the sections of the PTX ISA named there. Asynchronous
 * copies are made as late as they may be, by the wait. */
#ifndef SHIM_PTX_H
#define SHIM_PTX_H

#include <cuda_runtime.h>

#include <vector>

#include "lora_c/base/half.h"

typedef float shim_floats __attribute__((vector_size(16)));
typedef double shim_doubles __attribute__((vector_size(64)));
/* What a lane gives: k, k + 1, k + 8 and k + 9 of the lower row, the upper row and the column; and its elements of d. */
struct shim_fragments {
    shim_floats a[2], b;
    float d[4];
};
static inline shim_floats shim_widened(uint32_t near, uint32_t far) {
    return shim_floats{__uint_as_float(near << 16), __uint_as_float(near & 0xffff0000u), __uint_as_float(far << 16),
                       __uint_as_float(far & 0xffff0000u)};
}

/* The products of all lanes at once. Each is exact in float64, where they are summed in the order of k, as the lanes give them. */
static inline void shim_multiply(shim_warp *warp) {
    shim_fragments *of[32];
    double columns[16][8];
    for (int lane = 0; lane < 32; lane++) {
        of[lane] = (shim_fragments *)warp->values[warp->shown >> lane & 1][lane];
        for (int i = 0; i < 4; i++) columns[4 * (lane % 4) + i][lane / 4] = (double)of[lane]->b[i];
    }
    for (int row = 0; row < 16; row++) {
        shim_doubles sums = {};
        for (int k = 0; k < 16; k++) {
            shim_doubles b;
            memcpy(&b, columns[k], sizeof b);
            sums += (double)of[4 * (row % 8) + k / 4]->a[row / 8][k % 4] * b;
        }
        for (int n = 0; n < 8; n++) {
            float *d = &of[4 * (row % 8) + n / 2]->d[2 * (row / 8) + n % 2];
            *d = (float)((double)*d + sums[n]);
        }
    }
}

/* Element (row, k) of a lies in lane 4 (row % 8) + k % 8 / 2, register row / 8 + 2 (k / 8); (k, n) of b in lane 4 n + k % 8 / 2, register
 * k / 8; (row, n) of d in lane 4 (row % 8) + n / 2, register 2 (row / 8) + n % 2. The first lane that goes on multiplies for all. */
static inline void lora_ptx_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    shim_fragments mine = {{shim_widened(a[0], a[2]), shim_widened(a[1], a[3])}, shim_widened(b0, b1), {d[0], d[1], d[2], d[3]}};
    shim_give(0xffffffffu, mine);
    if (!shim_now->warp->computed) shim_multiply(shim_now->warp);
    shim_now->warp->computed = true;
    mine = shim_take<shim_fragments>(shim_now->self->lane);
    memcpy(d, mine.d, sizeof d);
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

static inline uint32_t lora_ptx_f16x2(float low, float high) { return (uint32_t)lora_f32_to_f16(high) << 16 | lora_f32_to_f16(low); }

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
