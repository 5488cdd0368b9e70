// Arguments of a pass, on every compiled target: tables of numbers and addresses.
//
// One call makes one pass over all parameters that share a kernel. Their memory is cut into chunks whose edges depend on
// nothing but the sizes; partial results are kept for each chunk and finished in the order of chunks, so that a step
// gives the same bits on every run.
#pragma once

#include <optgen/function.h>
#include <stdint.h>

namespace optgen {

// The columns that every table begins with; states and scratch arrays follow.
enum BaseColumn {
  PARAM,
  COMPENSATION,  // what is kept beside the parameter
  SEED,          // of random numbers
  POSITION,      // the parameter's among all of the optimizer
  STEP,          // how many steps it has had: a float, which others may set
  COUNT,         // the same as a double, exact where a float is not
  NUMEL,
  NDIM,
  INDEX,
  ROWS,          // of a matrix; of the whole tensor, as NUMEL, where this process has a part of it
  COLS,
  MATRICES,
  GROUP,
  FIRST_CHUNK,
  CHUNKS,
  FIRST_BAND,
  BANDS,
  // Place of a part in the whole tensor; only the cpu target asks for it.
  OWN_ROWS,
  OWN_COLS,
  FIRST_ROW,
  FIRST_COL,
  START,  // the number of its first element, where its elements follow each other
  // Sizes of the first four dimensions, and of the third and fourth from the end: of the whole tensor.
  SIZE0,
  SIZE1,
  SIZE2,
  SIZE3,
  SIZE_3,
  SIZE_4,
  // Of the matrices that this process has: how many indices of the first dimension they have, and rows of each, and how
  // many of the third and fourth dimension from the end.
  CHANNELS,
  CHANNEL_ROWS,
  PLANES,
  BLOCKS_OF_PLANES,
  BASE_COLUMNS,
};

// Mirrored by `Call` in optgen/runtime/core/call.py.
struct Call {
  int64_t tensors;
  int64_t chunks;              // of this call
  int64_t first;               // the number of its first chunk
  int64_t threads;             // of the cpu target
  const int64_t* table;        // tensors x columns
  const int64_t* grads;        // tensors: addresses of the gradients
  const double* values;        // groups x values of host kind
  const int64_t* chunk_table;  // chunks x 4: tensor, begin, end, place in `lines`
  double* partials;            // chunks x reductions
  double* reduced;             // tensors x reductions
  double* lines;               // partial sums of rows and columns
  char* scratch;               // tensors x the pass's scalars
  const float* found_inf;      // not 0: this step is skipped; null where the host has decided
  const float* arrays;         // the first of all numbers of rows, columns and matrices
  double* wide;                // as many numbers, of parts: sums of rows and columns before they are rounded
};

struct Chunk {
  int64_t index, tensor, begin, end, line;
};

// The rows of a tensor, or of one of its chunks where that is looked at alone.
struct Rows {
  int64_t first = 0, end = -1, chunk = -1;
};

// One parameter of a call: a row of the table.
struct Tensor {
  const int64_t* row;
  void* grad;
  int64_t index;
  Rows rows = {};

  OPTGEN_METHOD int64_t at(int column) const { return row[column]; }
  template <class T = void> OPTGEN_METHOD T* pointer(int column) const { return reinterpret_cast<T*>(row[column]); }
  OPTGEN_METHOD int64_t count(bool rows, bool cols) const {
    return at(MATRICES) * (rows ? at(ROWS) : 1) * (cols ? at(COLS) : 1);
  }
};

template <int columns> OPTGEN_FUNCTION Tensor tensor_of(const Call& call, int64_t index) {
  return {call.table + index * columns, reinterpret_cast<void*>(call.grads[index]), index};
}

// Number of steps that a parameter has had.
OPTGEN_FUNCTION double steps_of(const Tensor& t) {
  const float shown = *t.pointer<float>(STEP);
  const double count = *t.pointer<double>(COUNT);
  return float(count) == shown ? count : double(shown);
}

// A number of steps as a whole number; 0 for what is none.
OPTGEN_FUNCTION uint64_t whole_steps(double steps) { return steps >= 0.0 && steps < 0x1p53 ? uint64_t(steps) : 0; }

OPTGEN_FUNCTION Chunk chunk_of(const Call& call, int64_t index) {
  const int64_t* row = call.chunk_table + 4 * index;
  return {index, row[0], row[1], row[2], row[3]};
}

}  // namespace optgen
