/* Every function of ptx.cuh and the butterflies of lanes.cuh alone, one warp each, against plain loops over the tables of fragments.h: on a
 * GPU it says whether the wrapper is what the tables say, on the shim whether the emulation is. Prints a line of JSON for each and ends
 * with 1 where one is not. */
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "lora_c/base/half.h"
#include "lora_c/cuda/api.h"
#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/ptx.cuh"
#include "tests/cuda/fragments.h"

namespace {

enum { LANES = 32 };

struct pass {
    const uint32_t *in;
    uint32_t *out;
};

/* --- kernels: in and out by lane --- */

__global__ void multiply(pass p) { /* in: a[4], b[2], d[4]; out: d[4] */
    const uint32_t *in = p.in + 10 * threadIdx.x;
    uint32_t a[4];
    float d[4];
    for (int i = 0; i < 4; i++) a[i] = in[i], d[i] = lora_f32_bits(in[6 + i]);
    lora_ptx_mma_bf16(d, a, in[4], in[5]);
    for (int i = 0; i < 4; i++) p.out[4 * threadIdx.x + i] = lora_bits_f32(d[i]);
}

struct matrices {
    __align__(16) uint16_t of[4][8][8];
};
template <bool TRANSPOSED> __global__ void load(pass p) { /* in: two elements a lane and matrix, rows behind each other */
    matrices &s = lora_shared<matrices>();
    for (int i = 0; i < 4; i++) ((uint32_t *)s.of[i])[threadIdx.x] = p.in[LANES * i + threadIdx.x];
    __syncwarp();
    uint32_t m[4];
    const uint16_t *row = s.of[threadIdx.x / 8][threadIdx.x % 8];
    if (TRANSPOSED)
        lora_ptx_load_matrices_transposed(m, row);
    else
        lora_ptx_load_matrices(m, row);
    for (int i = 0; i < 4; i++) p.out[4 * threadIdx.x + i] = m[i];
}

__global__ void round_pairs(pass p) { /* in: low, high */
    p.out[threadIdx.x] = lora_ptx_bf16x2(lora_f32_bits(p.in[2 * threadIdx.x]), lora_f32_bits(p.in[2 * threadIdx.x + 1]));
}

__global__ void round_pairs_f16(pass p) { /* in: low, high */
    p.out[threadIdx.x] = lora_ptx_f16x2(lora_f32_bits(p.in[2 * threadIdx.x]), lora_f32_bits(p.in[2 * threadIdx.x + 1]));
}

__global__ void powers(pass p) { p.out[threadIdx.x] = lora_bits_f32(lora_ptx_exp2(lora_f32_bits(p.in[threadIdx.x]))); }

struct sixteens {
    __align__(16) uint32_t of[2][LANES][4];
};
__global__ void copies(pass p) { /* in: two groups of 16 bytes a lane; of the second one every third lane has zeros */
    sixteens &s = lora_shared<sixteens>();
    for (int group = 0; group < 2; group++) {
        lora_ptx_copy16(s.of[group][threadIdx.x], p.in + 4 * (LANES * group + threadIdx.x), group == 0 || threadIdx.x % 3 != 0);
        lora_ptx_copy_commit();
    }
    lora_ptx_copy_wait<1>();
    __syncwarp();
    for (int i = 0; i < 4; i++) p.out[4 * threadIdx.x + i] = s.of[0][LANES - 1 - threadIdx.x][i];
    lora_ptx_copy_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) p.out[4 * (LANES + threadIdx.x) + i] = s.of[1][LANES - 1 - threadIdx.x][i];
}

__global__ void exchanges(pass p) { /* in: one number; out: of the lane before it in a ring, of lane ^ 5, how many are odd */
    uint32_t x = p.in[threadIdx.x];
    p.out[3 * threadIdx.x] = __shfl_sync(0xffffffffu, x, (threadIdx.x + LANES - 1) % LANES);
    p.out[3 * threadIdx.x + 1] = __shfl_xor_sync(0xffffffffu, x, 5);
    p.out[3 * threadIdx.x + 2] = __ballot_sync(0xffffffffu, x % 2);
}

__global__ void butterflies(pass p) { /* in: two floats; out: what the steps of `by` make of the first, of both joined as an array */
    float x[2] = {lora_f32_bits(p.in[2 * threadIdx.x]), lora_f32_bits(p.in[2 * threadIdx.x + 1])};
    p.out[4 * threadIdx.x] = lora_bits_f32(lora_butterfly<16, 8, 4, 2, 1>(x[0], lora_sum_of()));
    p.out[4 * threadIdx.x + 1] = lora_bits_f32(lora_butterfly<1, 2>(x[0], lora_larger_of()));
    lora_butterflies<2, 8>(x, lora_sum_of());
    p.out[4 * threadIdx.x + 2] = lora_bits_f32(x[0]);
    p.out[4 * threadIdx.x + 3] = lora_bits_f32(x[1]);
}

/* --- running --- */

struct machine {
    const lora_cuda_api *api;
    void *stream, *pool;
    int code = 0;

    void did(int status) {
        if (code == 0) code = status;
    }
    std::vector<uint32_t> run(const char *name, void (*kernel)(pass), size_t shared_bytes, const std::vector<uint32_t> &in, size_t n_out) {
        std::vector<uint32_t> out(n_out);
        void *from = nullptr, *to = nullptr;
        did(api->alloc(&from, in.size() * sizeof in[0] + LORA_CUDA_READABLE, pool, stream));
        did(api->alloc(&to, n_out * sizeof out[0] + LORA_CUDA_READABLE, pool, stream));
        if (code != 0) return out;
        const pass p = {(const uint32_t *)from, (uint32_t *)to};
        lora_cuda_launch l = {};
        l.name = name;
        l.kernel = (const void *)kernel;
#ifndef __CUDACC__
        l.call = [](const void *k, const void *a) { ((void (*)(pass))k)(*(const pass *)a); };
#endif
        l.args = &p;
        l.args_bytes = sizeof p;
        l.grid[0] = l.grid[1] = l.grid[2] = 1;
        l.threads = LANES;
        l.shared_bytes = shared_bytes;
        did(api->copy(from, in.data(), in.size() * sizeof in[0], stream));
        did(api->launch(&l, stream));
        did(api->copy(out.data(), to, n_out * sizeof out[0], stream));
        did(api->stream_wait(stream));
        did(api->free(from, stream));
        did(api->free(to, stream));
        return out;
    }
};

uint32_t drawn = 1;
uint32_t draw() {
    drawn = drawn * 1664525u + 1013904223u;
    return drawn >> 8;
}
float draw_small() { return (float)((int)(draw() % 17) - 8); } /* bfloat16, and sums of products are exact */
uint32_t pair(float low, float high) { return (uint32_t)lora_f32_to_bf16(high) << 16 | lora_f32_to_bf16(low); }

/* --- what must come out; each returns how many numbers do not --- */

int check_multiply(machine &m) {
    float A[16][16], B[16][8], C[16][8];
    for (auto &row : A)
        for (float &x : row) x = draw_small();
    for (auto &row : B)
        for (float &x : row) x = draw_small();
    for (auto &row : C)
        for (float &x : row) x = draw_small();
    auto of = [](const auto &matrix, fragment_place p) { return matrix[p.row][p.col]; };
    std::vector<uint32_t> in;
    for (int lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 8; i += 2) in.push_back(pair(of(A, MMA_A[lane][i]), of(A, MMA_A[lane][i + 1])));
        for (int i = 0; i < 4; i += 2) in.push_back(pair(of(B, MMA_B[lane][i]), of(B, MMA_B[lane][i + 1])));
        for (int i = 0; i < 4; i++) in.push_back(lora_bits_f32(of(C, MMA_D[lane][i])));
    }
    std::vector<uint32_t> out = m.run("multiply", multiply, 0, in, 4 * LANES);
    int wrong = 0;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            fragment_place p = MMA_D[lane][i];
            float sum = of(C, p);
            for (int k = 0; k < 16; k++) sum += A[p.row][k] * B[k][p.col];
            wrong += out[4 * lane + i] != lora_bits_f32(sum);
        }
    return wrong;
}

int check_load(machine &m, bool transposed) {
    std::vector<uint32_t> in(4 * LANES);
    for (uint32_t &x : in) x = draw() << 16 ^ draw();
    std::vector<uint32_t> out =
        m.run("load", transposed ? (void (*)(pass))load<true> : (void (*)(pass))load<false>, sizeof(matrices), in, 4 * LANES);
    auto element = [&](int matrix, fragment_place p) { return in[LANES * matrix + (8 * p.row + p.col) / 2] >> (p.col % 2 * 16) & 0xffff; };
    int wrong = 0;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            const fragment_place *p = transposed ? LOAD_MATRIX_TRANSPOSED[lane] : LOAD_MATRIX[lane];
            wrong += out[4 * lane + i] != (element(i, p[1]) << 16 | element(i, p[0]));
        }
    return wrong;
}
int check_load_rows(machine &m) { return check_load(m, false); }
int check_load_columns(machine &m) { return check_load(m, true); }

int check_round(machine &m) {
    static const uint32_t special[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x3f808000u,
                                       0x3f818000u, 0x3f808001u, 0x7f7fffffu, 1,           0x007fffffu};
    std::vector<uint32_t> in(2 * LANES);
    for (size_t i = 0; i < in.size(); i++) in[i] = i < sizeof special / sizeof *special ? special[i] : draw() << 8 & 0xbfffffffu;
    std::vector<uint32_t> out = m.run("round", round_pairs, 0, in, LANES);
    int wrong = 0;
    for (int lane = 0; lane < LANES; lane++) wrong += out[lane] != pair(lora_f32_bits(in[2 * lane]), lora_f32_bits(in[2 * lane + 1]));
    return wrong;
}

int check_round_f16(machine &m) {
    static const uint32_t special[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x477fe000u, 0x477fefffu, 0x477ff000u,
                                       0x38800000u, 0x387fffffu, 0x33000000u, 0x33000001u, 0x3f801000u, 0x3f803000u, 0x3f801001u};
    std::vector<uint32_t> in(2 * LANES);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = i < sizeof special / sizeof *special ? special[i] : 0x32000000u + draw() % 0x17000000u; /* 2^-27 to 2^18 */
    std::vector<uint32_t> out = m.run("round to float16", round_pairs_f16, 0, in, LANES);
    int wrong = 0;
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t low = lora_f32_to_f16(lora_f32_bits(in[2 * lane])), high = lora_f32_to_f16(lora_f32_bits(in[2 * lane + 1]));
        wrong += out[lane] != (low | high << 16);
    }
    return wrong;
}

int check_powers(machine &m) {
    std::vector<uint32_t> in(LANES);
    for (int i = 0; i < LANES; i++) in[i] = lora_bits_f32(i == 0 ? -INFINITY : i == 1 ? -140.0f : -(float)(draw() % 120000) / 1000);
    std::vector<uint32_t> out = m.run("powers", powers, 0, in, LANES);
    int wrong = 0;
    for (int i = 0; i < LANES; i++) {
        double right = exp2((double)lora_f32_bits(in[i])), got = (double)lora_f32_bits(out[i]);
        wrong += right < 0x1p-126 ? got != 0 : !(fabs(got - right) <= right * 0x1p-21);
    }
    return wrong;
}

int check_copies(machine &m) {
    std::vector<uint32_t> in(8 * LANES);
    for (uint32_t &x : in) x = draw();
    std::vector<uint32_t> out = m.run("copies", copies, sizeof(sixteens), in, 8 * LANES);
    int wrong = 0;
    for (int group = 0; group < 2; group++)
        for (int lane = 0; lane < LANES; lane++)
            for (int i = 0; i < 4; i++) {
                int from = LANES - 1 - lane;
                uint32_t right = group == 1 && from % 3 == 0 ? 0 : in[4 * (LANES * group + from) + i];
                wrong += out[4 * (LANES * group + lane) + i] != right;
            }
    return wrong;
}

int check_exchanges(machine &m) {
    std::vector<uint32_t> in(LANES);
    uint32_t odd = 0;
    for (int i = 0; i < LANES; i++) {
        in[i] = draw();
        odd |= (in[i] % 2) << i;
    }
    std::vector<uint32_t> out = m.run("exchanges", exchanges, 0, in, 3 * LANES);
    int wrong = 0;
    for (int i = 0; i < LANES; i++)
        wrong += out[3 * i] != in[(i + LANES - 1) % LANES] || out[3 * i + 1] != in[i ^ 5] || out[3 * i + 2] != odd;
    return wrong;
}

/* v of every lane after the steps, one after the other. */
std::vector<float> joined(std::vector<float> v, std::initializer_list<int> steps, float (*join)(float, float)) {
    for (int step : steps) {
        std::vector<float> next(LANES);
        for (int i = 0; i < LANES; i++) next[i] = join(v[i], v[i ^ step]);
        v = next;
    }
    return v;
}

int check_butterflies(machine &m) { /* sums of numbers of any size, which differ with their order */
    std::vector<uint32_t> in(2 * LANES);
    std::vector<float> first(LANES), second(LANES);
    for (int i = 0; i < LANES; i++) {
        first[i] = ldexpf(draw_small(), (int)(draw() % 40)), second[i] = ldexpf(draw_small() + 0.3f, (int)(draw() % 40));
        in[2 * i] = lora_bits_f32(first[i]), in[2 * i + 1] = lora_bits_f32(second[i]);
    }
    auto add = [](float a, float b) { return a + b; };
    auto larger = [](float a, float b) { return b > a ? b : a; };
    const std::vector<float> right[4] = {joined(first, {16, 8, 4, 2, 1}, add), joined(first, {1, 2}, larger), joined(first, {2, 8}, add),
                                         joined(second, {2, 8}, add)};
    std::vector<uint32_t> out = m.run("butterflies", butterflies, 0, in, 4 * LANES);
    int wrong = 0;
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < 4; k++) wrong += out[4 * i + k] != lora_bits_f32(right[k][i]);
    return wrong;
}

const struct {
    const char *name;
    int (*check)(machine &);
    int least_major; /* compute capability */
} CHECKS[] = {{"mma.m16n8k16", check_multiply, 8},   {"ldmatrix", check_load_rows, 7},       {"ldmatrix.trans", check_load_columns, 7},
              {"cvt.rn.bf16x2.f32", check_round, 8}, {"cvt.rn.f16.f32", check_round_f16, 7}, {"ex2.approx.ftz", check_powers, 7},
              {"cp.async", check_copies, 8},         {"shfl and vote", check_exchanges, 7},  {"butterflies", check_butterflies, 7}};

} // namespace

int main() {
    machine m = {lora_cuda_api_table(), nullptr, nullptr};
    lora_cuda_properties properties;
    m.did(m.api->set_device(0));
    m.did(m.api->describe(0, &properties));
    m.did(m.api->stream_create(&m.stream));
    m.did(m.api->pool_create(0, &m.pool));
    int faults = 0;
    for (const auto &c : CHECKS) {
        if (m.code != 0) break;
        if (properties.major < c.least_major) {
            printf("{\"wrapper\": \"%s\", \"absent\": \"needs compute capability %d\"}\n", c.name, c.least_major);
            continue;
        }
        int wrong = c.check(m);
        if (m.code != 0) break;
        printf("{\"wrapper\": \"%s\", \"wrong\": %d, \"ok\": %s}\n", c.name, wrong, wrong == 0 ? "true" : "false");
        faults += wrong > 0;
    }
    if (m.stream) m.did(m.api->stream_destroy(m.stream));
    if (m.pool) m.did(m.api->pool_destroy(m.pool));
    if (m.code != 0) printf("{\"error\": \"%s\", \"ok\": false}\n", m.api->error_text(m.code));
    return m.code != 0 || faults > 0;
}
