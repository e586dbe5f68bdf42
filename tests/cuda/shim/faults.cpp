#include "tests/cuda/shim/faults.h"

#include <atomic>

namespace {

std::atomic<int64_t> calls, fails_at, live, graphs;
const lora_cuda_api *plain;

/* What ends something is not counted: there is nothing to be done about its failure. */
#define COUNTED(name) [](auto... args) -> int { return shim_fails() ? SHIM_FAULT : plain->name(args...); }

} // namespace

bool shim_fails() { return ++calls == fails_at; }

int64_t shim_fail_at(int64_t n) {
    int64_t before = calls.exchange(0);
    fails_at = n > 0 ? n : -1;
    return before;
}

int64_t shim_live() { return live; }
void shim_count_live(int by) { live += by; }
int64_t shim_graph_launches() { return graphs; }
void shim_count_graph() { graphs++; }

const lora_cuda_api *shim_with_faults(const lora_cuda_api *table) {
    static lora_cuda_api counted;
    plain = table;
    counted = *table;
    counted.driver_version = COUNTED(driver_version);
    counted.device_count = COUNTED(device_count);
    counted.describe = COUNTED(describe);
    counted.set_device = COUNTED(set_device);
    counted.memory_info = COUNTED(memory_info);
    counted.pool_create = COUNTED(pool_create);
    counted.pool_unused = COUNTED(pool_unused);
    counted.stream_create = COUNTED(stream_create);
    counted.stream_wait = [](void *stream) -> int { /* what was under way has ended, one way or the other */
                                                    int code = plain->stream_wait(stream);
                                                    return shim_fails() ? SHIM_FAULT : code;
    };
    counted.event_create = COUNTED(event_create);
    counted.event_record = COUNTED(event_record);
    counted.event_wait = COUNTED(event_wait);
    counted.alloc = COUNTED(alloc);
    counted.host_alloc = COUNTED(host_alloc);
    counted.copy = COUNTED(copy);
    counted.fill = COUNTED(fill);
    counted.launch = COUNTED(launch);
    counted.graph_create = COUNTED(graph_create);
    counted.graph_update = COUNTED(graph_update);
    counted.graph_launch = COUNTED(graph_launch);
    return &counted;
}
