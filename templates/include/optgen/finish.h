// The sums over a tensor, from the partial results of its chunks: included last by the frames of both targets.
#pragma once

#include <optgen/passes.h>

namespace optgen {

template <bool taken, bool in_bands = false, class Sums>
OPTGEN_TARGET void finish_sum(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_sum<in_bands>(call, t, sum));
}

template <bool taken, bool in_bands = false, class Sums>
OPTGEN_TARGET void finish_max(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_max<in_bands>(call, t, sum));
}

// A sum that goes into one over all parameters, where the settings at hand do not take it.
template <bool untaken, class Sums>
OPTGEN_TARGET void finish_untaken(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (untaken) put(sums_of<Sums>(call, t).*sum, 0.0);
}

}  // namespace optgen
