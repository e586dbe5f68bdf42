#include "tests/cuda/shim/grids.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>

#include "tests/cuda/shim/fibers.h"
#include "tests/cuda/shim/limits.h"
#include "tests/cuda/shim/random.h"

namespace {

using wall = std::chrono::steady_clock;
constexpr auto ALONE = std::chrono::microseconds(200); /* then the other threads are woken */

std::atomic<int64_t> blocks_at_ends{0};

/* Blocks in the order (begin + step * i) mod n, where step and n have no common divisor; of the numbers from left_out on, the last ones. */
struct grid {
    const lora_cuda_launch *launch;
    uint64_t n, step, begin, seed, left_out, at_end;
    std::atomic<uint64_t> next{0};

    grid(const lora_cuda_launch *l, shim_random *random) : launch(l) {
        uint64_t all = (uint64_t)l->grid[0] * l->grid[1] * l->grid[2], ends = (uint64_t)blocks_at_ends.load();
        n = ends && all > 2 * ends ? 2 * ends : all;
        left_out = n < all ? ends : n;
        at_end = all - n;
        uint32_t most = (uint32_t)(n < 0x7fffffff ? n : 0x7fffffff);
        seed = (uint64_t)random->draw(0xffffffffu) << 32 | random->draw(0xffffffffu);
        begin = random->draw(most);
        do step = 1 + random->draw(most);
        while (std::gcd(step, n) != 1);
    }
    bool run_one() {
        uint64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= n) return false;
        uint64_t at = (uint64_t)(((unsigned __int128)step * i + begin) % n), x = launch->grid[0], y = launch->grid[1];
        if (at >= left_out) at += at_end;
        shim_run_block((uint32_t)(at % x), (uint32_t)(at / x % y), (uint32_t)(at / x / y), seed + at);
        return true;
    }
    bool has_more() const { return next.load(std::memory_order_relaxed) < n; }
};

/* Threads that wait for a grid. They live as long as the process. */
class helpers {
  public:
    explicit helpers(int n) {
        for (int i = 0; i < n; i++) std::thread([this] { serve(); }).detach();
    }
    void begin(grid *g) {
        std::lock_guard<std::mutex> held(lock);
        work = g;
        woken.notify_all();
    }
    void end() { /* nobody begins with the grid from now on */
        std::unique_lock<std::mutex> held(lock);
        work = nullptr;
        idle.wait(held, [this] { return busy == 0; });
    }

  private:
    void serve() {
        std::unique_lock<std::mutex> held(lock);
        for (;;) {
            woken.wait(held, [this] { return work && work->has_more(); });
            grid *g = work;
            busy++;
            held.unlock();
            shim_enter_launch(g->launch);
            while (g->run_one()) {}
            shim_enter_launch(nullptr);
            held.lock();
            if (--busy == 0) idle.notify_all();
        }
    }
    std::mutex lock;
    std::condition_variable woken, idle;
    grid *work = nullptr;
    int busy = 0;
};

int thread_count() {
    const char *said = getenv("LORA_C_SHIM_THREADS");
    int n = said ? atoi(said) : (int)std::thread::hardware_concurrency();
    return n < 1 ? 1 : n;
}

/* Never deleted: threads wait in it until the process ends. A child after a fork has none of them. */
helpers *others() {
    static const int threads = thread_count();
    static helpers *made;
    static pid_t of;
    if (threads == 1) return nullptr;
    if (of != getpid()) {
        of = getpid();
        made = new helpers(threads - 1);
    }
    return made;
}

} // namespace

int64_t shim_run_ends(int64_t blocks) { return blocks_at_ends.exchange(blocks); }

void shim_run(const lora_cuda_launch *l) {
    static shim_random random = shim_seeded();
    shim_enter_launch(l);
    shim_check_launch(l);
    grid g(l, &random);
    helpers *woken = nullptr;
    bool alone = true;
    for (auto begin = wall::now(); g.run_one();) {
        if (!alone || !g.has_more() || wall::now() - begin < ALONE) continue;
        alone = false;
        woken = others();
        if (woken) woken->begin(&g);
    }
    if (woken) woken->end();
    shim_enter_launch(nullptr);
}
