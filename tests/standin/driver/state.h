// What all parts of the driver share: settings made by tests, the lock, error messages.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

// Every function of the driver API is defined with this, and begins with `Lock lock;`.
#define DRIVER_API extern "C" __attribute__((visibility("default"))) CUresult CUDAAPI
// Functions for tests (../control.py).
#define CONTROL_API extern "C" __attribute__((visibility("default")))

namespace standin {

constexpr int POISON = 0xff;  // the bytes of memory that nothing was written to: a NaN in every floating-point type

// One call of the driver runs at a time, in whatever host thread.
struct Lock {
  Lock();
  ~Lock();
};

enum class OrderKind : int { FORWARD, BACKWARD, SHUFFLED };

struct Order {
  OrderKind kind = OrderKind::FORWARD;
  uint64_t seed = 0;
};

struct Settings {
  int devices = 1;
  int capability_major = 9;
  int capability_minor = 0;
  int multiprocessors = 4;
  int concurrent_managed_access = 1;
  size_t device_memory = size_t{8} << 30;
  Order thread_order;
  Order block_order;
};

extern Settings settings;

// Remembers what went wrong for this host thread's cuGetErrorString, and returns `code`.
__attribute__((format(printf, 2, 3))) CUresult error(CUresult code, const char* format, ...);

// Uniformly distributed numbers, the same on every machine (SplitMix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

template <class Items>
void shuffle(Items& items, Random& random) {
  for (size_t left = items.size(); left > 1; --left) std::swap(items[left - 1], items[random.below(left)]);
}

// 0 … count-1 in the given order; `stream` tells shuffles of one seed apart.
template <class Items>
void fill_in_order(Items& items, size_t count, Order order, uint64_t stream) {
  items.resize(count);
  for (size_t i = 0; i < count; ++i) items[i] = order.kind == OrderKind::BACKWARD ? count - 1 - i : i;
  if (order.kind == OrderKind::SHUFFLED) {
    Random random(order.seed * 0x2545f4914f6cdd1d + stream);
    shuffle(items, random);
  }
}

}  // namespace standin
