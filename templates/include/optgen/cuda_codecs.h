// Codes of states on a GPU, and the number of elements that a lane moves at once.
#pragma once

#include <optgen/codecs.h>
#include <optgen/dtypes.h>
#include <stdint.h>

namespace optgen {

// Books of quantized states, with and without a sign.
template <bool is_signed> struct Int8 {};
template <bool is_signed, class Numbers = DynamicMap> struct Int4 {};  // two codes a byte, the first in its upper half
template <bool is_signed> struct Fp8 {};
template <bool is_signed> struct Companded8 {};

// True for a state with codes of this book.
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
