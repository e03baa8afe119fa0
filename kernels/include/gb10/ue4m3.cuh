// UE4M3, the block scales of NVFP4: the bits of E4M3FN (bias 7, three mantissa bits, subnormals, no infinity) without a sign.
//
//   byte 0x01 is 2^-9, 0x08 is 2^-6 (the first normal number), 0x7E is 448, 0x7F is NaN.
//
// encode takes a number that is not negative: nearest, ties to the even byte, all above 448 (infinity too) to 0x7E, NaN of
// either sign to 0x7F, -0 to 0. Both routes of arch.cuh and the host give the same bits.
#pragma once

#include <cstdint>

#include "gb10/arch.cuh"
#include "gb10/e2m1.cuh"
#include "gb10/ptx.cuh"

namespace gb10::ue4m3 {

inline constexpr float kMaximum = 448.0f;
inline constexpr float kMinimum = 0x1p-9f;  // the smallest above zero
inline constexpr std::uint32_t kNan = 0x7Fu;

GB10_HOST_DEVICE std::uint32_t encode_software(float x) {
  float const y = x < kMaximum ? x : kMaximum;
  std::uint32_t const bits = e2m1::bits_of(y);
  // Half a step, less one bit when the kept part is even, carries into the kept part exactly when it must.
  std::uint32_t const normal = ((bits + 0x0007FFFFu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);
  // 2^14 has steps of 2^-9: the adder rounds to the subnormal step.
  std::uint32_t const subnormal = e2m1::bits_of(y + 0x1p14f) - e2m1::bits_of(0x1p14f);
  std::uint32_t const byte = y < 0x1p-6f ? subnormal : normal;
  return x != x ? kNan : byte;
}

GB10_HOST_DEVICE std::uint32_t encode(float x) {
#if GB10_HW_E4M3
  return ptx::to_e4m3(x) & 0x7Fu;
#else
  return encode_software(x);
#endif
}

// A byte from 0 to 0x7E to its value. The bits of a float that is 2^120 too small, subnormals too.
GB10_HOST_DEVICE float decode_finite(std::uint32_t byte) { return e2m1::float_of(byte << 20) * 0x1p120f; }

// Any byte up to 0x7F; 0x7F gives NaN.
GB10_HOST_DEVICE float decode(std::uint32_t byte) { return byte == kNan ? e2m1::float_of(0x7FC00000u) : decode_finite(byte); }

}  // namespace gb10::ue4m3
