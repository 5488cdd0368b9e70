// What tests can read: records that ../control.py mirrors field by field.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace standin {

enum class AllocationKind : int64_t { DEVICE, MANAGED, HOST };

struct AllocationRecord {
  uint64_t pointer;
  uint64_t bytes;
  AllocationKind kind;
  int64_t device;
};

struct PrefetchRecord {
  uint64_t pointer;
  uint64_t bytes;
  int64_t location_type;
  int64_t location_id;
  uint64_t stream;
};

struct AdviceRecord {
  uint64_t pointer;
  uint64_t bytes;
  int64_t advice;
  int64_t location_type;
  int64_t location_id;
};

struct LaunchRecord {
  uint64_t grid[3];
  uint64_t block[3];
  uint64_t stream;
  uint64_t shared_bytes;
  uint64_t replayed;  // 1: by a replay of a captured graph
  uint64_t argument_bytes;  // standin_launch_arguments copies them
  char name[256];
};

// Copies what fits; returns how many there are.
template <class Record>
size_t copy_records(const std::vector<Record>& log, Record* records, size_t capacity) {
  std::copy_n(log.begin(), std::min(log.size(), capacity), records);
  return log.size();
}

void clear_memory_logs();
void clear_launch_log();

}  // namespace standin
