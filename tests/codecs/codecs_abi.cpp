// The headers' functions behind plain C names, for the tests.
#include <optgen/convert.h>
#include <optgen/int8.h>

using namespace optgen;

extern "C" {

float c_finite_absmax(const float* values, int n) { return finite_absmax(values, n); }

void c_encode(int is_signed, const float* values, float absmax, uint8_t* codes, int n) {
  is_signed ? int8_encode<true>(values, absmax, codes, n) : int8_encode<false>(values, absmax, codes, n);
}

void c_decode(int is_signed, const uint8_t* codes, float absmax, float* out, int n) {
  is_signed ? int8_decode<true>(codes, absmax, out, n) : int8_decode<false>(codes, absmax, out, n);
}

void c_encode_blocks(int is_signed, const float* values, float* absmax, uint8_t* codes, int64_t n) {
  for (int64_t at = 0; at < n; at += int8_block) {
    const int count = n - at < int8_block ? int(n - at) : int8_block;
    absmax[at / int8_block] = finite_absmax(values + at, count);
    c_encode(is_signed, values + at, absmax[at / int8_block], codes + at, count);
  }
}

void c_load_bf16(const bf16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

void c_store_bf16(const float* from, bf16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(to[i], from[i]);
}

void c_load_fp16(const fp16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

void c_store_fp16(const float* from, fp16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(to[i], from[i]);
}

void c_fp16_to_float(const fp16* from, float* to, int64_t n) { fp16_to_float(from, to, int(n)); }

void c_float_to_fp16(const float* from, fp16* to, int64_t n) { float_to_fp16(from, to, int(n)); }

}  // extern "C"
