// The kernel of nvfp4_dequantize: a thread makes the 32 numbers of two block scales.
#pragma once

#include <cstdint>

#include "gb10/e2m1.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gb10/ue4m3.cuh"
#include "gb10/w4a16.cuh"
#include "nvfp4_dequantize.h"

namespace gb10::nvfp4_dequantize {

inline constexpr int kThreads = 256;
inline constexpr int kThreadK = 32;

template <typename T, bool kSwizzled>
__global__ void __launch_bounds__(kThreads) dequantize(__grid_constant__ Problem const p) {
  int const pieces = p.k / kThreadK;
  std::int64_t const count = static_cast<std::int64_t>(p.rows) * pieces, step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    int const row = static_cast<int>(i / pieces), piece = static_cast<int>(i % pieces);
    uint4 const codes = *reinterpret_cast<uint4 const*>(p.weight + i * (kThreadK / 2));
    std::uint8_t const* const scales = p.scales + w4a16::scale_offset<kSwizzled>(row, piece / 2 * 4, p.k / 16) + piece % 2 * 2;
    float const factor = p.factors ? p.factors[p.factor_rows == 1 ? 0 : row] : 1.0f;
    uint4* const to = static_cast<uint4*>(p.out) + i * (kThreadK / 8);
    std::uint32_t const words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      std::uint32_t halves[4];
      e2m1::decode8_f16(words[word], halves);
      float const scale = ue4m3::decode(scales[word / 2]) * factor;
#pragma unroll
      for (std::uint32_t& pair : halves) {
        float2 const two = floats_of<__half>(pair);
        pair = word_of_floats<T>(two.x * scale, two.y * scale);
      }
      to[word] = {halves[0], halves[1], halves[2], halves[3]};
    }
  }
}

}  // namespace gb10::nvfp4_dequantize
