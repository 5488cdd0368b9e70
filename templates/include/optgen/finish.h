// The sums over a tensor, from the partial results of its chunks: included last by the frames of both targets.
#pragma once

#include <optgen/math.h>
#include <optgen/passes.h>

namespace optgen {

// Reduces the numbers of an array of which index i of a dimension has one: that dimension has `size` indices, those after
// it `inner` together.
template <class How = Added>
OPTGEN_TARGET double strided_sum(const float* x, int64_t i, int64_t size, int64_t inner, int64_t count) {
  double sum = 0.0;
  for (int64_t first = i * inner; first < count; first += size * inner) {
    for (int64_t k = first; k < first + inner; ++k) sum = How::join(sum, How::term(x[k]));
  }
  return How::value(sum);
}

template <bool taken, bool in_bands = false, class Sums>
OPTGEN_TARGET void finish_sum(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_sum<in_bands>(call, t, sum));
}

template <bool taken, bool in_bands = false, class How = Largest, class Sums>
OPTGEN_TARGET void finish_max(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_max<in_bands, How>(call, t, sum));
}

// A sum that goes into one over all parameters, where the settings at hand do not take it.
template <bool untaken, class Sums>
OPTGEN_TARGET void finish_untaken(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (untaken) put(sums_of<Sums>(call, t).*sum, 0.0);
}

}  // namespace optgen
