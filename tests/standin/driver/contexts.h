// Devices and contexts.
#pragma once

#include "state.h"

namespace standin {

struct Context {
  int device;
  bool primary;
  unsigned uses;  // how often a primary context is retained; 0: destroyed
};

// The innermost context of the calling host thread; null if it has none.
Context* current_context();

// CUDA_SUCCESS, or why nothing can be done now: no context is current, or it was destroyed.
CUresult require_context(const char* function);

CUresult require_device(CUdevice device);

}  // namespace standin
