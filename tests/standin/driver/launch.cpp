// Launches: what a launch must satisfy, running it, and the log of launches.
#include <cstring>

#include "block.h"
#include "control.h"
#include "streams.h"

namespace standin {

namespace {

constexpr unsigned MAX_BLOCK_Z = 64;
constexpr unsigned MAX_GRID_X = 0x7fffffff;
constexpr unsigned MAX_GRID_YZ = 0xffff;
constexpr size_t ARGUMENT_ALIGNMENT = 64;

struct Launch {
  std::shared_ptr<LoadedModule> module;
  const Function* function;
  Index grid;
  Index block;
  size_t shared_bytes;
  uint64_t stream;
  std::vector<char> arguments;
};

struct LoggedLaunch {
  LaunchRecord record;
  std::vector<char> arguments;
};

std::vector<LoggedLaunch> log;

CUresult require_shape(const Function& function, Index grid, Index block, size_t shared_bytes) {
  const char* name = function.kernel->name;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > MAX_THREADS || block.x > MAX_THREADS || block.y > MAX_THREADS ||
      block.z > MAX_BLOCK_Z) {
    return error(CUDA_ERROR_INVALID_VALUE, "kernel %s: a block of (%u, %u, %u) threads; at most %u are possible", name,
                 block.x, block.y, block.z, MAX_THREADS);
  }
  if (function.kernel->max_threads != 0 && threads > function.kernel->max_threads) {
    return error(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                 "kernel %s: a block of %zu threads, but its __launch_bounds__ say %u", name,
                 static_cast<size_t>(threads), function.kernel->max_threads);
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > MAX_GRID_X || grid.y > MAX_GRID_YZ ||
      grid.z > MAX_GRID_YZ) {
    return error(CUDA_ERROR_INVALID_VALUE, "kernel %s: a grid of (%u, %u, %u) blocks; 1 to (%u, %u, %u) are possible",
                 name, grid.x, grid.y, grid.z, MAX_GRID_X, MAX_GRID_YZ, MAX_GRID_YZ);
  }
  if (shared_bytes > function.max_dynamic_shared_bytes) {
    return error(CUDA_ERROR_INVALID_VALUE,
                 "kernel %s: %zu bytes of dynamic shared memory; at most %zu are possible beside its arrays", name,
                 shared_bytes, function.max_dynamic_shared_bytes);
  }
  return CUDA_SUCCESS;
}

// Copies the arguments, given one by one or packed, as the kernel's parameters lie one after the other.
CUresult pack_arguments(const Kernel& kernel, void** parameters, void** extra, std::vector<char>& packed) {
  if (parameters != nullptr) {
    packed.resize(kernel.argument_bytes);
    for (size_t i = 0; i < kernel.parameter_count; ++i) {
      memcpy(packed.data() + kernel.parameters[i].offset, parameters[i], kernel.parameters[i].bytes);
    }
    return CUDA_SUCCESS;
  }
  const char* buffer = nullptr;
  size_t bytes = 0;
  for (; extra != nullptr && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char*>(extra[1]);
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const size_t*>(extra[1]);
  }
  if (bytes != kernel.argument_bytes) {
    return error(CUDA_ERROR_INVALID_VALUE, "kernel %s: its parameters take %zu bytes, the launch passes %zu",
                 kernel.name, kernel.argument_bytes, bytes);
  }
  packed.assign(buffer, buffer + bytes);
  return CUDA_SUCCESS;
}

void add_to_log(const Launch& launch) {
  LaunchRecord record{};
  record.grid[0] = launch.grid.x, record.grid[1] = launch.grid.y, record.grid[2] = launch.grid.z;
  record.block[0] = launch.block.x, record.block[1] = launch.block.y, record.block[2] = launch.block.z;
  record.stream = launch.stream;
  record.shared_bytes = launch.shared_bytes;
  record.replayed = replaying();
  record.argument_bytes = launch.arguments.size();
  strncpy(record.name, launch.function->kernel->name, sizeof record.name - 1);
  log.push_back({record, launch.arguments});
}

CUresult run(const Launch& launch) {
  add_to_log(launch);
  // The kernel reads its parameters where they are, so they lie as aligned as their types ask for.
  std::vector<char> storage(launch.arguments.size() + ARGUMENT_ALIGNMENT);
  char* arguments = storage.data() + (-reinterpret_cast<uintptr_t>(storage.data()) & (ARGUMENT_ALIGNMENT - 1));
  if (!launch.arguments.empty()) memcpy(arguments, launch.arguments.data(), launch.arguments.size());
  begin_launch({launch.function, arguments, launch.grid, launch.block, launch.shared_bytes});
  const size_t blocks = size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  std::vector<size_t> order;
  if (settings.block_order.kind != OrderKind::FORWARD) fill_in_order(order, blocks, settings.block_order, 0);
  std::string message;
  for (size_t number = 0; number < blocks; ++number) {
    const size_t at = order.empty() ? number : order[number];
    const Index block = {static_cast<unsigned>(at % launch.grid.x),
                         static_cast<unsigned>(at / launch.grid.x % launch.grid.y),
                         static_cast<unsigned>(at / launch.grid.x / launch.grid.y)};
    if (!run_block(block, number, message)) return error(CUDA_ERROR_LAUNCH_FAILED, "%s", message.c_str());
  }
  return CUDA_SUCCESS;
}

}  // namespace

DRIVER_API cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters,
                          void** extra) {
  Lock lock;
  if (CUresult bad = require_context("cuLaunchKernel")) return bad;
  Function* function;
  auto module = find_function(handle, function);
  if (module == nullptr)
    return error(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernel: no such function, or its module was unloaded");
  if (module->context != current_context()) {
    return error(CUDA_ERROR_INVALID_HANDLE,
                 "kernel %s: its module was loaded in a context of device %d, the current one is of device %d",
                 function->kernel->name, module->context->device, current_context()->device);
  }
  Launch launch{std::move(module),
                function,
                {grid_x, grid_y, grid_z},
                {block_x, block_y, block_z},
                shared_bytes,
                reinterpret_cast<uint64_t>(stream),
                {}};
  if (CUresult bad = require_shape(*function, launch.grid, launch.block, shared_bytes)) return bad;
  if (CUresult bad = pack_arguments(*function->kernel, parameters, extra, launch.arguments)) return bad;
  Graph* graph;
  if (CUresult bad = begin_work("cuLaunchKernel", stream, graph)) return bad;
  if (graph == nullptr) return run(launch);
  graph->work.push_back([launch = std::move(launch)] { return run(launch); });
  return CUDA_SUCCESS;
}

CONTROL_API size_t standin_launches(LaunchRecord* records, size_t capacity) {
  Lock lock;
  for (size_t i = 0; i < log.size() && i < capacity; ++i) records[i] = log[i].record;
  return log.size();
}

CONTROL_API void standin_launch_arguments(size_t number, char* arguments) {
  Lock lock;
  const std::vector<char>& logged = log.at(number).arguments;
  memcpy(arguments, logged.data(), logged.size());
}

void clear_launch_log() { log.clear(); }

}  // namespace standin
