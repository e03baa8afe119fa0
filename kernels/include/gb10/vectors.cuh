// Short vectors of 16-bit numbers that a lane loads and stores at once, and sums over a warp.
#pragma once

#include <cstdint>

#include "gb10/types.cuh"

namespace gb10 {

// kCount numbers of 16 bits, two a word; loaded and stored in one instruction.
template <int kCount>
struct alignas(2 * kCount) Vector {
  static_assert(kCount == 2 || kCount == 4 || kCount == 8);
  std::uint32_t words[kCount / 2];
};

template <typename T, int kCount>
__device__ __forceinline__ void unpack(Vector<kCount> const& raw, float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    float2 const pair = floats_of<T>(raw.words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <typename T, int kCount>
__device__ __forceinline__ Vector<kCount> pack(float const (&values)[kCount]) {
  Vector<kCount> raw;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) raw.words[i] = word_of_floats<T>(values[2 * i], values[2 * i + 1]);
  return raw;
}

// Rounded to T.
template <typename T, int kCount>
__device__ __forceinline__ void round_to(float (&values)[kCount]) {
  unpack<T>(pack<T>(values), values);
}

// What an RMSNorm makes of numbers already multiplied by the inverse root. With `plus_one` as vLLM's GemmaRMSNorm: times weight + 1,
// rounded once. Without as its RMSNorm: rounded, times weight, rounded.
template <typename T, int kCount>
__device__ __forceinline__ void scale_norm(float (&values)[kCount], Vector<kCount> const& weight, bool plus_one) {
  float factors[kCount];
  unpack<T>(weight, factors);
  if (!plus_one) round_to<T>(values);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] *= plus_one ? factors[i] + 1.0f : factors[i];
}

// The same sum in every lane.
__device__ __forceinline__ float sum_of_warp(float v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, step);
  return v;
}

}  // namespace gb10
