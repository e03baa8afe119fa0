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

// ---- For the matrix instruction of warpgroups: bf16, 64 k at a time.

inline constexpr int kWindow = 64;

// What lies at place `i` of a window.
__device__ __forceinline__ constexpr int of_window(int i) { return 16 * (i % 8 / 2) + 8 * (i / 32) + i / 8 % 4 + 4 * (i % 2); }

// Half `h` of a window: of eights h, h + 2, h + 4, h + 6, as they come from memory, the pieces 4 h .. 4 h + 3.
__device__ __forceinline__ void in_windows(uint4 (&v)[4]) {
  uint4 const a = in_order<__nv_bfloat16>(v[0]), b = in_order<__nv_bfloat16>(v[1]), c = in_order<__nv_bfloat16>(v[2]),
              d = in_order<__nv_bfloat16>(v[3]);
  v[0] = {a.x, b.x, c.x, d.x};
  v[1] = {a.y, b.y, c.y, d.y};
  v[2] = {a.z, b.z, c.z, d.z};
  v[3] = {a.w, b.w, c.w, d.w};
}

}  // namespace gb10::moe_grouped
