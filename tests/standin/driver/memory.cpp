// Memory. A device pointer is an address of this process, so tensors of the CPU can be given to kernels as they are.
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "contexts.h"
#include "control.h"
#include "streams.h"

namespace standin {

namespace {

constexpr size_t DEVICE_ALIGNMENT = 512;
constexpr size_t PAGE = 4096;
constexpr size_t POISONED_BYTES = size_t{32} << 20;

std::map<uintptr_t, AllocationRecord> allocations;
std::set<const void*> registered;
std::vector<AdviceRecord> advice_log;
std::vector<PrefetchRecord> prefetch_log;
size_t live_bytes = 0;
size_t live_limit = SIZE_MAX;

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

size_t device_bytes(int device) {
  size_t total = 0;
  for (const auto& [start, allocation] : allocations) {
    if (allocation.kind == AllocationKind::DEVICE && allocation.device == device) total += allocation.bytes;
  }
  return total;
}

// What was just allocated holds nothing of use: reading it before writing it must show. Of large memory only both ends
// are written, so that pages in between are not taken from the machine.
void poison(void* memory, size_t bytes) {
  if (bytes <= 2 * POISONED_BYTES) {
    memset(memory, POISON, bytes);
    return;
  }
  memset(memory, POISON, POISONED_BYTES);
  memset(static_cast<char*>(memory) + bytes - POISONED_BYTES, POISON, POISONED_BYTES);
}

CUresult allocate(const char* function, AllocationKind kind, size_t alignment, size_t bytes, void** result) {
  if (CUresult bad = require_context(function)) return bad;
  if (CUresult bad = refuse_in_capture(function)) return bad;
  if (bytes == 0) return error(CUDA_ERROR_INVALID_VALUE, "%s: 0 bytes", function);
  const int device = current_context()->device;
  const bool too_much = bytes > live_limit - (live_bytes < live_limit ? live_bytes : live_limit) ||
                        (kind == AllocationKind::DEVICE && bytes + device_bytes(device) > settings.device_memory);
  if (too_much || posix_memalign(result, alignment, bytes) != 0) {
    return error(CUDA_ERROR_OUT_OF_MEMORY, "%s: out of memory (%zu bytes asked for)", function, bytes);
  }
  poison(*result, bytes);
  allocations[address(*result)] = {address(*result), bytes, kind, device};
  live_bytes += bytes;
  return CUDA_SUCCESS;
}

CUresult release(const char* function, void* memory, bool host) {
  if (CUresult bad = refuse_in_capture(function)) return bad;
  const auto found = allocations.find(address(memory));
  if (found == allocations.end() || (found->second.kind == AllocationKind::HOST) != host) {
    return error(CUDA_ERROR_INVALID_VALUE, "%s: %p is not the start of live memory of this kind", function, memory);
  }
  live_bytes -= found->second.bytes;
  allocations.erase(found);
  free(memory);
  return CUDA_SUCCESS;
}

// The allocation that holds `start`; null for memory that the driver did not hand out (a tensor of the CPU).
const AllocationRecord* find_allocation(uintptr_t start) {
  auto after = allocations.upper_bound(start);
  if (after == allocations.begin()) return nullptr;
  const AllocationRecord& before = std::prev(after)->second;
  return start < before.pointer + before.bytes ? &before : nullptr;
}

CUresult require_range(const char* function, uintptr_t start, size_t bytes) {
  const AllocationRecord* allocation = find_allocation(start);
  if (allocation == nullptr || bytes <= allocation->pointer + allocation->bytes - start) return CUDA_SUCCESS;
  return error(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at %#zx exceed the allocation of %zu bytes at %#zx", function,
               bytes, start, allocation->bytes, allocation->pointer);
}

CUresult copy_now(const char* function, uintptr_t to, uintptr_t from, size_t bytes) {
  if (CUresult bad = require_range(function, to, bytes)) return bad;
  if (CUresult bad = require_range(function, from, bytes)) return bad;
  if (bytes != 0) memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}

CUresult copy(const char* function, uintptr_t to, uintptr_t from, size_t bytes) {
  Lock lock;
  if (CUresult bad = require_context(function)) return bad;
  if (CUresult bad = refuse_in_capture(function)) return bad;
  return copy_now(function, to, from, bytes);
}

CUresult copy_async(const char* function, uintptr_t to, uintptr_t from, size_t bytes, CUstream stream) {
  Lock lock;
  return enqueue(function, stream, [=] { return copy_now(function, to, from, bytes); });
}

template <class T>
CUresult fill_now(const char* function, CUdeviceptr to, T value, size_t count) {
  if (CUresult bad = require_range(function, to, count * sizeof(T))) return bad;
  for (size_t i = 0; i < count; ++i) reinterpret_cast<T*>(to)[i] = value;
  return CUDA_SUCCESS;
}

template <class T>
CUresult fill(const char* function, CUdeviceptr to, T value, size_t count) {
  Lock lock;
  if (CUresult bad = require_context(function)) return bad;
  if (CUresult bad = refuse_in_capture(function)) return bad;
  return fill_now(function, to, value, count);
}

template <class T>
CUresult fill_async(const char* function, CUdeviceptr to, T value, size_t count, CUstream stream) {
  Lock lock;
  return enqueue(function, stream, [=] { return fill_now(function, to, value, count); });
}

// Prefetching and advice are for managed memory, and for devices that share it with a host that runs on.
CUresult require_managed(const char* function, CUdeviceptr start, size_t bytes, CUmemLocation location) {
  const AllocationRecord* allocation = find_allocation(start);
  if (allocation == nullptr || allocation->kind != AllocationKind::MANAGED || bytes == 0) {
    return error(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at %#llx are not managed memory", function, bytes, start);
  }
  if (CUresult bad = require_range(function, start, bytes)) return bad;
  if (location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
    if (CUresult bad = require_device(location.id)) return bad;
    if (!settings.concurrent_managed_access) {
      return error(CUDA_ERROR_INVALID_DEVICE, "%s: device %d has no concurrent managed access", function, location.id);
    }
  }
  return CUDA_SUCCESS;
}

}  // namespace

DRIVER_API cuMemGetInfo_v2(size_t* available, size_t* total) {
  Lock lock;
  if (CUresult bad = require_context("cuMemGetInfo")) return bad;
  *total = settings.device_memory;
  *available = *total - device_bytes(current_context()->device);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
  Lock lock;
  return allocate("cuMemAlloc", AllocationKind::DEVICE, DEVICE_ALIGNMENT, bytes, reinterpret_cast<void**>(pointer));
}

DRIVER_API cuMemAllocManaged(CUdeviceptr* pointer, size_t bytes, unsigned flags) {
  Lock lock;
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) {
    return error(CUDA_ERROR_INVALID_VALUE, "cuMemAllocManaged: flags %u are neither GLOBAL nor HOST", flags);
  }
  return allocate("cuMemAllocManaged", AllocationKind::MANAGED, PAGE, bytes, reinterpret_cast<void**>(pointer));
}

DRIVER_API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  Lock lock;
  return allocate("cuMemHostAlloc", AllocationKind::HOST, PAGE, bytes, pointer);
}

DRIVER_API cuMemFree_v2(CUdeviceptr pointer) {
  Lock lock;
  return release("cuMemFree", reinterpret_cast<void*>(pointer), false);
}

DRIVER_API cuMemFreeHost(void* pointer) {
  Lock lock;
  return release("cuMemFreeHost", pointer, true);
}

DRIVER_API cuMemGetAddressRange_v2(CUdeviceptr* start, size_t* bytes, CUdeviceptr pointer) {
  Lock lock;
  const AllocationRecord* allocation = find_allocation(pointer);
  if (allocation == nullptr) return CUDA_ERROR_NOT_FOUND;
  if (start != nullptr) *start = allocation->pointer;
  if (bytes != nullptr) *bytes = allocation->bytes;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemHostGetFlags(unsigned* flags, void*) {
  *flags = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned) {
  *device = address(host);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemHostRegister_v2(void* host, size_t, unsigned) {
  Lock lock;
  if (CUresult bad = require_context("cuMemHostRegister")) return bad;
  return registered.insert(host).second ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}

DRIVER_API cuMemHostUnregister(void* host) {
  Lock lock;
  return registered.erase(host) != 0 ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  return copy("cuMemcpyHtoD", to, address(from), bytes);
}

DRIVER_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return copy("cuMemcpyDtoH", address(to), from, bytes);
}

DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return copy("cuMemcpyDtoD", to, from, bytes);
}

DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return copy_async("cuMemcpyHtoDAsync", to, address(from), bytes, stream);
}

DRIVER_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_async("cuMemcpyDtoHAsync", address(to), from, bytes, stream);
}

DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_async("cuMemcpyDtoDAsync", to, from, bytes, stream);
}

DRIVER_API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  return fill("cuMemsetD8", to, value, count);
}

DRIVER_API cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) {
  return fill("cuMemsetD16", to, value, count);
}

DRIVER_API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
  return fill("cuMemsetD32", to, value, count);
}

DRIVER_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return fill_async("cuMemsetD8Async", to, value, count, stream);
}

DRIVER_API cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
  return fill_async("cuMemsetD16Async", to, value, count, stream);
}

DRIVER_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  return fill_async("cuMemsetD32Async", to, value, count, stream);
}

DRIVER_API cuStreamAttachMemAsync(CUstream stream, CUdeviceptr, size_t, unsigned) {
  Lock lock;
  if (CUresult bad = refuse_on_capturing("cuStreamAttachMemAsync", stream)) return bad;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemPrefetchAsync_v2(CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned flags,
                                 CUstream stream) {
  Lock lock;
  if (CUresult bad = require_context("cuMemPrefetchAsync")) return bad;
  if (CUresult bad = refuse_on_capturing("cuMemPrefetchAsync", stream)) return bad;
  if (flags != 0) return error(CUDA_ERROR_INVALID_VALUE, "cuMemPrefetchAsync: flags must be 0");
  if (CUresult bad = require_managed("cuMemPrefetchAsync", pointer, bytes, location)) return bad;
  prefetch_log.push_back({pointer, bytes, location.type, location.id, reinterpret_cast<uintptr_t>(stream)});
  return CUDA_SUCCESS;
}

DRIVER_API cuMemAdvise_v2(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUmemLocation location) {
  Lock lock;
  if (CUresult bad = require_managed("cuMemAdvise", pointer, bytes, location)) return bad;
  advice_log.push_back({pointer, bytes, advice, location.type, location.id});
  return CUDA_SUCCESS;
}

CONTROL_API void standin_fail_after(size_t bytes) {
  Lock lock;
  live_limit = bytes == SIZE_MAX ? SIZE_MAX : live_bytes + bytes;
}

CONTROL_API size_t standin_allocations(AllocationRecord* records, size_t capacity) {
  Lock lock;
  size_t count = 0;
  for (const auto& [start, allocation] : allocations) {
    if (count < capacity) records[count] = allocation;
    ++count;
  }
  return count;
}

CONTROL_API size_t standin_prefetches(PrefetchRecord* records, size_t capacity) {
  Lock lock;
  return copy_records(prefetch_log, records, capacity);
}

CONTROL_API size_t standin_advices(AdviceRecord* records, size_t capacity) {
  Lock lock;
  return copy_records(advice_log, records, capacity);
}

void clear_memory_logs() {
  prefetch_log.clear();
  advice_log.clear();
}

}  // namespace standin
