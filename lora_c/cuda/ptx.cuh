/* Instructions of PTX that C++ has no words for, by the sections of the PTX ISA. Those of compute capability 8.0 trap below it, where no
 * launcher asks for them. */
#ifndef LORA_CUDA_PTX_CUH
#define LORA_CUDA_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#ifndef __CUDACC__
#include <shim_ptx.h>
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define LORA_PTX_80(...) __trap()
#else
#define LORA_PTX_80(...) asm volatile(__VA_ARGS__)
#endif

__device__ __forceinline__ uint32_t lora_ptx_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* "Multiply-and-Accumulate Instruction: mma", "Matrix Fragments for mma.m16n8k16 with floating point type": d += a · b, a (16, 16) and
 * b (16, 8) bfloat16, d (16, 8) float32. */
__device__ __forceinline__ void lora_ptx_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    LORA_PTX_80("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(d[0]),
                "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* "Warp-level matrix load instruction: ldmatrix": four matrices (8, 8) of 16-bit elements; lane 8 i + r has the address, a multiple of 16,
 * of row r of matrix i in shared memory. Lane l receives elements 2 (l % 4) and the next of row l / 4; transposed: of column l / 4. */
__device__ __forceinline__ void lora_ptx_load_matrices(uint32_t (&m)[4], const uint16_t *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(lora_ptx_shared(row))
                 : "memory");
}
__device__ __forceinline__ void lora_ptx_load_matrices_transposed(uint32_t (&m)[4], const uint16_t *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(lora_ptx_shared(row))
                 : "memory");
}

/* "Data Movement and Conversion Instructions: cvt": both to bfloat16, to nearest even; low in bits 0-15. */
__device__ __forceinline__ uint32_t lora_ptx_bf16x2(float low, float high) {
    uint32_t both = 0;
    LORA_PTX_80("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

/* The same to float16. */
__device__ __forceinline__ uint32_t lora_ptx_f16x2(float low, float high) {
    uint32_t both;
    asm("{.reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}" : "=r"(both) : "f"(low), "f"(high));
    return both;
}

/* "Floating Point Instructions: ex2": 2^x, relative error 2^-22, subnormal results are 0. */
__device__ __forceinline__ float lora_ptx_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* "Data Movement and Conversion Instructions: Non-bulk copy": 16 bytes from global to shared memory, zeros unless valid. Done for this
 * thread after a wait, for others after a barrier behind it. */
__device__ __forceinline__ void lora_ptx_copy16(void *to, const void *from, bool valid) {
    LORA_PTX_80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(lora_ptx_shared(to)), "l"(__cvta_generic_to_global(from)),
                "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void lora_ptx_copy_commit() { LORA_PTX_80("cp.async.commit_group;" :: : "memory"); }
/* Until at most PENDING of the latest groups are under way. */
template <int PENDING> __device__ __forceinline__ void lora_ptx_copy_wait() {
    LORA_PTX_80("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
#endif
