#include "modules.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "block.h"
#include "elf_image.h"
#include "streams.h"

namespace standin {

namespace {

constexpr size_t DEFAULT_SHARED_BYTES = 48 << 10;

std::map<LoadedModule*, std::shared_ptr<LoadedModule>> modules;
std::map<Function*, LoadedModule*> functions;

std::shared_ptr<LoadedModule> find_module(CUmodule handle) {
  const auto found = modules.find(reinterpret_cast<LoadedModule*>(handle));
  return found == modules.end() ? nullptr : found->second;
}

// Loads an image as a library. It goes through a file with a name of its own: the dynamic linker takes two files of
// one name for the same library. With AddressSanitizer the file stays, so that its reports can show lines of the .cu.
void* load_image(const void* image, size_t bytes) {
  const char* folder = getenv("TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/standin-module-XXXXXX";
  const int file = mkstemp(path.data());
  if (file < 0) return nullptr;
  void* library = nullptr;
  size_t written = 0;
  while (written < bytes) {
    const ssize_t more = write(file, static_cast<const char*>(image) + written, bytes - written);
    if (more <= 0) break;
    written += static_cast<size_t>(more);
  }
  close(file);
  if (written == bytes) library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
#ifndef __SANITIZE_ADDRESS__
  unlink(path.c_str());
#endif
  return library;
}

// The kernel that a symbol is local to, or one of whose lambdas is an argument of the function that it is local to:
// a mangled name says `Z3fooE` of what is local to `foo`. Empty if there is none: any kernel may use the variable.
std::string kernel_of(const LoadedModule& module, const std::string& symbol) {
  for (size_t at = symbol.find('Z'); at != std::string::npos; at = symbol.find('Z', at + 1)) {
    size_t begin = at + 1, length = 0;
    while (begin < symbol.size() && symbol[begin] >= '0' && symbol[begin] <= '9' && length < symbol.size())
      length = length * 10 + static_cast<size_t>(symbol[begin++] - '0');
    const std::string name = symbol.substr(begin, length);
    if (!name.empty() && dlsym(module.library, ("standin_kernel_" + name).c_str()) != nullptr) return name;
  }
  return "";
}

void find_shared_arrays(LoadedModule& module, const void* image) {
  link_map* map = nullptr;
  dlinfo(module.library, RTLD_DI_LINKMAP, &map);
  for (const ImageVariable& variable : function_variables(image)) {
    module.shared_arrays.push_back({reinterpret_cast<char*>(map->l_addr + variable.offset), variable.bytes});
    module.shared_bytes[kernel_of(module, variable.symbol)] += variable.bytes;
  }
}

CUresult load_module(CUmodule* handle, const void* image) {
  if (CUresult bad = require_context("cuModuleLoadData")) return bad;
  if (CUresult bad = refuse_in_capture("cuModuleLoadData")) return bad;
  const size_t bytes = image_bytes(image);
  if (bytes == 0) {
    return error(CUDA_ERROR_NO_BINARY_FOR_GPU,
                 "cuModuleLoadData: the image was not made by the stand-in for nvcc on such a machine");
  }
  auto module = std::make_shared<LoadedModule>();
  module->context = current_context();
  module->library = load_image(image, bytes);
  if (module->library == nullptr) return error(CUDA_ERROR_INVALID_IMAGE, "cuModuleLoadData: %s", dlerror());
  module->interface = static_cast<Module*>(dlsym(module->library, "standin_module"));
  if (module->interface == nullptr || module->interface->abi_version != ABI_VERSION) {
    return error(CUDA_ERROR_INVALID_IMAGE,
                 "cuModuleLoadData: the image was made by another version of the stand-in for nvcc");
  }
  const int major = static_cast<int>(module->interface->architecture / 10);
  const int minor = static_cast<int>(module->interface->architecture % 10);
  if (major != settings.capability_major || minor > settings.capability_minor) {
    return error(CUDA_ERROR_NO_BINARY_FOR_GPU,
                 "cuModuleLoadData: the image is for sm_%d%d, the device is of compute capability %d.%d", major, minor,
                 settings.capability_major, settings.capability_minor);
  }
  module->interface->services = &services;
  find_shared_arrays(*module, image);
  *handle = reinterpret_cast<CUmodule>(module.get());
  modules[module.get()] = module;
  return CUDA_SUCCESS;
}

}  // namespace

LoadedModule::~LoadedModule() {
  if (library != nullptr) dlclose(library);
}

std::shared_ptr<LoadedModule> find_function(CUfunction handle, Function*& function) {
  function = reinterpret_cast<Function*>(handle);
  const auto found = functions.find(function);
  return found == functions.end() ? nullptr : modules.at(found->second);
}

DRIVER_API cuModuleLoadData(CUmodule* module, const void* image) {
  Lock lock;
  return load_module(module, image);
}

DRIVER_API cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options,
                              void** values) {
  Lock lock;
  for (unsigned i = 0; i < count; ++i) {  // how much was written to the caller's log buffers
    if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
      values[i] = nullptr;
  }
  return load_module(module, image);
}

DRIVER_API cuModuleUnload(CUmodule handle) {
  Lock lock;
  const auto module = find_module(handle);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (const auto& [name, function] : module->functions) functions.erase(function.get());
  modules.erase(module.get());
  return CUDA_SUCCESS;
}

DRIVER_API cuModuleGetFunction(CUfunction* handle, CUmodule module_handle, const char* name) {
  Lock lock;
  const auto module = find_module(module_handle);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  auto& function = module->functions[name];
  if (function == nullptr) {
    const auto* kernel =
        static_cast<const Kernel*>(dlsym(module->library, (std::string("standin_kernel_") + name).c_str()));
    if (kernel == nullptr) {
      module->functions.erase(name);
      return error(CUDA_ERROR_NOT_FOUND, "cuModuleGetFunction: the module has no extern \"C\" __global__ function %s",
                   name);
    }
    const size_t static_bytes = module->shared_bytes[name] + module->shared_bytes[""];
    if (static_bytes > DEFAULT_SHARED_BYTES) {
      module->functions.erase(name);
      return error(CUDA_ERROR_INVALID_IMAGE, "kernel %s: %zu bytes of __shared__ arrays, at most %zu are possible",
                   name, static_bytes, DEFAULT_SHARED_BYTES);
    }
    function =
        std::make_unique<Function>(Function{kernel, module.get(), static_bytes, DEFAULT_SHARED_BYTES - static_bytes});
    functions[function.get()] = module.get();
  }
  *handle = reinterpret_cast<CUfunction>(function.get());
  return CUDA_SUCCESS;
}

DRIVER_API cuModuleGetGlobal_v2(CUdeviceptr* pointer, size_t* bytes, CUmodule handle, const char* name) {
  Lock lock;
  const auto module = find_module(handle);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  void* variable = dlsym(module->library, name);
  if (variable == nullptr) return error(CUDA_ERROR_NOT_FOUND, "cuModuleGetGlobal: the module has no variable %s", name);
  Dl_info info;
  ElfW(Sym)* symbol = nullptr;
  dladdr1(variable, &info, reinterpret_cast<void**>(&symbol), RTLD_DL_SYMENT);
  if (pointer != nullptr) *pointer = reinterpret_cast<CUdeviceptr>(variable);
  if (bytes != nullptr) *bytes = symbol != nullptr ? symbol->st_size : 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
  Lock lock;
  Function* function;
  const auto module = find_function(handle, function);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const unsigned bound = function->kernel->max_threads;
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = bound != 0 ? static_cast<int>(bound) : static_cast<int>(MAX_THREADS);
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = static_cast<int>(function->static_shared_bytes); break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = static_cast<int>(function->max_dynamic_shared_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = static_cast<int>(module->interface->architecture); break;
    default: *value = 0; break;  // registers, local memory: of no meaning here
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  Lock lock;
  Function* function;
  if (find_function(handle, function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value < 0 || static_cast<size_t>(value) + function->static_shared_bytes > MAX_SHARED_BYTES) {
    return error(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute: %d bytes of shared memory, at most %zu are possible",
                 value, MAX_SHARED_BYTES - function->static_shared_bytes);
  }
  function->max_dynamic_shared_bytes = static_cast<size_t>(value);
  return CUDA_SUCCESS;
}

// PyCUDA calls it before each prepared call, which then passes the block's shape again.
DRIVER_API cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }

DRIVER_API cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

}  // namespace standin
