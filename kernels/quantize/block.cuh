// The arithmetic of one block of 16 values, for the GPU and for the host that tests it.
#pragma once

#include <cstdint>

#include "gb10/arch.cuh"
#include "gb10/e2m1.cuh"
#include "gb10/ue4m3.cuh"

#include "divide.cuh"

namespace gb10::quantize {

inline constexpr int kBlock = 16;  // values that share a scale

struct Quantized {
  std::uint32_t low, high;  // codes 0..7 and 8..15, the first in the lowest bits
  std::uint32_t scale;      // UE4M3
};

// A global scale g, with all that does not depend on the block.
struct Global {
  float scale;
  Reciprocal six_times;  // of 6 g
  bool plain;            // quantize_short covers ordinary blocks
};

GB10_HOST_DEVICE Global prepare(float g) {
  float const six_times = multiply(6.0f, g);
  return {g, reciprocal(six_times), g >= 0x1p-60f && g <= 0x1p60f && !awkward(six_times)};
}

// Quantises the block values.at(0) .. values.at(15), whose largest magnitude is amax, and says whether it could: not when a value
// is NaN or infinite, when amax is 2^20 times 6 g or more, when g is beyond 2^+-60, and for two divisors in a million.
template <typename Values>
GB10_HOST_DEVICE bool quantize_short(Quantized& out, Values const& values, float amax, Global const& global) {
  float const wanted = divide(amax, global.six_times);
  out.scale = ue4m3::encode(wanted > ue4m3::kMinimum ? wanted : ue4m3::kMinimum);
  float const step = multiply(ue4m3::decode_finite(out.scale), global.scale);
  if (!(global.plain && wanted < 0x1p20f) || awkward(step)) return false;
  Reciprocal const by = reciprocal(step);
  float part[8];
  GB10_UNROLL
  for (int i = 0; i < 8; ++i) part[i] = divide(values.at(i), by);
  out.low = e2m1::encode8_no_nan(part);
  GB10_UNROLL
  for (int i = 0; i < 8; ++i) part[i] = divide(values.at(i + 8), by);
  out.high = e2m1::encode8_no_nan(part);
  return true;
}

}  // namespace gb10::quantize
