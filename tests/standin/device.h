// What nvcc supplies to a .cu, for g++: read before every .cu that ./nvcc compiles. No CUDA header is needed.
//
// `__global__`, `__launch_bounds__` and `__shared__` are left to ./nvcc, which adds a standin_kernel_… for each.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "device_vectors.h"
#include "driver/abi.h"

#define __CUDACC__ 1
#define __host__
#define __device__
#define __grid_constant__
#define __forceinline__ __attribute__((always_inline))
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ __attribute__((used))
#define __managed__ __attribute__((used))

#define STANDIN_HIDDEN __attribute__((visibility("hidden")))
#define STANDIN_EXPORT extern "C" __attribute__((visibility("default"), used))

STANDIN_HIDDEN uint3 threadIdx, blockIdx;
STANDIN_HIDDEN dim3 blockDim, gridDim;
static constexpr int warpSize = standin::WARP_SIZE;

STANDIN_EXPORT standin::Module standin_module = {standin::ABI_VERSION, STANDIN_ARCHITECTURE, &threadIdx.x, &blockIdx.x,
                                                 &blockDim.x,          &gridDim.x,           nullptr};

namespace standin {

inline const Services& driver() { return *standin_module.services; }

// ---- Kernels

template <class Function>
struct Parameters;

template <class... Types>
struct Parameters<void (*)(Types...)> {
  static_assert((std::is_trivially_copyable_v<Types> && ...), "parameters of a kernel are copied as bytes");
  static constexpr size_t COUNT = sizeof...(Types);

  struct Table {
    Parameter entries[COUNT + 1];
    size_t bytes;
  };

  static constexpr Table lay_out() {
    Table table{};
    size_t i = 0;
    ((table.bytes = (table.bytes + alignof(Types) - 1) / alignof(Types) * alignof(Types),
      table.entries[i++] = {table.bytes, sizeof(Types)}, table.bytes += sizeof(Types)),
     ...);
    return table;
  }

  static constexpr Table TABLE = lay_out();

  template <void (*kernel)(Types...), size_t... I>
  static void run(const char* arguments, std::index_sequence<I...>) {
    while (driver().next_thread()) {
      kernel(*reinterpret_cast<const std::remove_cv_t<Types>*>(arguments + TABLE.entries[I].offset)...);
    }
  }

  template <void (*kernel)(Types...)>
  static void run(const char* arguments) {
    run<kernel>(arguments, std::index_sequence_for<Types...>());
  }

  template <void (*kernel)(Types...)>
  static constexpr Kernel describe(const char* name, unsigned max_threads) {
    return {name, &Parameters::run<kernel>, TABLE.entries, COUNT, TABLE.bytes, max_threads};
  }
};

}  // namespace standin

// The caller's place, as default arguments.
#define STANDIN_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- Barriers

inline void __syncthreads(STANDIN_PLACE) {
  standin::driver().barrier({"__syncthreads", file, line}, standin::Combine::NONE, 0);
}
inline int __syncthreads_count(int predicate, STANDIN_PLACE) {
  return standin::driver().barrier({"__syncthreads_count", file, line}, standin::Combine::COUNT, predicate);
}
inline int __syncthreads_and(int predicate, STANDIN_PLACE) {
  return standin::driver().barrier({"__syncthreads_and", file, line}, standin::Combine::ALL, predicate);
}
inline int __syncthreads_or(int predicate, STANDIN_PLACE) {
  return standin::driver().barrier({"__syncthreads_or", file, line}, standin::Combine::ANY, predicate);
}
inline void __syncwarp(unsigned mask = 0xffffffff, STANDIN_PLACE) {
  standin::driver().exchange({"__syncwarp", file, line}, mask, 0);
}

// Threads of a launch run one at a time: their writes are seen in order.
inline void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

// ---- Collectives of a warp

namespace standin {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t), "collectives take numbers of up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % WARP_SIZE; }

// Gives `value` to the other lanes and takes that of lane `from`.
template <class T>
T shuffle(const Place& place, unsigned mask, T value, int from) {
  const Exchange* exchange = driver().exchange(place, mask, to_bits(value));
  if ((exchange->lanes >> from & 1) == 0) {
    driver().fail(place, mask >> from & 1 ? "reads a lane of its mask that has ended or does not exist"
                                          : "reads a lane outside its mask");
  }
  return from_bits<T>(exchange->values[from]);
}

// Combines integers of all lanes that took part.
template <class T, class Function>
T reduce(const Place& place, unsigned mask, T value, Function function) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "__reduce_*_sync take int and unsigned");
  const Exchange* exchange = driver().exchange(place, mask, to_bits(value));
  T result = value;
  bool first = true;
  for (unsigned i = 0; i < WARP_SIZE; ++i) {
    if ((exchange->lanes >> i & 1) == 0) continue;
    const T other = from_bits<T>(exchange->values[i]);
    result = first ? other : function(result, other);
    first = false;
  }
  return result;
}

}  // namespace standin

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, STANDIN_PLACE) {
  const int lane = standin::lane();
  return standin::shuffle({"__shfl_sync", file, line}, mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, STANDIN_PLACE) {
  const int lane = standin::lane(), from = lane - static_cast<int>(delta);
  return standin::shuffle({"__shfl_up_sync", file, line}, mask, value, from >= (lane & ~(width - 1)) ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, STANDIN_PLACE) {
  const int lane = standin::lane(), from = lane + static_cast<int>(delta);
  return standin::shuffle({"__shfl_down_sync", file, line}, mask, value, from <= (lane | (width - 1)) ? from : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, STANDIN_PLACE) {
  const int lane = standin::lane(), from = lane ^ lanes;
  return standin::shuffle({"__shfl_xor_sync", file, line}, mask, value, from <= (lane | (width - 1)) ? from : lane);
}

namespace standin {

inline unsigned vote(const Place& place, unsigned mask, int predicate, unsigned& voters) {
  const Exchange* exchange = driver().exchange(place, mask, predicate != 0);
  unsigned votes = 0;
  for (unsigned i = 0; i < WARP_SIZE; ++i) {
    if ((exchange->lanes >> i & 1) != 0 && exchange->values[i] != 0) votes |= 1u << i;
  }
  voters = exchange->lanes;
  return votes;
}

}  // namespace standin

inline unsigned __ballot_sync(unsigned mask, int predicate, STANDIN_PLACE) {
  unsigned voters;
  return standin::vote({"__ballot_sync", file, line}, mask, predicate, voters);
}
inline int __any_sync(unsigned mask, int predicate, STANDIN_PLACE) {
  unsigned voters;
  return standin::vote({"__any_sync", file, line}, mask, predicate, voters) != 0;
}
inline int __all_sync(unsigned mask, int predicate, STANDIN_PLACE) {
  unsigned voters;
  const unsigned votes = standin::vote({"__all_sync", file, line}, mask, predicate, voters);
  return votes == voters;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, STANDIN_PLACE) {
  return standin::reduce({"__reduce_add_sync", file, line}, mask, value,
                         [](T a, T b) { return static_cast<T>(unsigned(a) + unsigned(b)); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, STANDIN_PLACE) {
  return standin::reduce({"__reduce_min_sync", file, line}, mask, value, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, STANDIN_PLACE) {
  return standin::reduce({"__reduce_max_sync", file, line}, mask, value, [](T a, T b) { return a < b ? b : a; });
}

#include "device_math.h"
#include "device_memory.h"
