// The frame of every generated CPU kernel: what a call is given, and how its passes run.
//
// One call makes one pass over all parameters that share a kernel. Their memory is cut into chunks whose edges do not
// depend on the number of threads; partial results are kept for each chunk and finished in the order of chunks, so
// that a step gives the same bits whatever the number of threads.
#pragma once

#include <omp.h>
#include <optgen/math.h>
#include <optgen/tile.h>
#include <optgen/window.h>

#define OPTGEN_EXPORT extern "C" __attribute__((visibility("default")))

namespace optgen {

// The columns that every table begins with; states and scratch arrays follow.
enum BaseColumn { PARAM, STEP, NUMEL, NDIM, INDEX, ROWS, COLS, MATRICES, GROUP, FIRST_CHUNK, CHUNKS, BASE_COLUMNS };

// Mirrored by `Call` in optgen/runtime/cpu_engine.py.
struct Call {
  int64_t tensors;
  int64_t chunks;
  int64_t threads;
  const int64_t* table;        // tensors x columns
  const int64_t* grads;        // tensors: addresses of the gradients
  const double* values;        // groups x values of host kind
  const int64_t* chunk_table;  // chunks x 4: tensor, begin, end, place in `lines`
  double* partials;            // chunks x reductions
  double* reduced;             // tensors x reductions
  double* lines;               // partial sums of rows and columns
  char* scratch;               // tensors x the pass's scalars
};

struct Chunk {
  int64_t index, begin, end, line;
};

// One parameter of a call: a row of the table.
struct Tensor {
  const int64_t* row;
  const void* grad;
  int64_t index;

  int64_t at(int column) const { return row[column]; }
  template <class T = void> T* pointer(int column) const { return reinterpret_cast<T*>(row[column]); }
  int64_t count(bool rows, bool cols) const {
    return at(MATRICES) * (rows ? at(ROWS) : 1) * (cols ? at(COLS) : 1);
  }
};

template <int columns> inline Tensor tensor_of(const Call& call, int64_t index) {
  return {call.table + index * columns, reinterpret_cast<const void*>(call.grads[index]), index};
}

inline Chunk chunk_of(const Call& call, int64_t index) {
  const int64_t* row = call.chunk_table + 4 * index;
  return {index, row[1], row[2], row[3]};
}

// A stretch of a tile that lies in one row of a matrix; the whole tile where rows do not matter.
struct Segment {
  int begin, end;
  int64_t row, matrix, col;  // row counts through all matrices
};

template <bool segmented> inline Segment segment_at(const Tensor& t, int64_t at, int begin, int n) {
  if (!segmented) return {begin, n, 0, 0, 0};
  const int64_t cols = t.at(COLS), row = (at + begin) / cols, col = (at + begin) % cols;
  const int64_t end = begin + (cols - col);
  return {begin, int(end < n ? end : n), row, row / t.at(ROWS), col};
}

// The partial sums of the rows and columns that a chunk touches.
struct Lines {
  double* base;
  int64_t first_row, rows, first_matrix, matrices, cols;
  int row_sums;

  double* row(int k) const { return base + k * rows; }
  double* col(int k) const { return base + row_sums * rows + k * matrices * cols; }
  int64_t size(int col_sums) const { return row_sums * rows + col_sums * matrices * cols; }
};

inline Lines lines_of(const Call& call, const Tensor& t, const Chunk& c, int row_sums) {
  const int64_t cols = t.at(COLS), rows = t.at(ROWS);
  const int64_t first = c.begin / cols, last = (c.end - 1) / cols;
  return {call.lines + c.line, first, last - first + 1, first / rows, last / rows - first / rows + 1, cols, row_sums};
}

// Sums of the partial results of a tensor's chunks, in their order.
inline double finished_sum(const Call& call, const Tensor& t, int reductions, int k) {
  double sum = 0.0;
  for (int64_t c = 0; c < t.at(CHUNKS); ++c) sum += call.partials[(t.at(FIRST_CHUNK) + c) * reductions + k];
  return sum;
}

inline double finished_max(const Call& call, const Tensor& t, int reductions, int k) {
  double largest = 0.0;
  for (int64_t c = 0; c < t.at(CHUNKS); ++c) {
    largest = maximum(largest, call.partials[(t.at(FIRST_CHUNK) + c) * reductions + k]);
  }
  return largest;
}

inline void finish_rows(const Call& call, const Tensor& t, int row_sums, int k, float* out) {
  const int64_t count = t.count(true, false);
  double carried = 0.0;
  int64_t open_row = -1;
  for (int64_t row = 0; row < count; ++row) out[row] = 0.0f;
  for (int64_t i = 0; i < t.at(CHUNKS); ++i) {
    const Lines lines = lines_of(call, t, chunk_of(call, t.at(FIRST_CHUNK) + i), row_sums);
    for (int64_t j = 0; j < lines.rows; ++j) {
      const int64_t row = lines.first_row + j;
      carried = row == open_row ? carried + lines.row(k)[j] : lines.row(k)[j];
      open_row = row;
      out[row] = float(carried);
    }
  }
}

inline void finish_cols(const Call& call, const Tensor& t, int row_sums, int k, float* out) {
  const int64_t count = t.count(false, true);
  double* sums = new double[count]();
  for (int64_t i = 0; i < t.at(CHUNKS); ++i) {
    const Lines lines = lines_of(call, t, chunk_of(call, t.at(FIRST_CHUNK) + i), row_sums);
    double* into = sums + lines.first_matrix * lines.cols;
    for (int64_t j = 0; j < lines.matrices * lines.cols; ++j) into[j] += lines.col(k)[j];
  }
  for (int64_t j = 0; j < count; ++j) out[j] = float(sums[j]);
  delete[] sums;
}

// Sums over arrays below element kind.
inline double sum_of(const float* x, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

// Runs a pass: values of each tensor, then its chunks, then its partial results.
template <int columns, class Scalars, class Prepare, class RunChunk, class Finish>
inline void run_pass(const Call& call, Prepare prepare, RunChunk run_chunk, Finish finish) {
  Scalars* scalars = reinterpret_cast<Scalars*>(call.scratch);
#pragma omp parallel num_threads(int(call.threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < call.tensors; ++i) scalars[i] = prepare(call, tensor_of<columns>(call, i));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < call.chunks; ++i) {
      const int64_t tensor = call.chunk_table[4 * i];
      run_chunk(call, tensor_of<columns>(call, tensor), chunk_of(call, i), scalars[tensor]);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < call.tensors; ++i) finish(call, tensor_of<columns>(call, i));
  }
}

}  // namespace optgen
