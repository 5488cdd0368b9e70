// Runs functions of a library on the processor that this is compiled for, for a process on a processor of another kind.
//
// Requests come on standard input, answers go to standard output; both processors keep the lowest byte of a number first.
// A request is a header, the name, the sizes of blocks of memory, the words in blocks that are addresses, and the blocks.
// The first block has what integer registers hold when the function is called; the answer is the number that it
// returns, and what is then in the others.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

namespace {

constexpr int REGISTERS = 8;  // of AArch64's calls, for integers and addresses; those of floats are counted apart

struct Header {
  int64_t name, flush, blocks, addresses;
  float number;  // in the first register of floats
  int32_t unused;
};

struct Address {
  int64_t block, offset, of_block, of_offset;
};

bool take(void* to, size_t bytes) { return fread(to, 1, bytes, stdin) == bytes; }
void give(const void* from, size_t bytes) { fwrite(from, 1, bytes, stdout); }

// Has this processor take subnormal numbers for 0, as a caller's may.
void flush_subnormals(bool flush) {
#if defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(uint64_t(flush) << 24));
#else
  if (flush) abort();
#endif
}

}  // namespace

int main(int, char** words) {
  void* const library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  for (Header header; take(&header, sizeof header);) {
    std::string name(header.name, '\0');
    std::vector<int64_t> sizes(header.blocks);
    std::vector<Address> addresses(header.addresses);
    if (!take(name.data(), name.size()) || !take(sizes.data(), sizes.size() * sizeof sizes[0]) ||
        !take(addresses.data(), addresses.size() * sizeof addresses[0]))
      return 2;
    std::vector<char*> blocks;
    for (const int64_t size : sizes) {
      blocks.push_back(static_cast<char*>(aligned_alloc(64, (size + 64) / 64 * 64)));
      if (!take(blocks.back(), size)) return 3;
    }
    for (const Address& at : addresses)
      *reinterpret_cast<char**>(blocks[at.block] + at.offset) = blocks[at.of_block] + at.of_offset;

    using Function = float (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float);
    const auto function = reinterpret_cast<Function>(dlsym(library, name.c_str()));
    if (function == nullptr) {
      fprintf(stderr, "%s\n", dlerror());
      return 4;
    }
    const int64_t* const r = reinterpret_cast<const int64_t*>(blocks[0]);
    flush_subnormals(header.flush != 0);
    const float result = function(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[REGISTERS - 1], header.number);
    flush_subnormals(false);

    give(&result, sizeof result);
    for (size_t i = 1; i < blocks.size(); ++i) give(blocks[i], sizes[i]);
    fflush(stdout);
    for (char* block : blocks) free(block);
  }
  return 0;
}
