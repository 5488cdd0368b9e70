// Conversions of n fp16 numbers from and to float.
//
// The results are those of load and store in dtypes.h, taken from the processor's own instructions where it has them
// (F16C, AVX-512, NEON), since compilers do not find those by themselves. NaN keeps its sign and upper bits, and is quiet.
#pragma once

#include "dtypes.h"

#if !defined(OPTGEN_GENERIC) && defined(__F16C__)
#define OPTGEN_F16C 1
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#elif !defined(OPTGEN_GENERIC) && defined(__aarch64__)
#define OPTGEN_NEON_FP16 1
#include <arm_neon.h>
#endif

namespace optgen {

#if defined(OPTGEN_F16C)
// The compilers' own names, since a header of intrinsics takes longer to read than all others together.
typedef short EightHalves __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));
#endif

inline void fp16_to_float(const fp16* from, float* to, int n) {
  int i = 0;
#if defined(OPTGEN_F16C)
#if defined(__AVX512F__)
  constexpr __mmask16 all = 0xffff;  // g++ 12 warns of the forms without a mask
  for (; i + 16 <= n; i += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(all, halves));
  }
#endif
  for (; i + 8 <= n; i += 8) {
    EightHalves halves;
    memcpy(&halves, from + i, sizeof halves);
    const EightFloats floats = __builtin_ia32_vcvtph2ps256(halves);
    memcpy(to + i, &floats, sizeof floats);
  }
#elif defined(OPTGEN_NEON_FP16)
  for (; i + 4 <= n; i += 4) {
    float16x4_t halves;
    memcpy(&halves, from + i, sizeof halves);
    vst1q_f32(to + i, vcvt_f32_f16(halves));
  }
#endif
  for (; i < n; ++i) to[i] = load(from[i]);
}

inline void float_to_fp16(const float* from, fp16* to, int n) {
  int i = 0;
#if defined(OPTGEN_F16C)
#if defined(__AVX512F__)
  constexpr __mmask16 all = 0xffff;  // g++ 12 warns of the forms without a mask
  for (; i + 16 <= n; i += 16) {
    const __m256i halves = _mm512_maskz_cvtps_ph(all, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), halves);
  }
#endif
  for (; i + 8 <= n; i += 8) {
    EightFloats floats;
    memcpy(&floats, from + i, sizeof floats);
    const EightHalves halves = __builtin_ia32_vcvtps2ph256(floats, 0);  // to nearest, ties to even
    memcpy(to + i, &halves, sizeof halves);
  }
#elif defined(OPTGEN_NEON_FP16)
  for (; i + 4 <= n; i += 4) {
    const float16x4_t halves = vcvt_f16_f32(vld1q_f32(from + i));
    memcpy(to + i, &halves, sizeof halves);
  }
#endif
  for (; i < n; ++i) store(to[i], from[i]);
}

// Either 16-bit format.
inline void to_floats(const fp16* from, float* to, int n) { fp16_to_float(from, to, n); }
inline void from_floats(const float* from, fp16* to, int n) { float_to_fp16(from, to, n); }

inline void to_floats(const bf16* from, float* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = load(from[i]);
}
inline void from_floats(const float* from, bf16* to, int n) {
  for (int i = 0; i < n; ++i) store(to[i], from[i]);
}

}  // namespace optgen
