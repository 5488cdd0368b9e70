// The sums over a tensor, from the partial results of its chunks: included last by the frames of both targets.
#pragma once

#include <optgen/passes.h>

namespace optgen {

template <bool taken, bool in_bands, class Sums>
OPTGEN_TARGET void finish_sum(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_sum<in_bands>(call, t, sum));
}

template <bool taken, bool in_bands, class Sums>
OPTGEN_TARGET void finish_max(const Call& call, const Tensor& t, double Sums::* sum) {
  if constexpr (taken) put(sums_of<Sums>(call, t).*sum, finished_max<in_bands>(call, t, sum));
}

}  // namespace optgen
