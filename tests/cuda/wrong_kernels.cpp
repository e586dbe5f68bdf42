/* Kernels with one fault each, and one without: the shim must end the process with a message, or show the wrong result. Runs the one that
 * is named; tests/python/test_shim.py knows what must be said. */
#include <cstdio>

#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/ptx.cuh"

namespace {

struct numbers {
    float *data;
    int n;
};

constexpr float RIGHT = 127 * 128 / 2; /* the sum of the threads of a block of 128 */

__global__ void right(numbers x) {
    float *partial = &lora_shared<float>();
    float sum = lora_block_sum((float)threadIdx.x, partial);
    if (threadIdx.x == 0) x.data[blockIdx.x] = sum;
}
__global__ void without_barrier(numbers x) {
    float *partial = &lora_shared<float>();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = lora_warp_sum((float)threadIdx.x);
    if (lane == 0) partial[warp] = sum;
    sum = lora_warp_sum(lane < (int)blockDim.x / 32 ? partial[lane] : 0.0f);
    if (threadIdx.x == 0) x.data[blockIdx.x] = sum;
}
__global__ void one_leaves_before_the_barrier(numbers) {
    if (threadIdx.x == 3) return;
    __syncthreads();
}
__global__ void barrier_and_shuffle(numbers) {
    if (threadIdx.x == 3)
        __syncthreads();
    else
        (void)__shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void different_masks(numbers) { __syncwarp(threadIdx.x % 2 == 0 || threadIdx.x == 31 ? 0xffffffffu : 0x7fffffffu); }
__global__ void one_leaves_before_the_shuffle(numbers) {
    if (threadIdx.x == 3) return;
    (void)__shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void lanes_that_are_not(numbers) { (void)__shfl_xor_sync(0xffffffffu, 1, 1); }
__global__ void not_in_its_own_mask(numbers) { __syncwarp(0xfffffffeu); }
__global__ void asks_outside_the_mask(numbers) {
    if (threadIdx.x < 16) (void)__shfl_sync(0xffffu, 1, 20);
}
__global__ void misaligned(numbers x) {
    float4 v = *(float4 *)(x.data + 1);
    x.data[0] = v.x;
}
__global__ void matrices_outside_shared(numbers x) {
    uint32_t m[4];
    lora_ptx_load_matrices(m, (const uint16_t *)x.data);
}
__global__ void copies_misaligned(numbers x) { lora_ptx_copy16(&lora_shared<char>(), x.data + 1, true); }
template <bool WAITS> __global__ void copies(numbers x) { /* zeros of the end of x */
    float *own = &lora_shared<float>() + 4 * threadIdx.x;
    lora_ptx_copy16(own, x.data + x.n - 4, true);
    lora_ptx_copy_commit();
    if (WAITS) lora_ptx_copy_wait<0>();
    if (threadIdx.x == 0) x.data[blockIdx.x] = own[0] + RIGHT;
}
__global__ void writes_behind(numbers x) {
    if (threadIdx.x == 0) x.data[x.n] = 0;
}
__global__ void writes_before(numbers x) {
    if (threadIdx.x == 0) x.data[-1] = 0;
}
__global__ void shared_behind(numbers) { (&lora_shared<float>())[32 + threadIdx.x] = 0; }
__global__ void shared_before(numbers) { (&lora_shared<float>())[-1 - (int)threadIdx.x % 4] = 0; }
__global__ void reads_unwritten_shared(numbers x) {
    if (threadIdx.x == 0) x.data[blockIdx.x] = (&lora_shared<float>())[1];
}
__global__ void does_nothing(numbers) {}

struct kernel_case {
    const char *name;
    void (*kernel)(numbers);
    uint32_t grid[3], threads;
    size_t shared_bytes;
};
const kernel_case CASES[] = {
    {"right", right, {64, 1, 1}, 128, 128},
    {"without_barrier", without_barrier, {64, 1, 1}, 128, 128},
    {"one_leaves_before_the_barrier", one_leaves_before_the_barrier, {1, 1, 1}, 64, 0},
    {"barrier_and_shuffle", barrier_and_shuffle, {1, 1, 1}, 32, 0},
    {"different_masks", different_masks, {1, 1, 1}, 32, 0},
    {"one_leaves_before_the_shuffle", one_leaves_before_the_shuffle, {1, 1, 1}, 32, 0},
    {"lanes_that_are_not", lanes_that_are_not, {1, 1, 1}, 40, 0},
    {"not_in_its_own_mask", not_in_its_own_mask, {1, 1, 1}, 32, 0},
    {"asks_outside_the_mask", asks_outside_the_mask, {1, 1, 1}, 32, 0},
    {"misaligned", misaligned, {1, 1, 1}, 32, 0},
    {"matrices_outside_shared", matrices_outside_shared, {1, 1, 1}, 32, 64},
    {"copies_misaligned", copies_misaligned, {1, 1, 1}, 32, 64},
    {"copies_with_wait", copies<true>, {32, 1, 1}, 32, 512},
    {"copies_without_wait", copies<false>, {32, 1, 1}, 32, 512},
    {"writes_behind", writes_behind, {1, 1, 1}, 32, 0},
    {"writes_before", writes_before, {1, 1, 1}, 32, 0},
    {"shared_behind", shared_behind, {1, 1, 1}, 32, 128},
    {"shared_before", shared_before, {1, 1, 1}, 32, 128},
    {"reads_unwritten_shared", reads_unwritten_shared, {64, 1, 1}, 32, 128},
    {"too_many_threads", does_nothing, {1, 1, 1}, 1056, 0},
    {"no_threads", does_nothing, {1, 1, 1}, 0, 0},
    {"too_high_a_grid", does_nothing, {1, 65536, 1}, 32, 0},
    {"much_shared", does_nothing, {1, 1, 1}, 32, 100 * 1024},
};
enum { NUMBERS = 64 };

void launch(const lora_cuda_api *api, const kernel_case &c, float *data, void *stream) {
    numbers args = {data, NUMBERS};
    lora_cuda_launch l = {};
    l.name = c.name;
    l.kernel = (const void *)c.kernel;
    l.call = [](const void *k, const void *a) { ((void (*)(numbers))k)(*(const numbers *)a); };
    l.args = &args;
    l.args_bytes = sizeof args;
    for (int i = 0; i < 3; i++) l.grid[i] = c.grid[i];
    l.threads = c.threads;
    l.shared_bytes = c.shared_bytes;
    (void)api->launch(&l, stream);
}

int alloc(const lora_cuda_api *api, void **p, size_t bytes, void *stream) {
    void *pool;
    int code = api->pool_create(0, &pool);
    if (code == 0) code = api->alloc(p, bytes + LORA_CUDA_READABLE, pool, stream);
    return code != 0 ? code : api->pool_destroy(pool); /* it lives until p is freed */
}

/* Prints what blocks put down. */
void run_kernel(const lora_cuda_api *api, const kernel_case &c, void *stream) {
    void *data;
    float back[NUMBERS], zeros[NUMBERS] = {};
    (void)alloc(api, &data, sizeof back, stream);
    (void)api->copy(data, zeros, sizeof zeros, stream);
    launch(api, c, (float *)data, stream);
    (void)api->copy(back, data, sizeof back, stream);
    (void)api->free(data, stream);
    (void)api->stream_wait(stream);
    int right_ones = 0, unwritten = 0;
    for (float x : back) {
        right_ones += x == RIGHT;
        unwritten += x != x;
    }
    printf("%d right, %d unwritten\n", right_ones, unwritten);
}

/* A copy from memory that the host writes before it waits: prints how many copies have the old number and the new one. */
void run_host_changes(const lora_cuda_api *api, void *stream) {
    int changed = 0;
    for (int i = 0; i < NUMBERS; i++) {
        int from = 1, to = 0;
        (void)api->copy(&to, &from, sizeof to, stream);
        from = 2;
        (void)api->stream_wait(stream);
        changed += to == 2;
    }
    printf("%d early, %d late\n", NUMBERS - changed, changed);
}

/* A copy to memory that the host reads before it waits: prints how many copies had been made by then. */
void run_host_reads(const lora_cuda_api *api, void *stream) {
    int made = 0;
    for (int i = 0; i < NUMBERS; i++) {
        int from = 1, to = 0;
        (void)api->copy(&to, &from, sizeof to, stream);
        made += to == 1;
        (void)api->stream_wait(stream);
    }
    printf("%d early, %d late\n", made, NUMBERS - made);
}

void run_other_device(const lora_cuda_api *api, void *stream) {
    void *data;
    (void)api->set_device(1);
    (void)alloc(api, &data, 1, stream);
}

} // namespace

int main(int argc, char **argv) {
    const lora_cuda_api *api = lora_cuda_api_table();
    const char *name = argc > 1 ? argv[1] : "";
    void *stream;
    (void)api->set_device(0);
    (void)api->stream_create(&stream);
    int found = 0;
    for (const kernel_case &c : CASES) {
        if (strcmp(c.name, name) != 0) continue;
        run_kernel(api, c, stream);
        found = 1;
    }
    static const struct {
        const char *name;
        void (*run)(const lora_cuda_api *, void *);
    } others[] = {{"host_changes", run_host_changes}, {"host_reads", run_host_reads}, {"other_device", run_other_device}};
    for (const auto &other : others) {
        if (strcmp(other.name, name) != 0) continue;
        other.run(api, stream);
        found = 1;
    }
    (void)api->stream_destroy(stream);
    return found ? 0 : 2;
}
