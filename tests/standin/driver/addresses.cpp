// Functions by name, as cuda-bindings asks for them.
#include <dlfcn.h>

#include "state.h"

namespace standin {

namespace {

constexpr int NEWEST_SUFFIX = 4;  // of functions whose parameters have changed: cuCtxCreate_v4

}  // namespace

DRIVER_API cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t,
                               CUdriverProcAddressQueryResult* found) {
  *function = nullptr;
  for (int suffix = NEWEST_SUFFIX; suffix > 1 && *function == nullptr; --suffix) {
    *function = dlsym(RTLD_DEFAULT, (std::string(symbol) + "_v" + std::to_string(suffix)).c_str());
  }
  if (*function == nullptr) *function = dlsym(RTLD_DEFAULT, symbol);
  if (found != nullptr) {
    *found = *function != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  }
  return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // namespace standin
