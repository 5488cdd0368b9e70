// Declarations of functions in these headers: a GPU's compiler makes them for both sides.
#pragma once

#if defined(__CUDACC__)
#define OPTGEN_METHOD __host__ __device__
#else
#define OPTGEN_METHOD
#endif
#define OPTGEN_FUNCTION OPTGEN_METHOD inline

// Functions of a rule: for the side that runs its kernels; and those that are a part of the loop that calls them.
#if defined(__CUDACC__)
#define OPTGEN_TARGET [[maybe_unused]] __device__ inline
#define OPTGEN_INLINE __device__ __forceinline__
#else
#define OPTGEN_TARGET inline
#define OPTGEN_INLINE __attribute__((always_inline)) inline
#endif
#define OPTGEN_INLINED __attribute__((always_inline))

// Of a table that is a static member; NVRTC takes none there.
#if defined(__CUDACC_RTC__)
#define OPTGEN_ALIGNED(bytes)
#else
#define OPTGEN_ALIGNED(bytes) alignas(bytes)
#endif
