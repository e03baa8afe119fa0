// Numbers of 16 bits: the type that a launch chooses a kernel by, and two of them in a word.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gb10/types.h"

namespace gb10 {

// body.operator()<T>() with the 16-bit type T of `number`.
template <typename Body>
auto with_type(Number number, Body&& body) {
  return number == Number::kBFloat16 ? body.template operator()<__nv_bfloat16>() : body.template operator()<__half>();
}

template <typename T>
inline constexpr bool kIsBFloat16 = __is_same(T, __nv_bfloat16);

// The bits of two numbers as a word, and back.
template <typename V>
__device__ __forceinline__ std::uint32_t word_of(V const& pair) {
  static_assert(sizeof(V) == 4);
  return *reinterpret_cast<std::uint32_t const*>(&pair);
}
template <typename T>
__device__ __forceinline__ auto const& pair_of(std::uint32_t const& word) {
  if constexpr (kIsBFloat16<T>) return *reinterpret_cast<__nv_bfloat162 const*>(&word);
  else return *reinterpret_cast<__half2 const*>(&word);
}

// The same 16 bits in both halves of a word.
__device__ __forceinline__ std::uint32_t twice(std::uint16_t bits) { return bits * 0x00010001u; }

// The products of the lower and of the upper halves.
template <typename T>
__device__ __forceinline__ std::uint32_t mul2(std::uint32_t a, std::uint32_t b) {
  return word_of(__hmul2(pair_of<T>(a), pair_of<T>(b)));
}

// Two numbers of T in a word to floats, and back, rounded to nearest.
template <typename T>
__device__ __forceinline__ float2 floats_of(std::uint32_t word) {
  if constexpr (kIsBFloat16<T>) return {__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u)};
  else return {__low2float(pair_of<T>(word)), __high2float(pair_of<T>(word))};
}
template <typename T>
__device__ __forceinline__ std::uint32_t word_of_floats(float low, float high) {
  if constexpr (kIsBFloat16<T>) return word_of(__floats2bfloat162_rn(low, high));
  else return word_of(__floats2half2_rn(low, high));
}

}  // namespace gb10
