#include "tests/cuda/shim/limits.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <mutex>
#include <set>
#include <tuple>

#include "tests/cuda/shim/fibers.h"

namespace {

constexpr uint32_t MOST_X = 0x7fffffff, MOST_YZ = 65535;
constexpr size_t MOST_ARGUMENTS = 4096;

struct compute {
    int major, minor;
    compute() {
        const char *said = getenv("SHIM_COMPUTE");
        major = said ? atoi(said) : 9;
        minor = said && strchr(said, '.') ? atoi(strchr(said, '.') + 1) : 0;
    }
};
compute capability() { return compute(); } /* a check may change it */

/* Written when the process ends. */
class record {
  public:
    explicit record(const char *file) : path(file) {}
    ~record() {
        FILE *out = fopen(path, "a");
        if (!out) return;
        for (const auto &[kernel, threads, shared_bytes] : rows) fprintf(out, "%zx %u %zu\n", kernel, threads, shared_bytes);
        fclose(out);
    }
    void add(const lora_cuda_launch *l) {
        Dl_info library;
        if (!dladdr(l->kernel, &library)) return;
        size_t offset = (size_t)((const char *)l->kernel - (const char *)library.dli_fbase);
        std::lock_guard<std::mutex> held(lock);
        rows.insert({offset, l->threads, l->shared_bytes});
    }

  private:
    const char *path;
    std::mutex lock;
    std::set<std::tuple<size_t, uint32_t, size_t>> rows;
};

} // namespace

int shim_compute_major() { return capability().major; }
int shim_compute_minor() { return capability().minor; }

size_t shim_most_shared() {
    int compute = 10 * capability().major + capability().minor;
    size_t kib = compute < 80 ? 64 : compute == 80 || compute == 87 ? 163 : compute < 90 || compute >= 120 ? 99 : 227;
    return kib * 1024;
}

void shim_check_launch(const lora_cuda_launch *l) {
    static const char *file = getenv("SHIM_LAUNCHES");
    static record launches(file);
    if (file) launches.add(l);
    if (l->threads < 1 || l->threads > SHIM_MOST_THREADS) shim_die("expected 1 to %d threads, got %u", SHIM_MOST_THREADS, l->threads);
    if (l->grid[0] < 1 || l->grid[0] > MOST_X || l->grid[1] < 1 || l->grid[1] > MOST_YZ || l->grid[2] < 1 || l->grid[2] > MOST_YZ)
        shim_die("a grid of %u x %u x %u", l->grid[0], l->grid[1], l->grid[2]);
    if (l->shared_bytes > shim_most_shared())
        shim_die("%zu bytes of shared memory, where a block has at most %zu on %d.%d", l->shared_bytes, shim_most_shared(),
                 shim_compute_major(), shim_compute_minor());
    if (l->args_bytes > MOST_ARGUMENTS) shim_die("%zu bytes of arguments", l->args_bytes);
}
