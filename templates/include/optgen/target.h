// The headers of the target that a file is compiled for.
#pragma once

#if defined(__CUDACC__)
#include <optgen/cuda.h>
#else
#include <optgen/cpu.h>
#endif
