// The headers' functions behind plain C names, for the tests.
#include <optgen/convert.h>
#include <optgen/tile.h>

using namespace optgen;

namespace {

template <class Codec> void encode(const float* x, void* data, void* aside, int64_t n, float new_scale) {
  Tile<Codec> tile;
  for (int64_t at = 0; at < n; at += TILE) {
    const int count = n - at < TILE ? int(n - at) : TILE;
    auto* const values = tile.open_new(data, aside, at, count);
    for (int i = 0; i < count; ++i) store(values[i], x[at + i]);
    tile.measure();
    tile.close(new_scale);
  }
}

template <class Codec>
void encode_parameter(const float* x, void* data, void* aside, int64_t n, uint64_t seed, uint32_t position, uint32_t step) {
  Tile<Codec> tile;
  tile.draws(Draw{seed, position, step}, 0);
  for (int64_t at = 0; at < n; at += TILE) {
    const int count = n - at < TILE ? int(n - at) : TILE;
    auto* const values = tile.open_new(data, aside, at, count);
    for (int i = 0; i < count; ++i) store(values[i], x[at + i]);
    tile.close(0.0f);
  }
}

template <class Codec> void decode(void* data, void* aside, float* out, int64_t n) {
  Tile<Codec> tile;
  for (int64_t at = 0; at < n; at += TILE) {
    const int count = n - at < TILE ? int(n - at) : TILE;
    const auto* const values = tile.open(data, aside, at, count);
    for (int i = 0; i < count; ++i) out[at + i] = load(values[i]);
  }
}

}  // namespace

#define STATE(name, ...)                                                                                     \
  void encode_##name(const float* x, void* data, void* aside, int64_t n, float new_scale) {                  \
    encode<__VA_ARGS__>(x, data, aside, n, new_scale);                                                       \
  }                                                                                                          \
  void decode_##name(void* data, void* aside, float* out, int64_t n) { decode<__VA_ARGS__>(data, aside, out, n); }

#define BOOK(name, ...)                        \
  STATE(name##_32, Blocked<__VA_ARGS__, 32>)   \
  STATE(name##_64, Blocked<__VA_ARGS__, 64>)   \
  STATE(name##_128, Blocked<__VA_ARGS__, 128>) \
  STATE(name##_256, Blocked<__VA_ARGS__, 256>) \
  STATE(name##_tensor, Tensorwise<__VA_ARGS__>)

#define PARAMETER(name, ...)                                                                                  \
  void encode_##name(const float* x, void* data, void* aside, int64_t n, uint64_t seed, uint32_t position,    \
                     uint32_t step) {                                                                         \
    encode_parameter<__VA_ARGS__>(x, data, aside, n, seed, position, step);                                   \
  }                                                                                                           \
  void decode_##name(void* data, void* aside, float* out, int64_t n) { decode<__VA_ARGS__>(data, aside, out, n); }

extern "C" {

BOOK(int8_signed, Int8<true>)
BOOK(int8_unsigned, Int8<false>)
BOOK(int4_signed, Int4<true>)
BOOK(int4_unsigned, Int4<false>)
BOOK(normal4_signed, Int4<true, NormalBook>)
BOOK(normal4_unsigned, Int4<false, NormalBook>)
BOOK(fp8_signed, Fp8<true>)
BOOK(fp8_unsigned, Fp8<false>)
BOOK(companded8_signed, Companded8<true>)
BOOK(companded8_unsigned, Companded8<false>)

PARAMETER(nearest_float32, Plain<float>)
PARAMETER(nearest_bfloat16, Plain<bf16>)
PARAMETER(nearest_float16, Plain<fp16>)
PARAMETER(stochastic_bfloat16, Stochastic<bf16>)
PARAMETER(stochastic_float16, Stochastic<fp16>)
PARAMETER(kahan_bfloat16, Kahan<bf16>)
PARAMETER(kahan_float16, Kahan<fp16>)
PARAMETER(split8_bfloat16, Split<int8_t>)
PARAMETER(split16_bfloat16, Split<int16_t>)

void c_philox(const uint32_t* counter, uint64_t key, uint32_t* out) {
  const Words words = philox({{counter[0], counter[1], counter[2], counter[3]}}, key);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

void c_draw_tile(uint64_t seed, uint32_t position, uint32_t step, int64_t at, uint16_t* random) {
  draw_tile(Draw{seed, position, step}, at, random);
}

float c_finite_absmax(const float* values, int n) { return finite_absmax(values, n); }

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
