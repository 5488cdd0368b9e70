// The loops of each codec over a whole tile, a function each.
#include <optgen/tile.h>

using namespace optgen;

#define LOOP __attribute__((flatten)) void

#define BOOK(name, ...)                                                                        \
  LOOP encode_##name(const float* values, const float* scales, __VA_ARGS__::Code* codes) {     \
    __VA_ARGS__::encode<TILE>(values, scales, codes, TILE);                                    \
  }                                                                                            \
  LOOP decode_##name(const __VA_ARGS__::Code* codes, const float* scales, float* values) {     \
    __VA_ARGS__::decode<TILE>(codes, scales, values, TILE);                                    \
  }

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

LOOP encode_bf16(const float* values, bf16* to) { from_floats(values, to, TILE); }
LOOP decode_bf16(const bf16* from, float* values) { to_floats(from, values, TILE); }
LOOP encode_fp16(const float* values, fp16* to) { from_floats(values, to, TILE); }
LOOP decode_fp16(const fp16* from, float* values) { to_floats(from, values, TILE); }
LOOP encode_stochastic_bf16(const float* x, const uint16_t* random, bf16* to) { round_at_random(x, random, to, TILE); }
LOOP encode_stochastic_fp16(const float* x, const uint16_t* random, fp16* to) { round_at_random(x, random, to, TILE); }
LOOP encode_kahan_bf16(const float* values, bf16* to, bf16* rest) { split_kahan(values, to, rest, TILE); }
LOOP decode_kahan_bf16(const bf16* from, const bf16* rest, float* values) { join_kahan(from, rest, values, TILE); }
LOOP encode_kahan_fp16(const float* values, fp16* to, fp16* rest) { split_kahan(values, to, rest, TILE); }
LOOP decode_kahan_fp16(const fp16* from, const fp16* rest, float* values) { join_kahan(from, rest, values, TILE); }
LOOP encode_split8(const float* values, bf16* to, int8_t* beside) { split(values, to, beside, TILE); }
LOOP decode_split8(const bf16* from, const int8_t* beside, float* values) { join_split(from, beside, values, TILE); }
LOOP encode_split16(const float* values, bf16* to, int16_t* beside) { split(values, to, beside, TILE); }
LOOP decode_split16(const bf16* from, const int16_t* beside, float* values) { join_split(from, beside, values, TILE); }
LOOP draw(const Draw& from, int64_t at, uint16_t* random) { draw_tile(from, at, random); }

}  // extern "C"
