// How functions of these headers are declared: by a GPU's compiler for both sides.
#pragma once

#if defined(__CUDACC__)
#define OPTGEN_METHOD __host__ __device__
#else
#define OPTGEN_METHOD
#endif
#define OPTGEN_FUNCTION OPTGEN_METHOD inline
