// Running one block of a kernel.
//
// The block's threads run one after the other on one fiber, until one has to wait: then another fiber goes on, or
// begins with the threads that are left. A thread that never waits costs one function call.
#pragma once

#include <string>

#include "modules.h"

namespace standin {

constexpr unsigned MAX_THREADS = 1024;  // of a block
constexpr size_t MAX_SHARED_BYTES = 99 << 10;

struct Index {
  unsigned x, y, z;
};

// What all blocks of a launch have in common.
struct BlockLaunch {
  const Function* function;
  const char* arguments;
  Index grid;
  Index block;
  size_t dynamic_shared_bytes;
};

// Given to each module when it is loaded.
extern const Services services;

// Prepares for blocks of a launch: fills the index variables of its module, orders threads.
void begin_launch(const BlockLaunch& launch);

// Runs a block, `number`th of its launch; returns false and fills `message` if the kernel made an error.
bool run_block(Index block, size_t number, std::string& message);

}  // namespace standin
