// The code books that a kernel needs, kept in a block's shared memory and filled once when the block begins.
#pragma once

#include <optgen/cuda_companded.h>
#include <optgen/cuda_fp8.h>
#include <optgen/cuda_int4.h>
#include <optgen/cuda_int8.h>

namespace optgen {

template <class Book, bool needed> struct SharedBook {
  __device__ void fill() {}
};
template <class Book> struct SharedBook<Book, true> {
  Table<Book> table;

  __device__ void fill() {
    const auto* from = reinterpret_cast<const uint32_t*>(&stored(Book()));
    auto* to = reinterpret_cast<uint32_t*>(&table);
    for (unsigned i = threadIdx.x; i < sizeof table / 4; i += blockDim.x) to[i] = from[i];
  }
};

// Books that states of these codecs need.
template <class... Codecs>
struct Books : SharedBook<Int8<true>, (has_codes<Codecs, Int8<true>> || ... || false)>,
               SharedBook<Int8<false>, (has_codes<Codecs, Int8<false>> || ... || false)>,
               SharedBook<Int4<true>, (has_codes<Codecs, Int4<true>> || ... || false)>,
               SharedBook<Int4<true, NormalBook>, (has_codes<Codecs, Int4<true, NormalBook>> || ... || false)> {
  template <class Book> static constexpr bool needs = (has_codes<Codecs, Book> || ... || false);

  // To be called by all threads of a block, before anything is read.
  __device__ void fill() {
    SharedBook<Int8<true>, needs<Int8<true>>>::fill();
    SharedBook<Int8<false>, needs<Int8<false>>>::fill();
    SharedBook<Int4<true>, needs<Int4<true>>>::fill();
    SharedBook<Int4<true, NormalBook>, needs<Int4<true, NormalBook>>>::fill();
    if (needs<Int8<true>> || needs<Int8<false>> || needs<Int4<true>> || needs<Int4<true, NormalBook>>) __syncthreads();
  }
  template <class Book> __device__ const Table<Book>& of() const { return SharedBook<Book, true>::table; }
};

}  // namespace optgen
