// Settings that tests make.
#include "control.h"

#include "state.h"

namespace standin {

CONTROL_API void standin_configure(int devices, int capability_major, int capability_minor, int multiprocessors,
                                   int concurrent_managed_access, size_t device_memory) {
  Lock lock;
  settings.devices = devices;
  settings.capability_major = capability_major;
  settings.capability_minor = capability_minor;
  settings.multiprocessors = multiprocessors;
  settings.concurrent_managed_access = concurrent_managed_access;
  settings.device_memory = device_memory;
}

CONTROL_API void standin_set_order(int thread_order, uint64_t thread_seed, int block_order, uint64_t block_seed) {
  Lock lock;
  settings.thread_order = {static_cast<OrderKind>(thread_order), thread_seed};
  settings.block_order = {static_cast<OrderKind>(block_order), block_seed};
}

CONTROL_API void standin_clear_logs() {
  Lock lock;
  clear_memory_logs();
  clear_launch_log();
}

}  // namespace standin
