#include "contexts.h"

#include <cstdio>
#include <map>
#include <set>
#include <vector>

namespace standin {

namespace {

constexpr int KIB = 1024;

bool initialized = false;
std::set<Context*> contexts;  // all that were ever made: a stale handle is told from a good one
std::map<int, Context*> primary_contexts;
thread_local std::vector<Context*> context_stack;

Context* handle(CUcontext context) {
  auto* known = reinterpret_cast<Context*>(context);
  return contexts.count(known) != 0 && known->uses != 0 ? known : nullptr;
}

CUcontext handle(Context* context) { return reinterpret_cast<CUcontext>(context); }

Context* new_context(int device, bool primary) {
  auto* context = new Context{device, primary, 1};
  contexts.insert(context);
  return context;
}

// The attributes that depend on the device's generation or on a test; the rest are the same on all devices.
int attribute(CUdevice_attribute which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return settings.capability_major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return settings.capability_minor;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return settings.multiprocessors;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS: return settings.concurrent_managed_access;
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY: return 1;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 0xffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 0xffff;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 * KIB;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 99 * KIB;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 100 * KIB;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return KIB;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 64 * KIB;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 64 * KIB;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 * KIB;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 1;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: return 1;
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: return 0;
    default: return 0;
  }
}

}  // namespace

Context* current_context() { return context_stack.empty() ? nullptr : context_stack.back(); }

CUresult require_context(const char* function) {
  if (!initialized) return error(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", function);
  const Context* context = current_context();
  if (context == nullptr)
    return error(CUDA_ERROR_INVALID_CONTEXT, "%s: this host thread has no current context", function);
  if (context->uses == 0)
    return error(CUDA_ERROR_CONTEXT_IS_DESTROYED, "%s: the current context was destroyed", function);
  return CUDA_SUCCESS;
}

CUresult require_device(CUdevice device) {
  if (!initialized) return error(CUDA_ERROR_NOT_INITIALIZED, "a device is used before cuInit");
  if (device >= 0 && device < settings.devices) return CUDA_SUCCESS;
  return error(CUDA_ERROR_INVALID_DEVICE, "device %d: there are %d", device, settings.devices);
}

DRIVER_API cuInit(unsigned flags) {
  Lock lock;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (settings.devices == 0) return error(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected");
  initialized = true;
  return CUDA_SUCCESS;
}

DRIVER_API cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetCount(int* count) {
  Lock lock;
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *count = settings.devices;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGet(CUdevice* device, int ordinal) {
  Lock lock;
  if (CUresult bad = require_device(ordinal)) return bad;
  *device = ordinal;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetName(char* name, int bytes, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  snprintf(name, static_cast<size_t>(bytes), "stand-in for a CUDA device (CPU)");
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  *major = settings.capability_major;
  *minor = settings.capability_minor;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  *bytes = settings.device_memory;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  *value = attribute(which);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceCanAccessPeer(int* yes, CUdevice device, CUdevice peer) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  if (CUresult bad = require_device(peer)) return bad;
  *yes = device != peer;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetPCIBusId(char* text, int bytes, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  snprintf(text, static_cast<size_t>(bytes), "0000:%02x:00.0", static_cast<unsigned>(device));
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetByPCIBusId(CUdevice* device, const char* text) {
  Lock lock;
  unsigned bus;
  if (sscanf(text, "%*x:%x:", &bus) != 1) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult bad = require_device(static_cast<int>(bus))) return bad;
  *device = static_cast<CUdevice>(bus);
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  Context*& primary = primary_contexts[device];
  if (primary == nullptr) {
    primary = new_context(device, true);
  } else {
    ++primary->uses;
  }
  *context = handle(primary);
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  const auto found = primary_contexts.find(device);
  if (found == primary_contexts.end() || found->second->uses == 0) {
    return error(CUDA_ERROR_INVALID_CONTEXT, "the primary context of device %d is released more often than retained",
                 device);
  }
  --found->second->uses;
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  const auto found = primary_contexts.find(device);
  *flags = 0;
  *active = found != primary_contexts.end() && found->second->uses != 0;
  return CUDA_SUCCESS;
}

namespace {

CUresult create_context(CUcontext* context, CUdevice device) {
  Lock lock;
  if (CUresult bad = require_device(device)) return bad;
  context_stack.push_back(new_context(device, false));
  *context = handle(context_stack.back());
  return CUDA_SUCCESS;
}

}  // namespace

DRIVER_API cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice device) { return create_context(context, device); }

#if CUDA_VERSION >= 12050
DRIVER_API cuCtxCreate_v4(CUcontext* context, CUctxCreateParams*, unsigned, CUdevice device) {
  return create_context(context, device);
}
#endif

DRIVER_API cuCtxDestroy_v2(CUcontext context) {
  Lock lock;
  Context* known = handle(context);
  if (known == nullptr || known->primary) return CUDA_ERROR_INVALID_CONTEXT;
  known->uses = 0;
  if (current_context() == known) context_stack.pop_back();
  return CUDA_SUCCESS;
}

// PyCUDA ends every context with it that is collected as garbage, primary ones too.
DRIVER_API cuCtxDetach(CUcontext context) {
  Lock lock;
  Context* known = handle(context);
  if (known == nullptr) return error(CUDA_ERROR_INVALID_CONTEXT, "cuCtxDetach: no such context, or it was destroyed");
  --known->uses;
  if (current_context() == known) context_stack.pop_back();
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxPushCurrent_v2(CUcontext context) {
  Lock lock;
  Context* known = handle(context);
  if (known == nullptr)
    return error(CUDA_ERROR_INVALID_CONTEXT, "cuCtxPushCurrent: no such context, or it was destroyed");
  context_stack.push_back(known);
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxPopCurrent_v2(CUcontext* context) {
  Lock lock;
  if (context_stack.empty())
    return error(CUDA_ERROR_INVALID_CONTEXT, "cuCtxPopCurrent: this host thread has no current context");
  if (context != nullptr) *context = handle(context_stack.back());
  context_stack.pop_back();
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetCurrent(CUcontext* context) {
  Lock lock;
  *context = handle(current_context());
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSetCurrent(CUcontext context) {
  Lock lock;
  Context* known = handle(context);
  if (context != nullptr && known == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (!context_stack.empty()) context_stack.pop_back();
  if (known != nullptr) context_stack.push_back(known);
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetDevice(CUdevice* device) {
  Lock lock;
  if (CUresult bad = require_context("cuCtxGetDevice")) return bad;
  *device = current_context()->device;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetApiVersion(CUcontext, unsigned* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

}  // namespace standin
