// C's functions of numbers, and infinity.
//
// Compilers know them by names of their own. The header that declares them for C++ has twenty thousand lines besides,
// which took longer to read than all headers of a kernel together.
#pragma once

#if defined(__CUDACC_RTC__)
#define OPTGEN_INFINITY __builtin_bit_cast(float, 0x7f800000)
#define OPTGEN_NAN __builtin_bit_cast(float, 0x7fc00000)
#else
#define OPTGEN_INFINITY __builtin_huge_valf()
#define OPTGEN_NAN __builtin_nanf("")
#endif

#if defined(__CUDACC__)
#include <math.h>
#define OPTGEN_LIBM(name) ::name
#else
#define OPTGEN_LIBM(name) __builtin_##name
#endif
