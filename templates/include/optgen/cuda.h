// The frame of every generated CUDA kernel.
//
// A pass is one launch over elements, between two small ones over tensors. `prepare`, a warp a tensor, computes every
// value below element kind once, in double, into scratch. The pass hands chunks to a grid that stays: a block takes a
// chunk, each of its warps tiles of it. `finish`, a block a tensor, adds up partial results in a fixed order, or stores
// what is kept below element kind. Nothing depends on which block comes first: no atomics on floats, the same bits on
// every run.
#pragma once

#include <optgen/call.h>
#include <optgen/cuda_band.h>
#include <optgen/cuda_param.h>
#include <optgen/cuda_tile.h>
#include <optgen/cuda_window.h>
#include <optgen/math.h>
#include <optgen/passes.h>

namespace optgen {

constexpr int THREADS = 256;  // of a block, mirrored in optgen/runtime/cuda/cuda_device.py
constexpr int WARPS = THREADS / WARP;

// Blocks of a multiprocessor, which their registers must leave room for: a lane keeps eight elements of each tensor, of
// what lies beside a parameter, and (float) of the result of a function of matrices. Mirrored likewise.
template <class Codec> constexpr int tensors_of = 1;
template <> constexpr int tensors_of<Absent> = 0;
template <class T> constexpr int tensors_of<Kahan<T>> = 2;
template <class Beside> constexpr int tensors_of<Split<Beside>> = 2;
template <class... Codecs> constexpr int blocks_with = (tensors_of<Codecs> + ...) > 4 ? 2 : 3;

// A step that is skipped leaves everything as it was.
__device__ inline bool is_skipped(const Call& call) { return call.found_inf != nullptr && *call.found_inf != 0.0f; }

// A warp walks every WARPS-th tile of a chunk.
constexpr int STRIDE = WARPS * TILE;

// The first element of a lane.
template <int run> __device__ inline int64_t first_element(const Chunk& c) {
  return c.begin + threadIdx.x / WARP * TILE + threadIdx.x % WARP * run;
}

// Calls `body` for each of a warp's tiles: in the whole ones no element needs a look at whether it is inside.
template <int run, class Body>
__device__ __forceinline__ void for_each_tile(const Chunk& c, bool aligned, const Body& body) {
  int left = int(c.end - c.begin) - int(threadIdx.x / WARP * TILE);
  int64_t first = first_element<run>(c);
  if (aligned) {
    for (; left >= TILE; left -= STRIDE, first += STRIDE) body(Place<run, true>{first, TILE});
  }
  for (; left > 0; left -= STRIDE, first += STRIDE) {
    body(Place<run, false>{first, left - int(threadIdx.x % WARP * run)});
  }
}

// Sums over a block, in a fixed order: lanes as a tree, then warps one by one. Every thread of the block takes part.
template <int count> struct BlockSums {
  double parts[count][WARPS];

  template <class How = Added> __device__ void add(int k, double value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value = How::join(value, __shfl_xor_sync(EVERY_LANE, value, step));
    if (threadIdx.x % WARP == 0) parts[k][threadIdx.x / WARP] = value;
  }
  template <class How = Largest> __device__ void add_max(int k, uint32_t bits) {
    const uint32_t largest = warp_max(bits);
    if (threadIdx.x % WARP == 0) parts[k][threadIdx.x / WARP] = How::value(largest);
  }
  // After a barrier.
  template <class How = Added> __device__ double sum(int k) const {
    double total = 0.0;
    for (unsigned w = 0; w < blockDim.x / WARP; ++w) total = How::join(total, parts[k][w]);
    return total;
  }
  template <class How = Largest> __device__ double largest(int k) const {
    double most = How::value(0.0);
    for (unsigned w = 0; w < blockDim.x / WARP; ++w) most = maximum(most, parts[k][w]);
    return most;
  }
};
template <> struct BlockSums<0> {};

// Shared memory of a block in a pass.
template <class Books, int sums> struct Shared {
  Books books;
  BlockSums<sums> partial;
};

// Shared memory of a block in a pass that walks bands.
template <class Books, int sums, int row_sums> struct BandShared {
  Books books;
  BlockSums<sums> partial;
  RowSums<row_sums, WARPS> rows;
};

// Sums that end in every thread of a block.
template <class How = Added> __device__ inline double block_sum(double value) {
  __shared__ BlockSums<1> sums;
  __syncthreads();  // of the sum before, all have read
  sums.template add<How>(0, value);
  __syncthreads();
  return sums.template sum<How>(0);
}

template <class How = Largest> __device__ inline double block_max(double value) {
  __shared__ BlockSums<1> most;
  __syncthreads();
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) value = maximum(value, __shfl_xor_sync(EVERY_LANE, value, step));
  if (threadIdx.x % WARP == 0) most.parts[0][threadIdx.x / WARP] = value;
  __syncthreads();
  return most.template largest<How>(0);
}

using Condition = bool;  // one that is the same for all elements of a tensor

// The partial results of a tensor's chunks, or bands. What other blocks wrote is there: it was an earlier launch.
template <bool in_bands, class Sums>
__device__ inline double finished_sum(const Call& call, const Tensor& t, double Sums::* sum) {
  const Sums* const parts = reinterpret_cast<const Sums*>(call.partials) + t.at(in_bands ? FIRST_BAND : FIRST_CHUNK);
  double total = 0.0;
  for (int64_t c = threadIdx.x; c < t.at(in_bands ? BANDS : CHUNKS); c += blockDim.x) total += parts[c].*sum;
  return block_sum(total);
}

template <bool in_bands, class How = Largest, class Sums>
__device__ inline double finished_max(const Call& call, const Tensor& t, double Sums::* sum) {
  const Sums* const parts = reinterpret_cast<const Sums*>(call.partials) + t.at(in_bands ? FIRST_BAND : FIRST_CHUNK);
  double largest = How::value(0.0);
  for (int64_t c = threadIdx.x; c < t.at(in_bands ? BANDS : CHUNKS); c += blockDim.x) {
    largest = maximum(largest, parts[c].*sum);
  }
  return block_max<How>(largest);
}

// A band's rows are whole: their sums are stored by the pass itself.
template <class How = Added> __device__ inline void finish_rows(const Call&, const Tensor&, int, int, float*) {}

__device__ inline void wait_for_all() { __syncthreads(); }

// Every number of an array.
template <class Body> __device__ inline void each(int64_t count, const Body& body) {
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) body(k);
  __syncthreads();
}

template <class Body> __device__ inline void each_row(const Tensor& t, const Body& body) {
  each(t.count(true, false), body);
}

// Sums over arrays below element kind.
template <class How = Added> __device__ inline double sum_of(const float* x, int64_t count) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum = How::join(sum, How::term(x[i]));
  return How::value(block_sum<How>(sum));
}

// The same by the one thread that calls it.
template <class How = Added> __device__ inline double line_sum(const float* x, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum = How::join(sum, How::term(x[i]));
  return How::value(sum);
}

// Stores of values below element kind: by one thread for all.
__device__ inline void put(double& to, double value) {
  if (threadIdx.x == 0) to = value;
}
__device__ inline void put(float& to, double value) {
  if (threadIdx.x == 0) to = float(value);
}
template <int N> __device__ inline void put(float* to, const Window<N>& window) {
  for (unsigned i = threadIdx.x; i < unsigned(N); i += blockDim.x) {
    const float entry = window.at(int(i));
    to[i] = entry;
  }
}
__device__ inline void count_step(const Tensor& t) {
  if (threadIdx.x != 0) return;
  const double count = steps_of(t) + 1.0;
  put(*t.pointer<double>(COUNT), count);
  put(*t.pointer<float>(STEP), count);
}

// The three launches of a pass.
template <int columns, class Scalars, class Compute>
__device__ __forceinline__ void prepare_tensors(const Call& call, const Compute& scalars) {
  if (is_skipped(call)) return;
  for (int64_t i = blockIdx.x; i < call.tensors; i += gridDim.x) {
    const Scalars s = scalars(call, tensor_of<columns>(call, i));
    if (threadIdx.x == 0) reinterpret_cast<Scalars*>(call.scratch)[i] = s;
  }
}

template <int columns, class Scalars, class PassShared, class Run>
__device__ __forceinline__ void run_chunks(const Call& call, const Run& run) {
  if (is_skipped(call)) return;
  __shared__ PassShared shared;
  shared.books.fill();
  for (int64_t i = call.first + blockIdx.x; i < call.first + call.chunks; i += gridDim.x) {
    const Chunk c = chunk_of(call, i);
    run(call, tensor_of<columns>(call, c.tensor), c, reinterpret_cast<const Scalars*>(call.scratch)[c.tensor], shared);
  }
}

template <int columns, class Finish>
__device__ __forceinline__ void finish_tensors(const Call& call, const Finish& finish) {
  if (is_skipped(call)) return;
  for (int64_t i = blockIdx.x; i < call.tensors; i += gridDim.x) finish(call, tensor_of<columns>(call, i));
}

}  // namespace optgen

#include <optgen/finish.h>

#define OPTGEN_KERNELS(block, name, pass)                                                                       \
  extern "C" __global__ void __launch_bounds__(WARP) name##_prepare(const Call call) {                          \
    prepare_tensors<Column::END, block::Scalars>(                                                               \
        call, [](const Call& call, const Tensor& t) { return block::scalars<pass>(call, t); });                 \
  }                                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(const Call call) {                         \
    run_chunks<Column::END, block::Scalars, block::PassShared>(                                                 \
        call, [](const Call& call, const Tensor& t, const Chunk& c, const block::Scalars& s,                    \
                 block::PassShared& shared) { block::run_chunk<pass>(call, t, c, s, shared); });                \
  }                                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) name##_finish(const Call call) {                        \
    finish_tensors<Column::END>(call, [](const Call& call, const Tensor& t) { block::finish<pass>(call, t); }); \
  }
