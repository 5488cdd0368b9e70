// How tensors can be stored, as types: of states and gradients first, then of parameters.
#pragma once

#include <optgen/dtypes.h>
#include <stdint.h>

namespace optgen {

struct Absent {};                    // a state that this kernel does not have
template <class T> struct Plain {};  // fp32, bf16, fp16

// What the codes of quantized states stand for, in states with and without a sign.
template <bool is_signed> struct Int8 {};
template <bool is_signed> struct Int4 {};  // two codes a byte, the first in its upper half
template <bool is_signed> struct Fp8 {};
template <bool is_signed> struct Companded8 {};

template <class Book, int block> struct Blocked {};  // one scale for every `block` elements
template <class Book> struct Tensorwise {};          // one scale for the tensor

// Parameters of 16 bits that are rounded at random, or have something kept beside them.
template <class T> struct Stochastic {};
template <class T> struct Kahan {};
template <class Beside> struct Split {};  // bf16, with an integer beside it

// Whether a state has one scale for the whole tensor.
template <class Codec> constexpr bool is_tensorwise = false;
template <class Book> constexpr bool is_tensorwise<Tensorwise<Book>> = true;

// Whether a state has codes of this kind.
template <class Codec, class Book> constexpr bool has_codes = false;
template <class Book, int block> constexpr bool has_codes<Blocked<Book, block>, Book> = true;
template <class Book> constexpr bool has_codes<Tensorwise<Book>, Book> = true;

// The elements of a run: as many as 16 bytes hold of the smaller of parameter and gradient.
template <class Codec> constexpr int run_of = 4;
template <> constexpr int run_of<Plain<bf16>> = 8;
template <> constexpr int run_of<Plain<fp16>> = 8;
template <class T> constexpr int run_of<Stochastic<T>> = 8;
template <class T> constexpr int run_of<Kahan<T>> = 8;
template <class Beside> constexpr int run_of<Split<Beside>> = 8;

}  // namespace optgen
