// Weights and activations as operands of the matrix instruction, in the type of the activations.
//
// Eight codes become four words of two numbers, 2^-7 of the weight each after the multiplication with scale_of(). Word p holds codes
// p and p + 4 (f16 on targets with the instruction that decodes: 2p and 2p + 1), and x lies in memory in the same order.
#pragma once

#include <cstdint>

#include "gb10/types.cuh"
#include "gb10/w4a16.cuh"

namespace gb10::moe_grouped {

inline constexpr float kUnscale = w4a16::kUnscale;

template <typename T>
inline constexpr bool kNaturalOrder = w4a16::kNaturalOrder && !kIsBFloat16<T>;

template <typename T>
__device__ __forceinline__ void operands8(std::uint32_t q, std::uint32_t (&out)[4]) {
  if constexpr (kIsBFloat16<T>) {
    // 2^-126 of the value: the sign in bit 15, the magnitude in bits 8..6, the upper and the lower bytes of four codes at a time.
    std::uint32_t const sign = 0x80808080u, first = 0x01010101u, rest = 0xC0C0C0C0u;
    std::uint32_t const even_low = (q << 6) & rest, even_high = ((q << 4) & sign) | ((q >> 2) & first);
    std::uint32_t const odd_low = (q << 2) & rest, odd_high = (q & sign) | ((q >> 6) & first);
    out[0] = __byte_perm(even_low, even_high, 0x6240);
    out[1] = __byte_perm(odd_low, odd_high, 0x6240);
    out[2] = __byte_perm(even_low, even_high, 0x7351);
    out[3] = __byte_perm(odd_low, odd_high, 0x7351);
  } else {
    w4a16::operands8(q, out);
  }
}

// A block scale, an E4M3 byte, in both halves of a word, as operands8() wants it.
template <typename T>
__device__ __forceinline__ std::uint32_t scale_of(std::uint32_t byte) {
  if constexpr (kIsBFloat16<T>) {
    // As float bits the byte is 2^-120 of the scale, subnormals too; wanted is 2^119 of it, whose lower half is zero.
    return __byte_perm(__float_as_uint(__uint_as_float(byte << 20) * 0x1p120f * 0x1p119f), 0, 0x3232);
  } else {
    return mul2<__half>(twice(static_cast<std::uint16_t>(byte << 7)), twice(w4a16::kNaturalOrder ? 0x4000 : 0x7800));
  }
}

// Eight consecutive activations as they come from memory, put into the order of operands8().
template <typename T>
__device__ __forceinline__ uint4 in_order(uint4 v) {
  if constexpr (kNaturalOrder<T>) return v;
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
          __byte_perm(v.y, v.w, 0x7632)};
}

}  // namespace gb10::moe_grouped
