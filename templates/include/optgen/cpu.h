// The frame of every generated CPU kernel: how its passes run. Results do not depend on the number of threads.
#pragma once

#include <optgen/call.h>
#include <optgen/math.h>
#include <optgen/passes.h>
#include <optgen/threads.h>
#include <optgen/tile.h>
#include <optgen/window.h>

#if defined(_WIN32)
#define OPTGEN_EXPORT extern "C" __declspec(dllexport)
#else
#define OPTGEN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// 1 if processes have parts of tensors of this kernel whose rows or columns it asks for.
#ifndef OPTGEN_PARTS
#define OPTGEN_PARTS 0
#endif

namespace optgen {

constexpr bool parts = OPTGEN_PARTS;

// A stretch of a tile that lies in one row of a matrix; the whole tile where rows do not matter. A row counts through
// all matrices. Of a part, `line` and `place` count in its own memory, `row` and `col` in the whole tensor.
struct Segment {
  int begin, end;
  int64_t line, place, row, matrix, col;
};

// The row of the whole tensor that a row of a part is.
inline int64_t whole_row(const Tensor& t, int64_t line) {
  if (!parts) return line;
  const int64_t own = t.at(OWN_ROWS), matrix = line / own;
  return matrix * t.at(ROWS) + t.at(FIRST_ROW) + (line - matrix * own);
}

template <bool segmented> inline Segment segment_at(const Tensor& t, int64_t at, int begin, int n) {
  if (!segmented) return {begin, n, 0, 0, 0, 0, 0};
  const int64_t cols = t.at(parts ? OWN_COLS : COLS), line = (at + begin) / cols, place = (at + begin) % cols;
  const int64_t end = begin + (cols - place);
  const int64_t matrix = line / t.at(parts ? OWN_ROWS : ROWS), col = parts ? t.at(FIRST_COL) + place : place;
  return {begin, int(end < n ? end : n), line, place, whole_row(t, line), matrix, col};
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
  const int64_t cols = t.at(parts ? OWN_COLS : COLS), rows = t.at(parts ? OWN_ROWS : ROWS);
  const int64_t first = c.begin / cols, last = (c.end - 1) / cols;
  return {call.lines + c.line, first, last - first + 1, first / rows, last / rows - first / rows + 1, cols, row_sums};
}

using Condition = Mask;  // one that is the same for all elements of a tensor

// Sums of the partial results of a tensor's chunks, in their order.
template <bool in_bands, class Sums> inline double finished_sum(const Call& call, const Tensor& t, double Sums::* sum) {
  const Sums* const parts = reinterpret_cast<const Sums*>(call.partials) + t.at(FIRST_CHUNK);
  double total = 0.0;
  for (int64_t c = 0; c < t.at(CHUNKS); ++c) total += parts[c].*sum;
  return total;
}

template <bool in_bands, class How = Largest, class Sums>
inline double finished_max(const Call& call, const Tensor& t, double Sums::* sum) {
  const Sums* const parts = reinterpret_cast<const Sums*>(call.partials) + t.at(FIRST_CHUNK);
  double largest = How::value(0.0);
  for (int64_t c = 0; c < t.at(CHUNKS); ++c) largest = maximum(largest, parts[c].*sum);
  return largest;
}

// Place of a sum before it is rounded to a number of an array, if it is asked for.
inline double* wide_of(const Call& call, const float* array) {
  return parts ? call.wide + (array - call.arrays) : nullptr;
}

// Brings what a stretch of a row has found together with what the row had.
template <class How> inline void join_to(double& to, double found) { to = How::join(to, found); }

// Every number of an array, or those of the rows at hand.
template <class Body> inline void each(int64_t count, const Body& body) {
  for (int64_t k = 0; k < count; ++k) body(k);
}
template <class Body> inline void each_row(const Tensor& t, const Body& body) {
  const int64_t end = t.rows.end < 0 ? t.count(true, false) : t.rows.end;
  for (int64_t k = t.rows.first; k < end; ++k) body(k);
}

// Sums of rows and columns; of a part, what it adds to those of the whole tensor.
template <class How = Added>
inline void finish_rows(const Call& call, const Tensor& t, int row_sums, int k, float* out) {
  const int64_t count = t.count(true, false);
  double carried = 0.0;
  int64_t open_row = -1;
  double* const wide = wide_of(call, out);
  each_row(t, [&](int64_t row) { out[row] = float(How::value(0.0)); });
  for (int64_t row = 0; parts && row < count; ++row) wide[row] = How::value(0.0);
  const bool alone = t.rows.chunk >= 0;
  const int64_t first = alone ? t.rows.chunk : t.at(FIRST_CHUNK), end = first + (alone ? 1 : t.at(CHUNKS));
  for (int64_t i = first; i < end; ++i) {
    const Lines lines = lines_of(call, t, chunk_of(call, i), row_sums);
    for (int64_t j = 0; j < lines.rows; ++j) {
      const int64_t row = lines.first_row + j;
      carried = row == open_row ? How::join(carried, lines.row(k)[j]) : lines.row(k)[j];
      open_row = row;
      const int64_t to = whole_row(t, row);
      out[to] = float(How::value(carried));
      if (parts) wide[to] = How::value(carried);
    }
  }
}

template <class How = Added>
inline void finish_cols(const Call& call, const Tensor& t, int row_sums, int k, float* out) {
  const int64_t count = t.count(false, true);
  double* sums = new double[count]();
  for (int64_t i = 0; i < t.at(CHUNKS); ++i) {
    const Lines lines = lines_of(call, t, chunk_of(call, t.at(FIRST_CHUNK) + i), row_sums);
    if (!parts) {
      double* into = sums + lines.first_matrix * lines.cols;
      for (int64_t j = 0; j < lines.matrices * lines.cols; ++j) into[j] = How::join(into[j], lines.col(k)[j]);
    }
    for (int64_t m = 0; parts && m < lines.matrices; ++m) {
      double* into = sums + (lines.first_matrix + m) * t.at(COLS) + t.at(FIRST_COL);
      for (int64_t j = 0; j < lines.cols; ++j) into[j] = How::join(into[j], lines.col(k)[m * lines.cols + j]);
    }
  }
  double* const wide = wide_of(call, out);
  for (int64_t j = 0; j < count; ++j) out[j] = float(How::value(sums[j]));
  for (int64_t j = 0; parts && j < count; ++j) wide[j] = How::value(sums[j]);
  delete[] sums;
}

// Stores of values below element kind.
inline void put(double& to, double value) { to = value; }
inline void put(float& to, double value) { to = float(value); }
template <int N> inline void put(float* to, const Window<N>& window) { memcpy(to, window.values, sizeof window.values); }

inline void count_step(const Tensor& t) {
  const double count = steps_of(t) + 1.0;
  put(*t.pointer<double>(COUNT), count);
  put(*t.pointer<float>(STEP), count);
}

inline void wait_for_all() {}

// Sums over arrays below element kind.
template <class How = Added> inline double sum_of(const float* x, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum = How::join(sum, How::term(x[i]));
  return How::value(sum);
}
template <class How = Added> inline double line_sum(const float* x, int64_t count) { return sum_of<How>(x, count); }

// The work of a chunk, in tiles; one that is begun counts, however little is left.
inline int64_t work_of(const Chunk& c) { return (c.end - c.begin) / TILE + 1; }

inline int64_t work_of(const Call& call) {
  int64_t work = 0;
  for (int64_t i = 0; i < call.chunks; ++i) work += work_of(chunk_of(call, call.first + i));
  return work;
}

// The chunks of a thread, from the first that none has taken. A cache line each, since threads write them.
struct Share {
  int64_t next, end;
  int64_t unused[6];

  int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
};

// The work is divided, not the number of chunks: large tensors may stand together, and small ones beside them have
// chunks too.
inline void divide(const Call& call, Share* shares) {
  const int64_t work = work_of(call);
  int64_t thread = 0, before = 0;
  for (int64_t i = 0; i < call.chunks; ++i) {
    const int64_t own = work_of(chunk_of(call, call.first + i));
    // It is the first of a thread if more than half of it lies beyond the edge.
    while (thread < call.threads && (2 * before + own) * call.threads > 2 * work * thread) shares[thread++].next = i;
    before += own;
  }
  while (thread < call.threads) shares[thread++].next = call.chunks;
  for (int64_t t = 0; t < call.threads; ++t) shares[t].end = t + 1 < call.threads ? shares[t + 1].next : call.chunks;
}

// Runs a pass: values of each tensor, then its chunks, then its partial results.
template <int columns, class Scalars, class Prepare, class RunChunk, class Finish>
inline void run_pass(const Call& call, Prepare prepare, RunChunk run_chunk, Finish finish) {
  Scalars* scalars = reinterpret_cast<Scalars*>(call.scratch);
  Share* const shares = new Share[call.threads];
  divide(call, shares);
  with_threads(int(call.threads), [&](const Team& team) {
    team.each(call.tensors, [&](int64_t i) { scalars[i] = prepare(call, tensor_of<columns>(call, i)); });
    // A thread that is done takes chunks of the others: one core may be slower, by what else runs on it.
    team.each(call.threads, [&](int64_t thread) {
      for (int64_t k = 0; k < call.threads; ++k) {
        Share& share = shares[(thread + k) % call.threads];
        for (int64_t i; (i = share.take()) < share.end;) {
          const Chunk c = chunk_of(call, call.first + i);
          run_chunk(call, tensor_of<columns>(call, c.tensor), c, scalars[c.tensor]);
        }
      }
    });
    team.each(call.tensors, [&](int64_t i) { finish(call, tensor_of<columns>(call, i)); });
  });
  delete[] shares;
}

// Elements of a chunk whose rows are visited once, at most; mirrored in optgen/runtime/engines/kernel_engine.py.
constexpr int64_t VISIT = 65536;

// True if the chunks of a tensor are of whole rows that a cache holds: they are all cut as the first one is.
inline bool has_whole_rows(const Call& call, const Tensor& t) {
  if (parts || t.at(CHUNKS) == 0) return false;
  const Chunk c = chunk_of(call, t.at(FIRST_CHUNK));
  return c.end - c.begin <= VISIT && c.end % t.at(COLS) == 0;
}

// A pass that goes on by rows, or that ends some that do: `run_rows` is they all, on the rows of a chunk. They are run
// in place of the last of them, so that nothing is stored before other tensors have been summed.
template <int columns, class Scalars, bool goes_on, class Prepare, class RunChunk, class RunRows, class Finish>
inline void run_pass_by_rows(const Call& call, Prepare prepare, RunChunk run_chunk, RunRows run_rows, Finish finish) {
  run_pass<columns, Scalars>(
      call,
      [&](const Call& call, const Tensor& t) { return has_whole_rows(call, t) ? Scalars{} : prepare(call, t); },
      [&](const Call& call, const Tensor& t, const Chunk& c, const Scalars& scalars) {
        if (!has_whole_rows(call, t)) {
          run_chunk(call, t, c, scalars);
        } else if (!goes_on) {
          Tensor here = t;
          here.rows = {c.begin / t.at(COLS), c.end / t.at(COLS), c.index};
          run_rows(call, here, c);
        }
      },
      [&](const Call& call, const Tensor& t) {
        if (!goes_on || !has_whole_rows(call, t)) finish(call, t);
      });
}

}  // namespace optgen

#include <optgen/finish.h>
