// E2M1, the 4-bit floating-point format of NVFP4: sign, two exponent bits, one mantissa bit.
//
//   code      0  1    2  3    4  5  6  7      8..15: the same, negative (8 is -0)
//   value     0  0.5  1  1.5  2  3  4  6
//
// encode rounds to nearest, ties to the even code; -0 keeps its sign; +-inf and all beyond saturate to +-6; a NaN of either
// sign gives 0x7 (+6), as the hardware does. Both routes of arch.cuh and the host give the same bits for all 2^32 floats.
//
// The software route has no branch. Up to 6 the code is a concave function of the magnitude a, the least of three lines:
//
//   code = round(min(2 a, a + 2, a / 2 + 4))          half a code up or down is a tie, and goes to the even code
//
// Adding 2^23 makes the float adder round a line to an integer, ties to even, in one rounding. The sum is then 2^23 + code, so
// its bits are 0x4B000000 + code: they compare as integers, and eight of them add up to a word of nibbles.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "gb10/arch.cuh"
#include "gb10/ptx.cuh"

#if !defined(__CUDA_ARCH__)
#include <cmath>
#include <cstring>
#endif

namespace gb10::e2m1 {

inline constexpr float kMaximum = 6.0f;

GB10_HOST_DEVICE std::uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

GB10_HOST_DEVICE float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

// The lesser of x and 6; 6 when x is NaN.
GB10_HOST_DEVICE float at_most_maximum(float x) {
#if defined(__CUDA_ARCH__)
  return fminf(x, kMaximum);
#else
  return x < kMaximum ? x : kMaximum;
#endif
}

inline constexpr std::uint32_t kMagic = 0x4B000000u;  // the bits of 2^23

// 2^23 + code as float bits, for a magnitude of 0..6. The products are exact: contraction to FMA changes nothing.
GB10_HOST_DEVICE std::uint32_t magnitude_plus_magic(float a) {
  std::int32_t const below2 = static_cast<std::int32_t>(bits_of(a * 2.0f + 8388608.0f));
  std::int32_t const below4 = static_cast<std::int32_t>(bits_of(a + 8388610.0f));
  std::int32_t const above4 = static_cast<std::int32_t>(bits_of(a * 0.5f + 8388612.0f));
  std::int32_t const pair = below2 < below4 ? below2 : below4;
  return static_cast<std::uint32_t>(pair < above4 ? pair : above4);
}

// One value to one code, without branches.
GB10_HOST_DEVICE std::uint32_t encode_software(float x) {
  float const y = at_most_maximum(x);  // a NaN is +6 from here on
  std::uint32_t const magnitude = magnitude_plus_magic(at_most_maximum(fabsf(y))) - kMagic;
  return magnitude | ((bits_of(y) >> 28) & 8u);
}

// The sign of value i in bit 4i + 3, of eight values.
GB10_HOST_DEVICE std::uint32_t signs8(float const (&v)[8]) {
  std::uint32_t even, odd;
#if defined(__CUDA_ARCH__)
  // The top bytes of two values at the bottom of a word, then the four of two such words.
  even = __byte_perm(__byte_perm(bits_of(v[0]), bits_of(v[2]), 0x0073), __byte_perm(bits_of(v[4]), bits_of(v[6]), 0x0073), 0x5410);
  odd = __byte_perm(__byte_perm(bits_of(v[1]), bits_of(v[3]), 0x0073), __byte_perm(bits_of(v[5]), bits_of(v[7]), 0x0073), 0x5410);
#else
  even = odd = 0;
  for (int i = 0; i < 4; ++i) {
    even |= bits_of(v[2 * i]) >> 24 << (8 * i);
    odd |= bits_of(v[2 * i + 1]) >> 24 << (8 * i);
  }
#endif
  return ((even >> 4) & 0x08080808u) | (odd & 0x80808080u);
}

// Eight values, none of them NaN, to one word in software; value i in bits 4i..4i+3.
GB10_HOST_DEVICE std::uint32_t encode8_software_no_nan(float const (&v)[8]) {
  std::uint32_t sum = 0;
  GB10_UNROLL
  for (int i = 7; i >= 0; --i) sum = sum * 16u + magnitude_plus_magic(at_most_maximum(fabsf(v[i])));
  std::uint32_t const magics = kMagic * 0x11111111u;  // what the eight magic numbers add up to
  return (sum - magics) | signs8(v);
}

GB10_HOST_DEVICE std::uint32_t encode8_software(float const (&v)[8]) {
  float y[8];
  GB10_UNROLL
  for (int i = 0; i < 8; ++i) y[i] = at_most_maximum(v[i]);
  return encode8_software_no_nan(y);
}

// Eight values to one word; value i in bits 4i..4i+3.
GB10_HOST_DEVICE std::uint32_t encode8(float const (&v)[8]) {
#if GB10_HW_E2M1
  return ptx::to_e2m1(v);
#else
  return encode8_software(v);
#endif
}

// The same for a caller who knows that no value is NaN: eight instructions less in software.
GB10_HOST_DEVICE std::uint32_t encode8_no_nan(float const (&v)[8]) {
#if GB10_HW_E2M1
  return ptx::to_e2m1(v);
#else
  return encode8_software_no_nan(v);
#endif
}

// One code (0..15) to its value.
GB10_HOST_DEVICE float decode(std::uint32_t code) {
  // The three magnitude bits are the lowest exponent bits and the first mantissa bit of a float that is 2^126 too small.
  float const magnitude = float_of((code & 7u) << 22) * 0x1p126f;
  return code & 8u ? -magnitude : magnitude;
}

// Eight codes to eight f16 numbers, exact: word p of `out` holds the bits of value 2p at the bottom and of value 2p + 1 at the top.
GB10_HOST_DEVICE void decode8_f16(std::uint32_t word, std::uint32_t (&out)[4]) {
#if GB10_HW_E2M1
  ptx::from_e2m1(word, out);
#else
  GB10_UNROLL
  for (int p = 0; p < 4; ++p) {
    std::uint32_t const pair = word >> (8 * p);
    std::uint32_t const sign = ((pair << 12) & 0x8000u) | ((pair << 24) & 0x80000000u);
    std::uint32_t const code = (pair & 7u) | ((pair << 12) & 0x00070000u);
    // From code 2 on the f16 bits are 0x3800 + code * 2^9. Code 1 is 2^9 below that, code 0 is zero.
    std::uint32_t const not_zero = (code | (code >> 1) | (code >> 2)) & 0x00010001u;
    std::uint32_t const two_or_more = ((code >> 1) | (code >> 2)) & 0x00010001u;
    out[p] = sign | (not_zero * 0x3600u + two_or_more * 0x0200u + code * 0x0200u);
  }
#endif
}

}  // namespace gb10::e2m1
