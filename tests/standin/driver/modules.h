// Modules and functions: what ../nvcc made of a .cu.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "abi.h"
#include "contexts.h"

namespace standin {

// A `static __shared__` array: its memory, filled again before each block.
struct SharedArray {
  char* start;
  size_t bytes;
};

struct LoadedModule;

struct Function {
  const Kernel* kernel;
  LoadedModule* module;
  size_t static_shared_bytes;
  size_t max_dynamic_shared_bytes;
};

struct LoadedModule {
  ~LoadedModule();

  Context* context = nullptr;
  void* library = nullptr;
  Module* interface = nullptr;
  std::vector<SharedArray> shared_arrays;
  std::map<std::string, size_t> shared_bytes;  // by kernel; "" is what helper functions of all kernels have
  std::map<std::string, std::unique_ptr<Function>> functions;
};

// The function of a handle and what keeps it loaded; null if there is none.
std::shared_ptr<LoadedModule> find_function(CUfunction handle, Function*& function);

}  // namespace standin
