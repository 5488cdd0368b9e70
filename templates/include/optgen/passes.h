// The passes of a block over memory, numbered from 0; the last one, which alone writes, is called APPLY.
//
// A sum over elements is taken in the pass before the first that needs it.
#pragma once

#include <optgen/call.h>

namespace optgen {

constexpr int NEVER = 1 << 16;  // the pass of what is not taken under the settings at hand

template <class... Passes> OPTGEN_METHOD constexpr int before(int first, Passes... others) {
  ((first = others < first ? others : first), ...);
  return first - 1;
}

// True if a pass has the result of a sum, or needs none.
OPTGEN_METHOD constexpr bool is_found(int pass, int sum) { return sum == NEVER || pass > sum; }

template <class... Passes> OPTGEN_METHOD constexpr bool is_one_of(int pass, Passes... others) {
  return ((pass == others) || ...);
}

// The numbers that the host hands to a tensor's group, the sums over a tensor, and what a chunk adds to them.
template <class Values> OPTGEN_FUNCTION const Values& values_of(const Call& call, const Tensor& t) {
  return reinterpret_cast<const Values*>(call.values)[t.at(GROUP)];
}
template <class Sums> OPTGEN_FUNCTION Sums& sums_of(const Call& call, const Tensor& t) {
  return reinterpret_cast<Sums*>(call.reduced)[t.index];
}
template <class Sums> OPTGEN_FUNCTION Sums& partials_of(const Call& call, const Chunk& c) {
  return reinterpret_cast<Sums*>(call.partials)[c.index];
}

}  // namespace optgen
