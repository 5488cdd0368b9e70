// Codecs of tensors, as types that every compiled target knows: of states and gradients first, then of
// parameters.
#pragma once

#include <optgen/dtypes.h>
#include <stdint.h>

namespace optgen {

struct Absent {};                    // a state that this kernel does not have
template <class T> struct Plain {};  // fp32, bf16, fp16

// States as codes: of a book (Int8, Int4, Fp8, Companded8), with one scale for every `block` elements or for the tensor.
template <class Book, int block> struct Blocked {};
template <class Book> struct Tensorwise {};

// What the codes of Int4 stand for.
struct DynamicMap {};
struct NormalBook {};

// Parameters of 16 bits that are rounded at random, or have something kept beside them.
template <class T> struct Stochastic {};
template <class T> struct Kahan {};
template <class Beside> struct Split {};  // bf16, with an integer beside it

// True for a state with one scale for the whole tensor.
template <class Codec> constexpr bool is_tensorwise = false;
template <class Book> constexpr bool is_tensorwise<Tensorwise<Book>> = true;

// The numbers that a parameter is stored as.
template <class Codec> struct NumberOf;
template <class T> struct NumberOf<Plain<T>> { using Type = T; };
template <class T> struct NumberOf<Stochastic<T>> { using Type = T; };
template <class T> struct NumberOf<Kahan<T>> { using Type = T; };
template <class Beside> struct NumberOf<Split<Beside>> { using Type = bf16; };

// A value as a parameter stored so would hold it, rounded to nearest.
template <class Codec> OPTGEN_FUNCTION float rounded(float value) {
  typename NumberOf<Codec>::Type x;
  store(x, value);
  return load(x);
}

}  // namespace optgen
