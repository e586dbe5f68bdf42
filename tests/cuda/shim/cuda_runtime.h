/* A GPU for tests: kernel sources compiled by the C++ compiler find this header in the place of NVIDIA's. Blocks of a large grid run on
 * several threads of the host, in random order; warps of a block one after another in random order from barrier to barrier, lanes of a
 * warp in random order from one warp operation to the next. What it catches, with a message and an abort: barriers and warp operations
 * that a named lane does not reach, misaligned vector accesses, grids and shared memory beyond the limits, reads of memory never written
 * (0xFF: NaN, in shared memory of every block anew, and in every allocation). */
#ifndef SHIM_CUDA_RUNTIME_H
#define SHIM_CUDA_RUNTIME_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__

struct shim_uint3 {
    uint32_t x, y, z;
};
struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* --- the thread that runs --- */

struct shim_stack;
struct shim_thread {
    shim_uint3 index;
    int lane, warp;
};

/* Bits stand for lanes. */
struct shim_warp {
    uint32_t lanes, begun, ended, at_barrier;
    uint32_t at_warp, at_whole; /* those that wait at a warp operation; whose mask names the whole warp */
    bool computed;              /* for all lanes, since the last operation that was complete */
    uint32_t shown;             /* which of the two values of a lane the others see: that of the last operation that was complete */
    const unsigned char *order; /* of this round */
    int next;
    uint32_t masks[32];
    shim_stack *stacks[32];
    alignas(64) unsigned char values[2][32][64];
};

/* What a thread of the host knows of the block that it runs. */
struct shim_copies;
struct shim_block_state {
    shim_thread *self;
    shim_warp *warps, *warp; /* all; the one that runs */
    shim_uint3 block, grid;
    uint32_t threads;
    unsigned char *shared;
    shim_copies *copies; /* by thread */
};

extern __thread shim_block_state *shim_now __attribute__((tls_model("initial-exec"))); /* thread_local would call for its constructor */
enum shim_wait_kind { SHIM_AT_WARP, SHIM_AT_BARRIER };
void shim_wait(shim_wait_kind what, uint32_t mask);
[[noreturn]] void shim_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void *shim_shared() { return shim_now->shared; }
[[noreturn]] static inline void __trap() { shim_die("__trap"); }

#define threadIdx (shim_now->self->index)
#define blockIdx (shim_now->block)
#define gridDim (shim_now->grid)
#define blockDim (dim3(shim_now->threads))

/* --- barriers and warp operations --- */

static inline void __syncthreads() { shim_wait(SHIM_AT_BARRIER, 0); }
static inline void __syncwarp(uint32_t mask = 0xffffffffu) { shim_wait(SHIM_AT_WARP, mask); }
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* What a lane gives is shown when all lanes of the mask have given. All of them have looked before one of them can go past another wait. */
template <class T> static inline void shim_give(uint32_t mask, const T &v) {
    static_assert(sizeof(T) <= sizeof shim_now->warp->values[0][0], "64 bytes");
    shim_warp *warp = shim_now->warp;
    int lane = shim_now->self->lane;
    memcpy(warp->values[~warp->shown >> lane & 1][lane], (const void *)&v, sizeof v);
    shim_wait(SHIM_AT_WARP, mask);
}
template <class T> static inline T shim_take(int from) {
    const shim_warp *warp = shim_now->warp;
    T v;
    memcpy((void *)&v, warp->values[warp->shown >> from & 1][from], sizeof v);
    return v;
}
template <class T> static inline T shim_exchange(uint32_t mask, T v, int from) {
    shim_give(mask, v);
    if (from < 0 || from > 31 || !(mask >> from & 1))
        shim_die("shuffle: lane %d asks for lane %d, which the mask %08x has not", shim_now->self->lane, from, mask);
    return shim_take<T>(from);
}
/* Each v of every lane joined with that of lane ^ step, one step after the other; the first lane that goes on computes for all. */
template <int... STEPS, int N, class T, class Join> static inline void shim_butterfly(T (&v)[N], Join join) {
    struct given {
        T v[N];
    } mine;
    memcpy((void *)mine.v, (const void *)v, sizeof v);
    shim_give(0xffffffffu, mine);
    shim_warp *warp = shim_now->warp;
    if (!warp->computed) {
        T of[N][32], next[32];
        for (int lane = 0; lane < 32; lane++) {
            given its = shim_take<given>(lane);
            for (int i = 0; i < N; i++) of[i][lane] = its.v[i];
        }
        auto add = [&](T *x, int step) {
            for (int lane = 0; lane < 32; lane++) next[lane] = join(x[lane], x[lane ^ step]);
            memcpy((void *)x, (const void *)next, sizeof next);
        };
        for (auto &x : of) (add(x, STEPS), ...);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < N; i++) mine.v[i] = of[i][lane];
            memcpy(warp->values[warp->shown >> lane & 1][lane], (const void *)&mine, sizeof mine);
        }
        warp->computed = true;
    }
    mine = shim_take<given>(shim_now->self->lane);
    memcpy((void *)v, (const void *)mine.v, sizeof v);
}
template <class T> static inline T __shfl_sync(uint32_t mask, T v, int from, int width = 32) {
    return shim_exchange(mask, v, (shim_now->self->lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32) {
    (void)width;
    return shim_exchange(mask, v, shim_now->self->lane ^ bits);
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T v, int by, int width = 32) {
    int to = (shim_now->self->lane & (width - 1)) + by;
    return shim_exchange(mask, v, to < width ? shim_now->self->lane + by : shim_now->self->lane);
}
template <class T> static inline T __shfl_up_sync(uint32_t mask, T v, int by, int width = 32) {
    int to = (shim_now->self->lane & (width - 1)) - by;
    return shim_exchange(mask, v, to >= 0 ? shim_now->self->lane - by : shim_now->self->lane);
}
static inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
    shim_give(mask, predicate);
    uint32_t found = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) found |= (uint32_t)(shim_take<int>(i) != 0) << i;
    return found;
}
static inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

/* --- atomic operations on integers --- */

static inline unsigned long long atomicMin(unsigned long long *p, unsigned long long v) {
    unsigned long long old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}

/* --- arithmetic --- */

static inline float __uint_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
static inline uint32_t __float_as_uint(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float shim_maximum(float a, float b) { return a != a || b > a ? b : a; } /* not a NaN where there is another */
static inline float shim_minimum(float a, float b) { return a != a || b < a ? b : a; }
#define fmaxf shim_maximum /* libm's are calls */
#define fminf shim_minimum
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int __popc(uint32_t x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> (4 * i), byte = (uint32_t)(both >> (8 * (s & 7))) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }

/* --- vectors: an access that is not aligned dies --- */

template <class T, size_t ALIGN> static inline const T *shim_aligned(const T *p) {
    if ((uintptr_t)p % ALIGN) shim_die("an access of %zu bytes at %p, which is not aligned", sizeof(T), (const void *)p);
    return p;
}
#define SHIM_VECTOR(name, type, n, ...)                                                                                                    \
    struct __align__(sizeof(type) * n) name {                                                                                              \
        type __VA_ARGS__;                                                                                                                  \
        name() = default;                                                                                                                  \
        name(const name &o) { memcpy((void *)this, shim_aligned<name, sizeof(type) * n>(&o), sizeof o); }                                  \
        name &operator=(const name &o) {                                                                                                   \
            memcpy((void *)shim_aligned<name, sizeof(type) * n>(this), shim_aligned<name, sizeof(type) * n>(&o), sizeof o);                \
            return *this;                                                                                                                  \
        }                                                                                                                                  \
    }
SHIM_VECTOR(float2, float, 2, x, y);
SHIM_VECTOR(float4, float, 4, x, y, z, w);
SHIM_VECTOR(uint2, uint32_t, 2, x, y);
SHIM_VECTOR(uint4, uint32_t, 4, x, y, z, w);
SHIM_VECTOR(int2, int32_t, 2, x, y);
SHIM_VECTOR(int4, int32_t, 4, x, y, z, w);
SHIM_VECTOR(ushort4, uint16_t, 4, x, y, z, w);
static inline float2 make_float2(float x, float y) {
    float2 v;
    v.x = x;
    v.y = y;
    return v;
}
static inline float4 make_float4(float x, float y, float z, float w) {
    float4 v;
    v.x = x;
    v.y = y;
    v.z = z;
    v.w = w;
    return v;
}
static inline uint2 make_uint2(uint32_t x, uint32_t y) {
    uint2 v;
    v.x = x;
    v.y = y;
    return v;
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    uint4 v;
    v.x = x;
    v.y = y;
    v.z = z;
    v.w = w;
    return v;
}
template <class T> static inline void __stwb(T *p, T v) { *p = v; }
template <class T> static inline T __ldg(const T *p) { return *p; }

#endif
