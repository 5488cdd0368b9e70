// What the driver and a kernel module (a .cu compiled by ../nvcc) know of each other.
//
// A module exports `standin_module` and, for each kernel NAME, `standin_kernel_NAME`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace standin {

constexpr unsigned ABI_VERSION = 1;
constexpr unsigned WARP_SIZE = 32;

// The place in a .cu at which a thread waits for others, for messages and to tell one barrier from another.
struct Place {
  const char* intrinsic;
  const char* file;
  int line;
};

// How a barrier combines the predicates of its threads.
enum class Combine { NONE, COUNT, ALL, ANY };

// What the lanes of a warp gave to one collective; `lanes` has a bit for each lane that took part.
struct Exchange {
  uint32_t lanes;
  uint64_t values[WARP_SIZE];
};

// What the driver does for a running kernel. All but `next_thread` act for the thread that calls.
struct Services {
  // Ends the thread that ran on this fiber, if one did, and begins the next of the block; false when none is left.
  bool (*next_thread)();
  // Waits until every thread of the block is here; returns the combined predicate.
  int (*barrier)(const Place& place, Combine combine, int predicate);
  // Waits until the lanes of `mask` that have not ended are here. Valid until the thread's next collective but one.
  const Exchange* (*exchange)(const Place& place, uint32_t mask, uint64_t value);
  // Memory asked for at launch, for `extern __shared__`.
  void* (*dynamic_shared)();
  // Ends the launch with an error.
  void (*fail)(const Place& place, const char* message);
};

// One parameter's place in the packed arguments.
struct Parameter {
  size_t offset;
  size_t bytes;
};

struct Kernel {
  const char* name;
  void (*run)(const char* arguments);  // runs threads for as long as next_thread has one
  const Parameter* parameters;
  size_t parameter_count;
  size_t argument_bytes;
  unsigned max_threads;  // of __launch_bounds__; 0: not given
};

struct Module {
  unsigned abi_version;
  unsigned architecture;  // the XX of -arch=sm_XX
  unsigned* thread_index;  // x, y, z of threadIdx and so on: set by the driver before kernel code runs
  unsigned* block_index;
  unsigned* block_size;
  unsigned* grid_size;
  const Services* services;  // set by the driver when it loads the module
};

}  // namespace standin
